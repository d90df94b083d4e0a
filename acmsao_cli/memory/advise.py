"""What would make a run fit: each change is planned, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from acmsao_cli.config.auto import BLOCKS, CHECKPOINTING, OFFLOADING, with_values
from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.config.rules import broken_rules
from acmsao_cli.engine.out_of_memory import reason_of
from acmsao_cli.engine.precision import resolve_device
from acmsao_cli.engine.report import human_bytes
from acmsao_cli.errors import ConfigError, DoesNotFitError
from acmsao_cli.memory.cards import Card
from acmsao_cli.memory.fit import bounds
from acmsao_cli.memory.planner import MemoryPlan, plan

SLICE: Final = "memory.slice_head"


@dataclass(frozen=True)
class Change:
    """Settings by dotted key that make a run smaller, and what they cost."""

    settings: tuple[tuple[str, Any], ...]
    costs: tuple[str, ...]

    def __str__(self) -> str:
        """As options of the command line."""
        return " ".join(f"--set {key}={_spoken(value)}" for key, value in self.settings)

    def __add__(self, other: Change) -> Change:
        """Both; the later one's values count."""
        settings = dict(self.settings) | dict(other.settings)
        costs = dict.fromkeys((*self.costs, *other.costs))
        return Change(tuple(settings.items()), tuple(costs))


@dataclass(frozen=True)
class Planned:
    """A change, and what the run needs with it."""

    change: Change
    needed_bytes: int


def _spoken(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(recipe: Recipe, *, on_gpu: bool) -> list[Change]:
    """What is not on yet and makes such runs smaller, the cheapest first.

    The host's memory helps where it is not the memory that computes.
    """
    training, optimizer = recipe.training, recipe.optimizer
    found = []
    if recipe.method.kind == "full" and not (
        optimizer.fused_backward and training.accumulation == 1
    ):
        found.append(_without_gradients(recipe))
    if optimizer.storage != "factored":
        storage = (("optimizer.storage", "factored"),)
        found.append(Change(storage, ("state in about one bit a number",)))
    if not training.gradient_checkpointing:
        checkpointing = (("training.gradient_checkpointing", True),)
        found.append(Change(checkpointing, ("about a third more time",)))
    if isinstance(recipe, CausalLmRecipe) and recipe.memory.loss_chunk is None:
        found.append(Change((("memory.loss_chunk", "auto"),), ()))
    if isinstance(recipe, CausalLmRecipe) and _may_slice(recipe):
        sliced = ((SLICE, True),)
        found.append(Change(sliced, ("the head's products several times more",)))
    if training.batch_size > 1:
        found.append(_smaller_batch(recipe))
    if on_gpu and recipe.memory.offload_activations is False:
        away = ((OFFLOADING, True),)
        found.append(Change(away, ("what backward needs crosses the bus twice",)))
    streams = isinstance(recipe.memory.resident_blocks, int)
    if on_gpu and not streams and recipe.model.quantize != "int8":
        found.append(_streamed(recipe))
    return found


def _may_slice(recipe: CausalLmRecipe) -> bool:
    sliced = with_values(recipe, {SLICE: True})
    return not recipe.memory.slice_head and not any(broken_rules(sliced, {}, ""))


def _streamed(recipe: Recipe) -> Change:
    """Every block in the host's memory, with the settings without which that gains little."""
    costs = ["every weight crosses the bus twice a step"]
    settings: dict[str, Any] = {BLOCKS: 0}
    if not recipe.training.gradient_checkpointing:
        settings[CHECKPOINTING] = True
        costs.append("about a third more time")
    if recipe.method.kind == "full" and not recipe.optimizer.fused_backward:
        fused = _without_gradients(recipe)
        settings |= dict(fused.settings)
        costs += fused.costs
    return Change(tuple(settings.items()), tuple(costs))


def _without_gradients(recipe: Recipe) -> Change:
    """Step during backward, of one portion: with more, gradients are kept between them."""
    training, costs = recipe.training, []
    settings: dict[str, Any] = {}
    if not recipe.optimizer.fused_backward:
        settings["optimizer.fused_backward"] = True
        if training.clip_norm:
            settings["training.clip"] = "two_pass"
            costs.append("a second backward pass to clip by the norm")
    if training.accumulation > 1:
        settings["training.accumulation"] = 1
        costs.append("steps of fewer examples")
    return Change(tuple(settings.items()), tuple(costs))


def _smaller_batch(recipe: Recipe) -> Change:
    """One example at a time: in as many portions, unless a fused run would then keep gradients."""
    training = recipe.training
    one = ("training.batch_size", 1)
    keeps_none = recipe.method.kind == "full" and recipe.optimizer.fused_backward
    if keeps_none or training.batch_schedule or training.adaptive_batch:
        return Change((one,), ("steps of fewer examples",))
    portions = training.batch_size * training.accumulation
    return Change((one, ("training.accumulation", portions)), ("less work at a time, so slower",))


def with_change(recipe: Recipe, change: Change) -> Recipe:
    """The recipe with other values."""
    return with_values(recipe, dict(change.settings))


def planned(config: RunConfig, change: Change, card: Card | None = None) -> Planned | None:
    """Plan the run with the change; None where the model refuses it."""
    changed = replace(config, recipe=with_change(config.recipe, change))
    try:
        return Planned(change, plan(changed, card).needed_bytes)
    except ConfigError:
        return None


def require_fit(made: MemoryPlan, config: RunConfig) -> None:
    """Raise DoesNotFitError if the plan exceeds what the run may take; say what would fit."""
    for bound in bounds(config, made.card):
        if made.needed_bytes > bound.nbytes:
            parts = "   ".join(
                f"{name} {human_bytes(size)}" for name, size in made.by_category.items() if size
            )
            raise DoesNotFitError(
                f"this run needs {human_bytes(made.needed_bytes)}; {bound.words} "
                f"{human_bytes(bound.nbytes)}\n  {parts}",
                hint=what_fits(config, made, bound.nbytes),
            )


def what_fits(config: RunConfig, made: MemoryPlan, bound: float) -> str:
    """The single changes that fit, else the fewest together, cheapest first; or that none do."""
    known_changes = changes(config.recipe, on_gpu=made.device.type == "cuda")
    tried = [planned(config, change, made.card) for change in known_changes]
    known = [one for one in tried if one is not None]
    fitting = [one for one in known if one.needed_bytes <= bound]
    if fitting:
        return "\n".join(["any one of these fits:", *(_line(one, made) for one in fitting)])
    useful = [one.change for one in known if one.needed_bytes < made.needed_bytes]
    together = _together(config, useful, bound, made.card)
    if together is None:
        return "a smaller model; nothing else that is known makes this run smaller"
    if together.needed_bytes <= bound:
        return f"no single change is enough; these together fit:\n{_line(together, made)}"
    return f"even this is not enough, so a smaller model:\n{_line(together, made)}"


def _together(
    config: RunConfig, useful: Sequence[Change], bound: float, card: Card | None
) -> Planned | None:
    """Changes one after another until they fit, or all of them."""
    made = None
    for number in range(1, len(useful) + 1):
        first, *rest = useful[:number]
        for change in rest:
            first = first + change
        made = planned(config, first, card)
        if made is None or made.needed_bytes <= bound:
            return made
    return made


def _line(one: Planned, made: MemoryPlan) -> str:
    saved = human_bytes(made.needed_bytes - one.needed_bytes)
    needs = human_bytes(one.needed_bytes)
    costs = f"; {', '.join(one.change.costs)}" if one.change.costs else ""
    return f"    {one.change}\n        saves {saved}, needs {needs}{costs}"


def advice(recipe: Recipe) -> str:
    """What makes such a run smaller where it runs, unplanned."""
    on_gpu = resolve_device(recipe.training.device).type == "cuda"
    known = changes(recipe, on_gpu=on_gpu)
    found = [one for one in known if SLICE not in dict(one.settings)]  # not of any model
    words = "; ".join(map(str, found))
    return f"any of these makes it smaller: {words}" if words else "a smaller model"


@contextmanager
def out_of_memory_named(recipe: Recipe) -> Iterator[None]:
    """Within, real memory that ran out is a DoesNotFitError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise DoesNotFitError(f"out of memory: {reason}", hint=advice(recipe)) from None
