"""The step is one graph: numbers that change from step to step may come as tensors."""

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context

SHAPE = (2, 6, 5)


def train(pipeline: Pipeline, step_function) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(SHAPE, generator=generator).bfloat16()
    state = pipeline.allocate(*SHAPE, torch.device("cpu"))
    numbers = torch.arange(2, dtype=torch.int32).view(-1, 1, 1)
    for step in range(1, 5):
        count, lr = torch.tensor(float(step), dtype=torch.float64), torch.tensor(0.1 / step)
        ctx = Context(count, step == 1, lr, 0.1, weights, *SHAPE[1:])
        noise = Noise(numbers, torch.tensor(hash_numbers(0, step), dtype=torch.int32))
        step_function(weights, torch.randn(SHAPE, generator=generator), state, ctx, noise)
    return weights


@pytest.mark.parametrize("storage", ["bf16", "factored"])
def test_the_whole_step_is_captured_once_and_gives_the_same_bits(storage):
    pipeline = build_pipeline(
        "adamw", storage=storage, gradient_edits=["orthograd"], direction_edits=["cautious"]
    )
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(pipeline.step, fullgraph=True, dynamic=False, backend=count)
    with torch.no_grad():
        assert torch.equal(train(pipeline, pipeline.step), train(pipeline, compiled))
    assert len(graphs) == 1
