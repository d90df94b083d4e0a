"""Time, state and temporaries of our optimizers beside other libraries', on one CPU thread.

python benchmarks/optimizers.py [--sets sdxl llama lora] [--rounds 7] [--only TEXT ...]
    [--peers FOLDER] [--out STEM]

Weights and gradients are bf16. In each round a copy, torch's AdamW (foreach), the entries to be
compared with, and the entry itself run one after the other, so that what else the machine does
falls on all of them; ratios are taken within a round. Times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aims
import entries as catalogue
import numpy as np
import recording
import torch
from entries import BASE, DECAY, LR, OURS, Absent, Entry, Named, Ours
from fidelity import adam_like, fidelities, report
from shapes import SETS, Shape, sdxl_unet_shapes, shape_set
from torch import Tensor, nn

from acmsao_cli.optim import ComposedOptimizer, accounting
from acmsao_cli.optim.tracing import StorageTracer

COPIED_BYTES = 256 * 2**20  # larger than the caches
WARM_UP = 2  # steps; the first allocates, compiled ones compile
PEERS = ("torchao", "bitsandbytes", "pytorch_optimizer", "numba")


@dataclass
class Stepper:
    """An optimizer on its own bf16 parameters with gradients."""

    entry: Entry
    optimizer: torch.optim.Optimizer
    parameters: Named

    def seconds(self) -> float:
        """CPU time of one step."""
        return timed(self.optimizer.step)

    @property
    def elements(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for _, parameter in self.parameters)


def stepper(entry: Entry, shapes: Sequence[Shape]) -> Stepper:
    """Parameters of these shapes under an optimizer that has made its first steps.

    Raises Absent.
    """
    random = torch.Generator().manual_seed(0)

    def draw(shape: Shape) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float32).to(torch.bfloat16)

    named = [
        (f"p{number}", nn.Parameter(draw(shape) * 0.02)) for number, shape in enumerate(shapes)
    ]
    optimizer = entry.build(named, LR, DECAY)
    for _, parameter in named:
        parameter.grad = draw(tuple(parameter.shape)) * 1e-3
    for _ in range(WARM_UP):
        optimizer.step()
    return Stepper(entry, optimizer, named)


def timed(act: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    act()
    return time.process_time() - begun


# Bytes


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor the optimizer keeps, each once."""
    if isinstance(optimizer, ComposedOptimizer):
        return optimizer.state_bytes()
    kept = {id(leaf): leaf for leaf in _tensors([*optimizer.state.values()])}
    return sum(tensor.nbytes for tensor in kept.values())


def _tensors(value: Any) -> list[Tensor]:
    """Tensors within, those of subclasses by their inner ones."""
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    if not isinstance(value, Tensor):
        return []
    if hasattr(value, "__tensor_flatten__"):
        return _tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    return [value]


def temporaries(measured: Stepper) -> int | None:
    """Peak bytes of temporaries in one step: traced, or by the process's resident memory."""
    if measured.entry.opaque:
        return resident_growth(measured.optimizer.step)
    with StorageTracer() as tracer:
        measured.optimizer.step()
    return int(tracer.peak_bytes)


def resident_growth(act: Callable[[], Any]) -> int | None:
    """How much resident memory grew at its highest while `act` ran; None where Linux is not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes(status, "VmRSS")
    act()
    return max(0, _status_bytes(status, "VmHWM") - before)


def _status_bytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# Times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the tenth and ninetieth percentile."""
    low, mid, high = (float(x) for x in np.quantile(values, (0.1, 0.5, 0.9)))
    return {"median": mid, "p10": low, "p90": high}


def rounds_of(
    measured: Stepper, beside: Sequence[Stepper], copy: Callable[[], Any], rounds: int
) -> dict[str, list[float]]:
    """Seconds by name, one for each round: the copy, those beside, then the measured one."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        times.setdefault("copy", []).append(timed(copy))
        for each in (*beside, measured):
            times.setdefault(each.entry.name, []).append(each.seconds())
    return times


def bytes_to_move(elements: int, state: int) -> int:
    """The least a step moves: bf16 weights and gradient and state read, weights, state written."""
    return 2 * 3 * elements + 2 * state


def row(measured: Stepper, times: dict[str, list[float]], largest: int) -> dict[str, Any]:
    """The figures of one entry."""
    name, elements = measured.entry.name, measured.elements
    own, state = times[name], state_bytes(measured.optimizer)
    moved = bytes_to_move(elements, state)
    bounds = [moved / (2 * COPIED_BYTES / seconds) for seconds in times["copy"]]
    temporary = temporaries(measured)
    return {
        "ns_per_parameter": statistics.median(own) / elements * 1e9,
        "us_per_tensor": statistics.median(own) / len(measured.parameters) * 1e6,
        "against": {
            other: spread([mine / theirs for mine, theirs in zip(own, seconds, strict=True)])
            for other, seconds in times.items()
            if other not in ("copy", name)
        },
        "times_the_bandwidth_bound": spread(
            [mine / bound for mine, bound in zip(own, bounds, strict=True)]
        ),
        "bytes_moved_per_parameter": moved / elements,
        "state_bytes_per_parameter": state / elements,
        "temporary_bytes": temporary,
        "temporary_bytes_per_element_of_the_largest": temporary and temporary / largest,
        "copy_gb_per_second": 2 * COPIED_BYTES / statistics.median(times["copy"]) / 1e9,
    }


def measure_set(
    name: str, chosen: Sequence[Entry], every: dict[str, Entry], rounds: int
) -> dict[str, Any]:
    """All rows of one set of shapes; `skipped` says what was left out and why."""
    shapes = shape_set(name)
    sizes = [int(np.prod(shape)) for shape in shapes]
    source = torch.ones(COPIED_BYTES // 2, dtype=torch.bfloat16)
    copy = partial(torch.empty_like(source).copy_, source)
    standing: dict[str, Stepper] = {}  # those that others are compared with stay
    rows: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for entry in chosen:
        try:
            beside = _standing([BASE, *entry.against], entry.name, every, shapes, standing, skipped)
            measured = standing.get(entry.name) or stepper(entry, shapes)
            times = rounds_of(measured, beside, copy, rounds)
            rows[entry.name] = row(measured, times, max(sizes))
        except Exception as error:  # another library may fail in any way: it is told, and left
            skipped[entry.name] = _reason(error)
            print(f"{name:6} {entry.name:52} skipped: {skipped[entry.name]}", flush=True)
            continue
        _tell(name, entry.name, rows[entry.name])
        del measured
        gc.collect()
    return {
        "about": SETS[name],
        "tensors": len(shapes),
        "parameters": sum(sizes),
        "rows": rows,
        "skipped": skipped,
    }


def _standing(
    names: Iterable[str],
    own: str,
    every: dict[str, Entry],
    shapes: Sequence[Shape],
    standing: dict[str, Stepper],
    skipped: dict[str, str],
) -> list[Stepper]:
    """Steppers to run beside, built once; those that cannot be built are left out."""
    for name in names:
        if name not in standing and name not in skipped and name != own:
            try:
                standing[name] = stepper(every[name], shapes)
            except Exception as error:  # see measure_set
                skipped[name] = _reason(error)
    return [standing[name] for name in names if name in standing and name != own]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, Absent) else f"{type(error).__name__}: {text}"


def _tell(place: str, name: str, found: dict[str, Any]) -> None:
    base = found["against"].get(BASE, {"median": 1.0})["median"]
    bound = found["times_the_bandwidth_bound"]["median"]
    print(
        f"{place:6} {name:52} {found['ns_per_parameter']:7.2f} ns/param {base:6.2f} x foreach"
        f" {bound:6.1f} x bound",
        flush=True,
    )


# The UNet's state


def unet_state() -> dict[str, Any]:
    """Exact bytes of every composition's state for the whole SDXL UNet."""
    shapes = sdxl_unet_shapes()
    elements = sum(int(np.prod(shape)) for shape in shapes)
    found: dict[str, Any] = {}
    for name, (says, _) in OURS.items():
        try:
            size = accounting.state_bytes(Ours(says).pipeline(), shapes)
        except Absent:
            continue
        found[name] = {"bytes": size, "bytes_per_parameter": size / elements}
    return {"parameters": elements, "tensors": len(shapes), "state": found}


# The report


def markdown(result: dict[str, Any]) -> str:
    """All tables."""
    parts = [
        f"# Optimizers\n\n{result['what']}\n\n`{result['command']}`\n\n"
        f"{result['machine']['processor']}, one thread, torch {result['versions']['torch']}; "
        f"{result['rounds']} rounds; ratios are medians (10th to 90th percentile) within rounds. "
        "The bound is the time a copy of the same run would take to move what the step must: bf16 "
        "weights and gradient read, weights written, state read and written.\n",
        "\n## Aims\n\n",
        recording.table(
            ("aim", "at most or least", "measured", ""),
            [
                (a["aim"], f"{a['limit']:g}", f"{a['figure']:.4g}", "met" if a["met"] else "missed")
                for a in result["aims"]
            ],
        ),
    ]
    for name, found in result["sets"].items():
        parts.append(
            f"\n## {name}: {found['about']}\n\n"
            f"{found['tensors']:,} tensors, {found['parameters']:,} parameters.\n\n"
        )
        parts.append(recording.table(HEADER, [_cells(n, r) for n, r in found["rows"].items()]))
        if found["skipped"]:
            parts.append("\nNot measured:\n\n")
            parts += [f"- {entry}: {reason}\n" for entry, reason in found["skipped"].items()]
    if result["unet"]:
        parts += ["\n## State of the SDXL UNet\n\n", _unet_table(result["unet"])]
    if result["fidelity"]:
        parts += [FIDELITY, report(result["fidelity"])]
    return "".join(parts)


HEADER = (
    "optimizer",
    "ns/parameter",
    "us/tensor",
    f"x {BASE}",
    "x its counterpart",
    "x bound",
    "state B/parameter",
    "temporaries MiB",
    "temporaries B/element of the largest",
)
FIDELITY = (
    "\n## Fidelity\n\nCosine of the update with fp64 AdamW's on recorded gradients of a small Llama"
    " and on noise (mean of the last steps), and the largest entry of any update in units of the"
    " learning rate.\n\n"
)


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    others = {other: ratio for other, ratio in found["against"].items() if other != BASE}
    base = found["against"].get(BASE)
    temporary = found["temporary_bytes"]
    counterparts = "; ".join(f"{_ratio(s)} ({other})" for other, s in others.items())
    share = found["temporary_bytes_per_element_of_the_largest"]
    return [
        name,
        f"{found['ns_per_parameter']:.2f}",
        f"{found['us_per_tensor']:.0f}",
        _ratio(base) if base else "1",
        counterparts,
        f"{found['times_the_bandwidth_bound']['median']:.1f}",
        f"{found['state_bytes_per_parameter']:.3f}",
        "?" if temporary is None else f"{temporary / 2**20:.1f}",
        "?" if share is None else f"{share:.1f}",
    ]


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['p10']:.3f} to {found['p90']:.3f})"


def _unet_table(unet: dict[str, Any]) -> str:
    header = ("composition", "bytes", "MB", "MiB", "B/parameter")
    return recording.table(
        header,
        [
            (
                name,
                f"{kept['bytes']:,}",
                f"{kept['bytes'] / 1e6:,.1f}",
                f"{kept['bytes'] / 2**20:,.1f}",
                f"{kept['bytes_per_parameter']:.4f}",
            )
            for name, kept in unet["state"].items()
        ],
    )


def selected(every: dict[str, Entry], wanted: Sequence[str]) -> list[Entry]:
    """Entries whose name has one of the texts; all without texts."""
    return [e for e in every.values() if not wanted or any(text in e.name for text in wanted)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=["sdxl", "llama", "lora"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[], help="parts of names: `ours`, `torchao`")
    parser.add_argument("--peers", type=Path, help="folder of adv_optm-VERSION folders")
    parser.add_argument("--no-fidelity", action="store_true")
    parser.add_argument("--no-unet", action="store_true")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "optimizers")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    every = catalogue.entries(options.peers)
    chosen = selected(every, options.only)
    result = recording.provenance("Steps of optimizers on one CPU thread", *PEERS) | {
        "rounds": options.rounds,
        "sets": {name: measure_set(name, chosen, every, options.rounds) for name in options.sets},
        "unet": {} if options.no_unet else unet_state(),
        "fidelity": {} if options.no_fidelity else fidelities(adam_like(chosen)),
    }
    result["aims"] = aims.evaluate(result)
    recording.write(options.out, result, markdown(result))


if __name__ == "__main__":
    main()
