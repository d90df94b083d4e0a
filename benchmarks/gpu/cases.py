"""What `tiers.py` trains: which model, how, under which cap, beside what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.memory.cards import CARDS, Card

# What stands at `auto` in its rules the planner decides, for a budget of the case's cap.
PRESET: Final = "24gb"
CARD: Final[Card] = CARDS[PRESET]

SDXL: Final = "sdxl"
LLAMA_8B, LLAMA_70B, QWEN_32B = "llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"

SLOWDOWN_AIM: Final = 1.15


@dataclass(frozen=True)
class Case:
    """`cap_gib`: what torch's allocator may take; `beside`: the case whose step time is its unit.

    `peer`: whose optimizer is measured in a plain loop instead of ours in the run's own step.
    `made`: the model is too large to be read within minutes, so it is put together in place.
    `tiny`: settings that stand for what the planner decides only for the true size.
    """

    name: str
    model: str
    settings: tuple[str, ...] = ()
    cap_gib: float | None = None
    beside: str | None = None
    peer: str | None = None
    made: bool = False
    tiny: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """The shipped recipe that the settings are laid over."""
        if self.model == SDXL:
            return "sdxl-full"
        return "llm-lora" if "model.quantize=nf4" in self.settings else "llm-full"


FACTORED: Final = "optimizer.storage=factored"
PLAIN: Final = ("model.dtype=bf16", "training.gradient_checkpointing=true")
SLICED: Final = "memory.slice_head=true"
STREAMED: Final = ("memory.resident_blocks=1",)
AWAY: Final = ("memory.resident_blocks=0", "memory.offload_activations=true")


def _batch(size: int) -> str:
    return f"training.batch_size={size}"


def _length(tokens: int) -> str:
    return f"data.max_length={tokens}"


CASES: Final[tuple[Case, ...]] = (
    Case("sdxl-batch-1", SDXL, (_batch(1),), 6.5),
    Case("sdxl-batch-12", SDXL, (_batch(12),), 15.0),
    Case("sdxl-streamed", SDXL, (_batch(1),), 2.0, tiny=STREAMED),
    Case("8b-s2048", LLAMA_8B, (_length(2048),), 22.5),
    Case("8b-s8192", LLAMA_8B, (_length(8192),), 22.5),
    Case("8b-s2048-resident", LLAMA_8B, (_length(2048), FACTORED), 22.5),
    Case(
        "8b-s2048-streamed",
        LLAMA_8B,
        (_length(2048), FACTORED),
        15.0,
        beside="8b-s2048-resident",
        tiny=STREAMED,
    ),
    Case("8b-s2048-under-4", LLAMA_8B, (_length(2048), SLICED), 4.0, tiny=AWAY),
    Case(
        "70b-qlora",
        LLAMA_70B,
        (_length(2048), "model.quantize=nf4"),
        22.5,
        made=True,
        tiny=STREAMED,
    ),
    Case("32b-full", QWEN_32B, (_length(2048),), 22.5, made=True, tiny=STREAMED),
    Case("sdxl-adv_optm", SDXL, (_batch(1), *PLAIN), peer="adv_optm"),
    Case("sdxl-torchao", SDXL, (_batch(1), *PLAIN), peer="torchao"),
    Case("8b-adv_optm", LLAMA_8B, (_length(2048), *PLAIN), peer="adv_optm"),
    Case("8b-torchao", LLAMA_8B, (_length(2048), *PLAIN), peer="torchao"),
)
BY_NAME: Final = {case.name: case for case in CASES}

COMMON: Final = (
    *("training.epochs=null", "schedule.warmup_steps=0"),
    *("training.accumulation=1", "training.batch_size=1"),
)
# By whether the model draws pictures. Without buckets every picture is a square.
DATA: Final = {
    True: ("data.source=builtin:zoblins", "data.buckets=false"),
    False: ("data.source=builtin:pirate",),
}
TINY: Final = {True: ("data.resolution=64",), False: (_length(64),)}


def config_of(case: Case, folder: Path, device: str, steps: int, *, tiny: bool) -> RunConfig:
    """The case's run of the model in `folder`; a tiny one has the preset's budget."""
    pictures = case.model == SDXL
    settings = [f"model.source={folder}", *DATA[pictures], *COMMON, *case.settings]
    settings += [f"training.device={device}", f"training.steps={steps}"]
    if tiny:
        settings += [*TINY[pictures], *case.tiny]
    elif case.cap_gib is not None:
        settings.append(f"memory.budget_gib={case.cap_gib}")
    return resolve(Request(case.recipe, None if case.peer else PRESET, tuple(settings)))
