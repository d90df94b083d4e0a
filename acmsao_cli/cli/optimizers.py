"""`acmsao optimizers`: the parts an optimizer is composed of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.errors import ConfigError

if TYPE_CHECKING:
    from acmsao_cli.optim.catalog import Entry

app = typer.Typer(help="Rules, storages and edits of the optimizer.", no_args_is_help=True)


@app.command("list")
def list_parts(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Name every part with the first line of its description."""
    parts = entries()
    if as_json:
        typer.echo(json.dumps([part_as_dict(part) for part in parts], indent=2))
        return
    kind = ""
    for part in parts:
        if part.kind != kind:
            kind = part.kind
            typer.echo(f"{kind}:")
        typer.echo(f"  {part.name:<12} {part.summary}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a rule, storage or edit.")]) -> None:
    """Describe a part: what it does, its options, and the state it keeps for each weight."""
    found = [part for part in entries() if part.name == name]
    if not found:
        raise ConfigError(
            f"there is no optimizer part `{name}`", hint="`acmsao optimizers list` names them"
        )
    for part in found:
        typer.echo(f"{part.name} ({part.kind})\n  {part.summary}")
        for option, default in part.options.items():
            typer.echo(f"  {option} = {default}")
        if part.kind == "optimizer":
            typer.echo("  bytes of state per weight of a 1024 x 1024 matrix:")
            for storage, size in bytes_per_weight(part.name).items():
                typer.echo(f"    {storage:<10} {size:.3f}")


def entries() -> list[Entry]:
    """All registered parts."""
    quiet_libraries()
    from acmsao_cli.optim import catalog

    return catalog.describe()


def part_as_dict(part: Entry) -> dict[str, object]:
    """The entry's fields."""
    return {
        "kind": part.kind,
        "name": part.name,
        "summary": part.summary,
        "options": dict(part.options),
    }


def bytes_per_weight(rule: str) -> dict[str, float]:
    """State bytes by storage, from the allocator that a run uses."""
    from acmsao_cli.optim import accounting, build_pipeline

    shape = (1024, 1024)
    storages = [part.name for part in entries() if part.kind == "storage"]
    return {
        name: accounting.state_bytes(build_pipeline(rule, storage=name), [shape]) / 1024**2
        for name in storages
    }
