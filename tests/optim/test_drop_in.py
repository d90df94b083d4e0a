"""Our optimizers as torch's: arguments, groups, schedulers, state, copies."""

import copy
import dataclasses
import inspect
import io
import pickle
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from optim.harness import Model, assert_same_bits, backward, batches, everything
from torch import nn

from acmsao_cli import optim
from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import SGD, Adam, AdamW, DropIn, LayerRule, Lion, Prodigy, build_pipeline
from acmsao_cli.optim import drop_in as module
from acmsao_cli.optim import momentum as momenta
from acmsao_cli.optim.edits.gradient import RmsClip
from acmsao_cli.optim.rules.base import rule as rules

CLASSES = {
    name: found
    for name, found in vars(optim).items()
    if inspect.isclass(found) and issubclass(found, DropIn) and found is not DropIn
}
every_class = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
# Not the rule's default on purpose: torch's SGD has no momentum, and AdEMAMix is one of AdamW's.
OWN_PARTS = {"SGD", "AdEMAMix"}


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (2, 3)))


def advance(model, optimizer, start=0, stop=5, scheduler=None):
    for x in batches(start, stop):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


# Arguments


def test_every_rule_has_a_class_whose_defaults_are_the_rules():
    built = {name: make([weights()]).pipeline.rule for name, make in CLASSES.items()}
    built["ACMSAO's document"] = optim.ACMSAO([weights()], mode="document").pipeline.rule
    assert {type(rule) for rule in built.values()} == set(rules.parts.values())
    for name, rule in built.items():
        if name not in OWN_PARTS:
            assert rule == type(rule)(), name
    adamw, sgd = rules.parts["adamw"], rules.parts["sgd"]
    assert built["AdEMAMix"] == adamw(momentum=momenta.AdEMAMix())
    assert built["SGD"] == sgd(beta=0.0, momentum=momenta.Ema())
    assert SGD([weights()], momentum=0.9).pipeline.rule == sgd()


# SGD's are otherwise called; ACMSAO refuses an option without effect, see test_acmsao_class.
@pytest.mark.parametrize(
    "make", [make for name, make in CLASSES.items() if name not in ("SGD", "ACMSAO")]
)
def test_every_option_reaches_the_rule(make):
    parameters = inspect.signature(make).parameters
    for field in dataclasses.fields(make([weights()]).pipeline.rule):
        default = parameters[field.name].default if field.name in parameters else None
        if type(default) is bool:
            other = not default
        elif type(default) is float:
            other = 0.25 if default != float("inf") else 2.0
        elif type(default) is int:
            other = default + 1
        else:
            continue
        rule = make([weights()], **{field.name: other}).pipeline.rule
        assert getattr(rule, field.name) == other, field.name


def test_parts_reach_the_rule_by_name_mapping_or_value():
    steep = {"name": "linear", "start": 1e-4, "stop": 1e-8, "steps": 100}
    by_name = AdamW([weights()], betas=(0.8, 0.9), eps=steep, momentum="ademamix", ratio="atan2")
    rule = by_name.pipeline.rule
    assert (rule.betas, rule.eps.stop, rule.ratio.__name__) == ((0.8, 0.9), 1e-8, "atan2")
    by_value = AdamW([weights()], betas=(0.8, 0.9), eps=rule.eps, momentum=rule.momentum)
    assert by_value.pipeline.rule.momentum == rule.momentum
    mixed = optim.AdEMAMix([weights()], betas=(0.9, 0.99, 0.9995), alpha=2.0, warmup=7)
    momentum = mixed.pipeline.rule.momentum
    assert (momentum.slow_beta, momentum.alpha, momentum.warmup) == (0.9995, 2.0, 7)
    summed = optim.SimplifiedAdEMAMix([weights()], alpha=100.0, corrected=True)
    assert summed.pipeline.rule.momentum.alpha == 100.0
    assert "weight" in {slot.name for slot in summed.pipeline.slots}
    ball = SGD([weights()], momentum=0.9, dampening=0.5).pipeline.rule
    assert (ball.beta, ball.momentum.dampening) == (0.9, 0.5)
    assert optim.A2Grad([weights()], variant="exp").pipeline.rule.variant == "exp"


def test_the_common_options_reach_the_pipeline():
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = AdamW(
        [("w", parameter)],
        storage={"default": "factored", "momentum": "bf16"},
        gradient_edits=["orthograd"],
        direction_edits=["cautious"],
        rounding="kahan",
        decay="cautious",
        maximize=True,
        seed=3,
        stacking=optim.ONE_BY_ONE,
    )
    signature = str(optimizer.pipeline)
    for part in ("orthograd", "cautious", "kahan", "decay=cautious", "factored", "momentum=bf16"):
        assert part in signature
    assert (optimizer.seed, optimizer.param_groups[0]["maximize"]) == (3, True)
    with pytest.raises(OptimizerError, match="kernel"):
        AdamW([parameter], kernels=True, gradient_edits=["orthograd"])


def test_the_betas_of_prodigy_are_its_inner_rules():
    plain = Prodigy([weights()], betas=(0.8, 0.99), eps=1e-6).pipeline.rule.inner
    assert (plain.betas, plain.eps, plain.correction) == ((0.8, 0.99), 1e-6, "none")
    lion = Prodigy([weights()], betas=(0.8, 0.95), inner="lion").pipeline.rule.inner
    assert lion.betas == (0.8, 0.95)
    same = Prodigy([weights()], betas=(0.7, 0.8), inner=lion).pipeline.rule.inner
    assert same == dataclasses.replace(lion, betas=(0.7, 0.8))
    with pytest.raises(OptimizerError, match="`lion` has no option `eps`"):
        Prodigy([weights()], eps=1e-6, inner="lion")


@every_class
def test_signatures_spell_out_every_option(make):
    parameters = inspect.signature(make).parameters
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert set(module.Options.__annotations__) <= parameters.keys()
    given = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    make([weights()], **given)
    with pytest.raises(TypeError, match="foreach"):
        make([weights()], foreach=True)


def test_what_is_common_is_declared_once_alike():
    common = {
        name: parameter.annotation
        for name, parameter in inspect.signature(DropIn.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    declared = {k: v.__forward_arg__ for k, v in module.Options.__annotations__.items()}
    assert common == declared


TORCHS = {
    "AdamW": (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "AdamW amsgrad": (AdamW, torch.optim.AdamW, {"amsgrad": True}),
    "Adam": (Adam, torch.optim.Adam, {"weight_decay": 0.1, "maximize": True}),
    "SGD": (SGD, torch.optim.SGD, {"weight_decay": 0.1}),
    "SGD nesterov": (
        SGD,
        torch.optim.SGD,
        {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "options"), TORCHS.values(), ids=TORCHS)
def test_torchs_arguments_give_torchs_steps(ours, theirs, options):
    ends = []
    for make in (ours, theirs):
        model = Model(torch.float32)
        advance(model, make(model.parameters(), **options))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


def test_arguments_that_contradict_each_other_are_refused():
    for arguments in ({"nesterov": True}, {"dampening": 0.1}):
        with pytest.raises(OptimizerError, match="without momentum"):
            SGD([weights()], **arguments)
    with pytest.raises(OptimizerError, match="three betas"):
        optim.AdEMAMix([weights()], betas=(0.9, 0.999))
    for bad in ({"lr": -1.0}, {"weight_decay": -0.1}, {"lr": float("nan")}):
        with pytest.raises(OptimizerError, match="cannot be"):
            AdamW([weights()], **bad)
    assert not SGD([weights()]).pipeline.slots
    twice = {"name": "lion", "betas": (0.9, 0.99)}
    with pytest.raises(OptimizerError, match="`betas` is given twice"):
        Prodigy([weights()], inner=twice, betas=(0.8, 0.9))
    with pytest.raises(OptimizerError, match="`lion` has no option `eps`"):
        Prodigy([weights()], inner=rules.parts["lion"](), eps=1e-6)


COURSE = {"name": "linear", "start": 0.1, "stop": 0.2, "steps": 3}
VECTORS = LayerRule(pipeline=build_pipeline("lion"))
OF_A_WRONG_TYPE = [
    (AdamW, "lr", "1e-3"),
    (AdamW, "lr", None),
    (AdamW, "weight_decay", "a"),
    (AdamW, "eps", "a"),
    (AdamW, "betas", 0.9),
    (AdamW, "betas", ("a", "b")),
    (AdamW, "betas", COURSE),
    (AdamW, "amsgrad", "no"),
    (AdamW, "maximize", "no"),
    (AdamW, "kernels", "cuda"),
    (AdamW, "seed", None),
    (AdamW, "seed", 1.5),
    (AdamW, "stacking", 3),
    (AdamW, "storage", None),
    (AdamW, "storage", {"default": 4}),
    (AdamW, "rounding", None),
    (AdamW, "decay", 3),
    (AdamW, "layers", VECTORS),
    (AdamW, "layers", ["*bias"]),
    (AdamW, "gradient_edits", {"name": "orthograd"}),
    (AdamW, "direction_edits", "cautious"),
    (AdamW, "direction_edits", [3]),
    (AdamW, "momentum", 0.9),
    (AdamW, "momentum", momenta.Ema),
    (AdamW, "momentum", {"name": "ademamix", "alpha": "x"}),
    (AdamW, "ratio", momenta.Ema()),
    (SGD, "momentum", COURSE),
    (optim.AdEMAMix, "betas", 0.9),
    (optim.AdEMAMix, "alpha", -5),
    (optim.SimplifiedAdEMAMix, "alpha", -5),
    (optim.WarmStart, "scale", -1),
    (optim.WarmStart, "steps", 1.5),
    (Prodigy, "inner", 3),
    (Prodigy, "betas", "ab"),
    (Prodigy, "eps", "x"),
    (Prodigy, "beta3", COURSE),
]


@pytest.mark.parametrize(("make", "option", "value"), OF_A_WRONG_TYPE)
def test_a_value_of_a_wrong_type_is_refused_when_it_is_given(make, option, value):
    with pytest.raises(OptimizerError) as caught:
        make([weights()], **{option: value})
    assert caught.value.hint or option == "weight_decay"


def test_eps_of_the_inner_rule_may_follow_a_schedule_and_edits_may_be_values():
    assert Prodigy([weights()], eps=COURSE).pipeline.rule.inner.eps.stop == 0.2
    optimizer = AdamW([weights()], gradient_edits=(RmsClip(limit=0.5) for _ in range(1)))
    assert optimizer.pipeline.gradient == (RmsClip(limit=0.5),)


def test_a_traceback_shows_the_remedy():
    with pytest.raises(OptimizerError) as caught:
        AdamW([weights()], rounding="kahn")
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("help: did you mean `kahan`?") == 1


@pytest.mark.parametrize("name", ["foreach", "fused", "capturable", "differentiable"])
def test_torchs_ways_to_step_are_refused(name):
    with pytest.raises(TypeError, match=f"AdamW has no argument `{name}`: .*leave it out"):
        AdamW([weights()], **{name: False})


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(TypeError, match="Lion has no argument `wieght_decay`: did you mean `wei"):
        Lion([weights()], wieght_decay=0.1)
    with pytest.raises(TypeError, match=r"known: params, lr, betas, weight_decay, .*kernels$"):
        Lion([weights()], zzz=0.1)


# Groups


def test_groups_have_their_own_rate_decay_and_sense():
    first, second, third = weights(), weights(), weights()
    optimizer = Lion(
        [
            {"params": [("a", first)], "lr": 0.5},
            {"params": [second], "param_names": ["b"], "weight_decay": 0.5},
            {"params": (p for p in [third]), "maximize": True},
        ],
        lr=0.1,
    )
    assert [member.name for member in optimizer.members] == ["a", "b", "2"]
    for parameter in (first, second, third):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, expected in ((first, 0.5), (second, 0.95 - 0.1), (third, 1.1)):
        torch.testing.assert_close(parameter.detach(), torch.full((2, 3), expected))


def test_groups_may_be_generators_or_empty():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    groups = [{"params": part.parameters()} for part in model]
    optimizer = AdamW([{"params": [], "lr": 0.5}, *groups])
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2, 2]
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_parameters_without_order_are_refused():
    for given in ({weights(), weights()}, [{"params": {weights()}}]):
        with pytest.raises(OptimizerError, match="no order"):
            AdamW(given)


def test_a_group_joins_later():
    optimizer = AdamW([weights()], lr=0.1, weight_decay=0.0)
    late = weights()
    optimizer.add_param_group({"params": [late], "lr": 0.25})
    late.grad = torch.ones_like(late)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2, 3), 0.75))


@pytest.mark.parametrize("key", ["betas", "learning_rate", "eps", "use_muon"])
def test_a_groups_option_that_would_be_ignored_is_refused(key):
    with pytest.raises(OptimizerError, match=f"its own `{key}`") as caught:
        AdamW([{"params": [weights()], key: 1}])
    assert "LayerRule" in caught.value.hint
    with pytest.raises(OptimizerError, match="2 names for 1"):
        AdamW([{"params": [weights()], "param_names": ["a", "b"]}])


def test_an_option_that_comes_into_a_group_later_is_refused_at_the_step():
    parameter = weights()
    optimizer = AdamW([parameter])
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    parameter.grad = torch.ones_like(parameter)
    for step in (optimizer.step, lambda: optimizer.step_parameter(parameter)):
        with pytest.raises(OptimizerError, match="its own `betas`"):
            step()
    assert (parameter == 1).all()


def test_other_options_differ_by_layers():
    model = Model(torch.float32)
    vectors = LayerRule(match="*bias", pipeline=build_pipeline("lion"), lr=1e-4)
    optimizer = optim.Muon(model.named_parameters(), layers=[vectors])
    layers = {member.name: member.layer for member in optimizer.members}
    assert (layers["bias"], layers["first"]) == (1, 0)
    advance(model, optimizer)
    assert set(optimizer.state[model.bias]) == {"momentum/value"}


# Steps


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        o, 3
    ),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, max_lr=0.1, total_steps=10, cycle_momentum=False
    ),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, total_iters=2),
            torch.optim.lr_scheduler.PolynomialLR(o, total_iters=5),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_torchs_schedulers_lead_and_resume(schedule, tensor):
    def start():
        model = Model(torch.float32)
        optimizer = AdamW(model.parameters(), lr=torch.tensor(0.02) if tensor else 0.02)
        return model, optimizer, schedule(optimizer)

    whole, first, second = start(), start(), start()
    advance(*whole[:2], 0, 6, whole[2])
    advance(*first[:2], 0, 3, first[2])
    for fresh, old in zip(second, first, strict=True):
        fresh.load_state_dict(old.state_dict())
    advance(*second[:2], 3, 6, second[2])
    assert_same_bits(everything(*whole[:2]), everything(*second[:2]))
    expected = torch.optim.AdamW(
        Model(torch.float32).parameters(), lr=torch.tensor(0.02) if tensor else 0.02
    )
    theirs = schedule(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step was taken before the scheduler's
        for _ in range(6):
            theirs.step()
    assert whole[1].param_groups[0]["lr"] == expected.param_groups[0]["lr"]


def test_the_plateau_scheduler_lowers_the_rate():
    optimizer = AdamW([weights()], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for _ in range(3):
        plateau.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_momentum_that_should_follow_a_scheduler_is_refused(name):
    make = {
        "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1),
    }[name]
    with pytest.raises(ValueError, match="cycle_momentum"):
        make(AdamW([weights()]))


@every_class
def test_a_closure_is_evaluated_once_and_returns_the_loss(make):
    model, calls = Model(torch.float32), []
    optimizer = make(model.parameters())

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (model(next(batches())) - 0.5).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert len(calls) == 1


def test_zeroing_takes_both_forms():
    parameter = weights()
    optimizer = AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad(set_to_none=False)
    assert not parameter.grad.any()
    optimizer.zero_grad()
    assert parameter.grad is None


def test_a_sparse_gradient_is_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = AdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(OptimizerError, match="sparse gradient"):
        optimizer.step()


def test_gradients_are_clipped_and_scaled_by_torchs_tools():
    plain, scaled = Model(torch.float32), Model(torch.float32)
    optimizers = AdamW(plain.parameters(), lr=0.01), AdamW(scaled.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index, x in enumerate(batches()):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(plain, x)
        scaler.scale((scaled(x) - 0.5).square().mean()).backward()
        if index == 2:  # an overflow: neither is to step
            scaled.first.grad[0, 0] = torch.inf
        scaler.unscale_(optimizers[1])
        for model in (plain, scaled):
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if index != 2:
            optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
    assert optimizers[1].global_step == 4
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# State


def same_kind(make, model):
    return make(model.parameters(), storage="bf16", seed=5)


@every_class
def test_state_goes_through_a_file_and_continues_to_the_bit(make):
    """Bf16 weights, stochastic rounding, into an optimizer that never stepped."""
    whole, first, second = (Model(torch.bfloat16) for _ in range(3))
    uninterrupted, before, after = (same_kind(make, model) for model in (whole, first, second))
    advance(whole, uninterrupted, 0, 5)
    advance(first, before, 0, 3)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(through_a_file(before.state_dict()))
    kept, loaded = before.state_tensors(), after.state_tensors()
    assert_same_bits(kept, loaded)
    advance(second, after, 3, 5)
    assert_same_bits(everything(whole, uninterrupted), everything(second, after))


@pytest.mark.parametrize("storage", ["fp32", "factored_4bit", "int8", "offloaded(factored)"])
def test_packed_state_keeps_its_dtypes(storage):
    model = Model(torch.bfloat16)
    optimizer = AdamW(model.parameters(), storage=storage)
    advance(model, optimizer)
    dtypes = {key: tensor.dtype for key, tensor in optimizer.state_tensors().items()}
    again = AdamW(model.parameters(), storage=storage)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert {key: tensor.dtype for key, tensor in again.state_tensors().items()} == dtypes
    assert_same_bits(optimizer.state_tensors(), again.state_tensors())


def test_state_has_torchs_form():
    model = Model(torch.float32)
    optimizer = AdamW([{"params": [p]} for p in model.parameters()], lr=0.1)
    assert optimizer.state_dict()["state"] == {}
    advance(model, optimizer)
    state = optimizer.state_dict()
    theirs = torch.optim.AdamW([{"params": [p]} for p in model.parameters()]).state_dict()
    ours = [group["params"] for group in state["param_groups"]]
    assert ours == [group["params"] for group in theirs["param_groups"]]
    assert state["param_groups"][0]["lr"] == 0.1
    pieces = [piece for kept in state["state"].values() for piece in kept.values()]
    assert pieces
    assert all(type(piece) is torch.Tensor for piece in pieces)
    assert copy.deepcopy(state)["acmsao"] == state["acmsao"]


def test_groups_take_over_their_saved_options():
    first = AdamW([weights()], lr=0.1, weight_decay=0.3, maximize=True)
    first.param_groups[0]["initial_lr"] = 0.7
    second = AdamW([weights()], lr=0.2, weight_decay=0.0)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0] | {"params": 0} == first.param_groups[0] | {"params": 0}


def test_state_of_another_kind_is_refused():
    model = Model(torch.float32)
    optimizer = AdamW(model.parameters())
    advance(model, optimizer)
    state = optimizer.state_dict()
    with pytest.raises(OptimizerError, match="belongs to adamw"):
        Lion(model.parameters()).load_state_dict(state)
    with pytest.raises(OptimizerError, match="other groups"):
        AdamW([{"params": [p]} for p in model.parameters()]).load_state_dict(state)
    with pytest.raises(OptimizerError, match="not in the saved"):
        AdamW([*model.parameters(), weights()]).load_state_dict(state)
    with pytest.raises(OptimizerError, match="not of an optimizer of this library"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    state["state"][0]["momentum/value"] = torch.zeros(2)
    with pytest.raises(OptimizerError, match=r"should be float32\[6, 6\]"):
        optimizer.load_state_dict(state)


def test_differences_from_the_saved_run_are_warned_of():
    model = Model(torch.float32)
    optimizer = AdamW(model.parameters())
    advance(model, optimizer)
    other = AdamW(model.parameters(), storage="bf16", eps=1e-6, seed=1)
    with pytest.warns(UserWarning, match="optimizer|rounding") as caught:
        other.load_state_dict(optimizer.state_dict())
    texts = " ".join(str(warning.message) for warning in caught)
    for text in ("from fp32 to bf16", "eps=1e-06", "saved seed 0"):
        assert text in texts
    assert caught[0].filename == __file__


def test_state_hooks_are_called():
    model = Model(torch.float32)
    optimizer, called = AdamW(model.parameters()), []
    optimizer.register_state_dict_pre_hook(lambda o: called.append("before saving"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before saving", "before", "after"]


def move_to_meta(model):
    """In place, as `model.to` moves to a GPU."""
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to("meta")))


def test_loading_follows_parameters_that_moved():
    """As accelerate moves a model between making the optimizer and loading."""
    model = Model(torch.float32)
    optimizer = AdamW(model.parameters(), storage="factored")
    advance(model, optimizer)
    state = optimizer.state_dict()
    move_to_meta(model)
    moved = {n: {k: v.to("meta") for k, v in kept.items()} for n, kept in state["state"].items()}
    optimizer.load_state_dict({**state, "state": moved})
    assert {tensor.device.type for tensor in optimizer.state_tensors().values()} == {"meta"}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.global_step == 6


@pytest.mark.parametrize("during_backward", [False, True])
def test_parameters_may_move_before_the_first_step(during_backward):
    model = Model(torch.float32)
    optimizer = Prodigy(model.parameters())
    move_to_meta(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if during_backward:
        optimizer.step_parameter(model.first)
    optimizer.step()
    assert {number.device.type for number in optimizer.shared[0].values()} == {"meta"}


# Copies


@every_class
@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_a_copy_continues_alike_and_apart(make, way):
    model = Model(torch.bfloat16)
    optimizer = same_kind(make, model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)  # patches `step`
    advance(model, optimizer, 0, 3, schedule)
    pair = (model, optimizer)
    other = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
    assert type(other[1]) is make
    before = {key: tensor.clone() for key, tensor in everything(*pair).items()}
    advance(*other, 3, 5)
    assert_same_bits(before, everything(*pair))
    advance(*pair, 3, 5)
    assert_same_bits(everything(*pair), everything(*other))
    kept = other[1].state[other[0].first]
    for key, piece in kept.items():
        assert torch.equal(piece, other[1].state_tensors()[f"0/{key}"])


def test_a_copy_has_everything_the_optimizer_has():
    optimizer = AdamW([weights()])
    assert vars(optimizer).keys() <= vars(copy.deepcopy(optimizer)).keys() | {
        "_zero_grad_profile_name",
        "_warned_capturable_if_run_uncaptured",
    }


# Beside it


def test_importing_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules);"
        "import acmsao_cli.optim; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    others = {name.partition(".")[0] for name in names} - {"torch"} - sys.stdlib_module_names
    assert others == {"acmsao_cli"}
    parts = {name.split(".")[1] for name in names if name.startswith("acmsao_cli.")}
    assert parts == {"errors", "host_memory", "optim"}


PAGE = Path(__file__).resolve().parents[2] / "docs" / "optimizers-in-python.md"


def test_the_examples_in_the_docs_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)


@pytest.mark.parametrize(("name", "make"), CLASSES.items(), ids=CLASSES)
def test_the_docs_say_every_classs_defaults(name, make):
    (row,) = re.findall(
        rf"^\| `{name}` \| (\S+) \| (\S+) \|", PAGE.read_text(encoding="utf-8"), re.M
    )
    parameters = inspect.signature(make).parameters
    assert [float(cell) for cell in row] == [parameters[p].default for p in ("lr", "weight_decay")]
