"""Adapters: what may be targeted, how they start, what a rank may be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from acmsao_cli.config.sections import Lora
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.lora import ADAPTER, adapted_layers, attach_lora, lora_config, split_targets


class Block(nn.Module):
    """Two linear layers, a convolution, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 6)
        self.out = nn.ModuleList([nn.Linear(6, 8)])
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(8)


def lora(**more: object) -> Lora:
    return Lora.model_validate({"kind": "lora", "rank": 2, **more})


def network() -> nn.Module:
    model = nn.Module()
    model.a, model.b = Block(), Block()
    return model


def adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def test_endings_are_split_by_the_components_they_name() -> None:
    other = nn.Module()
    other.q_proj = nn.Linear(4, 4)
    found = split_targets(["to_q", "out.0", "q_proj", "to_q"], {"unet": network(), "text": other})
    assert found == {"unet": ("to_q", "out.0"), "text": ("q_proj",)}


def test_an_ending_that_names_nothing_is_refused_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match="'to_k'") as caught:
        split_targets(["to_q", "to_k"], {"unet": network()})
    assert "to_q" in (caught.value.hint or "")


def test_a_part_of_a_name_is_no_ending() -> None:
    with pytest.raises(ConfigError):
        split_targets(["_q"], {"unet": network()})


def test_a_norm_cannot_have_an_adapter() -> None:
    with pytest.raises(ConfigError, match="LayerNorm"):
        split_targets(["norm"], {"unet": network()})


def test_a_component_without_targets_is_refused() -> None:
    other = nn.Module()
    other.q_proj = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="text"):
        split_targets(["to_q"], {"unet": network(), "text": other})


def test_a_rank_that_no_layer_can_use_is_refused_and_a_mixed_one_is_not() -> None:
    with pytest.raises(ConfigError, match=r"method\.rank is 9"):
        attach_lora(network(), lora(rank=9), ["to_q", "out.0"], 0, "unet")
    model = network()
    attach_lora(model, lora(rank=5), ["to_q", "conv"], 0, "unet")
    assert len(list(adapted_layers(model))) == 4


def test_alpha_defaults_to_the_rank() -> None:
    assert lora_config(lora(), ["to_q"]).lora_alpha == 2
    assert lora_config(lora(alpha=0.5), ["to_q"]).lora_alpha == 0.5


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_alpha_over_rank_or_over_its_root(rslora: bool) -> None:
    model = network()
    attach_lora(model, lora(rank=4, alpha=8.0, rslora=rslora), ["to_q"], 0, "unet")
    scales = {layer.scaling[ADAPTER] for _, layer in adapted_layers(model)}
    assert scales == {8 / math.sqrt(4) if rslora else 8 / 4}


def test_only_adapters_are_trained_and_they_are_fp32_on_a_bf16_base() -> None:
    model = network().to(torch.bfloat16)
    attach_lora(model, lora(dora=True), ["to_q", "conv"], 0, "unet")
    assert len(adapters(model)) == 2 * 2 * 3
    assert {one.dtype for one in adapters(model).values()} == {torch.float32}
    assert all("lora_" in name for name in adapters(model))


def test_the_start_follows_from_seed_component_and_name_alone() -> None:
    def start(seed: int, component: str, drawn: int, *targets: str) -> dict[str, torch.Tensor]:
        model = network()
        torch.manual_seed(drawn)
        attach_lora(model, lora(), targets, seed, component)
        return adapters(model)

    first, again = start(3, "unet", 0, "to_q"), start(3, "unet", 1, "to_q", "conv")
    for name, value in first.items():
        torch.testing.assert_close(value, again[name], rtol=0, atol=0)
    down = "a.to_q.lora_A.default.weight"
    assert not torch.equal(first[down], first[down.replace("a.", "b.", 1)])
    assert not torch.equal(first[down], start(4, "unet", 0, "to_q")[down])
    assert not torch.equal(first[down], start(3, "text", 0, "to_q")[down])
    assert float(first[down].detach().abs().max()) <= 1 / math.sqrt(8)


def test_attaching_leaves_the_global_stream_and_the_output_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    x = torch.randn(2, 8)
    before, state = model(x), torch.get_rng_state()
    attach_lora(model, lora(dora=True), ["0"], 0, "unet")
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model(x), before)
