"""Write the tables of docs/ that follow from the code.

    python scripts/docs_tables.py

Each stands between `<!-- table: NAME -->` and `<!-- end -->`; a test holds the files to what this
writes.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.locate import shipped
from acmsao_cli.config.preset import load_preset
from acmsao_cli.config.recipe import FAMILIES

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(header: str, lines: Iterable[str]) -> str:
    """A Markdown table."""
    columns = header.count("|") - 1
    return "\n".join([header, "|" + "---|" * columns, *lines]) + "\n"


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation allows, one or one for each method; none where values may be."""
    choices = getattr(annotation, "__args__", (annotation,))
    found = [one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)]
    return found if len(found) == len(choices) else []


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of every value a recipe may hold."""
    for name, field in model.model_fields.items():
        if inner := sections(field.annotation):
            for section in inner:
                yield from keys(section, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else shown(field.default)
            yield f"{prefix}{name}", default, field.description or ""


def shown(value: Any) -> str:
    """A default as it would stand in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def recipe_keys() -> str:
    """All keys; the last column names the family if only one has the key."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for family, schema in FAMILIES.items():
        for key, default, about in keys(schema):
            entry = found.setdefault(key, (default, about, []))
            if family not in entry[2]:
                entry[2].append(family)
    described = {"model.family": "sdxl or causal_lm", "method.kind": "lora or full"}
    return rows(
        "| key | default | meaning | only for |",
        (
            f"| `{key}` | `{default}` | {described.get(key, about)} | "
            f"{families[0] if len(families) < len(FAMILIES) else ''} |"
            for key, (default, about, families) in found.items()
        ),
    )


def recipes() -> str:
    """The recipes that are shipped."""
    return rows(
        "| recipe | what it trains |",
        (
            f"| `{file.name}` | {resolve(Request(file.name)).recipe.about} |"
            for file in shipped("recipe")
        ),
    )


def presets() -> str:
    """The presets that are shipped, with what each says of a full training."""
    lines = []
    for file in shipped("preset"):
        preset = load_preset(file)
        wanted = resolve(Request("sdxl-full", file.name)).recipe
        budget = f"{wanted.memory.budget_gib:g} GiB" if wanted.memory.budget_gib else "none"
        fused = ", stepped in backward" if wanted.optimizer.fused_backward else ""
        lines.append(
            f"| `{file.name}` | {preset.about} | {budget} | "
            f"{shown(wanted.training.gradient_checkpointing)} | {wanted.optimizer.storage}{fused} |"
        )
    return rows("| preset | for | budget | gradient checkpointing | full: optimizer state |", lines)


def parts_of(*kinds: str) -> str:
    """The registered parts of these kinds, with their options."""
    from acmsao_cli.optim import catalog

    return rows(
        "| name | options | what it does |",
        (
            f"| `{part.name}` | {options(part.options)} | {part.summary} |"
            for part in catalog.describe()
            if part.kind in kinds
        ),
    )


def options(defaults: Mapping[str, str]) -> str:
    """A part's options with their defaults."""
    from acmsao_cli.cli.optimizer_sheet import short

    return ", ".join(
        f"`{name}`" if default == "required" else f"`{name}={short(default)}`"
        for name, default in defaults.items()
    )


def rules() -> str:
    """Every rule with what to begin with."""
    from acmsao_cli.config.recommended import RECOMMENDED
    from acmsao_cli.optim import catalog

    return rows(
        "| rule | what it does | begin with: LoRA | full weights |",
        (
            f"| `{part.name}` | {part.summary} | {advice(part.name, 'lora', RECOMMENDED)} | "
            f"{advice(part.name, 'full', RECOMMENDED)} |"
            for part in catalog.describe()
            if part.kind == "optimizer"
        ),
    )


def advice(rule: str, method: str, table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What is recommended of a rule for a method, as a recipe says it."""
    from acmsao_cli.config.parts import spoken

    values = table.get(rule, {}).get(method, {})
    told = {key: spoken(value) for key, value in values.items()}
    return ", ".join(f"`{key}: {value}`" for key, value in told.items())


def storages() -> str:
    """What each storage does, and its bytes for SDXL's UNet."""
    from acmsao_cli.cli.optimizer_sheet import shapes_of, state_bytes
    from acmsao_cli.optim import catalog

    shapes = shapes_of("sdxl")
    told = []
    for part in catalog.describe():
        if part.kind == "storage":
            sizes = [state_bytes(rule, part.name, shapes) for rule in ("adamw", "lion")]
            each = sizes[0] / shapes.num_elements
            gigabytes = " | ".join(f"{size / 1e9:.3f}" for size in sizes)
            told.append(
                (sizes[0], f"| `{part.name}` | {part.summary} | {gigabytes} | {each:.3f} |")
            )
    return rows(
        "| storage | what it does | adamw, GB | lion, GB | adamw, bytes each |",
        (line for _, line in sorted(told)),
    )


def company() -> str:
    """Rules beside the parts they go with."""
    from acmsao_cli.optim import catalog
    from acmsao_cli.optim.features import features

    names = [part.name for part in catalog.describe() if part.kind == "optimizer"]
    found = {name: features(name) for name in names}
    kinds = list(dict.fromkeys(feature.kind for feature in found[names[0]]))
    return rows(
        f"| rule | {' | '.join(kinds)} |",
        (
            f"| `{name}` | {' | '.join(company_of(found[name], kind) for kind in kinds)} |"
            for name in names
        ),
    )


def company_of(features: Iterable[Any], kind: str) -> str:
    """The parts of a kind that fit: all, none, or which."""
    alike = [feature for feature in features if feature.kind == kind]
    fitting = [feature.name for feature in alike if feature.refused is None]
    if len(alike) == 1:
        return "yes" if fitting else "no"
    if len(fitting) == len(alike):
        return "all"
    return ", ".join(f"`{name}`" for name in fitting) or "none"


def other_names() -> str:
    """The optimizers of adv_optm, with their defaults in our keys."""
    from acmsao_cli.config.aliases import SEEDS, translate
    from acmsao_cli.config.parts import spoken

    spellings = {
        "adam_adv": "Adam_Adv",
        "adopt_adv": "Adopt_Adv",
        "prodigy_adv": "Prodigy_Adv",
        "simplified_ademamix": "Simplified_AdEMAMix",
        "lion_adv": "Lion_Adv",
        "prodigy_lion_adv": "Prodigy_Lion_Adv",
    }
    lines = []
    for name, seed in SEEDS.items():
        values = translate(seed, {}).values
        told = {key: spoken(value) for key, value in values.items()}
        ours = ", ".join(f"`{key}: {value}`" for key, value in told.items())
        lines.append(f"| `{spellings[name]}` | {ours} |")
    return rows("| name | here |", lines)


def decided_sdxl() -> str:
    """What the presets decide for SDXL."""
    return decided_table("pictures")


def decided_texts() -> str:
    """What the presets decide for language models."""
    return decided_table("text")


def decided_table(kind: str) -> str:
    """What the presets decide, by model and method, from the values that tests hold."""
    golden = test_module("memory.golden")
    known, presets = golden.golden(), golden.PRESETS
    trainings = dict.fromkeys(
        f"{one.model} {one.method}"
        for one in golden.cases()
        if (one.model == golden.SDXL) == (kind == "pictures") and one.method in golden.METHODS[kind]
    )
    return rows(
        f"| training | {' | '.join(f'`{preset}`' for preset in presets)} |",
        (
            f"| {training} | "
            + " | ".join(decided_words(known[f"{training} {preset}"]) for preset in presets)
            + " |"
            for training in trainings
        ),
    )


def decided_tiers() -> str:
    """What the presets decide for the batch that their cards began with."""
    golden = test_module("memory.golden")
    known, tiers = golden.golden(), golden.TIERS
    heads = " | ".join(f"`{preset}`, batch {size}" for preset, size in tiers.items())
    return rows(
        f"| SDXL | {heads} |",
        (
            f"| {method.removeprefix('tier ')} | "
            + " | ".join(decided_words(known[f"sdxl {method} {preset}"]) for preset in tiers)
            + " |"
            for method in golden.METHODS["tiers"]
        ),
    )


def decided_words(entry: Mapping[str, Any]) -> str:
    """A decision in a few words, the need first."""
    if not entry["fits"]:
        return "does not fit"
    decided = entry["decided"]
    blocks = decided.get("memory.resident_blocks", "all")
    words = [
        f"**{entry['needs_gib']:.1f}**",
        decided.get("optimizer.storage", ""),
        "ckpt" if decided.get("training.gradient_checkpointing") else "",
        f"{blocks} blocks stay, {entry['host_gib']:.1f} in RAM" if blocks != "all" else "",
        "acts in RAM" if decided.get("memory.offload_activations") else "",
    ]
    return ", ".join(word for word in words if word)


def switches() -> str:
    """What each switch buys, turned on one after another."""
    module = test_module("memory.switches")
    known, told = module.planned(), []
    for ladder in module.LADDERS:
        told.append(f"| **{ladder.title}** | | | | |")
        before = None
        for key, _ in module.rungs(ladder):
            entry, name = known[key], key.removeprefix(f"{ladder.title}: ")
            saved = "" if before is None else f"{before - entry['needs_gib']:.2f}"
            before = entry["needs_gib"]
            sizes = entry["by_category"]
            most = ", ".join(f"{what} {size:.2f}" for what, size in sizes.items() if size >= 0.1)
            away = f"{entry['host_gib']:.1f}" if entry["host_gib"] else ""
            label = name if name == "plain" else f"`{name}`"
            told.append(f"| {label} | {entry['needs_gib']:.2f} | {saved} | {most} | {away} |")
    return rows("| switch | needs, GiB | saves | at the peak | in RAM |", told)


def peers() -> str:
    """Published figures of other programs beside what is planned here."""
    module = test_module("memory.switches")
    known = module.planned()
    return rows(
        "| job | published | planned here |",
        (
            f"| {job.title} | {'; '.join(job.published)} | "
            + "; ".join(f"{planned_words(known[job.key(way)])}: {way}" for way in job.ways)
            + " |"
            for job in module.JOBS
        ),
    )


def planned_words(entry: Mapping[str, Any]) -> str:
    """What a plan needs."""
    away = f" and {entry['host_gib']:.1f} in RAM" if entry["host_gib"] else ""
    return f"{entry['needs_gib']:.1f} GiB{away}"


def test_module(name: str) -> Any:
    """A module of the tests, which hold the values that a table shows."""
    folder = str(DOCS.parent / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


TABLES: dict[str, Callable[[], str]] = {
    "decided_sdxl": decided_sdxl,
    "decided_texts": decided_texts,
    "decided_tiers": decided_tiers,
    "switches": switches,
    "peers": peers,
    "recipe_keys": recipe_keys,
    "recipes": recipes,
    "presets": presets,
    "rules": rules,
    "rule_options": lambda: parts_of("optimizer"),
    "momenta": lambda: parts_of("momentum"),
    "ratios": lambda: parts_of("ratio"),
    "edits": lambda: parts_of("gradient edit", "direction edit"),
    "writing": lambda: parts_of("decay", "rounding"),
    "schedules": lambda: parts_of("schedule"),
    "storages": storages,
    "company": company,
    "other_names": other_names,
}


def refreshed(text: str) -> str:
    """`text` with every table as the code has it now."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
