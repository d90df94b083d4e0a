"""What a recipe for a causal language model says beyond the common parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acmsao_cli.config.section import Count, Section
from acmsao_cli.config.sections import (
    FORMATS,
    QUANTIZE,
    DataSection,
    Full,
    Lora,
    MemorySection,
    ModelSection,
    OutputSection,
    RecipeBase,
)


class CausalLmModel(ModelSection):
    """A transformers causal language model with its tokenizer."""

    family: Literal["causal_lm"]
    quantize: Literal["none", "nf4", "int8"] = Field("none", description=QUANTIZE)


class TextData(DataSection):
    """Chats, instructions or plain text."""

    format: Literal["auto", "messages", "instruction", "text"] = Field(
        "auto",
        description="messages: chats in .jsonl; instruction: instruction, input, output in .jsonl; "
        "text: a text field in .jsonl, or .txt files",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(2048, description="tokens per example")
    over_long: Literal["truncate", "drop"] = Field(
        "truncate", description="what happens to examples above max_length"
    )
    train_on: Literal["answers", "everything"] = Field(
        "answers", description="answers: prompts are read but not learned; plain text always counts"
    )


class TextSamples(Section):
    """Answers before, during and after training, to the same prompts, decoded greedily."""

    prompts: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="one answer each"
    )
    every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between samples; 0: only before and after"
    )
    max_new_tokens: Count = Field(64, description="tokens per answer at most")


class CausalLmOutput(OutputSection):
    """Files other programs read; each is loaded back before the run is called done."""

    formats: Annotated[
        tuple[Literal["peft", "transformers", "merged"], ...], Field(strict=False)
    ] = Field((), description=FORMATS)


class CausalLmMemory(MemorySection):
    """What the run may take, and how it keeps within it."""

    loss_chunk: Literal["auto"] | Count | None = Field(
        "auto",
        description="tokens whose logits exist together; auto: as many as make 64 M logits; null: "
        "all of a micro-batch",
    )
    slice_head: bool = Field(
        False,
        description="compute a fully trained head's gradient in slices of the vocabulary while "
        "it is stepped, which takes the head's products several times more; needs "
        "optimizer.fused_backward",
    )


class CausalLmRecipe(RecipeBase):
    """A training of a causal language model."""

    model: CausalLmModel
    method: Annotated[Lora | Full, Field(discriminator="kind")]
    data: TextData
    memory: CausalLmMemory = CausalLmMemory()
    samples: TextSamples = TextSamples()
    output: CausalLmOutput = CausalLmOutput()
