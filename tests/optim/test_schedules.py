"""Numbers that follow a course: the same on the host and as a tensor under compile."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.schedules import (
    Geometric,
    HalfLife,
    Linear,
    Milestones,
    Power,
    schedule,
    value_at,
)

COURSES = [
    Linear(0.0, 5.0, 10),
    Geometric(1e-8, 1e-4, 10),
    HalfLife(0.9, 0.9999, 10),
    HalfLife(0.0, 0.99, 10),
    Power(2.0, 0.25),
    Power(2.0, -0.5),
    Milestones((3, 7), (1e-8, 1e-6, 1e-4)),
]


def test_every_schedule_is_tried_here():
    assert {type(course) for course in COURSES} == set(schedule.parts.values())


@pytest.mark.parametrize("course", COURSES, ids=str)
def test_a_tensor_step_gives_what_a_number_gives(course):
    for step in range(1, 14):
        found = value_at(course, torch.tensor(float(step), dtype=torch.float64))
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(value_at(course, step), rel=1e-12)


def test_a_number_stays_as_it_is():
    assert value_at(0.5, 3) == 0.5


@pytest.mark.parametrize(
    ("course", "step", "expected"),
    [
        (Linear(1.0, 5.0, 4), 1, 2.0),
        (Linear(1.0, 5.0, 4), 100, 5.0),
        (Geometric(1e-8, 1e-4, 2), 1, 1e-6),
        (Geometric(1e-8, 1e-4, 2), 2, 1e-4),
        (HalfLife(0.5, 0.5**0.1, 9), 1, 0.5 ** (1 / 2)),  # half-lives 1 to 10, by 1 a step
        (HalfLife(0.5, 0.5**0.1, 9), 9, 0.5**0.1),
        (Milestones((3,), (1.0, 2.0)), 2, 1.0),
        (Milestones((3,), (1.0, 2.0)), 3, 2.0),
        (Power(3.0, 0.25), 16, 6.0),
    ],
    ids=str,
)
def test_schedules_pass_through(course, step, expected):
    assert course(step) == pytest.approx(expected, rel=1e-12)


def test_half_lives_grow_by_equal_amounts():
    course = HalfLife(0.9, 0.9999, 20)
    lives = [math.log(0.5) / math.log(course(step)) for step in range(21)]
    growth = [after - before for before, after in itertools.pairwise(lives)]
    assert growth == pytest.approx([growth[0]] * 20, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(0.0, 1.0, 0),
        lambda: Geometric(0.0, 1.0, 5),
        lambda: HalfLife(0.9, 1.0, 5),
        lambda: Milestones((3, 2), (1.0, 2.0, 3.0)),
        lambda: Milestones((3,), (1.0,)),
    ],
)
def test_a_course_that_leads_nowhere_is_refused(make):
    with pytest.raises(OptimizerError):
        make()


SHAPE = (2, 6, 5)
HALF_LIFE = {"name": "half_life", "start": 0.9, "stop": 0.99, "steps": 3}
SCHEDULED = [
    build_pipeline("adamw", eps={"name": "geometric", "start": 1e-8, "stop": 1e-4, "steps": 3}),
    build_pipeline("adamw", momentum={"name": "ademamix", "warmup": 3}, amsgrad=True),
    build_pipeline("adamw", momentum={"name": "ademamix", "slow_beta": HALF_LIFE}),
    build_pipeline("lion", momentum={"name": "ademamix", "warmup": 3}),
    build_pipeline("adopt", clip={"name": "milestones", "steps": [3], "values": [0.1, 1.0]}),
    build_pipeline("adopt", momentum={"name": "accumulator", "warmup": 3, "corrected": True}),
    build_pipeline("nested_adam", eps={"name": "linear", "start": 1e-8, "stop": 1.0, "steps": 3}),
    build_pipeline("sgd", momentum={"name": "heavy_ball", "dampening": 0.5}),
    build_pipeline("warm_start", inner="nested_adam", steps=2),
    build_pipeline("adafactor", relative_step=True, scale_parameter=True, beta1=0.9),
]


def train(pipeline, as_tensors: bool, step_function) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(SHAPE, generator=generator)
    state = pipeline.allocate(*SHAPE, torch.device("cpu"))
    numbers = torch.arange(2, dtype=torch.int32).view(-1, 1, 1)
    for step in range(1, 6):
        count = torch.tensor(float(step), dtype=torch.float64) if as_tensors else step
        lr = torch.tensor(0.1) if as_tensors else 0.1
        ctx = Context(count, step == 1, lr, 0.1, weights, *SHAPE[1:])
        noise = Noise(numbers, hash_numbers(0, step))
        step_function(weights, torch.randn(SHAPE, generator=generator), state, ctx, noise)
    return weights


@pytest.mark.parametrize("pipeline", SCHEDULED, ids=str)
def test_a_scheduled_step_is_one_graph(pipeline):
    """The numbers of a step may come as tensors, and nothing branches on them."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(pipeline.step, fullgraph=True, dynamic=False, backend=count)
    with torch.no_grad():
        by_numbers = train(pipeline, False, pipeline.step)
        by_tensors = train(pipeline, True, pipeline.step)
        captured = train(pipeline, True, compiled)
    torch.testing.assert_close(by_tensors, by_numbers, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(captured, by_tensors, rtol=1e-6, atol=1e-6)
    assert len(graphs) <= 2  # a parameter's first step, and the others
