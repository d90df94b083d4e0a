"""The optimizer that a recipe's words stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

import torch

from acmsao_cli.config.auto import at_best
from acmsao_cli.config.optimizer import KAHAN, OF_THE_RUN, LayerChoice, OptimizerSection
from acmsao_cli.config.problems import Problem, refuse
from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.config.sections import Lora
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.errors import OptimizerError
from acmsao_cli.models.dtypes import DTYPES
from acmsao_cli.optim import LayerRule, Pipeline, build_pipeline
from acmsao_cli.optim.kernels.parts import recognise

# Keys of the section that are numbers of a parameter group, not parts of the pipeline.
_OF_GROUPS: Final = frozenset({"lr", "weight_decay"})


def pipeline_of(section: OptimizerSection) -> Pipeline:
    """The five stations; options that are none are the rule's own."""
    exclude = {*OF_THE_RUN, *_OF_GROUPS}
    parts: dict[str, Any] = section.model_dump(exclude=exclude, exclude_none=True)
    return build_pipeline(**parts)


def layers_of(section: OptimizerSection) -> list[LayerRule]:
    """What the layers say, in their order."""
    return [_layer(section, layer) for layer in section.layers]


def _layer(section: OptimizerSection, layer: LayerChoice) -> LayerRule:
    """An entry: a rate or decay that it does not give is that of the parameter's group."""
    return LayerRule(
        pipeline=pipeline_of(section_of(section, layer)),
        match=layer.match,
        ndim=layer.ndim,
        min_side=layer.min_side,
        lr=section.rate_of(layer),
        weight_decay=layer.settings.get("weight_decay"),
    )


def section_of(section: OptimizerSection, layer: LayerChoice) -> OptimizerSection:
    """The section that holds for a layer."""
    return OptimizerSection.model_validate(section.of_layer(layer))


def require_composed(config: RunConfig, *, trained_here: bool = True) -> None:
    """Compose the recipe's optimizer; raise ConfigError with the key and place of what prevents it.

    Nothing is loaded. A `model.dtype` that the device decides is known only if `trained_here`.
    """
    problems = []
    for key, (message, hint) in _problems(at_best(config.recipe), trained_here):
        origin = config.origins.get(f"optimizer.{key}")
        place = origin.place if origin and origin.place else config.name
        problems.append(Problem(message, place, hint))
    refuse(problems)


def _problems(recipe: Recipe, trained_here: bool) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Yield keys of the section with what is wrong and how to mend it; the first of each kind."""
    section = recipe.optimizer
    error = _refused(section)
    if error is not None:
        key = _culprit(section, section.model_fields_set | section.options.keys())
        yield key, (f"`optimizer.{key}`: {error.message}", error.hint)
        return
    for number, layer in enumerate(section.layers, start=1):
        error = _refused(section_of(section, layer))
        if error is not None:
            key = _culprit(section_of(section, layer), layer.settings)
            where = f"`{key}` in entry {number} of `optimizer.layers`"
            yield "layers", (f"{where}: {error.message}", error.hint)
            return
    yield from _unfit_weights(recipe, trained_here)


def _refused(section: OptimizerSection) -> OptimizerError | None:
    """Why there is no such pipeline."""
    try:
        pipeline_of(section)
    except OptimizerError as error:
        return error
    return None


def _culprit(section: OptimizerSection, keys: Iterable[str]) -> str:
    """The first key without which there is a pipeline, else the name."""
    values = section.model_dump()
    for key in sorted(set(keys) - {"name"}):
        rest = {other: value for other, value in values.items() if other != key}
        if _refused(OptimizerSection.model_validate(rest)) is None:
            return key
    return "name"


def _unfit_weights(
    recipe: Recipe, trained_here: bool
) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """What the optimizer cannot do with weights of the dtype that is trained."""
    section = recipe.optimizer
    layered = [section_of(section, layer) for layer in section.layers]
    rounded = [key for key, one in _by_key(section, layered) if one.rounding == KAHAN]
    if not rounded and not section.kernels:
        return
    dtypes = _trained_dtypes(recipe, trained_here)
    if rounded and torch.bfloat16 not in dtypes:
        message = "rounding `kahan` is for bf16 weights, and fp32 weights are trained here"
        yield rounded[0], (f"`optimizer.{rounded[0]}`: {message}", "drop it, or train in bf16")
    if section.kernels:
        errors = [_no_kernel(one, dtype) for one in (section, *layered) for dtype in dtypes]
        if None not in errors and errors[0] is not None:
            yield "kernels", (f"`optimizer.kernels`: {errors[0].message}", errors[0].hint)


def _by_key(
    section: OptimizerSection, layered: Iterable[OptimizerSection]
) -> Iterator[tuple[str, OptimizerSection]]:
    yield "rounding", section
    yield from (("layers", one) for one in layered)


def _trained_dtypes(recipe: Recipe, trained_here: bool) -> Collection[torch.dtype]:
    """The dtype of the trained weights, or those it may be."""
    if isinstance(recipe.method, Lora):
        return (torch.float32,)
    wanted = recipe.model.dtype
    if trained_here:
        return (resolve_dtype(wanted, resolve_device(recipe.training.device)),)
    return (DTYPES[wanted],) if wanted in DTYPES else (torch.bfloat16, torch.float32)


def _no_kernel(section: OptimizerSection, dtype: torch.dtype) -> OptimizerError | None:
    try:
        recognise(pipeline_of(section), dtype)
    except OptimizerError as error:
        return error
    return None
