"""Layers are replaced one by one, and none is held longer than that takes."""

from __future__ import annotations

import gc
import weakref

from torch import nn

from acmsao_cli.models.packed import replace_layers


def test_a_replaced_layer_is_gone_before_the_next_but_one_is_packed() -> None:
    model = nn.Sequential(nn.ModuleList(nn.Linear(4, 4) for _ in range(5)), nn.Linear(4, 2))
    dense: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def packed(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear:
            return None
        dense.append(weakref.ref(layer))
        alive.append(sum(one() is not None for one in dense))
        return nn.Identity()

    gc.disable()
    try:
        replace_layers(model, packed)
    finally:
        gc.enable()
    assert len(dense) == 6
    assert max(alive) <= 2
    assert not [module for module in model.modules() if type(module) is nn.Linear]
