"""A recipe of any family, and what a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.privacy import at_home

Recipe = SdxlRecipe | CausalLmRecipe

# Values that are paths, or may be one.
PATHS = ("model.source", "model.config", "data.source")

# The value of `model.family` decides which schema the rest is held to.
FAMILIES: dict[str, type[SdxlRecipe] | type[CausalLmRecipe]] = {
    "sdxl": SdxlRecipe,
    "causal_lm": CausalLmRecipe,
}


@dataclass(frozen=True)
class Origin:
    """Where a value came from: one of LAYERS.

    `place` is a file and line, the argument, or why it was decided so; empty for a default.
    """

    layer: str
    place: str = ""

    def __str__(self) -> str:
        if self.layer == "set":
            return self.place
        return f"{self.layer} {self.place}".rstrip()


DEFAULT = Origin("default")
# The later wins. `found` (by looking at the data) and `planned` decide only what is left open,
# and `ladder` is what a run was changed to when its memory ran out.
LAYERS = ("default", "preset", "found", "planned", "recipe", "set", "ladder")
# What a person said of this very run.
SAID = ("recipe", "set")


@dataclass(frozen=True)
class RunConfig:
    """A recipe with everything decided, each value with its origin.

    `origins` maps dotted paths of leaves ("optimizer.lr") to their origin. `name` is the recipe's
    name, used for the run folder; `preset` is the preset's name, if one was chosen. Relative paths
    inside `recipe` (model.source, data.source) are already absolute. `before` holds the values, by
    dotted path, that running out of memory replaced.
    """

    name: str
    recipe: Recipe
    origins: dict[str, Origin]
    preset: str | None = None
    before: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in run.yaml: paths below the home folder as `~/...`."""
        values = self.recipe.model_dump(mode="json")
        for path in PATHS:
            section, _, key = path.partition(".")
            if isinstance(value := values[section].get(key), str):
                values[section][key] = at_home(value)
        return values

    def with_data_format(self, found: str) -> RunConfig:
        """The run with `data.format: auto` decided by what was found at the source."""
        if self.recipe.data.format != "auto":
            return self
        data = self.recipe.data.model_copy(update={"format": found})
        recipe = self.recipe.model_copy(update={"data": data})
        return replace(
            self,
            recipe=recipe,
            origins=self.origins | {"data.format": Origin("found", "by looking")},
        )
