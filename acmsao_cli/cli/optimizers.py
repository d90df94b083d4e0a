"""`acmsao optimizers`: the parts an optimizer is composed of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acmsao_cli.cli.console import print_table, print_text

if TYPE_CHECKING:
    from acmsao_cli.cli.optimizer_sheet import Sheet
    from acmsao_cli.optim.catalog import Entry

app = typer.Typer(help="Rules, storages and edits of the optimizer.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")]
RULE = "optimizer"  # the registry's word for a rule


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
        str,
        typer.Option(
            metavar="MODEL", help="Whose state is counted: sdxl, tiny-sdxl, tiny-llm, or a recipe."
        ),
    ] = "sdxl",
    as_json: AsJson = False,
) -> None:
    """Describe a part: what it does, its options, the state it keeps, and what goes with it."""
    from acmsao_cli.cli.optimizer_sheet import entries_called, sheet

    found = entries_called(name)
    if as_json:
        described = [
            sheet_as_dict(sheet(part, model)) if part.kind == RULE else part_as_dict(part)
            for part in found
        ]
        typer.echo(json.dumps(described, indent=2))
        return
    for part in found:
        if part.kind == RULE:
            print_sheet(sheet(part, model))
        else:
            print_part(part)


def print_part(part: Entry) -> None:
    """A part that is no rule: what it does, and its options with their defaults."""
    from acmsao_cli.cli.optimizer_sheet import short

    typer.echo(f"{part.name} ({part.kind})")
    print_text(part.summary, indent=2)
    if part.options:
        print_table(((key, short(default)) for key, default in part.options.items()), indent=4)


def print_sheet(sheet: Sheet) -> None:
    """A rule in full."""
    typer.echo(f"{sheet.entry.name} ({RULE})")
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
        f"bytes for {sheet.shapes.about}, {sheet.shapes.num_elements:,} numbers in "
        f"{sheet.shapes.num_tensors:,} tensors; offloaded(...) keeps them in host memory:",
        indent=2,
    )
    print_table(state_rows(sheet), indent=4)
    typer.echo("\n  goes with:")
    print_table(company_rows(sheet), indent=4, wrap=True)


def state_rows(sheet: Sheet) -> Iterator[tuple[str, str, str]]:
    """Storage, total, and bytes for each number."""
    from acmsao_cli.engine.report import human_bytes

    for storage, size in sorted(sheet.state.items(), key=lambda entry: entry[1]):
        each = size / max(sheet.shapes.num_elements, 1)
        yield storage, human_bytes(size), f"{each:.3f} bytes each"


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
        "state": {
            "model": sheet.shapes.about,
            "tensors": sheet.shapes.num_tensors,
            "numbers": sheet.shapes.num_elements,
            "bytes": dict(sheet.state),
        },
        "features": [
            {"kind": feature.kind, "name": feature.name, "refused": feature.refused}
            for feature in sheet.features
        ],
    }


def part_as_dict(part: Entry) -> dict[str, object]:
    """The entry's fields."""
    return {
        "kind": part.kind,
        "name": part.name,
        "summary": part.summary,
        "options": dict(part.options),
    }
