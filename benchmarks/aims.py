"""What the optimizers are held to, and whether a result meets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from entries import ADV_BF16, ADV_BF16_SR, ADV_FACTORED, BASE

FULL_SETS = ("sdxl", "llama")

# Entry, what it is compared with, and the largest ratio of times allowed.
SPEED = (
    ("ours AdamW factored", ADV_FACTORED, 0.25, FULL_SETS),
    ("ours AdamW factored, kernel", ADV_FACTORED, 0.05, FULL_SETS),
    ("ours AdamW factored, kernel", BASE, 0.5, FULL_SETS),
    ("ours AdamW bf16 + SR", ADV_BF16, 0.4, FULL_SETS),
    ("ours AdamW bf16 + SR", ADV_BF16_SR, 0.4, FULL_SETS),
    ("ours AdamW bf16 + SR, kernel", ADV_BF16, 0.4, FULL_SETS),
    ("ours AdamW bf16 + SR, kernel", ADV_BF16_SR, 0.4, FULL_SETS),
    ("ours AdamW factored", ADV_FACTORED, 0.3, ("lora",)),
    ("ours AdamW factored, kernel", ADV_FACTORED, 0.3, ("lora",)),
)
UNET_MEGABYTES = (
    ("AdamW factored", 346.2),
    ("AdamW factored + AdEMAMix", 682.0),
    ("AdamW factored 4-bit", 1300.0),
)
COSINES = (
    ("ours AdamW factored", 0.69),
    ("ours AdamW factored 2-bit", 0.79),
    ("ours AdamW factored 4-bit", 0.95),
    ("ours AdamW factored 8-bit", 0.97),
)
LARGEST_UPDATE = 3.0
TEMPORARIES = 64 * 2**20  # bytes


def evaluate(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every aim the result has a figure for."""
    return [*_speed(result), *_temporaries(result), *_bytes(result), *_fidelity(result)]


def _at_most(aim: str, limit: float, figure: float) -> dict[str, Any]:
    return {"aim": aim, "limit": limit, "figure": figure, "met": figure <= limit}


def _speed(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry, other, limit, sets in SPEED:
        for name in sets:
            row = result["sets"].get(name, {"rows": {}})["rows"].get(entry, {"against": {}})
            if other in row["against"]:
                aim = f"{name}: time of {entry} / {other}"
                yield _at_most(aim, limit, row["against"][other]["median"])


def _temporaries(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in result["sets"].items():
        taken = {
            entry: row["temporary_bytes"]
            for entry, row in found["rows"].items()
            if entry.startswith("ours") and row["temporary_bytes"] is not None
        }
        if taken:
            worst = max(taken, key=lambda entry: taken[entry])
            aim = f"{name}: MiB of temporaries of the worst of ours ({worst})"
            yield _at_most(aim, TEMPORARIES / 2**20, taken[worst] / 2**20)


def _bytes(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    state = result["unet"].get("state", {})
    for name, limit in UNET_MEGABYTES:
        if name in state:
            yield _at_most(
                f"MB of state of the SDXL UNet, {name}", limit, state[name]["bytes"] / 1e6
            )


def _fidelity(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry, limit in COSINES:
        if entry in result["fidelity"]:
            figure = result["fidelity"][entry]["interior"]["mean"]
            aim = f"cosine with fp64 AdamW on interior matrices, {entry}"
            yield {"aim": aim, "limit": limit, "figure": figure, "met": figure >= limit}
    largest = {
        entry: row["largest_update"]
        for entry, row in result["fidelity"].items()
        if entry.startswith("ours")
    }
    if largest:
        worst = max(largest, key=lambda entry: largest[entry])
        aim = f"largest update of any of ours / learning rate ({worst})"
        yield _at_most(aim, LARGEST_UPDATE, largest[worst])
