"""Rules with flags, products and shared numbers are captured whole, whatever the step's number."""

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context

SHAPE = (2, 6, 5)
RULES = [
    {"name": "a2grad", "variant": "exp"},
    {"name": "prodigy", "inner": "lion", "slice_p": 2},
    {"name": "soap", "every": 3},
]


def train(pipeline: Pipeline, step_function, as_tensors: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(SHAPE, generator=generator).bfloat16()
    state = pipeline.allocate(*SHAPE, torch.device("cpu"))
    shared = {name: torch.tensor(value) for name, value in pipeline.rule.shared().items()}
    numbers = torch.arange(2, dtype=torch.int32).view(-1, 1, 1)
    for step in range(1, 8):
        count, salt, lr = step, hash_numbers(0, step), 0.125 / step
        if as_tensors:
            count = torch.tensor(float(step), dtype=torch.float64)
            salt = torch.tensor(salt, dtype=torch.int32)
            lr = torch.tensor(lr)
        ctx = Context(count, step == 1, lr, 0.1, weights, *SHAPE[1:], shared=shared)
        grad = torch.randn(SHAPE, generator=generator)
        step_function(weights, grad, state, ctx, Noise(numbers, salt))
    return weights


@pytest.mark.parametrize("options", RULES, ids=str)
def test_one_graph_for_the_first_step_and_one_for_the_rest(options):
    pipeline = build_pipeline(**options, storage="bf16")
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(pipeline.step, fullgraph=True, dynamic=False, backend=count)
    with torch.no_grad():
        captured = train(pipeline, compiled, as_tensors=True)
        eager = train(pipeline, pipeline.step, as_tensors=True)
        plain = train(pipeline, pipeline.step, as_tensors=False)
    assert torch.equal(captured, eager)
    torch.testing.assert_close(eager, plain, rtol=1e-2, atol=1e-3)
    assert len(graphs) <= 2
