"""A pipeline for each kind of layer."""

import pytest
import torch
from optim.harness import SEED, Model, assert_same_bits, everything, run

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, LayerRule, build_pipeline

LION, ADAM = build_pipeline("lion"), build_pipeline("adamw", storage="bf16")
SGD_LIKE = build_pipeline("lion", betas=(0.0, 0.0))


def make(layers, pipeline=ADAM, model=None):
    model = model or Model(torch.float32)
    options = {"lr": 0.01, "weight_decay": 0.1, "seed": SEED, "stacking": ONE_BY_ONE}
    return model, ComposedOptimizer(model.named_parameters(), pipeline, layers=layers, **options)


def test_each_layer_is_stepped_as_by_an_optimizer_of_its_own():
    mixed = make([LayerRule(pipeline=LION, ndim=1), LayerRule(pipeline=SGD_LIKE, match="conv*")])
    run(*mixed)
    alone = make([], LION)
    layer_of = {member.name: member.layer for member in mixed[1].members}
    assert layer_of == {
        **{"bias": 1, "other_bias": 1, "conv": 2},
        **{"first": 0, "second": 0, "scale": 0, "spare": 0},
    }
    state = mixed[1].state_tensors()
    assert state["first/mean_square/value"].dtype == torch.bfloat16
    assert {key for key in state if key.startswith("bias/")} == {"bias/momentum/value"}
    fresh = make([LayerRule(pipeline=LION, ndim=1)])
    for model, optimizer in (alone, fresh):
        for factor in (1, 2):
            for parameter in model.parameters():
                parameter.grad = parameter.detach() * factor
            optimizer.step()
    assert torch.equal(alone[0].bias, fresh[0].bias)
    assert not torch.equal(alone[0].first, fresh[0].first)


def test_a_pattern_may_have_its_own_rate_and_decay():
    _, optimizer = make([LayerRule(pipeline=LION, match="*bias", lr=0.5, weight_decay=0.0)])
    rates = {
        group["layer"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert rates == {0: (0.01, 0.1), 1: (0.5, 0.0)}


def test_the_first_pattern_wins_and_one_that_fits_nothing_is_refused():
    first, second = LayerRule(pipeline=LION, match="*"), LayerRule(pipeline=SGD_LIKE, match="conv")
    with pytest.raises(OptimizerError, match=r"layer pattern 2 \(match=conv\)") as caught:
        make([first, second])
    assert "`first`" in caught.value.hint
    with pytest.raises(OptimizerError, match=r"pattern 1 \(match=\*, min_side=7\)"):
        make([LayerRule(pipeline=LION, min_side=7)])


def test_layers_resume_to_the_bit_and_refuse_other_patterns():
    layers = [LayerRule(pipeline=LION, ndim=1)]
    whole, first, second = make(layers), make(layers), make(layers)
    run(*whole)
    run(*first, stop=3)
    second[0].load_state_dict(first[0].state_dict())
    saved = {key: tensor.clone() for key, tensor in first[1].state_tensors().items()}
    assert second[1].load_state(saved, first[1].state_header()) == []
    run(*second, start=3)
    assert_same_bits(everything(*whole), everything(*second))
    with pytest.raises(OptimizerError, match="fewer layer patterns"):
        make([])[1].load_state(saved, first[1].state_header())
    with pytest.raises(OptimizerError, match="fitted layer pattern"):
        make([LayerRule(pipeline=LION, match="bias")])[1].load_state(saved, first[1].state_header())
