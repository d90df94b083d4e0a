"""A base in 4 or 8 bits: loaded, planned and trained as what it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_recipe
from torch import nn

from acmsao_cli.engine.step import build_core, training_step
from acmsao_cli.errors import ModelError
from acmsao_cli.memory.attention import fused_attention_shapes
from acmsao_cli.memory.planner import meta_batches, trace_step
from acmsao_cli.models.causal_lm.family import FAMILY
from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.packed import Int8Linear, PackedLinear, unpacked_weight

both = pytest.mark.parametrize("quantize", ["nf4", "int8"])
CPU, META = torch.device("cpu"), torch.device("meta")


def recipe_for(folder: Path, quantize: str = "nf4", **training: Any) -> Any:
    return build_recipe(
        folder,
        model={"quantize": quantize},
        method={"kind": "lora", "rank": 4},
        training={"batch_size": 2, **training},
    )


def packed(trainee: Any) -> set[str]:
    """Names of layers whose weight is not a matrix of floats."""
    return {
        name.replace(".base_layer", "")
        for name, parameter in trainee.model.named_parameters()
        if parameter.dtype in (torch.uint8, torch.int8)
    }


@both
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2"])
def test_the_plan_packs_the_layers_that_bitsandbytes_packs(
    model_folder: Callable[..., Path], kind: str, quantize: str
) -> None:
    recipe = recipe_for(model_folder(kind), quantize)
    sketch = FAMILY.open(recipe, META, torch.float32)
    assert packed(sketch) == packed(FAMILY.open(recipe, CPU, torch.float32))
    stand_in = PackedLinear if quantize == "nf4" else Int8Linear
    assert any(isinstance(module, stand_in) for module in sketch.model.modules())


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_holds_what_a_real_step_holds(
    model_folder: Callable[..., Path], checkpointing: bool, quantize: str
) -> None:
    recipe = recipe_for(model_folder(), quantize, gradient_checkpointing=checkpointing)
    totals = []
    for device in (META, CPU):
        core = build_core(recipe, FAMILY.open(recipe, device, torch.float32))
        with fused_attention_shapes():
            totals.append(trace_step(core, meta_batches(core, recipe)).tracer.peak_bytes)
    assert totals[0] == pytest.approx(totals[1], rel=0.05)


@both
def test_adapters_learn_and_the_packed_base_stays(
    model_folder: Callable[..., Path], quantize: str
) -> None:
    recipe = recipe_for(model_folder(), quantize)
    trainee = FAMILY.open(recipe, CPU, torch.float32)
    core = build_core(recipe, trainee)
    base = {n: p.clone() for n, p in trainee.model.named_parameters() if not p.requires_grad}
    batch = trainee.meta_batch(2)
    batch.inputs["input_ids"].random_(3, 300, generator=torch.Generator().manual_seed(0))
    batch.inputs["kept"].copy_(torch.arange(len(batch.inputs["kept"])))
    losses = [
        float(training_step(core, [batch], first_micro_batch=i, lr_factor=100.0).loss)
        for i in range(12)
    ]
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in trainee.model.named_parameters():
        assert name not in base or torch.equal(base[name], parameter)


@both
def test_without_bitsandbytes_the_remedy_is_named(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="bitsandbytes") as error:
        FAMILY.open(recipe_for(model_folder(), quantize), CPU, torch.float32)
    assert "model.quantize=none" in str(error.value.hint)


@both
def test_the_packed_base_computes_with_the_weights_that_unpacking_says(
    model_folder: Callable[..., Path], quantize: str
) -> None:
    recipe = recipe_for(model_folder(), quantize)
    packed_one = FAMILY.open(recipe, CPU, torch.float32)
    dense_one = FAMILY.open(recipe_for(model_folder(), "none"), CPU, torch.float32)
    theirs = dict(adapted_layers(packed_one.model))
    for name, layer in adapted_layers(dense_one.model):
        twin = theirs[name]
        layer.get_base_layer().weight.data = unpacked_weight(twin.get_base_layer())
        for one in (layer, twin):
            one.lora_B[ADAPTER].weight.data.fill_(0.01)
    for name, layer in dense_one.model.named_modules():
        if type(layer) is nn.Linear and "lora" not in name and layer.weight.requires_grad is False:
            twin = packed_one.model.get_submodule(name)
            layer.weight.data = unpacked_weight(twin)
    batch = packed_one.meta_batch(2)
    batch.inputs["input_ids"].random_(3, 300, generator=torch.Generator().manual_seed(0))
    batch.inputs["kept"].copy_(torch.arange(len(batch.inputs["kept"])))
    losses = [one.loss(batch) for one in (packed_one, dense_one)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    pairs = zip(
        packed_one.parameter_groups()[0].parameters,
        dense_one.parameter_groups()[0].parameters,
        strict=True,
    )
    for (name, ours), (_, other) in pairs:
        assert ours.grad is not None, name
        assert ours.grad.any(), name
        torch.testing.assert_close(
            ours.grad, other.grad, rtol=1e-3, atol=1e-4 * float(other.grad.abs().max())
        )
