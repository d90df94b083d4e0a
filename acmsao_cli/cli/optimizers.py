"""`acmsao optimizers`: the parts an optimizer is composed of."""

from __future__ import annotations

import typer

app = typer.Typer(help="Rules, storages and edits of the optimizer.", no_args_is_help=True)
