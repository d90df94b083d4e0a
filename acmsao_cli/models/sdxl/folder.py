"""Reading and writing SDXL as a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig

from acmsao_cli.errors import ModelError
from acmsao_cli.models.fitting import (
    compare,
    rehearse,
    require_finite,
    require_fit,
    require_floats,
    shapes_of,
)
from acmsao_cli.models.locate import by_name, index_of, weight_files
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.safetensors_writer import DTYPES, entry, write_safetensors
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    TEXT_ENCODERS,
    Components,
    empty_component,
)
from acmsao_cli.models.sdxl.layout import clip_name
from acmsao_cli.models.sdxl.settings import (
    INDEX,
    Settings,
    read_settings,
    settings_files,
    write_settings,
)

VARIANTS = ("", ".fp16")
STEMS = {
    component: "model" if component in TEXT_ENCODERS else "diffusion_pytorch_model"
    for component in CLASSES
}
# What is fetched from the hub; the pickled and other-framework copies stay there.
HUB_PATTERNS = (
    INDEX,
    "scheduler/*.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
    *(
        f"{component}/{name}"
        for component, stem in STEMS.items()
        for name in (
            "config.json",
            f"{stem}.safetensors",
            f"{stem}.safetensors.index.json",
            f"{stem}-?????-of-?????.safetensors",
        )
    ),
)


def patterns_of_halves(folder: Path) -> tuple[str, ...]:
    """What to fetch besides where whole weights are not offered: the halved variant."""
    return tuple(
        f"{component}/{stem}.fp16.safetensors"
        for component, stem in STEMS.items()
        if not any((folder / component).glob("*.safetensors"))
    )


class FolderSource:
    """A diffusers folder: a subfolder with config.json and safetensors for each component."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: Settings = read_settings(path)
        self.notes: Mapping[str, str] = {}

    def num_parameters(self) -> dict[str, int]:
        """Weights by component, from the files' headers."""
        return {
            component: sum(read_header(file).num_parameters for file in self._files(component)[0])
            for component in CLASSES
        }

    def stored_dtype(self, component: str) -> torch.dtype:
        """That of most of a component's weights."""
        name = read_header(self._files(component)[0][0]).main_dtype()
        return DTYPES.get(name, torch.float32)

    def sketch(self, component: str) -> nn.Module:
        """A component on the meta device. Raises ModelError unless its weights fill it exactly."""
        folder, config = self.path / component, self.settings.configs[component]
        module = empty_component(component, config, folder)
        headers = [read_header(file) for file in self._files(component)[0]]
        require_floats(headers, dict(module.named_parameters()).keys())
        stored = shapes_of(headers)
        try:
            if component in TEXT_ENCODERS:
                report = rehearse(CLASSES[component], CLIPTextConfig(**config), stored)
            else:
                report = compare(module, stored)
        except Exception as error:  # the libraries raise many classes for weights that do not fit
            raise ModelError(f"{folder} cannot be loaded: {error}") from error
        require_fit(folder, report, is_forgotten)
        return module

    def files(self) -> dict[str, Path]:
        """Settings, and the weights of every component."""
        weights = [file for component in CLASSES for file in self._weights(component)]
        return by_name([*settings_files(self.path), *weights], self.path)

    def _weights(self, component: str) -> list[Path]:
        """A component's weight files, with the one that names them where there are several."""
        files, variant = self._files(component)
        stem = f"{STEMS[component]}.{variant}" if variant else STEMS[component]
        return [index_of(self.path / component, stem), *files]

    def read(self, component: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A component through its library's own loader, which casts tensor by tensor."""
        files, variant = self._files(component)
        for file in files:
            read_header(file)
        module = own_weights(load_component(self.path, component, dtype, variant))
        require_finite(module, self.path / component)
        return module.to(device)

    def _files(self, component: str) -> tuple[list[Path], str]:
        """A component's weight files, and which variant they are."""
        folder, stem = self.path / component, STEMS[component]
        for variant in VARIANTS:
            name = f"{stem}{variant}"
            if any((folder / f"{name}.safetensors{end}").is_file() for end in ("", ".index.json")):
                return weight_files(folder, name), variant.removeprefix(".")
        return weight_files(folder, stem), ""


def load_component(path: Path, component: str, dtype: torch.dtype, variant: str = "") -> nn.Module:
    """One component by `from_pretrained`. Raises ModelError unless weights and network match."""
    folder = path / component
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
    require_fit(folder, info, is_forgotten)
    found: nn.Module = module
    return found


def is_forgotten(name: str) -> bool:
    """Whether a tensor's name is that of a buffer which old versions of transformers saved."""
    return "position_ids" in name


def own_weights(module: nn.Module) -> nn.Module:
    """Copy weights that are views of a file, one at a time.

    A file that is changed under a running training would change or kill it.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


def write_folder(parts: Components, folder: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    """A diffusers folder; CLIP weights under `text_model.`, which old and new libraries read."""
    folder.mkdir()
    write_settings(parts, folder)
    for component, dtype in dtypes.items():
        rename = clip_name if component in TEXT_ENCODERS else str
        weights = {
            rename(name): entry(parameter, dtype)
            for name, parameter in parts.module(component).named_parameters()
        }
        file = folder / component / f"{STEMS[component]}.safetensors"
        write_safetensors(file, weights, {"format": "pt"})
