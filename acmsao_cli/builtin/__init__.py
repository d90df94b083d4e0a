"""Small models and data that ship with the package, made by scripts/builtin."""

from __future__ import annotations

from pathlib import Path

PREFIX = "builtin:"
FOLDER = Path(__file__).parent

MODELS = {
    "tiny-sdxl": "SDXL in miniature: draws coloured shapes on coloured grounds, 64 x 64 pixels",
    "tiny-llm": "a Llama-style chat model that knows some hundred facts of everyday life",
}

# Data sets, with the file or folder each is.
DATA = {"zoblins": "zoblins", "pirate": "pirate.jsonl"}


def name_in(source: str) -> str | None:
    """The NAME of `builtin:NAME`; None for any other source."""
    return source.removeprefix(PREFIX) if source.startswith(PREFIX) else None
