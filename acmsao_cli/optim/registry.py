"""Names for exchangeable parts, and the stable text a composition is known by."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Generic, TypeVar

from acmsao_cli.errors import OptimizerError

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind by name; registering lists, tests and offers them to recipes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def __call__(self, name: str) -> Callable[[Part], Part]:
        """Return the decorator that registers a class or a function as `name`."""

        def register(part: Part) -> Part:
            assert name not in self._parts, f"two parts are called {name}"
            part.registered_name = name  # type: ignore[attr-defined]
            self._parts[name] = part
            return part

        return register

    @property
    def parts(self) -> Mapping[str, Part]:
        """All parts, in order of registration."""
        return self._parts

    def get(self, name: str) -> Part:
        """Return the part called `name`, else raise OptimizerError with the nearest known name."""
        if name not in self._parts:
            raise OptimizerError(
                f"unknown {self.kind} `{name}`", hint=suggestion(name, list(self._parts))
            )
        return self._parts[name]


def suggestion(word: str, known: list[str]) -> str:
    """Say which known word was probably meant, or list them."""
    closest = difflib.get_close_matches(word, known, n=1)
    listing = ", ".join(known) if known else "none"
    return f"did you mean `{closest[0]}`? known: {listing}" if closest else f"known: {listing}"


def import_modules(package: ModuleType) -> None:
    """Import every module of a package, so that a new file registers its parts."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def part_name(part: object) -> str:
    """Return the name a part is registered under, else its class's or function's own name."""
    owner = part if isinstance(part, type) or callable(part) else type(part)
    name = getattr(part, "registered_name", None) or getattr(owner, "__name__", None)
    return str(name or type(part).__name__.lower())


def signature(part: Any) -> str:
    """Write a part with all its options, e.g. `adamw(betas=(0.9, 0.999), ..., ratio=divide)`."""
    if not _has_fields(part):
        return part_name(part) if callable(part) else repr(part)
    options = [f"{f.name}={signature(getattr(part, f.name))}" for f in dataclasses.fields(part)]
    return f"{part_name(part)}({', '.join(options)})" if options else part_name(part)


def _has_fields(part: object) -> bool:
    return dataclasses.is_dataclass(part) and not isinstance(part, type)
