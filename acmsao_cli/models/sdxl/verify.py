"""Loading exports back with the libraries they are for, and comparing weight by weight."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor, nn

from acmsao_cli.errors import AcmsaoError, OutputError
from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import read_header
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    TEXT_ENCODERS,
    Components,
    empty_component,
)
from acmsao_cli.models.sdxl.folder import load_component
from acmsao_cli.models.sdxl.peft_file import adapted
from acmsao_cli.models.sdxl.settings import write_settings
from acmsao_cli.models.sdxl.single_file import SingleFileSource

CPU = torch.device("cpu")
Dtypes = Mapping[str, torch.dtype]


def damaged(path: Path, reason: object) -> OutputError:
    """An export that does not come back."""
    return OutputError(
        f"{path} was written, but does not load back as trained: {reason}",
        hint="the checkpoint still holds the weights; please report this",
    )


@torch.no_grad()
def difference(trained: Tensor, dtype: torch.dtype, loaded: Tensor) -> float:
    """The largest difference of any element after the trained one's cast to `dtype`."""
    expected = trained.detach().to("cpu", dtype).to(loaded.dtype)
    if expected.shape != loaded.shape:
        return float("inf")
    if torch.equal(expected, loaded) or not loaded.numel():
        return 0.0
    error = (expected.float() - loaded.float()).abs().max().nan_to_num(float("inf"), float("inf"))
    return float(error)


def exact(path: Path, errors: Mapping[str, float]) -> float:
    """The largest of the errors, which has to be zero."""
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] != 0:
        raise damaged(path, f"{worst} differs by {errors[worst]:.3g}")
    return errors[worst]


def check_tensors(path: Path, tensors: Mapping[str, Tensor], dtypes: Dtypes) -> float:
    """The file holds these tensors in these dtypes, and no others."""
    if set(read_header(path).tensors) != set(tensors):
        raise damaged(path, "it holds other tensors")
    with safe_open(path, framework="pt") as file:
        return exact(
            path,
            {
                name: difference(one, dtypes[name], file.get_tensor(name))
                for name, one in tensors.items()
            },
        )


def check_lora_in_diffusers(path: Path, parts: Components, dtype: torch.dtype) -> float:
    """`load_lora_weights` puts the trained adapters, with their scale, on the layers they had."""
    skeleton = hollow(parts)
    pipeline = skeleton.pipeline()
    try:
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=ADAPTER)
    except Exception as error:  # any failure of the library is the file's failure
        raise damaged(path, f"diffusers says {error}") from error
    errors: dict[str, float] = {}
    for component in adapted(parts):
        trained = dict(adapted_layers(parts.module(component)))
        loaded = dict(adapted_layers(skeleton.module(component)))
        if set(trained) != set(loaded):
            raise damaged(path, f"diffusers adapts other layers of {component}")
        for name, layer in trained.items():
            other, where = loaded[name], f"{component}.{name}"
            errors[f"{where}.scale"] = scale_error(layer.scaling[ADAPTER], other.scaling[ADAPTER])
            for part in ("lora_A", "lora_B"):
                ours, theirs = (getattr(one, part)[ADAPTER].weight for one in (layer, other))
                errors[f"{where}.{part}"] = difference(ours, dtype, theirs)
            if ADAPTER in layer.lora_magnitude_vector and component == "unet":
                ours, theirs = (one.lora_magnitude_vector[ADAPTER].weight for one in (layer, other))
                errors[f"{where}.magnitude"] = difference(ours, dtype, theirs)
    return exact(path, errors)


def scale_error(trained: float, loaded: float) -> float:
    """How far two scales are apart; 0 for what the fp32 alpha of a file rounds away."""
    return 0.0 if math.isclose(trained, loaded, rel_tol=1e-6) else abs(trained - loaded)


def empty_network(parts: Components, component: str) -> nn.Module:
    """A network like one of `parts`, dense and without adapters, on the meta device."""
    config = parts.config(component)
    plain = config.to_dict() if component in TEXT_ENCODERS else dict(config)
    return empty_component(component, plain, Path(component))


def hollow(parts: Components) -> Components:
    """The same networks with one number for each weight tensor, seen in its full shape.

    Enough for a library to hang adapters on, without the memory of a second model.
    """
    modules: dict[str, nn.Module] = {}
    for component in CLASSES:
        modules[component] = empty_network(parts, component)
        for name, parameter in list(modules[component].named_parameters()):
            owner, _, last = name.rpartition(".")
            flat = torch.zeros(1).expand(parameter.shape)
            setattr(
                modules[component].get_submodule(owner),
                last,
                nn.Parameter(flat, requires_grad=False),
            )
    return Components(
        **modules,
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer_2,
        scheduler=parts.scheduler,
        force_zeros=parts.force_zeros,
    )


def check_folder(path: Path, parts: Components, dtypes: Dtypes) -> float:
    """`from_pretrained` gives the trained weights."""
    errors: dict[str, float] = {}
    for component, dtype in dtypes.items():
        try:
            loaded = load_component(path, component, dtype)
        except AcmsaoError as error:
            raise damaged(path, error.message) from error
        errors |= _errors(path, parts, component, dtype, loaded)
    return exact(path, errors)


def check_single_file(path: Path, parts: Components, dtypes: Dtypes) -> float:
    """`from_single_file` gives the trained weights."""
    errors: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as config:
            write_settings(parts, Path(config))
            for component, loaded in _from_single_file(path, Path(config), parts, dtypes):
                errors |= _errors(path, parts, component, dtypes[component], loaded)
    except OutputError:
        raise
    except Exception as error:  # any failure of the library is the file's failure
        raise damaged(path, error) from error
    return exact(path, errors)


def _from_single_file(
    path: Path, config: Path, parts: Components, dtypes: Dtypes
) -> Iterator[tuple[str, nn.Module]]:
    """The components as diffusers reads them from the file, one in memory at a time.

    diffusers tells the text encoders apart by their widths; where those are equal only our own
    reader can be asked for them.
    """
    for component in ("unet", "vae"):
        with quiet_libraries():
            loaded = CLASSES[component].from_single_file(
                str(path), config=str(config), subfolder=component, torch_dtype=dtypes[component]
            )
        yield component, loaded
    widths = [parts.config(component).hidden_size for component in TEXT_ENCODERS]
    if widths[0] == widths[1]:
        source = SingleFileSource(path)
        for component in TEXT_ENCODERS:
            yield component, source.read(component, CPU, dtypes[component])
        return
    skeleton = hollow(parts)
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=dtypes["text_encoder"],
            unet=skeleton.unet,
            vae=skeleton.vae,
        )
    yield from ((component, getattr(pipeline, component)) for component in TEXT_ENCODERS)


def _errors(
    path: Path, parts: Components, component: str, dtype: torch.dtype, loaded: nn.Module
) -> dict[str, float]:
    """By weight, how far `loaded` is from what was trained."""
    theirs = dict(loaded.named_parameters())
    ours = dict(parts.module(component).named_parameters())
    if set(theirs) != set(ours):
        raise damaged(path, f"{component} has other weights")
    return {
        f"{component}.{name}": difference(parameter, dtype, theirs[name])
        for name, parameter in ours.items()
    }
