"""The C kernel equals the pipeline it stands for."""

from __future__ import annotations

import itertools

import pytest
import torch
from optim.kernels.twins import (
    CPU,
    assert_close,
    assert_near,
    assert_same,
    both,
    gradients,
    needs_compiler,
    start,
)

from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.kernels import Composed, require

pytestmark = needs_compiler

WIDE, NARROW, ODD, VECTOR = (1, 70, 1100), (3, 90, 16), (2, 43, 37), (2, 1, 301)
RULES = [
    ("adamw", {"ratio": "divide"}),
    ("adamw", {"ratio": "atan2"}),
    ("adamw", {"betas": (0.0, 0.99)}),
    ("adamw", {"betas": (0.3, 0.5), "eps": 1e-3}),
    ("lion", {}),
]
STORAGES = ["fp32", "bf16", "factored", {"default": "factored", "momentum": "bf16"}]


def covered() -> list[tuple[Pipeline, torch.dtype]]:
    """All rules with all storages, the rest in turn."""
    kinds = itertools.cycle(
        [
            (torch.bfloat16, "stochastic"),
            (torch.float32, "stochastic"),
            (torch.bfloat16, "nearest"),
        ]
    )
    return [
        (build_pipeline(rule, storage=kept, rounding=rounding, **options), dtype)
        for ((rule, options), kept), (dtype, rounding) in zip(
            itertools.product(RULES, STORAGES), kinds, strict=False
        )
        if not (isinstance(kept, dict) and options.get("betas", (1,))[0] == 0)
    ]


@pytest.mark.parametrize(("pipeline", "dtype"), covered(), ids=str)
def test_a_kernel_equals_its_pipeline(pipeline: Pipeline, dtype: torch.dtype) -> None:
    for shape in (WIDE, NARROW, ODD, VECTOR):
        assert_close(*both(pipeline, shape, dtype))


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_without_sums_and_roots_every_bit_is_equal(storage: str, rounding: str) -> None:
    pipeline = build_pipeline("lion", storage=storage, rounding=rounding)
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(*both(pipeline, (2, 37, 43), dtype))


def test_gradients_may_be_of_another_type_than_weights() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    for dtype, other in [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]:
        assert_close(*both(pipeline, ODD, dtype, gradients(ODD, other)))


def test_circumstances_are_heard() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    for circumstances in (
        {"maximize": True},
        {"weight_decay": 0.0},
        {"lr": torch.tensor(1e-2)},
        {"lr": 0.0, "weight_decay": 0.0},
        {"grad_scale": 100.0},
    ):
        assert_close(*both(pipeline, ODD, torch.float32, **circumstances))


def test_eps_may_follow_a_schedule() -> None:
    eps = {"name": "linear", "start": 1.0, "stop": 1e-8, "steps": 2}
    assert_close(*both(build_pipeline("adamw", eps=eps), ODD, torch.float32))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e3, 1e15])
def test_any_scale_of_gradients_will_do(scale: float) -> None:
    pipeline = build_pipeline("adamw", storage="factored", eps=1e-30)
    slow, fast = both(pipeline, ODD, torch.float32, gradients(ODD, torch.float32, 3, scale))
    assert_near(slow.weights, fast.weights, "weights")
    for slot in ("momentum", "mean_square"):
        for piece in ("row", "col"):
            torch.testing.assert_close(
                fast.state[slot][piece], slow.state[slot][piece], rtol=1e-5, atol=0
            )


@pytest.mark.parametrize("cols", [24, 300])
def test_what_is_zero_stays_zero_and_what_is_positive_positive(cols: int) -> None:
    shape = (1, 20, cols)
    grads = gradients(shape, torch.float32, 2)
    for grad in grads:
        grad[:, 3] = 0
        grad[:, :, 5] = 0
        grad[:, 7] = 1e-21  # its square is denormal, a row's share of the total nothing
    slow, fast = both(
        build_pipeline("adamw", storage="factored"), shape, torch.float32, grads, weight_decay=0.0
    )
    assert_close(slow, fast)
    for slot in ("momentum", "mean_square"):
        for piece in ("row", "col"):
            zero = slow.state[slot][piece] == 0
            assert torch.equal(fast.state[slot][piece] == 0, zero)
    assert torch.equal(fast.weights[:, 3], start_weights(shape)[:, 3])


def start_weights(shape: tuple[int, int, int]) -> torch.Tensor:
    return start(build_pipeline("lion"), shape, torch.float32).weights


@pytest.mark.parametrize("rule", ["adamw", "lion"])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
@pytest.mark.parametrize("ratio", ["divide", "atan2"])
def test_infinities_and_nan_go_where_the_pipeline_puts_them(
    rule: str, storage: str, ratio: str
) -> None:
    options = {"ratio": ratio} if rule == "adamw" else {}
    pipeline = build_pipeline(rule, storage=storage, **options)
    grads = gradients((1, 9, 200), torch.float32, 2)
    for place, value in enumerate([torch.inf, -torch.inf, torch.nan, 1e30, 3e38]):
        grads[0][0, place, 3 * place] = value
    for dtype in (torch.float32, torch.bfloat16):
        slow, fast = both(pipeline, (1, 9, 200), dtype, grads)
        kinds = [
            torch.stack([run.weights.isnan(), run.weights == torch.inf, run.weights == -torch.inf])
            for run in (slow, fast)
        ]
        assert torch.equal(*kinds)
        for cell, pieces in slow.state.items():
            for name, piece in pieces.items():
                assert torch.equal(piece.isnan(), fast.state[cell][name].isnan()), (cell, name)


@pytest.mark.parametrize("storage", ["bf16", "factored"])
def test_the_number_of_threads_does_not_show(storage: str) -> None:
    pipeline = build_pipeline("adamw", storage=storage)
    shape = (1, 700, 500)
    kernel = require(pipeline, CPU, torch.bfloat16)
    runs = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        run = start(pipeline, shape, torch.bfloat16)
        torch.set_num_threads(threads)
        try:
            for grad in gradients(shape, torch.bfloat16, 2):
                run.step(kernel, grad)
        finally:
            torch.set_num_threads(before)
        runs.append(run)
    assert_same(*runs)


@pytest.mark.parametrize("storage", ["bf16", "factored"])
def test_stacked_equals_single_to_the_bit(storage: str) -> None:
    pipeline = build_pipeline("adamw", storage=storage)
    kernel = require(pipeline, CPU, torch.bfloat16)
    for shape in (NARROW, ODD, VECTOR):
        stacked = start(pipeline, shape, torch.bfloat16)
        singles = [start(pipeline, shape, torch.bfloat16) for _ in range(shape[0])]
        for index, single in enumerate(singles):
            single.weights = single.weights[index : index + 1].clone()
            single.numbers = single.numbers[index : index + 1]
            single.state = pipeline.allocate(1, *shape[1:], CPU)
        for grad in gradients(shape, torch.bfloat16):
            stacked.step(kernel, grad)
            for index, single in enumerate(singles):
                single.step(kernel, grad[index : index + 1])
        assert torch.equal(stacked.weights, torch.cat([single.weights for single in singles]))
        for cell, pieces in stacked.state.items():
            for name, piece in pieces.items():
                parts = [single.state[cell][name] for single in singles]
                assert torch.equal(piece, torch.cat(parts)), (cell, name)


def test_weights_and_gradients_may_lie_across_memory() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    kernel = require(pipeline, CPU, torch.float32)
    straight, across = (start(pipeline, (1, 30, 20), torch.float32) for _ in range(2))
    across.weights = across.weights.mT.contiguous().mT
    for grad in gradients((1, 30, 20), torch.float32):
        straight.step(kernel, grad)
        across.step(kernel, grad.mT.contiguous().mT)
    assert_same(straight, across)


def test_parameters_need_not_be_gathered_and_norms_come_along() -> None:
    """They may be anywhere in memory, and a convolution's channels come last."""
    pipeline = build_pipeline("adamw", storage="factored")
    shape = (3, 16, 36)
    straight, apart = (start(pipeline, shape, torch.bfloat16) for _ in range(2))
    parameters = [weights.reshape(16, 4, 3, 3) for weights in apart.weights.clone()]
    parameters[1] = parameters[1].to(memory_format=torch.channels_last)
    apart.parameters = parameters
    for kernel in (require(pipeline, CPU, torch.bfloat16), Composed(pipeline)):
        for grad in gradients(shape, torch.bfloat16):
            straight.step(kernel, grad)
            norms = apart.step(kernel, grad.view(3, 16, 4, 3, 3))
            torch.testing.assert_close(norms, grad.float().norm(dim=(1, 2)))
    apart.weights = torch.stack([parameter.reshape(16, 36) for parameter in parameters])
    assert_same(straight, apart)


def test_an_empty_parameter_is_left_alone() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    kernel = require(pipeline, CPU, torch.bfloat16)
    for shape in ((1, 0, 5), (1, 5, 0), (1, 1, 0)):
        run = start(pipeline, shape, torch.bfloat16)
        run.step(kernel, torch.zeros(shape, dtype=torch.bfloat16))
        assert not any(piece.any() for kept in run.state.values() for piece in kept.values())


def test_blocks_of_a_tall_matrix_are_whole_bytes_of_signs() -> None:
    assert_close(*both(build_pipeline("adamw", storage="factored"), (1, 66_001, 3)))
