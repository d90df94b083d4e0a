"""Reading and writing SDXL as one .safetensors in the original layout, without any hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from acmsao_cli.errors import ModelError
from acmsao_cli.models.fitting import require_finite, require_floats
from acmsao_cli.models.locate import by_name
from acmsao_cli.models.safetensors_header import Header, read_header
from acmsao_cli.models.safetensors_writer import DTYPES, Entry, entry, write_safetensors
from acmsao_cli.models.sdxl.clip_tokenizer import clip_tokenizers
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    SDXL_SCHEDULER,
    Components,
    Config,
    check_fit,
    empty_component,
)
from acmsao_cli.models.sdxl.layout import PREFIXES, Place, Shape, places
from acmsao_cli.models.sdxl.settings import (
    INDEX,
    Settings,
    pack_settings,
    read_settings,
    settings_files,
    unpack_settings,
)
from acmsao_cli.models.sdxl.shapes import derive_configs

SETTINGS_KEY = "acmsao.settings"
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
# Buffers and unused weights that other programs leave in their files.
LEFTOVERS = ("position_ids", "logit_scale", "attn_mask")


class SingleFileSource:
    """Weights in the original layout; the settings from a given folder, else from its header, a
    folder beside, or shapes.
    """

    def __init__(self, path: Path, config: Path | None = None) -> None:
        self.path = path
        self._header = read_header(path)
        _check_kind(self._header)
        self._config = _described_in(self._header, config)
        settings, self.notes = _settings(self._header, self._config)
        self.settings: Settings = settings
        check_fit(settings.configs, path)
        self._modules = {component: self.sketch(component) for component in CLASSES}
        self._places = {component: self._placed(component) for component in CLASSES}
        self._check_leftovers()

    def num_parameters(self) -> dict[str, int]:
        """Weights by component."""
        return {
            component: sum(parameter.numel() for parameter in module.parameters())
            for component, module in self._modules.items()
        }

    def files(self) -> dict[str, Path]:
        """The file, whatever it is called, and what is read of a folder that describes it."""
        there = by_name(settings_files(self._config), self._config) if self._config else {}
        described = {f"config/{name}": file for name, file in there.items()}
        return {"model.safetensors": self.path, **described}

    def stored_dtype(self, component: str) -> torch.dtype:
        """That of most of a component's weights."""
        return DTYPES.get(self._header.main_dtype(PREFIXES[component]), torch.float32)

    def sketch(self, component: str) -> nn.Module:
        """A component on the meta device, which the weights are known to fill."""
        return empty_component(component, self.settings.configs[component], self.path)

    @torch.no_grad()
    def read(self, component: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A component with its weights, copied and cast one at a time."""
        module = self.sketch(component)
        shapes = _shapes(module)
        with safe_open(self.path, framework="pt") as file:
            weights = {
                name: place.take(file.get_tensor(place.key), shapes[name])
                .to(device, dtype, copy=True)
                .contiguous()
                for name, place in self._places[component].items()
            }
        module.load_state_dict(weights, strict=True, assign=True)
        require_finite(module, self.path)
        return module.to(device).eval()

    def _placed(self, component: str) -> dict[str, Place]:
        """Where each weight of a component is, once its shape in the file is checked."""
        shapes = _shapes(self._modules[component])
        try:
            found = places(component, self.settings.configs[component], shapes)
        except KeyError as error:
            raise ModelError(
                f"{self.path}: {component} has {error}, for which the original layout has no name"
            ) from error
        for name, place in found.items():
            stored = self._header.tensors.get(place.key)
            if stored is None:
                raise ModelError(f"{self.path} is incomplete: it has no {place.key}")
            if stored.shape not in place.stored_shapes(shapes[name]):
                raise ModelError(
                    f"{self.path}: {place.key} has the shape {list(stored.shape)}, expected "
                    f"{list(place.stored_shapes(shapes[name])[0])}"
                )
        require_floats([self._header], {place.key for place in found.values()})
        return found

    def _check_leftovers(self) -> None:
        used = {place.key for found in self._places.values() for place in found.values()}
        for name in self._header.tensors:
            inside = name.startswith(tuple(PREFIXES.values()))
            if inside and name not in used and not name.endswith(LEFTOVERS):
                raise ModelError(
                    f"{self.path}: {name} belongs to no part of the SDXL it seems to be",
                    hint="is it a model of another architecture, or a merge gone wrong?",
                )


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _check_kind(header: Header) -> None:
    """Tell what the file is, if not a whole SDXL."""
    names, path = header.tensors, header.path

    def any_begins(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if any_begins("lora_", "unet.", "text_encoder.") or any(".lora_" in name for name in names):
        raise ModelError(
            f"{path} is a LoRA, not a model", hint="model.source is the model it was made for"
        )
    if any_begins("cond_stage_model."):
        raise ModelError(f"{path} is an SD 1.x or 2.x model; SDXL can be trained here")
    if any_begins("down_blocks.", "encoder.down_blocks."):
        raise ModelError(
            f"{path} is one component of a diffusers folder",
            hint="give model.source the folder that has model_index.json",
        )
    missing = [part for part, prefix in PREFIXES.items() if not any_begins(prefix)]
    if missing:
        raise ModelError(
            f"{path} is not a whole SDXL model: it has no {', '.join(missing)}",
            hint="UNet-only files and refiners cannot be trained",
        )


def _described_in(header: Header, config: Path | None) -> Path | None:
    """The folder that describes the file: `config`, else one beside, unless its header does."""
    if config is not None:
        return config
    if SETTINGS_KEY in header.metadata:
        return None
    beside = (header.path.with_suffix(""), header.path.parent)
    return next((folder for folder in beside if (folder / INDEX).is_file()), None)


def _settings(header: Header, config: Path | None) -> tuple[Settings, Mapping[str, str]]:
    """From the folder `config`, else from our own header, or the shapes; with notes on it."""
    path = header.path
    if config is not None:
        return _marked(read_settings(config), header), {"configuration": f"from {config}"}
    if SETTINGS_KEY in header.metadata:
        return _packed_settings(header), {}
    configs = derive_configs({name: tensor.shape for name, tensor in header.tensors.items()}, path)
    first, second = clip_tokenizers()
    settings = Settings(configs, SDXL_SCHEDULER, True, first, second)
    notes = {
        "configuration": "from the shapes of the weights; as in SDXL: attention heads of 64, "
        "norms of 32 groups, latents scaled by 0.13025"
    }
    return _marked(settings, header), notes


def _packed_settings(header: Header) -> Settings:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack_settings(header.metadata[SETTINGS_KEY], folder, header.path)
        if not (folder / "tokenizer").exists():
            for name, tokenizer in zip(
                ("tokenizer", "tokenizer_2"), clip_tokenizers(), strict=True
            ):
                tokenizer.save_pretrained(str(folder / name))
        return read_settings(folder)


def _marked(settings: Settings, header: Header) -> Settings:
    """The file's own marks win over a folder beside it: they travel with the weights."""
    marks: dict[str, object] = {}
    if V_MARK in header.tensors or header.metadata.get("modelspec.prediction_type") == "v":
        marks["prediction_type"] = "v_prediction"
    if ZERO_SNR_MARK in header.tensors:
        marks["rescale_betas_zero_snr"] = True
    scheduler: Config = {**settings.scheduler, **marks}
    return Settings(
        settings.configs, scheduler, settings.force_zeros, settings.tokenizer, settings.tokenizer_2
    )


def write_single_file(
    parts: Components, path: Path, dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> None:
    """The original layout, marks for what the layout leaves open, and the settings."""
    entries: dict[str, Entry] = {}
    for component, dtype in dtypes.items():
        entries |= _entries(parts, component, dtype)
    scheduler = parts.scheduler
    if scheduler.get("prediction_type") == "v_prediction":
        entries[V_MARK] = entry(torch.zeros(0))
    if scheduler.get("rescale_betas_zero_snr"):
        entries[ZERO_SNR_MARK] = entry(torch.zeros(0))
    known = clip_tokenizers()[0].get_vocab()
    foreign = any(tok.get_vocab() != known for tok in (parts.tokenizer, parts.tokenizer_2))
    settings = {SETTINGS_KEY: pack_settings(parts, with_tokenizers=foreign), "format": "pt"}
    write_safetensors(path, entries, {**metadata, **settings})


def _entries(parts: Components, component: str, dtype: torch.dtype) -> dict[str, Entry]:
    """A component's weights in the original layout; fused ones are joined when written."""
    module = parts.module(component)
    parameters = dict(module.named_parameters())
    found = places(component, parts.config(component), _shapes(module))
    grouped: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, place in found.items():
        grouped.setdefault(place.key, []).append((place, parameters[name]))
    return {
        key: Entry(
            group[0][0].stored_shapes(tuple(group[0][1].shape))[0],
            dtype,
            lambda group=group: _join(group),  # type: ignore[misc]
        )
        for key, group in grouped.items()
    }


def _join(group: list[tuple[Place, Tensor]]) -> Tensor:
    place, tensor = group[0]
    if place.third is not None:
        return torch.cat([part for _, part in sorted(group, key=lambda pair: pair[0].third or 0)])
    if place.transposed:
        return tensor.t()
    return tensor.reshape(place.stored_shapes(tuple(tensor.shape))[0])
