"""Whether values are what annotations say: callers and recipes give options of any type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from acmsao_cli.errors import OptimizerError

_WORDS: Final[dict[Any, str]] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a name",
    NoneType: "None",
}


def check(
    owner: str, hints: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, str]
) -> None:
    """Refuse a value that is not of its annotation's type; the hint is the option's default."""
    for name, value in given.items():
        if not fits(value, hints[name]):
            default = f"default: {defaults[name]}" if name in defaults else None
            shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
            raise OptimizerError(
                f"`{name}` of {owner} must be {_words(hints[name])}, not {shown}", hint=default
            )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of this type; a bool is no number, and a class is none of its values.

    Which words a Literal takes, and what comes out of an iterator, the owner checks itself.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in inner)
    if hint in (float, int):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if isinstance(value, type):
        return False
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, member) for member in _members(hint))
    return isinstance(value, origin or hint) and _holds(value, origin, inner)


def _holds(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    """Whether what is inside a container fits, as far as it can be seen without using it up."""
    if origin is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (tuple, Sequence):
        return not isinstance(value, str) and all(fits(item, inner[0]) for item in value)
    if origin is Mapping:
        return all(fits(item, inner[1]) for item in value.values())
    return origin is not Iterable or not isinstance(value, str | Mapping)


def _members(protocol: type) -> list[str]:
    """What a protocol asks for."""
    return [name for name in vars(protocol) if name == "__call__" or not name.startswith("_")]


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(choice) for choice in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"({', '.join(_words(item) for item in inner)})"
    if origin is Mapping:
        return "a mapping of names"
    if origin is Sequence:
        return f"a list of {inner[0].__name__}"
    if origin in (tuple, Iterable):
        return "a list"
    if origin is Callable:
        return "a function"
    return _WORDS.get(hint) or f"a {hint.__name__}"
