"""Pairs of settings that cannot be honoured together.

A value that equals its default asks for nothing, so it is never refused; then the resolved
configuration of a run is a valid recipe again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from acmsao_cli import builtin
from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.composition import clashes, layer_complaints
from acmsao_cli.config.optimizer import OptimizerSection
from acmsao_cli.config.problems import Problem
from acmsao_cli.config.recipe import LAYERS, Origin, Recipe
from acmsao_cli.config.sdxl import ImageData, SdxlFull, SdxlLora, SdxlRecipe
from acmsao_cli.config.section import Section
from acmsao_cli.config.sections import Lora, TrainingSection


class Broken(NamedTuple):
    """A rule that a recipe breaks: the keys that clash, what is wrong, how to mend it."""

    paths: tuple[str, ...]
    message: str
    hint: str


RecipeRule: TypeAlias = Callable[[Recipe], Iterator[Broken]]
RULES: list[RecipeRule] = []

# What each family writes of each method unless told, in the order of writing.
FORMATS_OF_METHODS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sdxl", "lora"): ("kohya", "peft"),
    ("sdxl", "full"): ("diffusers", "single-file"),
    ("causal_lm", "lora"): ("peft",),
    ("causal_lm", "full"): ("transformers",),
}
# What it writes besides where it is named: the adapters folded into their base, as large as that.
FORMATS_ON_REQUEST: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sdxl", "lora"): ("merged",),
    ("causal_lm", "lora"): ("merged",),
}


def formats_of(recipe: Recipe) -> tuple[str, ...]:
    """What a run of the recipe writes."""
    return recipe.output.formats or FORMATS_OF_METHODS[recipe.model.family, recipe.method.kind]


def broken_rules(
    recipe: Recipe, origins: Mapping[str, Origin], elsewhere: str
) -> Iterator[Problem]:
    """Hold a recipe to every rule.

    A problem's place is where the last of the clashing keys was written, as the others were there
    before; `elsewhere` if none was written.
    """
    for rule in RULES:
        for broken in rule(recipe):
            written = [origins[path] for path in broken.paths if path in origins]
            last = max(written, key=lambda origin: LAYERS.index(origin.layer), default=None)
            yield Problem(broken.message, last.place if last else elsewhere, broken.hint)


def holds(rule: RecipeRule) -> RecipeRule:
    """Add a rule to those every recipe is held to."""
    RULES.append(rule)
    return rule


@holds
def one_measure_of_length(recipe: Recipe) -> Iterator[Broken]:
    """A run is as long as its steps, or as its epochs."""
    training = recipe.training
    if training.steps is None and training.epochs is None:
        yield Broken(
            ("training.steps",),
            "neither `training.steps` nor `training.epochs` says how long to train",
            "for example --set training.steps=1000",
        )
    if training.steps is not None and training.epochs is not None:
        yield Broken(
            ("training.steps", "training.epochs"),
            "both `training.steps` and `training.epochs` say how long to train",
            "drop one, or set it to null",
        )


@holds
def no_global_norm_during_backward(recipe: Recipe) -> Iterator[Broken]:
    """The norm of all gradients is known only when all exist, which fusing avoids."""
    training = recipe.training
    if recipe.optimizer.fused_backward and training.clip_norm and training.clip == "global":
        yield Broken(
            ("optimizer.fused_backward", "training.clip_norm", "training.clip"),
            "`optimizer.fused_backward` cannot clip the global norm (`training.clip_norm`)",
            "measure it by a backward of its own, training.clip=two_pass; take the previous "
            "step's, training.clip=delayed; or bound each gradient by itself: "
            "training.clip_norm=null and optimizer.gradient_edits=[rms_clip]",
        )


@holds
def streamed_blocks_are_stepped_during_backward(recipe: Recipe) -> Iterator[Broken]:
    """A block that is trained leaves the device with its step done."""
    streams = isinstance(recipe.memory.resident_blocks, int)
    if streams and recipe.method.kind == "full" and not recipe.optimizer.fused_backward:
        yield Broken(
            ("memory.resident_blocks", "optimizer.fused_backward"),
            "`memory.resident_blocks` sends trained weights away, before their gradients would be "
            "stepped",
            "add optimizer.fused_backward=true, or leave memory.resident_blocks at all",
        )
    if streams and recipe.model.quantize == "int8":
        yield Broken(
            ("memory.resident_blocks", "model.quantize"),
            "`memory.resident_blocks` cannot send int8 weights away, which bitsandbytes holds too",
            "set model.quantize=nf4, which is smaller still, or memory.resident_blocks=all",
        )


@holds
def a_sliced_head_is_stepped_at_once(recipe: Recipe) -> Iterator[Broken]:
    """Its gradient never exists, so nothing can be added to it or measured before it is used."""
    if not isinstance(recipe, CausalLmRecipe) or not recipe.memory.slice_head:
        return
    key, training = "memory.slice_head", recipe.training
    if recipe.method.kind != "full" or not recipe.optimizer.fused_backward:
        yield Broken(
            (key, "optimizer.fused_backward"),
            f"`{key}` is for a full training that steps during backward",
            f"set optimizer.fused_backward=true, or drop {key}",
        )
    if training.planned_portions > 1:
        yield Broken(
            (key, "training.accumulation", "training.batch_schedule", "training.adaptive_batch"),
            f"`{key}` keeps no gradient of the head that a second micro-batch could add to",
            f"set training.accumulation=1 and let it not grow, or drop {key}",
        )
    if training.clip_norm:
        yield Broken(
            (key, "training.clip_norm"),
            f"`{key}` has no gradient of the head whose norm `training.clip_norm` could bound",
            "set training.clip_norm=null, and optimizer.gradient_edits=[rms_clip] to bound each",
        )


@holds
def clip_has_an_effect(recipe: Recipe) -> Iterator[Broken]:
    """The other ways of clipping are for gradients that never exist together."""
    training = recipe.training
    if training.clip == "global":
        return
    if not recipe.optimizer.fused_backward:
        yield Broken(
            ("training.clip", "optimizer.fused_backward"),
            f"`training.clip` is {training.clip}, which is for `optimizer.fused_backward`",
            "drop it: without fused_backward the global norm is clipped exactly, at no cost; "
            "or set optimizer.fused_backward=true",
        )
    if training.clip_norm is None:
        yield Broken(
            ("training.clip", "training.clip_norm"),
            f"`training.clip` is {training.clip}, but `training.clip_norm` bounds nothing",
            "drop it, or set training.clip_norm=1.0",
        )


@holds
def noise_needs_two_micro_batches(recipe: Recipe) -> Iterator[Broken]:
    """The noise scale follows from the gradients of a part of the step and of the whole."""
    training = recipe.training
    if training.accumulation > 1:
        return
    for key, asked in (
        ("noise_scale", training.noise_scale),
        ("adaptive_batch", training.adaptive_batch is not None),
    ):
        if asked:
            yield Broken(
                (f"training.{key}", "training.accumulation"),
                f"`training.{key}` compares micro-batches, but a step has only one",
                "halve training.batch_size and set training.accumulation=2",
            )


@holds
def batch_schedule_rises(recipe: Recipe) -> Iterator[Broken]:
    """A schedule goes on in time, grows, and each of its milestones comes within the run."""
    training = recipe.training
    before = (0, training.accumulation)
    for milestone in training.batch_schedule:
        if milestone[0] <= before[0] or milestone[1] <= before[1]:
            yield Broken(
                ("training.batch_schedule", "training.accumulation"),
                f"`training.batch_schedule` must rise in both numbers; {list(milestone)} comes "
                f"after {list(before)}",
                "each entry is [steps done, accumulation from there on]; it begins at "
                f"[0, {training.accumulation}], the training.accumulation",
            )
        before = milestone
    if training.steps is not None and training.batch_schedule and before[0] >= training.steps:
        yield Broken(
            ("training.batch_schedule", "training.steps"),
            f"`training.batch_schedule` has {list(before)}, but the run ends after "
            f"{training.steps} steps",
            "drop that entry, or train longer",
        )


@holds
def one_way_to_grow(recipe: Recipe) -> Iterator[Broken]:
    """The accumulation follows a schedule or the noise scale, for a known number of steps."""
    training = recipe.training
    adaptive = training.adaptive_batch
    if adaptive is None:
        return
    if training.batch_schedule:
        yield Broken(
            ("training.adaptive_batch", "training.batch_schedule"),
            "both `training.adaptive_batch` and `training.batch_schedule` decide the accumulation",
            "drop one, or set it to null or []",
        )
    if adaptive <= training.accumulation > 1:
        yield Broken(
            ("training.adaptive_batch", "training.accumulation"),
            f"`training.adaptive_batch` is {adaptive}, but the accumulation begins at "
            f"{training.accumulation}",
            f"for example training.adaptive_batch={4 * training.accumulation}",
        )
    if training.epochs is not None:
        yield Broken(
            ("training.adaptive_batch", "training.epochs"),
            "`training.epochs` are no known number of steps with `training.adaptive_batch`",
            "say how many with training.steps, and set training.epochs=null",
        )


@holds
def growth_has_options(recipe: Recipe) -> Iterator[Broken]:
    """What says how the accumulation grows says nothing where it does not."""
    training = recipe.training
    adaptive, patience = training.adaptive_batch is not None, training.adaptive_patience
    if not adaptive and patience != _default(TrainingSection, "adaptive_patience"):
        yield Broken(
            ("training.adaptive_patience", "training.adaptive_batch"),
            "`training.adaptive_patience` is set, but `training.adaptive_batch` is not",
            "drop it, or set training.adaptive_batch to the largest accumulation",
        )
    if not adaptive and not training.batch_schedule and training.batch_lr != "none":
        yield Broken(
            ("training.batch_lr", "training.batch_schedule", "training.adaptive_batch"),
            "`training.batch_lr` is set, but the accumulation never changes",
            "drop it, or set training.batch_schedule or training.adaptive_batch",
        )


@holds
def formats_of_the_method(recipe: Recipe) -> Iterator[Broken]:
    """Adapters and whole models are written in different formats."""
    kind = recipe.model.family, recipe.method.kind
    possible = (*FORMATS_OF_METHODS[kind], *FORMATS_ON_REQUEST.get(kind, ()))
    formats = recipe.output.formats
    for unfit in [name for name in formats if name not in possible]:
        yield Broken(
            ("output.formats", "method.kind"),
            f"`output.formats` has `{unfit}`, which method `{recipe.method.kind}` does not write",
            f"it writes {', '.join(possible)}",
        )
    if len(set(formats)) < len(formats):
        yield Broken(("output.formats",), "`output.formats` names a format twice", "name each once")


@holds
def only_adapters_on_a_packed_base(recipe: Recipe) -> Iterator[Broken]:
    """Packed weights cannot be stepped, nor does DoRA know their length."""
    if not isinstance(recipe, CausalLmRecipe | SdxlRecipe) or recipe.model.quantize == "none":
        return
    method = recipe.method
    if not isinstance(method, Lora):
        yield Broken(
            ("model.quantize", "method.kind"),
            f"`model.quantize` is {recipe.model.quantize}, which keeps the weights packed, but "
            "method `full` would have to train them",
            "train a LoRA, --set method.kind=lora, or set model.quantize=none",
        )
    elif method.dora:
        yield Broken(
            ("model.quantize", "method.dora"),
            "`method.dora` needs the length of weights that `model.quantize` packs",
            "set one of the two back: method.dora=false, or model.quantize=none",
        )


@holds
def warmup_within_the_run(recipe: Recipe) -> Iterator[Broken]:
    """A warm-up that never ends never reaches the learning rate that was asked for."""
    warmup, steps = recipe.schedule.warmup_steps, recipe.training.steps
    if steps is not None and warmup > steps:
        yield Broken(
            ("schedule.warmup_steps", "training.steps"),
            f"`schedule.warmup_steps` is {warmup}, but the run has only {steps} steps",
            "a warm-up is usually a tenth of the run or less",
        )


@holds
def optimizer_of_parts_that_fit(recipe: Recipe) -> Iterator[Broken]:
    """Every part of the optimizer is one that exists, with options that it has."""
    for clash in clashes(recipe.optimizer, lambda key: f"`optimizer.{key}`"):
        paths = tuple(f"optimizer.{key}" for key in clash.keys)
        yield Broken(paths, clash.message, clash.hint)


@holds
def layers_that_fit(recipe: Recipe) -> Iterator[Broken]:
    """Every layer's optimizer is one that the recipe could have for all."""
    for number, layer in enumerate(recipe.optimizer.layers, start=1):
        entry = f"entry {number} of `optimizer.layers`"
        for complaint in layer_complaints(recipe.optimizer, layer, entry):
            yield Broken(("optimizer.layers",), *complaint)


@holds
def rounding_has_an_effect(recipe: Recipe) -> Iterator[Broken]:
    """Updates of fp32 weights are written as they are."""
    if recipe.optimizer.rounding == _default(OptimizerSection, "rounding"):
        return
    if isinstance(recipe.method, Lora):
        yield Broken(
            ("optimizer.rounding", "method.kind"),
            "`optimizer.rounding` has no effect on adapters, which are fp32 whatever the base is",
            "drop it, or train the weights themselves: method.kind=full",
        )
    elif recipe.model.dtype == "fp32":
        yield Broken(
            ("optimizer.rounding", "model.dtype"),
            "`optimizer.rounding` has no effect on fp32 weights (`model.dtype`)",
            "drop it, or train in bf16: model.dtype=bf16",
        )


@holds
def revision_of_a_hub_id(recipe: Recipe) -> Iterator[Broken]:
    """Only what comes from the hub has revisions."""
    source = recipe.model.source
    if recipe.model.revision is None:
        return
    if builtin.name_in(source) is not None or os.path.isabs(source) or os.path.exists(source):
        yield Broken(
            ("model.revision", "model.source"),
            f"`model.revision` is set, but `model.source` is no hub id: {source}",
            "drop model.revision",
        )


@holds
def text_encoder_rate_has_an_effect(recipe: Recipe) -> Iterator[Broken]:
    """A rate for what is not trained would be ignored."""
    method = recipe.method
    if not isinstance(method, SdxlLora | SdxlFull):
        return
    if method.text_encoder_lr is not None and not method.text_encoders:
        yield Broken(
            ("method.text_encoder_lr", "method.text_encoders"),
            "`method.text_encoder_lr` is set, but the text encoders are not trained",
            "add method.text_encoders=true, or drop it",
        )


@holds
def targets_of_one_kind(recipe: Recipe) -> Iterator[Broken]:
    """Targets are names of layers, or one of the two words for many."""
    if not isinstance(recipe.method, Lora) or isinstance(recipe.method.targets, str):
        return
    words = [word for word in recipe.method.targets if word in ("attention", "all-linear")]
    if words:
        yield Broken(
            ("method.targets",),
            f"`method.targets` has `{words[0]}` in a list of layer names",
            f"write it alone: targets: {words[0]}",
        )


@holds
def samples_have_prompts(recipe: Recipe) -> Iterator[Broken]:
    """Without prompts nothing is sampled."""
    if recipe.samples.prompts:
        return
    for name in type(recipe.samples).model_fields:
        if getattr(recipe.samples, name) != _default(type(recipe.samples), name):
            yield Broken(
                (f"samples.{name}", "samples.prompts"),
                f"`samples.{name}` is set, but `samples.prompts` is empty",
                "add prompts, or drop it",
            )


@holds
def sides_the_vae_can_halve(recipe: Recipe) -> Iterator[Broken]:
    """SDXL's autoencoder makes one latent of 8 x 8 pixels."""
    if not isinstance(recipe, SdxlRecipe):
        return
    data = recipe.data
    step = data.bucket_step if data.buckets else 8
    if data.resolution % step or data.resolution % 8:
        multiple = step if step % 8 == 0 else 8
        near = max(data.resolution // multiple, 1) * multiple
        yield Broken(
            ("data.resolution", "data.bucket_step"),
            f"`data.resolution` must be a multiple of {multiple}; found {data.resolution}",
            f"for example {near}, or change data.bucket_step",
        )
    sides = {
        "data.bucket_step": data.bucket_step,
        "samples.width": recipe.samples.width,
        "samples.height": recipe.samples.height,
    }
    for path, pixels in sides.items():
        if pixels is not None and pixels % 8:
            near = max(round(pixels / 8), 1) * 8
            yield Broken(
                (path,), f"`{path}` must be a multiple of 8; found {pixels}", f"try {near}"
            )


@holds
def bucket_step_has_an_effect(recipe: Recipe) -> Iterator[Broken]:
    """Squares have no buckets."""
    if not isinstance(recipe, SdxlRecipe) or recipe.data.buckets:
        return
    if recipe.data.bucket_step != _default(ImageData, "bucket_step"):
        yield Broken(
            ("data.bucket_step", "data.buckets"),
            "`data.bucket_step` is set, but `data.buckets` is false",
            "drop it, or set data.buckets=true",
        )


@holds
def columns_of_a_table(recipe: Recipe) -> Iterator[Broken]:
    """Only a saved data set has columns to choose from."""
    if not isinstance(recipe, SdxlRecipe) or recipe.data.format in ("auto", "huggingface"):
        return
    for name in ("image_column", "caption_column"):
        if getattr(recipe.data, name) != _default(ImageData, name):
            yield Broken(
                (f"data.{name}", "data.format"),
                f"`data.{name}` is set, but format `{recipe.data.format}` has no columns",
                "drop it, or set data.format=huggingface",
            )


def _default(section: type[Section], name: str) -> object:
    return section.model_fields[name].default
