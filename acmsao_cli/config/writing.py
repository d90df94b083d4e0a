"""A run's configuration as YAML, every value with where it came from; it is itself a recipe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from acmsao_cli.config.reading import resolve_scalar
from acmsao_cli.config.recipe import DEFAULT, Origin, RunConfig

COMMENT_COLUMN = 44
# What a run is about first, then how.
ORDER = (
    *("about", "model", "method", "data", "loss", "optimizer", "schedule", "training", "memory"),
    *("checkpoint", "samples", "output"),
)
PLAIN = re.compile(r"[A-Za-z_](?:[\w./+-]|:(?=\w)|(?<=\w) (?=\w))*", re.ASCII)
UNPRINTABLE = re.compile(
    r"[^\x20-\x7e\xa0-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufefe\uff00-\ufffd"
    r"\U00010000-\U0010ffff]"
)
# Text in YAML 1.2, but not for every other reader.
TRUTHS = ("yes", "no", "on", "off", "y", "n")


def to_yaml(config: RunConfig) -> str:
    """Write every value of a run, sections apart, origins as comments."""
    lines: list[str] = []
    values = config.as_dict()
    for key in sorted(values, key=ORDER.index):
        value = values[key]
        if isinstance(value, Mapping):
            lines += ["", f"{key}:", *_section(value, config.origins, f"{key}.")]
        else:
            lines += _entry(key, value, config.origins[key], "")
    return "\n".join(lines) + "\n"


def _section(
    values: Mapping[str, Any], origins: Mapping[str, Origin], prefix: str
) -> Iterator[str]:
    for key, value in values.items():
        yield from _entry(key, value, origins.get(f"{prefix}{key}", DEFAULT), "  ")


def _entry(key: str, value: Any, origin: Origin, indent: str) -> Iterator[str]:
    start = f"{indent}{key}:"
    inline = f"{start} {_flow(value)}"
    if isinstance(value, list) and len(inline) > COMMENT_COLUMN:
        yield f"{start:<{COMMENT_COLUMN}}  # {_comment(origin)}"
        yield from (f"{indent}  - {_flow(item)}" for item in value)
    else:
        yield f"{inline:<{COMMENT_COLUMN}}  # {_comment(origin)}"


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, Mapping):
        entries = (f"{_text(key)}: {_flow(item)}" for key, item in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    # Readers of YAML 1.1 want a point in a number with an exponent.
    return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))


def _text(value: str) -> str:
    plain = PLAIN.fullmatch(value) and value.lower() not in TRUTHS
    if plain and resolve_scalar(value) == value:
        return value
    return UNPRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


def _comment(origin: Origin) -> str:
    """An origin in one line: a setting may hold line breaks."""
    return UNPRINTABLE.sub(_escape, str(origin))


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
