"""The parts of a recipe that every model family shares.

Every field says what it means, in which unit; the JSON schema, the errors and docs/recipes.md are
made from these texts. A field that only one family knows lives in that family's file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.config.section import Count, Fraction, PositiveFloat, Section

Milestone = Annotated[tuple[Count, Count], Field(strict=False)]

# Said once, for both families have the key, each with its own values.
QUANTIZE = (
    "how a LoRA's frozen base is kept: nf4 is 4 bits by bitsandbytes (linear layers), int8 is 8 "
    "bits by bitsandbytes (language models), fp8 is 8-bit floats (SDXL: linear layers, "
    "convolutions)"
)
FORMATS = (
    "SDXL LoRA: kohya, peft; SDXL full: diffusers, single-file; LM LoRA: peft; LM full: "
    "transformers; empty is all of the method's; merged, only where named: a LoRA folded into "
    "its base"
)


class ModelSection(Section):
    """Which model, from where."""

    source: str = Field(
        min_length=1,
        description="a folder, a single-file .safetensors, a hub id, or builtin:NAME",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="dtype of the weights; auto is bf16 on a GPU that has it, fp32 on a CPU"
    )


class Lora(Section):
    """Low-rank adapters (arXiv:2106.09685); the base stays frozen."""

    kind: Literal["lora"]
    rank: Count = Field(16, description="rank of the adapters")
    alpha: PositiveFloat | None = Field(
        None, description="scale numerator; the adapter is multiplied by alpha / rank; none is rank"
    )
    dropout: Fraction = Field(0.0, description="dropout on the adapters' inputs")
    targets: (
        Literal["attention", "all-linear"]
        | Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    ) = Field(
        "all-linear",
        description="layers that get an adapter: attention, all-linear, or a list of name endings",
    )
    dora: bool = Field(
        False, description="learn a magnitude beside the direction (arXiv:2402.09353)"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) (arXiv:2312.03732)")


class Full(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class DataSection(Section):
    """Where the examples come from."""

    source: str = Field(min_length=1, description="a folder or file, or builtin:NAME")
    on_bad: Literal["error", "skip"] = Field(
        "error", description="what becomes of items that cannot be used: skip leaves them out"
    )
    max_bad: Fraction = Field(0.05, description="largest share of items that may be skipped")


class ScheduleSection(Section):
    """The learning rate's course over the steps."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up: constant, or linear or cosine down to zero"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps of linear rise from zero"
    )


class TrainingSection(Section):
    """How long and in which portions."""

    steps: Count | None = Field(
        None, description="optimizer steps; exactly one of steps and epochs"
    )
    epochs: Count | None = Field(None, description="passes over the data")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1, description="examples per micro-batch"
    )
    accumulation: Count = Field(1, description="micro-batches per optimizer step")
    clip_norm: PositiveFloat | None = Field(
        1.0, description="bound on the global gradient norm; null for none"
    )
    clip: Literal["global", "two_pass", "delayed"] = Field(
        "global",
        description="which norm is bounded: global is this step's; with fused_backward two_pass "
        "(the same, measured by a backward of its own) or delayed (the previous step's)",
    )
    noise_scale: bool = Field(
        False, description="measure the gradient noise scale; needs an accumulation of 2 or more"
    )
    batch_schedule: Annotated[tuple[Milestone, ...], Field(strict=False)] = Field(
        (), description="[steps done, accumulation from there on], in rising order"
    )
    adaptive_batch: Count | None = Field(
        None,
        description="double the accumulation, up to this, while the noise scale exceeds the "
        "examples of a step; null for never",
    )
    adaptive_patience: Count = Field(
        20, description="steps in a row that the noise scale exceeds before adaptive_batch doubles"
    )
    batch_lr: Literal["none", "sqrt", "linear"] = Field(
        "none", description="how the learning rate follows an accumulation that grew"
    )
    nonfinite_steps: Count = Field(
        3,
        description="give up after so many steps in a row with a loss or gradient that is not "
        "finite; each is left out",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute activations in backward: less memory, about a third more time; auto "
        "leaves it to the planner",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="everything random follows from this, the step and the example"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="auto, cpu, cuda or cuda:N"
    )
    deterministic: bool = Field(
        False,
        description="take only kernels that come to the same bits each time: what a GPU needs for "
        "that, more slowly; a CPU does without",
    )

    @property
    def planned_portions(self) -> int:
        """Micro-batches of the largest step that memory can tell apart.

        The second meets the gradients of the first; a third would change nothing.
        """
        grows = self.batch_schedule or self.adaptive_batch is not None
        return 2 if grows else min(self.accumulation, 2)


class MemorySection(Section):
    """What the run may take."""

    budget_gib: PositiveFloat | None = Field(
        None,
        description="refuse to start when the run is predicted to need more than this many GiB",
    )
    resident_blocks: Literal["all", "auto"] | Annotated[int, Field(ge=0)] = Field(
        "all",
        description="blocks of the model that stay on the device; the others are in the host's "
        "memory and come when they compute; auto: as many as there is room for",
    )
    offload_activations: bool | Literal["auto"] = Field(
        False,
        description="keep what backward needs in the host's memory meanwhile; auto leaves it to "
        "the planner",
    )


class CheckpointSection(Section):
    """What is kept for resuming."""

    every: Count = Field(200, description="steps between checkpoints; the last step always has one")
    keep: Count = Field(2, description="how many of the newest are kept")
    keep_best: bool = Field(
        False,
        description="keep one more: that with the lowest mean loss of the `every` steps before it",
    )
    background: bool = Field(
        True,
        description="write beside the training, from a copy in the host's memory; where that would "
        "take more than 40 % of what is free to this process, or on a CPU more than the budget "
        "leaves, the training waits",
    )


class OutputSection(Section):
    """What is left at the end."""

    dtype: Literal["same", "fp16", "bf16", "fp32"] = Field(
        "same", description="dtype of exported weights; same is that of the trained weights"
    )
    metadata: bool = Field(True, description="write training facts into the files' headers")


class RecipeBase(Section):
    """What every recipe has, whatever it trains."""

    about: str = Field("", description="one line for `acmsao recipes list`")
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()
    memory: MemorySection = MemorySection()
    checkpoint: CheckpointSection = CheckpointSection()
