"""A large parameter is stepped in blocks of rows; the result is that of the whole."""

import pytest
import torch
from optim.harness import DTYPES, every_pipeline, sums

from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, Pipeline, Stacking, accounting
from acmsao_cli.optim.batches import BLOCK
from acmsao_cli.optim.execution import spans_of

PIPELINES = list(every_pipeline())
every = pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
SHAPES = {"matrix": (40, 96), "conv": (24, 8, 3, 3), "vector": (1100,), "odd": (600, 7)}


def stepped(pipeline: Pipeline, dtype: torch.dtype, block: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    named = [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
        for name, shape in SHAPES.items()
    ]
    stacking = Stacking(below=0, block=block)
    optimizer = ComposedOptimizer(named, pipeline, lr=0.01, weight_decay=0.1, stacking=stacking)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
    return {name: p.detach() for name, p in named} | optimizer.state_tensors()


@every
@in_every_dtype
def test_blocks_equal_the_whole(pipeline: Pipeline, dtype: torch.dtype) -> None:
    whole, blocks = stepped(pipeline, dtype, 1 << 20), stepped(pipeline, dtype, 512)
    assert whole.keys() == blocks.keys()
    if not sums(pipeline):
        for name, value in whole.items():
            assert torch.equal(value, blocks[name]), name
    for name in SHAPES:
        # Where a sum differs in its last digit, a bit of the state may turn, and with it one step.
        near = torch.isclose(whole[name].float(), blocks[name].float(), rtol=1e-2, atol=2e-3)
        assert near.float().mean() > 0.99, name


@every
def test_temporaries_do_not_grow_with_the_parameter(pipeline: Pipeline) -> None:
    if pipeline.whole:
        pytest.skip("needs all rows at once")
    for shape in ((50_000, 2048), (2048, 50_000)):
        found = accounting.workspace_bytes(pipeline, [shape], torch.bfloat16, ONE_BY_ONE)
        assert found <= 64 * 2**20


def test_spans_cover_everything_and_start_where_packed_entries_start() -> None:
    for shape in ((1, 40, 96), (1, 600, 7), (1, 1, 5000), (2, 33, 10), (1, 3, 100_000)):
        for block in (1, 300, 4096, BLOCK):
            spans = spans_of(torch.Size(shape), block)
            assert spans[0].start == 0
            assert spans[-1].stop == (shape[1] if shape[1] > 1 else shape[2])
            assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))
            assert all(span.offset % 256 == 0 for span in spans)
