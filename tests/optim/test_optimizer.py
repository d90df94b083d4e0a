"""Groups, schedules, ways of stepping, and state on disk."""

import json

import pytest
import torch
from optim.harness import (
    Model,
    assert_same_bits,
    backward,
    batches,
    everything,
    make,
    run,
)
from safetensors.torch import load_file, save_file

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Stacking, build_pipeline


def grouped(model: Model, pipeline=None, **options) -> ComposedOptimizer:
    named = list(model.named_parameters())
    groups = [
        {"params": named[:2], "lr": 0.5},
        {"params": named[2:], "weight_decay": 0.2},
    ]
    pipeline = pipeline or build_pipeline("lion")
    return ComposedOptimizer(groups, pipeline, lr=0.25, weight_decay=0.0, **options)


def scheduled(during_backward: bool, stacking: Stacking | None = None) -> dict[str, torch.Tensor]:
    model = Model(torch.bfloat16)
    optimizer = grouped(model, stacking=stacking)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    if during_backward:
        optimizer.attach_to_backward(lambda: True)
    for x in batches():
        backward(model, x)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5**6, 0.25 * 0.5**5]
    return everything(model, optimizer)


def test_groups_keep_their_rate_and_decay():
    model = Model(torch.float32)
    optimizer = grouped(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.first.detach(), before["first"] - 0.5)
    torch.testing.assert_close(model.bias.detach(), before["bias"] * (1 - 0.25 * 0.2) - 0.25)


def test_a_schedule_acts_on_every_group_during_backward_too():
    assert_same_bits(scheduled(during_backward=False), scheduled(during_backward=True))
    assert_same_bits(scheduled(during_backward=False), scheduled(False, Stacking()))


def test_gradients_accumulate_until_the_hook_may_step():
    pipeline = build_pipeline("adamw", storage="factored")
    after, during = make(pipeline), make(pipeline)
    last = False
    during[1].attach_to_backward(lambda: last)
    for index, x in enumerate(batches(0, 6)):
        last = index % 3 == 2
        for model, _ in (after, during):
            backward(model, x)
        if last:
            for _, optimizer in (after, during):
                optimizer.step()
                optimizer.zero_grad()
    assert_same_bits(everything(*after), everything(*during))
    assert during[1].global_step == 2


def test_tied_weights_step_once_when_their_whole_gradient_is_there():
    ends = []
    for during in (False, True):
        weight = torch.nn.Parameter(torch.full((4, 4), 0.1))
        optimizer = ComposedOptimizer([("w", weight)], build_pipeline("adamw"), lr=0.1)
        if during:
            optimizer.attach_to_backward(lambda: True)
        for _ in range(3):
            (torch.ones(2, 4) @ weight @ weight).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_the_gradient_norm_is_that_of_all_gradients():
    model, optimizer = make(build_pipeline("lion", gradient_edits=["rms_clip"]))
    assert optimizer.gradient_norm() is None
    backward(model, next(batches()))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    expected = torch.nn.utils.get_total_norm(grads)
    optimizer.step()
    torch.testing.assert_close(optimizer.gradient_norm(), expected)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.gradient_norm() is None


def test_step_parameter_advances_one_and_step_the_rest():
    together, apart = make(build_pipeline("adamw")), make(build_pipeline("adamw"))
    for model, _ in (together, apart):
        backward(model, next(batches()))
    apart[1].step_parameter(apart[0].conv)
    apart[1].step_parameter(apart[0].spare)  # no gradient: left alone
    with pytest.raises(OptimizerError, match=r"conv.*twice"):
        apart[1].step_parameter(apart[0].conv)
    together[1].step()
    apart[1].step()
    assert_same_bits(everything(*together), everything(*apart))


def test_hooks_refuse_company():
    _, optimizer = make(build_pipeline("lion"))
    optimizer.attach_to_backward(lambda: True)
    with pytest.raises(OptimizerError, match=r"first.*hook"):
        optimizer.attach_to_backward(lambda: True)


def test_a_parameter_that_joins_late_counts_its_own_steps():
    """The first update of AdamW is lr in size, whenever it comes."""
    model, optimizer = make(build_pipeline("adamw"), stacking=Stacking())
    run(model, optimizer)
    before = model.spare.detach().clone()
    model.spare.grad = torch.ones_like(model.spare)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    torch.testing.assert_close(model.spare.detach(), before - 0.01)
    assert optimizer.state_header()["late_parameters"]["spare"] == 1


def test_uneven_stacks_step_one_by_one():
    ends = []
    for stacking in (None, Stacking()):
        model, optimizer = make(build_pipeline("adamw"), stacking=stacking)
        for step in range(4):
            for name, parameter in model.named_parameters():
                skip = name == "second" and step == 1
                parameter.grad = None if skip else torch.full_like(parameter, 0.1 * step)
            optimizer.step()
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends)


def test_large_parameters_are_not_stacked_and_stacks_are_cut():
    shapes = [(2, 3)] * 5 + [(4, 4)] * 2
    named = [(str(i), torch.nn.Parameter(torch.ones(s))) for i, s in enumerate(shapes)]
    stacking = Stacking(below=10, block=13)
    optimizer = ComposedOptimizer(named, build_pipeline("lion"), lr=0.1, stacking=stacking)
    optimizer.allocate()
    rows = [state["momentum"]["value"].shape[0] for state in optimizer._states.values()]
    assert rows == [2, 2, 1, 1, 1]


def test_state_survives_a_file_with_exact_dtypes(tmp_path):
    model, optimizer = make(build_pipeline("adamw", storage="factored"), stacking=Stacking())
    run(model, optimizer)
    save_file(optimizer.state_tensors(), tmp_path / "state.safetensors")
    header = json.loads(json.dumps(optimizer.state_header()))
    other_model, other = make(build_pipeline("adamw", storage="factored"))
    other_model.load_state_dict(model.state_dict())
    assert other.load_state(load_file(tmp_path / "state.safetensors"), header) == []
    assert_same_bits(optimizer.state_tensors(), other.state_tensors())
    assert {t.dtype for t in other.state_tensors().values()} == {torch.float32, torch.uint8}
    other.load_state_dict(optimizer.state_dict())


def test_views_in_state_are_the_state():
    model, optimizer = make(build_pipeline("lion"), stacking=Stacking())
    run(model, optimizer, stop=1)
    optimizer.state[model.second]["momentum/value"].fill_(3.0)
    assert (optimizer.state_tensors()["second/momentum/value"] == 3.0).all()
    run(model, optimizer, start=1, stop=2)
    assert (optimizer.state_tensors()["second/momentum/value"] != 3.0).all()


@pytest.mark.parametrize("before", ["fp32", "bf16", "factored"])
@pytest.mark.parametrize("now", ["fp32", "bf16", "factored"])
def test_state_is_converted_to_another_storage(before, now):
    source = make(build_pipeline("adamw", storage=before))
    run(*source)
    target = make(build_pipeline("adamw", storage=now))
    target[0].load_state_dict(source[0].state_dict())
    notices = target[1].load_state(source[1].state_tensors(), source[1].state_header())
    if before == now:
        assert notices == []
    else:
        assert notices == [f"optimizer state converted from {before} to {now}"]
    for slot in ("momentum", "mean_square"):
        was, became = read(source[1], slot), read(target[1], slot)
        torch.testing.assert_close(became.abs().sum(), was.abs().sum(), rtol=1e-2, atol=0)
        assert (was * became >= 0).all()
    run(*target, start=5, stop=7)


def read(optimizer: ComposedOptimizer, name: str) -> torch.Tensor:
    slots = {slot.name: slot for slot in optimizer.pipeline.rule.slots}
    codec = optimizer.pipeline.storage.codec(slots[name])
    member = next(m for m in optimizer.members if m.name == "first")
    return codec.read(optimizer.state_of(member)[name])


def test_differences_that_matter_less_are_noticed():
    model, first = make(build_pipeline("adamw"))
    run(model, first)
    second = ComposedOptimizer(
        model.named_parameters(),
        build_pipeline("adamw", eps=1e-6),
        lr=0.3,
        weight_decay=0.2,
        seed=1,
    )
    notices = second.load_state(first.state_tensors(), first.state_header())
    assert [notice.split()[0] for notice in notices] == ["optimizer", "rounding", "weight"]
    assert second.seed == first.seed
    assert second.param_groups[0]["lr"] == 0.01
    third = grouped(model, build_pipeline("adamw"), seed=first.seed)
    (notice,) = third.load_state(first.state_tensors(), first.state_header())
    assert "groups" in notice


def test_loading_forgets_what_the_saved_run_never_had():
    saved_model, saved = make(build_pipeline("adamw"))
    run(saved_model, saved)
    model, optimizer = make(build_pipeline("adamw"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.load_state(saved.state_tensors(), saved.state_header())
    assert not optimizer.state[model.spare]["momentum/value"].any()
    assert optimizer.steps[optimizer._member_of[model.spare].number] == 0


def refused(match: str, change) -> None:
    model, optimizer = make(build_pipeline("adamw"))
    run(model, optimizer)
    tensors, header = dict(optimizer.state_tensors()), optimizer.state_header()
    change(tensors, header)
    with pytest.raises(OptimizerError, match=match) as caught:
        make(build_pipeline("adamw"))[1].load_state(tensors, header)
    assert caught.value.hint


ADAM = build_pipeline("adamw")


def test_state_that_does_not_fit_is_refused_with_the_tensor_named():
    key = "first/momentum/value"
    refused(
        rf"{key}.*float32\[6, 6\], found bfloat16", lambda t, h: t.update({key: t[key].bfloat16()})
    )
    refused(rf"{key}.*\[6, 6\], found float32\[6, 5\]", lambda t, h: t.update({key: t[key][:, :5]}))
    refused(f"{key}.*found nothing", lambda t, h: t.pop(key))
    refused("unknown tensor `other/x/y`", lambda t, h: t.update({"other/x/y": t[key]}))
    refused("format 9", lambda t, h: h.update(format=9))
    refused("lacks seed", lambda t, h: h.pop("seed"))
    refused(
        "`spare` is not in the saved", lambda t, h: h["groups"][0]["parameters"].remove("spare")
    )


def test_another_rules_state_is_refused():
    model, optimizer = make(build_pipeline("lion"))
    run(model, optimizer)
    for other in (build_pipeline("adamw"), build_pipeline("lion", momentum="ademamix")):
        with pytest.raises(OptimizerError, match="belongs to lion") as caught:
            make(other)[1].load_state(optimizer.state_tensors(), optimizer.state_header())
        assert caught.value.hint


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ([], "no parameters"),
        ([("w", torch.nn.Parameter(torch.ones(2).half()))], "`w` is torch.float16"),
        ([("w", torch.nn.Parameter(torch.ones(2))) for _ in range(2)], "two parameters.*`w`"),
        ([{"params": []}], "no parameters"),
    ],
)
def test_parameters_it_cannot_step_are_refused(named, match):
    with pytest.raises(OptimizerError, match=match):
        ComposedOptimizer(named, build_pipeline("lion"), lr=0.1)


def test_a_group_can_be_added_later():
    model, optimizer = make(build_pipeline("lion"))
    run(model, optimizer)
    before = {key: tensor.clone() for key, tensor in optimizer.state_tensors().items()}
    late = torch.nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [("late", late)], "lr": 0.5})
    assert_same_bits(before, optimizer.state_tensors())
    late.grad = torch.ones(3, 3)
    optimizer.zero_grad(set_to_none=True)
    late.grad = torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((3, 3), 0.5 - 0.05))
    assert optimizer.steps[-1] == 1
    with pytest.raises(OptimizerError, match="two parameters"):
        optimizer.add_param_group({"params": [("first", torch.nn.Parameter(torch.ones(1)))]})


def test_parameters_without_names_are_called_by_their_number():
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = ComposedOptimizer([{"params": weights[0]}, {"params": weights[1:]}], ADAM, lr=0.1)
    assert [member.name for member in optimizer.members] == ["0", "1"]


def test_maximizing_is_minimizing_with_the_gradient_turned():
    found = []
    for maximize in (True, False):
        weights = torch.nn.Parameter(torch.arange(4.0))
        weights.grad = torch.tensor([1.0, -2.0, 0.0, 3.0]) * (-1 if maximize else 1)
        optimizer = ComposedOptimizer([weights], ADAM, lr=0.1, maximize=maximize)
        optimizer.step()
        found.append(weights.detach())
    assert torch.equal(*found)


def test_complex_numbers_are_stepped_as_pairs():
    value = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    whole, pairs = torch.nn.Parameter(value.clone()), torch.nn.Parameter(torch.view_as_real(value))
    one, two = (ComposedOptimizer([p], ADAM, lr=0.1, weight_decay=0.1) for p in (whole, pairs))
    for _ in range(3):
        whole.grad = whole.detach().conj().resolve_conj() * (1 + 2j)
        pairs.grad = torch.view_as_real(whole.grad)
        one.step()
        two.step()
    assert torch.equal(torch.view_as_real(whole.detach()), pairs.detach())
    assert_same_bits(one.state_tensors(), two.state_tensors())


@pytest.mark.parametrize("storage", ["fp32", "factored"])
def test_parameters_of_any_layout_are_stepped_alike(storage):
    """Without elements, without dimensions, channels last, transposed, a part of another."""
    pipeline = build_pipeline("adamw", storage=storage)
    generator = torch.Generator().manual_seed(0)
    plain = [
        torch.randn(s, generator=generator) for s in ((0, 3), (), (4, 2, 3, 3), (5, 7), (6, 4))
    ]
    strange = [value.clone() for value in plain]
    strange[2] = strange[2].to(memory_format=torch.channels_last)
    strange[3] = strange[3].T.contiguous().T
    strange[4] = torch.zeros(6, 8)[:, ::2].copy_(strange[4])
    results = []
    for values in (plain, strange):
        weights = [torch.nn.Parameter(value) for value in values]
        assert [p.stride() for p in weights] == [value.stride() for value in values]
        optimizer = ComposedOptimizer(weights, pipeline, lr=0.1)
        for _ in range(2):
            for parameter in weights:
                parameter.grad = parameter.detach().sin()
            optimizer.step()
        results.append({str(n): p.detach() for n, p in enumerate(weights)})
    assert_same_bits(*results)


def test_a_sparse_gradient_is_refused_by_name():
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = ComposedOptimizer([("embedding", weight)], build_pipeline("lion"), lr=0.1)
    torch.nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum().backward()
    with pytest.raises(OptimizerError, match=r"embedding.*sparse"):
        optimizer.step()


@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1), (2, 4, 3, 3)], ids=str)
def test_odd_shapes_and_layouts_step_like_any_other(storage, shape):
    pipeline = build_pipeline(
        "adamw", storage=storage, gradient_edits=["rms_clip"], direction_edits=["cautious"]
    )
    plain = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    scattered = torch.nn.Parameter(torch.ones((*shape, 2), dtype=torch.bfloat16)[..., 0])
    for parameter in (plain, scattered):
        optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=0.1)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(shape, generator=generator).bfloat16()
            optimizer.step()
    assert torch.equal(plain, scattered)
    assert plain.isfinite().all()
    assert not plain.numel() or not torch.equal(plain, torch.ones_like(plain))


def test_a_closure_is_evaluated_with_gradients():
    model, optimizer = make(build_pipeline("lion"))
    loss = optimizer.step(lambda: backward(model, next(batches())).item())
    assert loss > 0
    assert optimizer.gradient_norm() is not None
