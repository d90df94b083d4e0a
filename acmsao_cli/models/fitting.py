"""Whether stored weights are those that a configuration describes, and whether they are numbers.

The libraries fill what is missing with random numbers and drop what is left over; they rename and
join tensors in ways of their own. So the loading is rehearsed by themselves with tensors that have
shapes and no values, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.errors import ModelError
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.safetensors_header import FLOATS, Header

SHOWN = 3


def shapes_of(headers: Sequence[Header]) -> dict[str, Tensor]:
    """Every stored tensor by name, without values. Raises ModelError for a name in two files."""
    found: dict[str, Tensor] = {}
    for header in headers:
        if again := sorted(found.keys() & header.tensors.keys()):
            raise ModelError(
                f"{header.path} has {again[0]!r}, which another file of the model has too",
                hint="take away what does not belong to the model, or download it again",
            )
        for name, info in header.tensors.items():
            try:
                found[name] = torch.empty(info.shape, device="meta")
            except RuntimeError as error:  # no elements, in sides beyond all numbers
                raise ModelError(f"{header.path}: {name!r} has no shape that can be") from error
    return found


def require_floats(headers: Sequence[Header], names: Collection[str]) -> None:
    """Refuse weights, by their `names`, that are stored as whole numbers or truth values."""
    for header in headers:
        for name, info in header.tensors.items():
            if info.dtype not in FLOATS and name in names:
                raise ModelError(
                    f"{header.path}: {name!r} is stored as {info.dtype}, which is no dtype of "
                    "weights",
                    hint="use the model's original weights; quantised ones cannot be trained",
                )


def require_fit(
    place: Path,
    report: Mapping[str, Iterable[Any]],
    forgotten: Callable[[str], bool] = lambda name: False,
) -> None:
    """Refuse weights that do not fill their model exactly, by what loading reports of them.

    `forgotten` tells the names of buffers that old versions saved among the weights.
    """
    lacking = sorted(map(str, report.get("missing_keys", ())))
    left_over = sorted(map(str, report.get("unexpected_keys", ())))
    other = [f"{name} ({_sizes(*sizes)})" for name, *sizes in report.get("mismatched_keys", ())]
    for what, names in (("lack", lacking), ("also hold", left_over), ("misshape", sorted(other))):
        wrong = [name for name in names if not forgotten(name)]
        if wrong:
            more = ", ..." if len(wrong) > SHOWN else ""
            tensors = "1 tensor" if len(wrong) == 1 else f"{len(wrong)} tensors"
            raise ModelError(
                f"{place}: the weight files {what} {tensors}: {', '.join(wrong[:SHOWN])}{more}",
                hint="config.json and the weights do not belong together; download them again",
            )


def _sizes(stored: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{list(stored)}, not {list(wanted)}"


def rehearse(kind: Any, config: Any, stored: Mapping[str, Tensor]) -> Mapping[str, Iterable[Any]]:
    """What transformers would report of loading `stored` into a model of this kind."""
    with quiet_libraries():
        _, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(stored),
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    found: Mapping[str, Iterable[Any]] = report
    return found


def compare(module: Any, stored: Mapping[str, Tensor]) -> Mapping[str, Iterable[Any]]:
    """What diffusers would report of loading `stored` into `module`, once old names are renamed."""
    named = module._fix_state_dict_keys_on_load(dict(stored))
    wanted: dict[str, Tensor] = module.state_dict()
    shared = wanted.keys() & named.keys()
    return {
        "missing_keys": wanted.keys() - named.keys(),
        "unexpected_keys": named.keys() - wanted.keys(),
        "mismatched_keys": [
            (name, named[name].shape, wanted[name].shape)
            for name in sorted(shared)
            if named[name].shape != wanted[name].shape
        ],
    }


@torch.no_grad()
def require_finite(module: nn.Module, place: Path) -> None:
    """Refuse weights that were read and hold NaN or infinities; packed ones by their scales."""
    names, sums = [], []
    for name, weight in _numbers(module):
        if weight.is_floating_point() and weight.itemsize > 1:
            names.append(name)
            sums.append(weight.sum(dtype=torch.float32).cpu())
    suspects = [name for name, total in zip(names, sums, strict=True) if not total.isfinite()]
    found = dict(_numbers(module)) if suspects else {}
    # A sum may overflow where every number is finite.
    wrong = [name for name in suspects if not found[name].isfinite().all()]
    if wrong:
        raise ModelError(
            f"{place}: {len(wrong)} of its weights are not finite, the first in {wrong[0]}",
            hint="the file is damaged, or an earlier training diverged; download it again",
        )


def _numbers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for name, weight in module.named_parameters():
        yield name, weight
        state = getattr(weight, "quant_state", None)  # bitsandbytes, 4 bits
        if state is not None and state.nested:
            yield f"{name} (scales)", state.state2.absmax
            yield f"{name} (offset)", state.offset
        scales = getattr(weight, "SCB", None)  # bitsandbytes, 8 bits
        if isinstance(scales, Tensor):
            yield f"{name} (scales)", scales
