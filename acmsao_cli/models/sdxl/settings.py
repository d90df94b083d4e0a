"""All of an SDXL model but its weights: configurations, tokenizers, scheduler.

A diffusers folder holds them as small files; our single files carry those files in their header.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import CLIPTextConfig, PreTrainedTokenizerBase

from acmsao_cli.errors import ModelError
from acmsao_cli.models.locate import read_json, require_plain_files
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    TEXT_ENCODERS,
    Components,
    Config,
    check_fit,
    check_layers,
    check_scheduler,
    library_class,
)

INDEX = "model_index.json"
ORIGIN = "_name_or_path"
TOKENIZERS = ("tokenizer", "tokenizer_2")
# All that the libraries read of a folder.
FILES = (INDEX, "*/*.json", "*/*.txt", "*/*.safetensors")
SETTING = re.compile(
    r"model_index\.json"
    r"|(unet|vae|text_encoder|text_encoder_2)/config\.json"
    r"|scheduler/scheduler_config\.json"
    r"|(tokenizer|tokenizer_2)/(tokenizer|tokenizer_config|special_tokens_map)\.json"
)


@dataclass(frozen=True)
class Settings:
    """What is known of a model before its weights are read."""

    configs: Mapping[str, Config]
    scheduler: Config
    force_zeros: bool
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase


def read_settings(path: Path) -> Settings:
    """Those of the diffusers folder at `path`. Raises ModelError unless it is a whole SDXL's."""
    require_plain_files(path, FILES)
    index = _read_index(path)
    configs = {component: _component_config(path, component) for component in CLASSES}
    check_fit(configs, path)
    first, second = (read_tokenizer(path / name, _class_name(index, name)) for name in TOKENIZERS)
    for tokenizer, component in ((first, "text_encoder"), (second, "text_encoder_2")):
        if len(tokenizer) > configs[component]["vocab_size"]:
            raise ModelError(
                f"{path}: a tokenizer has {len(tokenizer)} tokens, but {component} knows "
                f"{configs[component]['vocab_size']}"
            )
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    check_scheduler(scheduler, path / "scheduler" / "scheduler_config.json")
    return Settings(
        configs,
        scheduler=scheduler,
        force_zeros=bool(index.get("force_zeros_for_empty_prompt", True)),
        tokenizer=first,
        tokenizer_2=second,
    )


def settings_files(path: Path) -> list[Path]:
    """What `read_settings` reads."""
    configs = [path / component / "config.json" for component in CLASSES]
    words = [
        file
        for name in TOKENIZERS
        for pattern in ("*.json", "*.txt")
        for file in (path / name).glob(pattern)
    ]
    return [path / INDEX, path / "scheduler" / "scheduler_config.json", *configs, *words]


def _read_index(path: Path) -> dict[str, object]:
    """The folder's table of contents, if it is a whole SDXL's."""
    if not (path / INDEX).is_file():
        raise ModelError(
            f"{path} is not a diffusers folder: it has no {INDEX}",
            hint="give the folder above unet/ and vae/, or a single-file .safetensors",
        )
    index = read_json(path / INDEX)
    kind = str(index.get("_class_name", ""))
    if not kind.startswith("StableDiffusionXL"):
        raise ModelError(f"{path} is a {kind or 'folder of unknown kind'}, not an SDXL pipeline")
    for name in (*CLASSES, *TOKENIZERS, "scheduler"):
        if index.get(name) in (None, [None, None]):
            raise ModelError(f"{path} has no {name}", hint="the SDXL refiner cannot be trained")
        if not (path / name).is_dir():
            raise ModelError(f"{path} is incomplete: the folder {name} is missing")
    return index


def _component_config(path: Path, component: str) -> Config:
    """A component's configuration; a text encoder's with the library's defaults filled in."""
    file = path / component / "config.json"
    config = read_json(file)
    check_layers(config, file)
    if component in TEXT_ENCODERS:
        try:
            filled: Config = CLIPTextConfig(**config).to_dict()
        except Exception as error:  # whatever a wrong value makes the library raise
            raise ModelError(f"{file} does not describe a CLIP text encoder: {error}") from error
        return filled
    wanted = CLASSES[component].__name__
    if config.get("_class_name", wanted) != wanted:
        raise ModelError(f"{file} describes a {config['_class_name']}; SDXL has a {wanted}")
    for name in ("block_out_channels", "in_channels"):
        if name not in config:
            raise ModelError(f"{file} lacks {name}")
    if component != "vae":
        return config
    scale = config.get("scaling_factor", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ModelError(f"{file}: scaling_factor is {scale!r}; a number above 0 is needed")
    return {"latent_channels": 4, **config}


def read_tokenizer(folder: Path, class_name: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder`; its class has to be one of transformers'."""
    found = library_class(transformers, class_name, PreTrainedTokenizerBase)
    if found is None:
        raise ModelError(f"{folder}: {class_name!r} is not a tokenizer of transformers")
    try:
        with quiet_libraries():
            tokenizer: PreTrainedTokenizerBase = found.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged file makes the library raise
        raise ModelError(f"{folder} holds no usable tokenizer: {error}") from error
    return tokenizer


def _class_name(index: Mapping[str, object], name: str) -> str:
    match index.get(name):
        case [_, str(class_name)]:
            return class_name
    return "CLIPTokenizer"


def write_settings(parts: Components, folder: Path) -> None:
    """The files that `read_settings` and diffusers read, into `folder`."""
    pipeline = parts.pipeline()
    with quiet_libraries():
        pipeline.save_config(folder)
        pipeline.scheduler.save_config(folder / "scheduler")
        parts.unet.save_config(folder / "unet")
        parts.vae.save_config(folder / "vae")
        for component in TEXT_ENCODERS:
            config = parts.config(component)
            config.architectures = [CLASSES[component].__name__]
            config.save_pretrained(folder / component)
        for name in TOKENIZERS:
            _write_tokenizer(getattr(parts, name), folder / name)
    for file in sorted(folder.rglob("*config.json")):
        _forget_origin(file)


def _forget_origin(file: Path) -> None:
    """Leave out where the library read a component from: a path of this machine."""
    settings = json.loads(file.read_text("utf-8"))
    if settings.pop(ORIGIN, None) is not None:
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json, and the older vocab.json and merges.txt that other programs still read."""
    tokenizer.save_pretrained(str(folder))
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    if model.get("type") == "BPE":
        vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
        (folder / "vocab.json").write_text(vocabulary, "utf-8")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")


def pack_settings(parts: Components, with_tokenizers: bool) -> str:
    """The small files as one text, for a single file's header."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_settings(parts, folder)
        names = [str(file.relative_to(folder).as_posix()) for file in sorted(folder.rglob("*"))]
        kept = [name for name in names if SETTING.fullmatch(name)]
        if not with_tokenizers:
            kept = [name for name in kept if not name.startswith("tokenizer")]
        return json.dumps({name: (folder / name).read_text("utf-8") for name in kept})


def unpack_settings(text: str, folder: Path, place: Path) -> None:
    """Write packed files into `folder`; names that are not settings are refused."""
    try:
        files = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{place}: the settings in its header cannot be read: {error}") from error
    if not isinstance(files, dict):
        raise ModelError(f"{place}: the settings in its header are malformed")
    for name, content in files.items():
        if not SETTING.fullmatch(name) or not isinstance(content, str):
            raise ModelError(f"{place}: its header brings an unknown setting {name!r}")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "utf-8")
