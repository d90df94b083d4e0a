"""Families by name; each is imported when first asked for: the model libraries take seconds."""

from __future__ import annotations

import importlib

from acmsao_cli.errors import ConfigError
from acmsao_cli.models.base import ModelFamily

FAMILY_MODULES = {
    "sdxl": "acmsao_cli.models.sdxl.family",
    "causal_lm": "acmsao_cli.models.causal_lm.family",
}


def family(name: str) -> ModelFamily:
    """The family called `name`; its module offers it as FAMILY."""
    if name not in FAMILY_MODULES:
        raise ConfigError(
            f"unknown model family `{name}`", hint=f"families: {', '.join(FAMILY_MODULES)}"
        )
    found: ModelFamily = importlib.import_module(FAMILY_MODULES[name]).FAMILY
    return found
