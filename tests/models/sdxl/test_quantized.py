"""A UNet in 8 or 4 bits: planned and trained as what it is, and written as its adapters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from micro.sdxl import RecipeFor, examples
from torch import nn

from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.data.randomness import Draw
from acmsao_cli.engine.step import build_core
from acmsao_cli.errors import ModelError
from acmsao_cli.memory.attention import fused_attention_shapes
from acmsao_cli.memory.planner import BLOCK, meta_batches, trace_step
from acmsao_cli.models.base import Trainee, TrainingFacts
from acmsao_cli.models.fp8 import Fp8Conv2d, Fp8Linear
from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.packed import unpacked_weight
from acmsao_cli.models.sdxl.family import FAMILY
from acmsao_cli.models.sdxl.trainee import SdxlTrainee

CPU, META = torch.device("cpu"), torch.device("meta")
FACTS = TrainingFacts("micro", 1, 3, 1e-4, "adamw", 0)
both = pytest.mark.parametrize("quantize", ["fp8", "nf4"])


def wanted(
    recipe_for: RecipeFor, micro: Path, quantize: str, targets: object = "attention", **more: object
) -> SdxlRecipe:
    method = {"kind": "lora", "targets": targets, **more}
    return recipe_for(micro, model={"quantize": quantize, "family": "sdxl"}, method=method)


def opened(recipe: SdxlRecipe, device: torch.device = CPU) -> SdxlTrainee:
    trainee = FAMILY.open(recipe, device, torch.float32)
    assert isinstance(trainee, SdxlTrainee)
    return trainee


def packed_layers(trainee: SdxlTrainee) -> dict[str, nn.Module]:
    """Layers whose weight is bytes, by their name without adapters."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in trainee.parts.unet.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dtype is torch.uint8
    }


def bytes_of_scales(trainee: Trainee) -> int:
    """Of bitsandbytes' layers, whose scales are no buffers; in the allocator's blocks."""
    states = [getattr(p, "quant_state", None) for p in trainee.modules()["unet"].parameters()]
    scales = [one for s in states if s is not None for one in (s.absmax, s.state2.absmax)]
    return sum(-(-one.nbytes // BLOCK) * BLOCK for one in scales)


@both
def test_the_plan_packs_what_is_packed(micro: Path, recipe_for: RecipeFor, quantize: str) -> None:
    recipe = wanted(recipe_for, micro, quantize)
    real = packed_layers(opened(recipe))
    assert packed_layers(opened(recipe, META)).keys() == real.keys()
    assert all(name.startswith(("down_blocks", "mid_block", "up_blocks")) for name in real)
    convolutions = [name for name, layer in real.items() if isinstance(layer, nn.Conv2d)]
    assert bool(convolutions) == (quantize == "fp8")


@both
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_holds_what_a_real_step_holds(
    micro: Path, recipe_for: RecipeFor, quantize: str, checkpointing: bool
) -> None:
    recipe = wanted(recipe_for, micro, quantize)
    training = recipe.training.model_copy(
        update={"batch_size": 2, "gradient_checkpointing": checkpointing}
    )
    recipe = recipe.model_copy(update={"training": training})
    totals = []
    for device in (META, CPU):
        core = build_core(recipe, opened(recipe, device))
        with fused_attention_shapes():
            peak = trace_step(core, meta_batches(core, recipe)).tracer
        totals.append(peak.peak_bytes + bytes_of_scales(core.trainee))
    assert totals[0] == pytest.approx(totals[1], rel=0.05)


@both
def test_loss_and_gradients_are_those_of_the_unpacked_weights(
    micro: Path, recipe_for: RecipeFor, quantize: str
) -> None:
    targets = ["to_q", "conv1", "ff.net.2"]
    ours = opened(wanted(recipe_for, micro, quantize, targets))
    dense = opened(wanted(recipe_for, micro, "none", targets))
    for name, layer in packed_layers(ours).items():
        owner = dense.parts.unet.get_submodule(name)
        getattr(owner, "base_layer", owner).weight.data = unpacked_weight(layer)
    gradients, losses = [], []
    for trainee in (ours, dense):
        for _, adapted in adapted_layers(trainee.parts.unet):
            adapted.lora_B[ADAPTER].weight.data.fill_(0.01)
        items = trainee.encode(examples()[:2])
        loss = trainee.loss(trainee.collate(items, [Draw(5, number) for number in range(2)]))
        loss.backward()
        losses.append(loss.detach())
        (group,) = trainee.parameter_groups()
        gradients.append({name: parameter.grad for name, parameter in group.parameters})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.any(), name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4 * scale)


@both
@pytest.mark.parametrize("text_encoders", [False, True])
def test_adapters_of_a_packed_base_load_back_in_diffusers(
    micro: Path, recipe_for: RecipeFor, quantize: str, text_encoders: bool, tmp_path: Path
) -> None:
    trainee = opened(wanted(recipe_for, micro, quantize, text_encoders=text_encoders))
    trainee.encode(examples())
    for exported in trainee.export(tmp_path, FACTS):
        assert exported.max_error == 0
        assert "not diffusers" not in exported.used_by


def test_convolutions_and_linear_layers_have_their_fp8_forms(
    micro: Path, recipe_for: RecipeFor
) -> None:
    kinds = {
        type(layer) for layer in packed_layers(opened(wanted(recipe_for, micro, "fp8"))).values()
    }
    assert kinds == {Fp8Linear, Fp8Conv2d}


def test_without_bitsandbytes_the_remedy_is_named(
    micro: Path, recipe_for: RecipeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    opened(wanted(recipe_for, micro, "fp8"))
    with pytest.raises(ModelError, match="bitsandbytes") as error:
        opened(wanted(recipe_for, micro, "nf4"))
    assert "model.quantize=none" in str(error.value.hint)
