"""Parts of the optimizer as a recipe names them: by name, or in a mapping with what belongs to it.

Such a mapping is one value: the layers replace it whole, and it has one origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat


class Part(BaseModel):
    """A part with options of its own: `{name: rms_clip, limit: 0.5}`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, FiniteFloat] = Field(init=False)

    name: str = Field(description="the part; beside it stand its options, which are numbers")

    @property
    def options(self) -> Mapping[str, float]:
        """The options that were given."""
        return self.__pydantic_extra__

    def __str__(self) -> str:
        return _call(self.name, self.options)


class StorageBySlot(BaseModel):
    """A storage for all state, with exceptions by slot: `{default: factored, momentum: bf16}`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    default: str = Field(description="of all slots but those named beside it")

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Storages by slot."""
        return self.__pydantic_extra__

    def __str__(self) -> str:
        return _call(self.default, self.exceptions)


def _call(name: str, given: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"


def _shortest_part(part: str | Part) -> str | Part:
    """A part without options is its name, so that equal settings are equal values."""
    return part.name if isinstance(part, Part) and not part.options else part


def _shortest_storage(storage: str | StorageBySlot) -> str | StorageBySlot:
    if isinstance(storage, StorageBySlot) and not storage.exceptions:
        return storage.default
    return storage


PartChoice: TypeAlias = Annotated[str | Part, AfterValidator(_shortest_part)]
StorageChoice: TypeAlias = Annotated[str | StorageBySlot, AfterValidator(_shortest_storage)]


def name_of(part: str | Part) -> str:
    """The part's name, whether it came with options or not."""
    return part.name if isinstance(part, Part) else part


def storages_of(storage: str | StorageBySlot) -> tuple[str, ...]:
    """Every storage that is named."""
    if isinstance(storage, str):
        return (storage,)
    return (storage.default, *storage.exceptions.values())
