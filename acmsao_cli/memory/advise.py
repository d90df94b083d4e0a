"""What would make a run fit: each change is planned, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.engine.report import human_bytes
from acmsao_cli.errors import DoesNotFitError
from acmsao_cli.memory.planner import MemoryPlan, plan


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
    """A change, and the peak that the run has with it."""

    change: Change
    peak_bytes: int


def _spoken(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(recipe: Recipe) -> list[Change]:
    """What is not on yet and makes such runs smaller, the cheapest first."""
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
    if training.batch_size > 1:
        found.append(_smaller_batch(recipe))
    return found


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
    values = recipe.model_dump()
    for key, value in change.settings:
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return type(recipe).model_validate(values)


def planned(config: RunConfig, change: Change) -> Planned:
    """Plan the run with the change."""
    changed = replace(config, recipe=with_change(config.recipe, change))
    return Planned(change, plan(changed).peak_bytes)


def bounds(made: MemoryPlan, recipe: Recipe) -> list[tuple[float, str]]:
    """What the run may take, in bytes, and who says so."""
    found = []
    if recipe.memory.budget_gb is not None:
        found.append((recipe.memory.budget_gb * 1e9, "memory.budget_gb allows"))
    if made.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(made.device)
        found.append((float(free), f"{made.device} has free"))
    return found


def require_fit(made: MemoryPlan, config: RunConfig) -> None:
    """Raise DoesNotFitError if the plan exceeds what the run may take; say what would fit."""
    for bound, words in bounds(made, config.recipe):
        if made.peak_bytes > bound:
            parts = "   ".join(
                f"{name} {human_bytes(size)}" for name, size in made.by_category.items()
            )
            raise DoesNotFitError(
                f"this run needs {human_bytes(made.peak_bytes)}; {words} {human_bytes(bound)}\n"
                f"  {parts}",
                hint=what_fits(config, made, bound),
            )


def what_fits(config: RunConfig, made: MemoryPlan, bound: float) -> str:
    """The single changes that fit, else the fewest together, cheapest first; or that none do."""
    known = [planned(config, change) for change in changes(config.recipe)]
    fitting = [one for one in known if one.peak_bytes <= bound]
    if fitting:
        return "\n".join(["any one of these fits:", *(_line(one, made) for one in fitting)])
    useful = [one.change for one in known if one.peak_bytes < made.peak_bytes]
    together = _together(config, useful, bound)
    if together is None:
        return "a smaller model; nothing else that is known makes this run smaller"
    if together.peak_bytes <= bound:
        return f"no single change is enough; these together fit:\n{_line(together, made)}"
    return f"even this is not enough, so a smaller model:\n{_line(together, made)}"


def _together(config: RunConfig, useful: Sequence[Change], bound: float) -> Planned | None:
    """Changes one after another until they fit, or all of them."""
    made = None
    for number in range(1, len(useful) + 1):
        first, *rest = useful[:number]
        for change in rest:
            first = first + change
        made = planned(config, first)
        if made.peak_bytes <= bound:
            return made
    return made


def _line(one: Planned, made: MemoryPlan) -> str:
    saved = human_bytes(made.peak_bytes - one.peak_bytes)
    needs = human_bytes(one.peak_bytes)
    costs = f"; {', '.join(one.change.costs)}" if one.change.costs else ""
    return f"    {one.change}\n        saves {saved}, needs {needs}{costs}"


@contextmanager
def out_of_memory_named(recipe: Recipe) -> Iterator[None]:
    """Within, real memory that ran out is a DoesNotFitError with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = (str(error).splitlines() or ["the system has no more"])[0]
        found = changes(recipe)
        words = "; ".join(map(str, found))
        hint = f"any of these makes it smaller: {words}" if found else "a smaller model"
        raise DoesNotFitError(f"out of memory: {reason}", hint=hint) from None
