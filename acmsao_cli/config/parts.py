"""Parts of the optimizer as a recipe names them: by name, or in a mapping with what belongs to it.

Such a mapping is one value: the layers replace it whole, and it has one origin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# What leaves a setting to the planner.
AUTO = "auto"

FREE = ConfigDict(extra="allow", frozen=True, strict=True, ser_json_inf_nan="constants")


class Part(BaseModel):
    """A part with options of its own: `{name: rms_clip, limit: 0.5}`."""

    model_config = FREE

    name: str = Field(description="the part; beside it stand its options")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that were given."""
        return self.model_extra or {}

    def __str__(self) -> str:
        return called(self.name, self.options)


class StorageBySlot(BaseModel):
    """A storage for all state, with exceptions by slot: `{default: factored, momentum: bf16}`."""

    model_config = FREE
    __pydantic_extra__: dict[str, str] = Field(init=False)

    default: str = Field(description="of all slots but those named beside it")

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Storages by slot."""
        return self.__pydantic_extra__

    def __str__(self) -> str:
        return called(self.default, self.exceptions)


def called(name: str, given: Mapping[str, Any]) -> str:
    """Write a part and its options as a call."""
    options = ", ".join(f"{key}={spoken(value)}" for key, value in given.items())
    return f"{name}({options})" if options else name


def spoken(value: Any) -> str:
    """Write a value in few words: parts and storages as calls, the rest as YAML does."""
    if isinstance(value, Mapping):
        head = next((key for key in ("name", "default") if key in value), None)
        rest = {key: inner for key, inner in value.items() if key != head}
        if head is not None:
            return called(str(value[head]), rest)
        return f"{{{', '.join(f'{key}: {spoken(inner)}' for key, inner in rest.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(spoken(entry) for entry in value)}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else f".{value}"
    return str(value)


def _shortest_part(part: str | Part) -> str | Part:
    """A part without options is its name, so that equal settings are equal values."""
    return part.name if isinstance(part, Part) and not part.options else part


def _shortest_storage(storage: str | StorageBySlot) -> str | StorageBySlot:
    if isinstance(storage, StorageBySlot) and not storage.exceptions:
        return storage.default
    return storage


PartChoice: TypeAlias = Annotated[str | Part, AfterValidator(_shortest_part)]
StorageChoice: TypeAlias = Annotated[str | StorageBySlot, AfterValidator(_shortest_storage)]


def plain(part: str | Part) -> str | dict[str, Any]:
    """Write a part as it stands in a file."""
    return part if isinstance(part, str) else part.model_dump()


def storages_of(storage: str | StorageBySlot) -> tuple[str, ...]:
    """Every storage that is named."""
    if isinstance(storage, str):
        return (storage,)
    return (storage.default, *storage.exceptions.values())
