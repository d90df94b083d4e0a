"""A large parameter is stepped in blocks of rows; the result is that of the whole."""

import itertools

import pytest
import torch
from optim.harness import Case, cases_with_every_choice, every_case, sums

from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, Stacking, accounting, build_pipeline
from acmsao_cli.optim.batches import BLOCK, matrix_shape
from acmsao_cli.optim.execution import spans_of

every = pytest.mark.parametrize("case", every_case(), ids=str)
few = pytest.mark.parametrize("case", cases_with_every_choice(times=3), ids=str)
SHAPES = {
    "matrix": (288, 256),
    "conv": (96, 80, 3, 3),
    "vector": (66_000,),
    "odd": (9500, 7),
}


def stepped(case: Case, block: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    named = [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator).to(case.dtype)))
        for name, shape in SHAPES.items()
    ]
    stacking = Stacking(below=0, block=block)
    optimizer = ComposedOptimizer(
        named, case.pipeline, lr=0.01, weight_decay=0.1, stacking=stacking
    )
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(case.dtype)
        optimizer.step()
    return {name: p.detach() for name, p in named} | optimizer.state_tensors()


@every
def test_blocks_equal_the_whole(case: Case) -> None:
    whole, blocks = stepped(case, 1 << 20), stepped(case, 1 << 14)  # five of them
    assert whole.keys() == blocks.keys()
    if not sums(case.pipeline):
        for name, value in whole.items():
            assert torch.equal(value, blocks[name]), name
    for name in SHAPES:
        # Where a sum differs in its last digit, a bit of the state may turn, and with it one step.
        near = torch.isclose(whole[name].float(), blocks[name].float(), rtol=1e-2, atol=2e-3)
        assert near.float().mean() > 0.99, name


@few
def test_temporaries_do_not_grow_with_the_parameter(case: Case) -> None:
    shape = (2000, 2048)
    found = accounting.workspace_bytes(case.pipeline, [shape], case.dtype, ONE_BY_ONE)
    assert found <= 64 * 2**20 or case.pipeline.whole


@pytest.mark.parametrize(
    "shape", [(128_256, 4096), (1, 50_000_000), (4096, 128_256), (2048, 50_257)]
)
def test_not_even_for_the_largest_parameters(shape: tuple[int, int]) -> None:
    pipeline = build_pipeline("adamw", storage="factored", direction_edits=["cautious"])
    found = accounting.workspace_bytes(pipeline, [shape], torch.bfloat16, ONE_BY_ONE)
    assert found <= 64 * 2**20


def test_spans_cover_everything_and_start_where_packed_entries_start() -> None:
    for shape in ((1, 40, 96), (1, 600, 7), (1, 1, 5000), (2, 33, 10), (1, 3, 100_000)):
        for block, aligned in itertools.product((1, 300, 4096, BLOCK), (2, 8, 256)):
            spans = spans_of(torch.Size(shape), block, aligned)
            assert spans[0].start == 0
            assert spans[-1].stop == (shape[1] if shape[1] > 1 else shape[2])
            assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
            assert all(span.offset % aligned == 0 for span in spans)


def test_a_stack_of_matrices_is_stepped_in_rows_of_the_matrices() -> None:
    """As experts come: (experts, out, in). A convolution in one dimension is none."""
    assert matrix_shape((8, 28_672, 4096)) == (8 * 28_672, 4096)
    assert matrix_shape((1536, 1, 4)) == (1536, 4)
    assert matrix_shape((64, 48, 2)) == (64, 96)
    assert matrix_shape((320, 4, 3, 3)) == (320, 36)
    pipeline = build_pipeline("adamw", storage="factored", gradient_edits=["rms_clip"])
    shape = (8, 28_672, 4096)
    assert accounting.workspace_bytes(pipeline, [shape], torch.bfloat16, ONE_BY_ONE) <= 64 * 2**20


def test_a_stack_of_matrices_steps_as_they_do_side_by_side() -> None:
    torch.manual_seed(0)
    stack, gradient = torch.randn(3, 40, 36), torch.randn(3, 40, 36)
    found = []
    for shape in (stack.shape, (120, 36)):
        parameter = torch.nn.Parameter(stack.clone().reshape(shape))
        pipeline = build_pipeline("adamw", storage="factored")
        optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=0.01)
        parameter.grad = gradient.reshape(shape)
        optimizer.step()
        found.append(parameter.detach().reshape(stack.shape))
    assert torch.equal(*found)
