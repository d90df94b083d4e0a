"""Reading SDXL from a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CLIPTextConfig, PreTrainedTokenizerBase

from acmsao_cli.errors import ModelError
from acmsao_cli.models.locate import read_json, weight_files
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    TEXT_ENCODERS,
    Config,
    check_fit,
    library_class,
)

INDEX = "model_index.json"
# What a download from the hub needs; the pickled and other-framework copies stay there.
HUB_PATTERNS = (
    INDEX,
    "scheduler/*.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
    *(
        pattern
        for component in CLASSES
        for stem in (f"{component}/model", f"{component}/diffusion_pytorch_model")
        for pattern in (
            f"{component}/config.json",
            f"{stem}.safetensors",
            f"{stem}.safetensors.index.json",
            f"{stem}-?????-of-?????.safetensors",
        )
    ),
)
VARIANTS = ("", ".fp16")


class FolderSource:
    """A diffusers folder: a subfolder with config.json and safetensors for each component."""

    def __init__(self, path: Path) -> None:
        index = read_index(path)
        self.path = path
        self.configs: Mapping[str, Config] = {
            component: component_config(path, component) for component in CLASSES
        }
        self.scheduler: Config = read_json(path / "scheduler" / "scheduler_config.json")
        self.force_zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        self.notes: Mapping[str, str] = {}
        self._tokenizer_classes = [_class_name(index, name) for name in TOKENIZERS]
        check_fit(self.configs, path)

    def num_parameters(self) -> dict[str, int]:
        """Weights by component, from the files' headers."""
        return {
            component: sum(read_header(file).num_parameters for file in self._files(component)[0])
            for component in CLASSES
        }

    def read(self, component: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A component through its library's own loader, which casts tensor by tensor."""
        files, variant = self._files(component)
        for file in files:
            read_header(file)
        folder = self.path / component
        cast = "dtype" if component in TEXT_ENCODERS else "torch_dtype"
        try:
            with quiet_libraries():
                module, info = CLASSES[component].from_pretrained(
                    folder,
                    variant=variant or None,
                    use_safetensors=True,
                    low_cpu_mem_usage=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **{cast: dtype},
                )
        except Exception as error:  # the libraries raise many classes for weights that do not fit
            raise ModelError(f"{folder} cannot be loaded: {error}") from error
        _check_complete(folder, info)
        return own_weights(module).to(device)

    def tokenizers(self) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        """Those of the two text encoders."""
        first, second = (
            read_tokenizer(self.path / name, class_name)
            for name, class_name in zip(TOKENIZERS, self._tokenizer_classes, strict=True)
        )
        return first, second

    def _files(self, component: str) -> tuple[list[Path], str]:
        """A component's weight files, and which variant they are."""
        folder = self.path / component
        stem = "model" if component in TEXT_ENCODERS else "diffusion_pytorch_model"
        for variant in VARIANTS:
            name = f"{stem}{variant}"
            if any((folder / f"{name}.safetensors{end}").is_file() for end in ("", ".index.json")):
                return weight_files(folder, name), variant.removeprefix(".")
        return weight_files(folder, stem), ""


TOKENIZERS = ("tokenizer", "tokenizer_2")


def read_index(path: Path) -> dict[str, object]:
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


def component_config(path: Path, component: str) -> Config:
    """A component's configuration; a text encoder's with the library's defaults filled in."""
    file = path / component / "config.json"
    config = read_json(file)
    if component in TEXT_ENCODERS:
        try:
            filled: Config = CLIPTextConfig(**config).to_dict()
        except Exception as error:
            raise ModelError(f"{file} does not describe a CLIP text encoder: {error}") from error
        return filled
    wanted = CLASSES[component].__name__
    if config.get("_class_name", wanted) != wanted:
        raise ModelError(f"{file} describes a {config['_class_name']}; SDXL has a {wanted}")
    for name in ("block_out_channels", "in_channels"):
        if name not in config:
            raise ModelError(f"{file} lacks {name}")
    return {"latent_channels": 4, **config} if component == "vae" else config


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
    except Exception as error:
        raise ModelError(f"{folder} holds no usable tokenizer: {error}") from error
    return tokenizer


def _class_name(index: Mapping[str, object], name: str) -> str:
    match index.get(name):
        case [_, str(class_name)]:
            return class_name
    return "CLIPTokenizer"


def _check_complete(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse weights that do not cover the network: it would run with random numbers."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [str(name) for name in info.get(kind, ()) if "position_ids" not in str(name)]
        if names:
            raise ModelError(
                f"the weights in {folder} do not match its config.json: "
                f"{kind.replace('_', ' ')} {', '.join(sorted(names)[:3])} ({len(names)} in all)"
            )


def own_weights(module: nn.Module) -> nn.Module:
    """Copy weights that are views of a file, one at a time.

    A file that is changed under a running training would change or kill it.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module
