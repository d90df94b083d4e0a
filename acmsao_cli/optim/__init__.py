"""Optimizers that compose: rules, momenta, storages and edits are parts of one pipeline."""

import acmsao_cli.optim.edits
import acmsao_cli.optim.rules
import acmsao_cli.optim.storage  # noqa: F401
from acmsao_cli.optim import accounting, catalog
from acmsao_cli.optim.acmsao import ACMSAO
from acmsao_cli.optim.batches import ONE_BY_ONE, Stacking
from acmsao_cli.optim.catalog import build_pipeline
from acmsao_cli.optim.drop_in import (
    SGD,
    A2Grad,
    AdaDiag,
    Adafactor,
    Adam,
    AdamW,
    AdEMAMix,
    Adopt,
    DAdaptation,
    DropIn,
    Lion,
    Muon,
    NestedAdam,
    Prodigy,
    SimplifiedAdEMAMix,
    Soap,
    WarmStart,
)
from acmsao_cli.optim.layers import LayerRule
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.pipeline import Pipeline

__all__ = [
    "ACMSAO",
    "ONE_BY_ONE",
    "SGD",
    "A2Grad",
    "AdEMAMix",
    "AdaDiag",
    "Adafactor",
    "Adam",
    "AdamW",
    "Adopt",
    "ComposedOptimizer",
    "DAdaptation",
    "DropIn",
    "LayerRule",
    "Lion",
    "Muon",
    "NestedAdam",
    "Pipeline",
    "Prodigy",
    "SimplifiedAdEMAMix",
    "Soap",
    "Stacking",
    "WarmStart",
    "accounting",
    "build_pipeline",
    "catalog",
]
