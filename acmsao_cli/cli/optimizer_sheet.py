"""What there is to say of one optimizer, as values: its paper, options, bytes and company."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acmsao_cli import builtin
from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.config.locate import locate, shipped
from acmsao_cli.config.parts import AUTO, spoken
from acmsao_cli.config.recommended import RECOMMENDED, finds_rate
from acmsao_cli.errors import AcmsaoError, ConfigError

if TYPE_CHECKING:
    from acmsao_cli.config.optimizer import OptimizerSection
    from acmsao_cli.config.recipe import Recipe
    from acmsao_cli.optim.accounting import Placed
    from acmsao_cli.optim.catalog import Entry
    from acmsao_cli.optim.features import Feature
    from acmsao_cli.optim.pipeline import Pipeline

SDXL = "sdxl"
WHOLE = {"tiny-sdxl": "sdxl-full", "tiny-llm": "llm-full"}  # by model shipped inside
UNET_SHAPES = Path(__file__).with_name("sdxl_unet_shapes.json")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
PAGE = re.compile(r"\b\w+\.github\.io\b")
PART_WITH_OPTIONS = re.compile(r"\b([a-z]\w*)\(.*\)", re.DOTALL)
IN_YAML = {"True": "true", "False": "false", "None": "null", "inf": ".inf"}
METHODS = ("lora", "full")
RULE, STORAGE = "optimizer", "storage"  # the registries' words
COUNTED_WITH = ("adamw", "lion")  # rules of two states and of one
TIERS = ("8gb", "16gb", "24gb", "80gb")  # the presets for GPUs, by their memory
BYTES_IN_BF16 = 2


@dataclass(frozen=True)
class Shapes:
    """The trained parameters of a model: how many there are of each shape, and in which recipe."""

    about: str
    recipe: str
    counts: Mapping[tuple[int, ...], int]

    @property
    def num_tensors(self) -> int:
        """How many parameters there are."""
        return sum(self.counts.values())

    @property
    def num_elements(self) -> int:
        """How many numbers they have together."""
        return sum(math.prod(shape) * count for shape, count in self.counts.items())


@dataclass(frozen=True)
class OptionRow:
    """An option: its default, and what is recommended for a LoRA and for full weights."""

    name: str
    default: str
    lora: str
    full: str


@dataclass(frozen=True)
class Tier:
    """What a preset makes of a rule: the storage and its bytes, or why it cannot be."""

    preset: str
    storage: str = ""
    state: Placed | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A rule in full."""

    entry: Entry
    law: str  # the docstring after its first paragraph
    paper: str  # a link, or nothing
    options: list[OptionRow]
    slots: list[str]  # what it remembers of each parameter
    shapes: Shapes
    state: Mapping[str, Placed]  # bytes by storage
    tiers: list[Tier]
    features: list[Feature]


def entries() -> list[Entry]:
    """All registered parts."""
    quiet_libraries()
    from acmsao_cli.optim import catalog

    return catalog.describe()


def entries_called(name: str) -> list[Entry]:
    """The parts of this name, of whatever kind."""
    found = [part for part in entries() if part.name == name]
    if found:
        return found
    from acmsao_cli.config.aliases import seed_called, translate
    from acmsao_cli.config.suggest import closest

    if seed := seed_called(name):
        ours = ", ".join(f"{key}: {spoken(v)}" for key, v in translate(seed, {}).values.items())
        hint = f"recipes take that name for {{{ours}}}; see `acmsao optimizers show {seed.rule}`"
        raise ConfigError(f"`{name}` is an optimizer of adv_optm", hint=hint)
    near = closest(name, [part.name for part in entries()])
    listing = "`acmsao optimizers list` names them"
    raise ConfigError(
        f"there is no optimizer part `{name}`",
        hint=f"did you mean `{near}`? {listing}" if near else listing,
    )


def defaults_of(entry: Entry) -> dict[str, Any]:
    """The options that have a default, each with the value that a recipe would give it."""
    from acmsao_cli.optim import catalog

    (part,) = (r.parts[entry.name] for r in catalog.REGISTRIES if r.kind == entry.kind)
    return _options_of(part) if inspect.isclass(part) else {}


def _options_of(part: Any) -> dict[str, Any]:
    """The fields of a dataclass, or of one that was made, as plain values."""
    found = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name, field.default)
        if inspect.isclass(part) and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING and field.init:
            found[field.name] = as_plain(value)
    return found


def as_plain(value: Any) -> Any:
    """A default as JSON has it: a part as its name, or a mapping with what is not its default.

    A schedule is always a mapping, as in a recipe.
    """
    from acmsao_cli.optim.registry import part_name
    from acmsao_cli.optim.schedules import schedule

    if isinstance(value, float) and math.isinf(value):
        return spoken(value)
    if isinstance(value, tuple):
        return [as_plain(entry) for entry in value]
    if callable(value) or dataclasses.is_dataclass(value):
        name = part_name(value)
        usual = _options_of(type(value)) if dataclasses.is_dataclass(value) else {}
        given = _options_of(value) if dataclasses.is_dataclass(value) else {}
        other = {key: one for key, one in given.items() if usual.get(key, ...) != one}
        return {"name": name, **other} if other or name in schedule.parts else name
    return value


def rules_taking(entry: Entry) -> list[str] | None:
    """The rules that a part goes with; none of a part that no rule refuses, as a schedule."""
    from acmsao_cli.optim.features import features

    rules = [part.name for part in entries() if part.kind == RULE]
    found = {rule: [f for f in features(rule) if f.kind == entry.kind] for rule in rules}
    if not any(found.values()):
        return None
    return [
        rule
        for rule, alike in found.items()
        if any(feature.name == entry.name and feature.refused is None for feature in alike)
    ]


def sheet(entry: Entry, model: str) -> Sheet:
    """Everything about a rule, with its bytes for a model."""
    from acmsao_cli.optim import build_pipeline
    from acmsao_cli.optim.features import features
    from acmsao_cli.optim.rules.base import rule as rules

    shapes = shapes_of(model)
    found = features(entry.name)
    doc = inspect.getdoc(rules.parts[entry.name]) or ""
    kept = [part.name for part in found if part.kind == "storage" and part.refused is None]
    return Sheet(
        entry=entry,
        law=doc.partition("\n\n")[2],
        paper=paper_of(entry.summary),
        options=option_rows(entry),
        slots=[slot.name for slot in build_pipeline(entry.name).rule.slots],
        shapes=shapes,
        state={storage: state_in(entry.name, storage, shapes) for storage in kept},
        tiers=[tier(entry.name, preset, shapes) for preset in TIERS],
        features=found,
    )


def option_rows(entry: Entry) -> list[OptionRow]:
    """The keys of a recipe that concern this rule, those of its own last."""
    advised = RECOMMENDED.get(entry.name, {})
    keys = {key for values in advised.values() for key in values}
    shared = sorted(keys - set(entry.options))
    return [
        OptionRow(
            key,
            short(entry.options.get(key, "")),
            *(_advice(advised, method, key) for method in METHODS),
        )
        for key in (*shared, *entry.options)
    ]


def _advice(advised: Mapping[str, Mapping[str, Any]], method: str, key: str) -> str:
    values = advised.get(method, {})
    return spoken(values[key]) if key in values else ""


def short(default: str) -> str:
    """A default as a recipe would say it, a part without its options: `adamw(...)` is `adamw`."""
    if default.startswith("("):
        return f"[{default[1:-1]}]"
    return IN_YAML.get(default) or PART_WITH_OPTIONS.sub(r"\1", default).strip("'")


def paper_of(summary: str) -> str:
    """The link to the first paper or page that is named."""
    if found := ARXIV.search(summary):
        return f"https://arxiv.org/abs/{found[1]}"
    page = PAGE.search(summary)
    return f"https://{page[0]}" if page else ""


def tier(rule: str, preset: str, shapes: Shapes) -> Tier:
    """What a run of the shapes' recipe with this rule and preset keeps."""
    from acmsao_cli.config.layers import Request, resolve
    from acmsao_cli.engine.compose import pipeline_of

    own_rate = ("optimizer.lr=1",) if finds_rate({"name": rule}) else ()
    settings = (f"optimizer.name={rule}", *own_rate)
    try:
        recipe = resolve(Request(shapes.recipe, preset, settings)).recipe
        chosen = finest_that_fits(recipe, shapes)
        pipeline = pipeline_of(chosen)
    except AcmsaoError as error:
        return Tier(preset, refused=error.message)
    return Tier(preset, spoken(chosen.storage), placed(pipeline, shapes))


def finest_that_fits(recipe: Recipe, shapes: Shapes) -> OptimizerSection:
    """The optimizer's section, an open storage decided as if activations took little.

    The plan of a run decides with what they do take.
    """
    from acmsao_cli.config.auto import OPTIONS
    from acmsao_cli.config.auto import STORAGE as KEY
    from acmsao_cli.engine.compose import pipeline_of
    from acmsao_cli.memory.cards import CONTEXT_BYTES, GIB

    section, budget = recipe.optimizer, recipe.memory.budget_gib
    if section.storage != AUTO:
        return section
    room = (budget or math.inf) * GIB - BYTES_IN_BF16 * shapes.num_elements - CONTEXT_BYTES - GIB
    options = [section.model_copy(update={"storage": kept}) for kept in OPTIONS[KEY]]
    fitting = (one for one in options if placed(pipeline_of(one), shapes).device <= room)
    return next(fitting, options[-1])


def state_in(rule: str, storage: str, shapes: Shapes) -> Placed:
    """Bytes of a rule's state in a storage, where they are."""
    from acmsao_cli.optim import build_pipeline

    return placed(build_pipeline(rule, storage=storage), shapes)


def placed(pipeline: Pipeline, shapes: Shapes) -> Placed:
    """Bytes of state, from the allocator that a run uses."""
    from acmsao_cli.optim.accounting import Placed, placed_bytes

    found = [placed_bytes(pipeline, [shape]) * count for shape, count in shapes.counts.items()]
    return sum(found, start=Placed(0, 0))


def state_bytes(rule: str, storage: str, shapes: Shapes) -> int:
    """Bytes of a rule's state in a storage, wherever they are."""
    return state_in(rule, storage, shapes).total


def _require_recipe(model: str) -> None:
    """Refuse a name that is no recipe's, saying that models may be named too."""
    try:
        locate("recipe", model)
    except ConfigError as error:
        named = ", ".join([SDXL, *WHOLE, *(file.name for file in shipped("recipe"))])
        message = f"--model names neither a model nor a recipe: `{model}`"
        raise ConfigError(message, hint=f"known: {named}; or a path to a recipe") from error


def shapes_of(model: str) -> Shapes:
    """The weights of SDXL's UNet or of a model shipped inside, or what a recipe trains."""
    if model == SDXL:
        listed = json.loads(UNET_SHAPES.read_text(encoding="utf-8"))
        counts = {tuple(shape): count for shape, count in listed}
        return Shapes("all weights of SDXL's UNet", WHOLE["tiny-sdxl"], counts)
    import torch

    from acmsao_cli.config.layers import Request, resolve
    from acmsao_cli.engine.precision import resolve_device, resolve_dtype
    from acmsao_cli.models import catalog

    if model not in WHOLE:
        _require_recipe(model)
    request, about = Request(model), f"what recipe {model} trains"
    if model in WHOLE:
        request = Request(WHOLE[model], None, (f"model.source={builtin.PREFIX}{model}",))
        about = f"all weights that {WHOLE[model]} trains of {builtin.PREFIX}{model}"
    recipe = resolve(request).recipe
    dtype = resolve_dtype(recipe.model.dtype, resolve_device(recipe.training.device))
    with torch.random.fork_rng(devices=[]):
        trainee = catalog.family(recipe.model.family).open(recipe, torch.device("meta"), dtype)
    counts = Counter(
        tuple(parameter.shape)
        for group in trainee.parameter_groups()
        for _, parameter in group.parameters
    )
    return Shapes(about, request.recipe, counts)
