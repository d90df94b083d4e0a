"""The optimizer that a recipe's words stand for."""

from __future__ import annotations

from typing import Any, Final

from acmsao_cli.config.optimizer import OF_THE_RUN, LayerChoice, OptimizerSection
from acmsao_cli.optim import LayerRule, Pipeline, build_pipeline

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
        pipeline=pipeline_of(OptimizerSection.model_validate(section.of_layer(layer))),
        match=layer.match,
        ndim=layer.ndim,
        min_side=layer.min_side,
        lr=layer.settings.get("lr"),
        weight_decay=layer.settings.get("weight_decay"),
    )
