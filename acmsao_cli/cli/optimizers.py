"""`acmsao optimizers`: the parts an optimizer is composed of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acmsao_cli.cli.console import print_table, print_text
from acmsao_cli.errors import ConfigError

if TYPE_CHECKING:
    from acmsao_cli.cli.optimizer_sheet import Shapes, Sheet, Tier
    from acmsao_cli.optim.accounting import Placed
    from acmsao_cli.optim.catalog import Entry

app = typer.Typer(help="Rules, storages and edits of the optimizer.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")]


@app.command("list")
def list_parts(
    as_json: AsJson = False,
) -> None:
    """Name every part with the first line of its description."""
    from acmsao_cli.cli.optimizer_sheet import entries

    parts = entries()
    if as_json:
        typer.echo(json.dumps([part_as_dict(part) for part in parts], indent=2))
        return
    for kind in dict.fromkeys(part.kind for part in parts):
        typer.echo(f"{kind}:")
        print_table(
            ((part.name, part.summary) for part in parts if part.kind == kind), indent=2, wrap=True
        )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a rule, storage or edit.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose state is counted: sdxl (if none is named), tiny-sdxl, tiny-llm, or a "
            "recipe.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a part: what it does, its options, the state it keeps, and what goes with it."""
    from acmsao_cli.cli.optimizer_sheet import RULE, SDXL, STORAGE, entries_called, sheet

    found = entries_called(name)
    if model is not None and not any(part.kind in (RULE, STORAGE) for part in found):
        kinds = " and ".join(part.kind for part in found)
        message = f"--model is for parts that keep state, `{name}` is a {kinds}"
        raise ConfigError(message, hint="drop it, or name a rule or a storage")
    if as_json:
        described = [
            sheet_as_dict(sheet(part, model or SDXL))
            if part.kind == RULE
            else {**part_as_dict(part), **company_as_dict(part, model or SDXL)}
            for part in found
        ]
        typer.echo(json.dumps(described, indent=2))
        return
    for part in found:
        if part.kind == RULE:
            print_sheet(sheet(part, model or SDXL))
        else:
            print_part(part, model or SDXL)


def print_part(part: Entry, model: str) -> None:
    """A part that is no rule: what it does, its options with their defaults, and its company."""
    from acmsao_cli.cli.optimizer_sheet import (
        COUNTED_WITH,
        RULE,
        STORAGE,
        rules_taking,
        shapes_of,
        short,
        state_in,
    )

    typer.echo(f"{part.name} ({part.kind})")
    print_text(part.summary, indent=2)
    if part.options:
        print_table(((key, short(default)) for key, default in part.options.items()), indent=4)
    if part.kind == STORAGE:
        shapes = shapes_of(model)
        print_text(f"bytes for {counted(shapes)}:", indent=2)
        kept = {rule: state_in(rule, part.name, shapes) for rule in COUNTED_WITH}
        print_table(state_rows(kept, shapes, RULE), indent=4)
    taking = rules_taking(part)
    if taking is not None:
        print_text(f"goes with {', '.join(taking) or 'no rule'}", indent=2)


def company_as_dict(part: Entry, model: str) -> dict[str, Any]:
    """The bytes of a storage, and the rules that take a part."""
    from acmsao_cli.cli.optimizer_sheet import (
        COUNTED_WITH,
        STORAGE,
        rules_taking,
        shapes_of,
        state_in,
    )

    told: dict[str, Any] = {}
    if part.kind == STORAGE:
        shapes = shapes_of(model)
        kept = {rule: state_in(rule, part.name, shapes) for rule in COUNTED_WITH}
        told["state"] = state_as_dict(shapes, kept)
    taking = rules_taking(part)
    return told if taking is None else {**told, "rules": taking}


def print_sheet(sheet: Sheet) -> None:
    """A rule in full."""
    typer.echo(f"{sheet.entry.name} ({sheet.entry.kind})")
    print_text(sheet.entry.summary, indent=2)
    if sheet.law:
        typer.echo("")
        print_text(sheet.law, indent=2)
    if sheet.paper:
        typer.echo(f"\n  {sheet.paper}")
    options = [(o.name, o.default, o.lora, o.full) for o in sheet.options]
    if options:
        typer.echo("")
        print_table([("option", "default", "LoRA", "full"), *options], indent=2)
    typer.echo("")
    print_text(f"remembers {', '.join(sheet.slots)}", indent=2)
    print_text(
        f"bytes for {counted(sheet.shapes)}; offloaded(...) keeps them in host memory:",
        indent=2,
    )
    print_table(state_rows(sheet.state, sheet.shapes, "storage"), indent=4)
    print_text(f"as {sheet.shapes.recipe} runs under the presets for GPUs:", indent=2)
    print_tiers(sheet.tiers, sheet.shapes)
    typer.echo("\n  goes with:")
    print_table(company_rows(sheet), indent=4, wrap=True)


def counted(shapes: Shapes) -> str:
    """The model whose state is counted, with its size."""
    numbers = f"{shapes.num_elements:,} numbers in {shapes.num_tensors:,} tensors"
    return f"{shapes.about}, {numbers}"


def state_rows(kept: Mapping[str, Placed], shapes: Shapes, what: str) -> Iterator[tuple[str, ...]]:
    """What is kept, and its bytes where they are; what takes least of the device first."""
    by_size = sorted(kept.items(), key=lambda entry: (entry[1].device, entry[1].host))
    host = any(size.host for size in kept.values())
    yield what, *size_head(host)
    for name, size in by_size:
        yield name, *size_cells(size, shapes, host)


def print_tiers(tiers: Sequence[Tier], shapes: Shapes) -> None:
    """Of each preset the storage and its bytes, or why it refuses the rule."""
    made = [(tier, tier.state) for tier in tiers if tier.state is not None]
    host = any(state.host for _, state in made)
    rows = [(t.preset, t.storage, *size_cells(state, shapes, host)) for t, state in made]
    if rows:
        print_table([("preset", "storage", *size_head(host)), *rows], indent=4)
    for tier in tiers:
        if tier.refused:
            print_text(f"{tier.preset} is refused: {tier.refused}", indent=4)


def size_head(host: bool) -> tuple[str, ...]:
    """The columns of bytes; those of host memory where something is there."""
    each = "bytes each"
    return ("on the device", each, "in host memory", each) if host else ("on the device", each)


def size_cells(size: Placed, shapes: Shapes, host: bool) -> Iterator[str]:
    """Bytes in all and for each number, under `size_head`."""
    from acmsao_cli.engine.report import human_bytes

    for amount in (size.device, size.host) if host else (size.device,):
        yield human_bytes(amount)
        yield f"{amount / max(shapes.num_elements, 1):.3f}"


def company_rows(sheet: Sheet) -> Iterator[tuple[str, str]]:
    """By kind the parts that go with a rule, and why others do not."""
    from acmsao_cli.cli.optimizer_sheet import short

    for kind in dict.fromkeys(feature.kind for feature in sheet.features):
        alike = [feature for feature in sheet.features if feature.kind == kind]
        fitting = [feature.name for feature in alike if feature.refused is None]
        reasons = {feature.refused: feature.name for feature in alike if feature.refused}
        if len(alike) == 1:
            yield kind, f"no: {next(iter(reasons))}" if reasons else "yes"
        else:
            yield kind, ", ".join(fitting) or f"none: {short(next(iter(reasons)))}"


def sheet_as_dict(sheet: Sheet) -> dict[str, Any]:
    """Everything in a sheet, for programs."""
    from acmsao_cli.config.recommended import RECOMMENDED

    return {
        **part_as_dict(sheet.entry),
        "law": sheet.law,
        "paper": sheet.paper,
        "slots": sheet.slots,
        "recommended": RECOMMENDED.get(sheet.entry.name, {}),
        "state": state_as_dict(sheet.shapes, sheet.state),
        "presets": [
            {
                "preset": tier.preset,
                "recipe": sheet.shapes.recipe,
                "storage": tier.storage or None,
                "device_bytes": None if tier.state is None else tier.state.device,
                "host_bytes": None if tier.state is None else tier.state.host,
                "refused": tier.refused,
            }
            for tier in sheet.tiers
        ],
        "features": [
            {"kind": feature.kind, "name": feature.name, "refused": feature.refused}
            for feature in sheet.features
        ],
    }


def state_as_dict(shapes: Shapes, kept: Mapping[str, Placed]) -> dict[str, Any]:
    """Bytes of state in all, on the device and in host memory, with the model they are for."""
    return {
        "model": shapes.about,
        "tensors": shapes.num_tensors,
        "numbers": shapes.num_elements,
        "bytes": {name: size.total for name, size in kept.items()},
        "device_bytes": {name: size.device for name, size in kept.items()},
        "host_bytes": {name: size.host for name, size in kept.items()},
    }


def part_as_dict(part: Entry) -> dict[str, object]:
    """The entry's fields; defaults are what a recipe would give, and some options have none."""
    from acmsao_cli.cli.optimizer_sheet import defaults_of

    defaults = defaults_of(part)
    return {
        "kind": part.kind,
        "name": part.name,
        "summary": part.summary,
        "options": defaults,
        "required": [option for option in part.options if option not in defaults],
    }
