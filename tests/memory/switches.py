"""What each switch buys, and what jobs with published figures would take here: planned, as values.

python tests/memory/switches.py writes the file anew, with --missing what is not there;
docs/memory.md shows it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from memory.golden import SDXL, write_model

from acmsao_cli.config.layers import NO_PRESET, Request, resolve
from acmsao_cli.memory.cards import CARDS, GIB
from acmsao_cli.memory.planner import AT_REST, CONTEXT, PAGE_LOCKED, plan

FILE: Final = Path(__file__).parent / "switches.json"
CARD: Final = CARDS["24gb"]

LLAMA_8B, LLAMA_3B, LLAMA_1B = "llama-3.1-8b", "llama-3.2-3b", "llama-3.2-1b"
LLAMA_70B = "llama-3.1-70b"

BF16: Final = ("model.dtype=bf16", "training.clip_norm=null")
ONE: Final = ("training.batch_size=1", "training.accumulation=1")
PICTURES: Final = (*BF16, *ONE, "data.source=builtin:zoblins")
TEXTS: Final = (*BF16, *ONE, "data.source=builtin:pirate", "data.max_length=2048")
WHOLE_LOGITS: Final = "memory.loss_chunk=null"
CHECKPOINTED: Final = "training.gradient_checkpointing=true"
FUSED: Final = "optimizer.fused_backward=true"
FACTORED: Final = "optimizer.storage=factored"
SLICED: Final = "memory.slice_head=true"
STREAMED: Final = "memory.resident_blocks=0"
AWAY: Final = "memory.offload_activations=true"


@dataclass(frozen=True)
class Ladder:
    """A training, and the switches that are turned one after another, each beside those before."""

    title: str
    model: str
    recipe: str
    settings: tuple[str, ...]
    switches: tuple[str, ...]


LADDERS: Final = (
    Ladder(
        "SDXL, all weights of the UNet, 1024 px, batch 1",
        SDXL,
        "sdxl-full",
        (*PICTURES, "training.gradient_checkpointing=false"),
        (
            *(CHECKPOINTED, "optimizer.storage=bf16", FUSED, "optimizer.storage=int8"),
            *("optimizer.storage=factored_4bit", FACTORED, STREAMED, AWAY),
        ),
    ),
    Ladder(
        "SDXL, LoRA of rank 16, 1024 px, batch 1",
        SDXL,
        "sdxl-lora",
        (*PICTURES, "training.gradient_checkpointing=false"),
        (CHECKPOINTED, "model.quantize=fp8", "model.quantize=nf4", STREAMED),
    ),
    Ladder(
        "Llama 3.1 8B, all weights, 2048 tokens",
        LLAMA_8B,
        "llm-full",
        (*TEXTS, WHOLE_LOGITS),
        (
            *("memory.loss_chunk=auto", CHECKPOINTED, "optimizer.storage=bf16", FUSED),
            *("optimizer.storage=int8", "optimizer.storage=factored_4bit", FACTORED),
            *(SLICED, STREAMED, AWAY),
        ),
    ),
    Ladder(
        "Llama 3.1 8B, LoRA of rank 16, 2048 tokens",
        LLAMA_8B,
        "llm-lora",
        (*TEXTS, WHOLE_LOGITS),
        (
            *("memory.loss_chunk=auto", CHECKPOINTED, "model.quantize=int8"),
            *("model.quantize=nf4", STREAMED, AWAY),
        ),
    ),
)


@dataclass(frozen=True)
class Job:
    """A training whose memory others published, and ways to have the nearest here."""

    title: str
    published: tuple[str, ...]
    model: str
    recipe: str
    ways: dict[str, tuple[str, ...]]

    def key(self, way: str) -> str:
        """What the file calls it."""
        return f"{self.title}: {way}"


def _text(*settings: str, tokens: int = 2048, batch: int = 1) -> tuple[str, ...]:
    ours = dict(one.split("=") for one in (*TEXTS, CHECKPOINTED, *settings))
    ours |= {"data.max_length": str(tokens), "training.batch_size": str(batch)}
    return tuple(f"{key}={value}" for key, value in ours.items())


SMALL: Final = (CHECKPOINTED, FUSED, FACTORED)
NF4: Final = "model.quantize=nf4"
INT8_STATE: Final = "optimizer.storage=int8"
JOBS: Final = (
    Job(
        "SDXL full, 1024 px, batch 1",
        (
            "10.0 GB: sd-scripts, fused Adafactor (pull request 1259)",
            "10.3 GB: OneTrainer (a user's figure)",
        ),
        SDXL,
        "sdxl-full",
        {"1-bit state": (*PICTURES, *SMALL), "streamed": (*PICTURES, *SMALL, STREAMED)},
    ),
    Job(
        "Llama 3.1 8B full, 2 x 2048 tokens",
        (
            "18.9 GiB: torchtune, paged 8-bit AdamW (readme)",
            "50 to 75 GB: unsloth, 8-bit AdamW (its own estimate)",
        ),
        LLAMA_8B,
        "llm-full",
        {
            "1-bit state": _text(FUSED, FACTORED, batch=2),
            "streamed": _text(FUSED, FACTORED, SLICED, STREAMED, batch=2),
        },
    ),
    Job(
        "Llama 3.1 8B LoRA, 2 x 2048 tokens",
        ("16.2 GiB: torchtune (readme)", "22 GB: unsloth (its absolute minimum)"),
        LLAMA_8B,
        "llm-lora",
        {"rank 16": _text(batch=2), "streamed": _text(STREAMED, batch=2)},
    ),
    Job(
        "Llama 3.1 8B QLoRA, 2 x 2048 tokens",
        ("7.4 GiB: torchtune (readme)", "6 GB: unsloth (its absolute minimum)"),
        LLAMA_8B,
        "llm-lora",
        {"rank 16": _text(NF4, batch=2), "streamed": _text(NF4, STREAMED, batch=2)},
    ),
    Job(
        "Llama 3.2 3B full, 2 x 4096 tokens",
        ("17.6 GiB: torchtune, 8-bit AdamW, activations offloaded (readme)",),
        LLAMA_3B,
        "llm-full",
        {"8-bit state": _text(FUSED, INT8_STATE, AWAY, tokens=4096, batch=2)},
    ),
    Job(
        "Llama 3.2 1B full, 4 x 512 tokens",
        ("8.7 GB: litgpt (readme of its configurations)",),
        LLAMA_1B,
        "llm-full",
        {"8-bit state": _text(FUSED, INT8_STATE, tokens=512, batch=4)},
    ),
    Job(
        "Llama 3.1 70B QLoRA, 2048 tokens",
        ("41 GB: unsloth (its absolute minimum)",),
        LLAMA_70B,
        "llm-lora",
        {"rank 16": _text(NF4), "streamed": _text(NF4, STREAMED)},
    ),
)


def needs(recipe: str, settings: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """GiB that a run needs of the card, of them allocated, by what, and of the host's memory."""
    config = resolve(Request(recipe, NO_PRESET, (f"model.source={folder}", *settings)))
    made = plan(config, CARD)
    sizes = {name: size for name, size in made.by_category.items() if name != CONTEXT}
    return {
        "needs_gib": round(made.needed_bytes / GIB, 2),
        "allocated_gib": round(made.tensor_bytes / GIB, 2),
        "host_gib": round(sum(made.host[name] for name in (PAGE_LOCKED, AT_REST)) / GIB, 2),
        "by_category": {name: round(size / GIB, 2) for name, size in sizes.items()},
    }


def rungs(ladder: Ladder) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What the file calls each row, and its settings."""
    settings = ladder.settings
    yield f"{ladder.title}: plain", settings
    for switch in ladder.switches:
        key = switch.partition("=")[0]
        settings = (*(one for one in settings if one.partition("=")[0] != key), switch)
        yield f"{ladder.title}: {switch}", settings


def cases() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(key, model, recipe, settings) of every entry."""
    for ladder in LADDERS:
        for key, settings in rungs(ladder):
            yield key, ladder.model, ladder.recipe, settings
    for job in JOBS:
        for way, settings in job.ways.items():
            yield job.key(way), job.model, job.recipe, settings


def planned() -> dict[str, dict[str, Any]]:
    """What the file holds, by key."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Compute and write."""
    found = planned() if "--missing" in sys.argv else {}
    with tempfile.TemporaryDirectory() as base:
        folders: dict[str, Path] = {}
        for key, model, recipe, settings in cases():
            if key in found:
                continue
            if model not in folders:
                folders[model] = write_model(model, Path(base) / model)
            found[key] = needs(recipe, settings, folders[model])
            print(key, found[key], flush=True)
    ordered = {key: found[key] for key, *_ in cases()}
    FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
