"""What a command line asks for, by name or as YAML: contenders and tasks. Nothing slow is loaded
for a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from acmsao_cli.bench.contenders import (
    ANY,
    BASELINE,
    CONTENDERS,
    Contender,
    centres_of,
    contender,
)
from acmsao_cli.bench.tasks import TASKS, Task
from acmsao_cli.config.check import flatten, validate
from acmsao_cli.config.choices import parts
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.locate import SUFFIXES, shipped
from acmsao_cli.config.parts import called
from acmsao_cli.config.problems import refuse
from acmsao_cli.config.reading import Document, describe, read_value
from acmsao_cli.config.rules import broken_rules
from acmsao_cli.config.schema import OPTIMIZER, outline, with_options
from acmsao_cli.config.suggest import closest
from acmsao_cli.errors import ConfigError

# A recipe that says nothing of its optimizer, to hold an optimizer's section to a recipe's rules.
BARE: Final = {
    "model.family": "causal_lm",
    "model.source": "builtin:tiny-llm",
    "method.kind": "lora",
    "data.source": "builtin:pirate",
    "training.steps": 1,
}


def contenders_asked(texts: Sequence[str]) -> list[Contender]:
    """Each once, in the order they were asked for. Raises ConfigError."""
    return list({one.name: one for one in map(contender_asked, texts)}.values())


def contender_asked(text: str) -> Contender:
    """One by the name of ours, of a rule, or as in `lion: {lr: 1e-3, storage: factored}`."""
    text = text.strip()
    if text in CONTENDERS:
        return CONTENDERS[text]
    if text in parts()["rule"]:
        return contender(text)
    place = f"--optimizer {text}"
    says = _says(read_value(text, place), place)
    checked = _checked(says, place)
    rate = checked.get("lr")
    layers = [_in_multiples(layer, rate, place) for layer in checked.get("layers", ())]
    own = {key: value for key, value in checked.items() if key not in ("lr", "layers")}
    centres = {ANY: rate} if rate else centres_of(own)
    label = called(says["name"], {key: value for key, value in says.items() if key != "name"})
    return Contender(label, {**own, **({"layers": layers} if layers else {})}, centres)


def _says(value: Any, place: str) -> dict[str, Any]:
    """The keys of an `optimizer:` section."""
    if isinstance(value, str):
        known = [*CONTENDERS, *sorted(set(parts()["rule"]) - set(CONTENDERS))]
        near = closest(value, known)
        listing = f"known: {', '.join(known)}"
        raise ConfigError(
            f"unknown optimizer `{value}`",
            hint=f"did you mean `{near}`? {listing}" if near else listing,
        )
    if isinstance(value, Mapping) and "name" in value:
        return dict(value)
    match list(value.items()) if isinstance(value, Mapping) else []:
        case [(str(name), None | Mapping() as options)]:
            return {"name": name, **(options or {})}
    raise ConfigError(
        f"{place} must name an optimizer; found {describe(value)}",
        hint="for example --optimizer 'lion: {lr: 1e-3, storage: factored}'",
    )


def _checked(says: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What is written, held to all that a recipe's section is held to. Raises ConfigError."""
    known = with_options(outline("causal_lm", "lora"), str(says["name"]))
    places = {OPTIMIZER: place} | {f"{OPTIMIZER}.{key}": place for key in says}
    leaves, problems = flatten(Document({OPTIMIZER: dict(says)}, places), known)
    checked = validate("causal_lm", {**BARE, **leaves}, lambda path: place, known)
    refuse([*problems, *(checked if isinstance(checked, list) else ())])
    assert not isinstance(checked, list)
    if checked.optimizer.fused_backward:
        raise ConfigError(
            f"`optimizer.fused_backward` in {place} is for training, where memory is short",
            hint="drop it",
        )
    refuse(list(broken_rules(checked, {}, place)))
    return checked.optimizer.model_dump(include={*says}, exclude_none=True)


def _in_multiples(layer: Mapping[str, Any], rate: float | None, place: str) -> dict[str, Any]:
    """A layer's own rate as a multiple of the section's, which is what is tried."""
    if "lr" not in layer:
        return dict(layer)
    if rate is None:
        raise ConfigError(
            f"a layer has an lr in {place}, and the optimizer has none",
            hint="give it one too: rates are tried in the proportion of the two",
        )
    return {**layer, "lr": layer["lr"] / rate}


def tasks_asked(texts: Sequence[str]) -> list[Task]:
    """Each once, in the order they were asked for; a report knows them by name. Raises
    ConfigError, DataError.
    """
    found: dict[str, Task] = {}
    for text in dict.fromkeys(texts):
        task = task_asked(text)
        if task.name in found:
            raise ConfigError(
                f"two tasks are called `{task.name}`",
                hint="compare them in folders of their own (--output), or rename a recipe's file",
            )
        found[task.name] = task
    return list(found.values())


def task_asked(text: str) -> Task:
    """A built-in task, or that of a recipe by name or path. Raises ConfigError, DataError."""
    if text in TASKS:
        return TASKS[text]
    names = [recipe.name for recipe in shipped("recipe")]
    if text not in names and "/" not in text and not text.lower().endswith(SUFFIXES):
        near = closest(text, [*TASKS, *names])
        listing = f"tasks: {', '.join(TASKS)}; recipes: {', '.join(names)}, or a .yaml file"
        raise ConfigError(
            f"unknown task `{text}`",
            hint=f"did you mean `{near}`? {listing}" if near else listing,
        )
    config = resolve(Request(text))
    from acmsao_cli.bench.recipe_task import recipe_task

    return recipe_task(config)


def reference_of(contenders: Sequence[Contender], asked: Contender | None) -> str:
    """Whom the others are held against: the one asked for, else AdamW, else the first."""
    names = [one.name for one in contenders]
    if asked is None:
        return BASELINE if BASELINE in names else names[0]
    if asked.name not in names:
        raise ConfigError(
            f"--reference {asked.name} is not among the optimizers",
            hint=f"name one of {', '.join(names)}",
        )
    return asked.name
