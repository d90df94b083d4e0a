"""What a recipe for SDXL says beyond the common parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from acmsao_cli.config.section import Count, Fraction, PositiveFloat, Section
from acmsao_cli.config.sections import (
    FORMATS,
    QUANTIZE,
    DataSection,
    Full,
    Lora,
    ModelSection,
    OutputSection,
    RecipeBase,
)

Side = Annotated[int, Field(ge=1, le=8192)]
TextEncoders = Annotated[
    bool, Field(description="train both text encoders too; else only the UNet")
]
TextEncoderLr = Annotated[
    PositiveFloat | None,
    Field(description="learning rate of the text encoders; none is that of the UNet"),
]


class SdxlModel(ModelSection):
    """An SDXL pipeline: UNet, two text encoders, VAE, two tokenizers, scheduler."""

    family: Literal["sdxl"]
    config: str | None = Field(
        None, description="a diffusers folder whose configurations describe a single file"
    )
    quantize: Literal["none", "fp8", "nf4"] = Field("none", description=QUANTIZE)
    prediction: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="what the UNet predicts; auto asks the model's scheduler or file"
    )


class SdxlLora(Lora):
    """Adapters on the UNet and, if asked, on the text encoders."""

    text_encoders: TextEncoders = False
    text_encoder_lr: TextEncoderLr = None


class SdxlFull(Full):
    """All weights of the UNet and, if asked, of the text encoders."""

    text_encoders: TextEncoders = False
    text_encoder_lr: TextEncoderLr = None


class ImageData(DataSection):
    """Captioned pictures."""

    format: Literal["auto", "captions", "metadata", "huggingface"] = Field(
        "auto",
        description="captions: a .txt beside each picture; metadata: metadata.jsonl; "
        "huggingface: a data set saved to disk",
    )
    image_column: Annotated[str, Field(min_length=1)] = Field(
        "image", description="column of the picture (huggingface)"
    )
    caption_column: Annotated[str, Field(min_length=1)] = Field(
        "text", description="column of the caption (huggingface)"
    )
    resolution: Annotated[int, Field(ge=16, le=4096)] = Field(
        1024, description="pixels: pictures are scaled to about resolution x resolution in area"
    )
    buckets: bool = Field(
        True, description="keep aspect ratios by groups of like shape; false crops to a square"
    )
    bucket_step: Count = Field(64, description="pixels between the sides of neighbouring buckets")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="processes that open and scale pictures ahead of the VAE; 0: no others"
    )
    flip: bool = Field(False, description="mirror half of the pictures at random")
    caption_dropout: Fraction = Field(
        0.05, description="share of captions replaced by the empty one"
    )


class ImageSamples(Section):
    """Pictures drawn before, during and after training, for the same prompts and seeds."""

    prompts: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="one picture each"
    )
    every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between sample grids; 0: only before and after"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the first picture; +1 each"
    )
    steps: Count = Field(25, description="sampling steps")
    guidance: Annotated[FiniteFloat, Field(ge=0)] = Field(
        5.0, description="classifier-free guidance"
    )
    width: Side | None = Field(None, description="pixels; none is data.resolution")
    height: Side | None = Field(None, description="pixels; none is data.resolution")


class SdxlLoss(Section):
    """How the error of the prediction is weighted."""

    min_snr_gamma: PositiveFloat | None = Field(
        None, description="cap on the signal-to-noise weight (arXiv:2303.09556); null for none"
    )


class SdxlOutput(OutputSection):
    """Files other programs read; each is loaded back before the run is called done."""

    formats: Annotated[
        tuple[Literal["kohya", "peft", "diffusers", "single-file", "merged"], ...],
        Field(strict=False),
    ] = Field((), description=FORMATS)


class SdxlRecipe(RecipeBase):
    """A training of SDXL."""

    model: SdxlModel
    method: Annotated[SdxlLora | SdxlFull, Field(discriminator="kind")]
    data: ImageData
    loss: SdxlLoss = SdxlLoss()
    samples: ImageSamples = ImageSamples()
    output: SdxlOutput = SdxlOutput()
