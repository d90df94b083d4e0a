"""Adam in other bases: AdaDiag and SOAP."""

from itertools import pairwise

import pytest
import torch
from optim.rules.trajectory import deviation, draws, follow, noise
from reference.adadiag import adadiag as adadiag_paper
from reference.adadiag import soap as soap_paper

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.slots import Extent, Role, Slot

# Where a basis is longer than the gradient's rank, its rest is arbitrary: left sides are short.
CASES = [((5, 9), "left"), ((9, 5), "right"), ((6, 6), "both")]


@pytest.mark.parametrize("reproject", [False, True])
@pytest.mark.parametrize(("shape", "sides"), CASES, ids=str)
def test_adadiag_equals_the_paper(shape, sides, reproject):
    (weights,) = start = draws([shape], seed=1)
    grads = [noise(start, step)[0] for step in range(12)]
    options = {"sides": sides, "every": 5, "reproject": reproject}
    expected = adadiag_paper(weights, grads, lr=0.01, **options)
    found, _ = follow(build_pipeline("adadiag", **options), start, noise, 12, lr=0.01)
    assert deviation(found, [expected], start) < 1e-3


def test_soap_equals_the_paper():
    (weights,) = start = draws([(6, 6)], seed=1)
    grads = [noise(start, step)[0] for step in range(12)]
    expected = soap_paper(weights, grads, lr=0.01, every=4)
    found, _ = follow(build_pipeline("soap", every=4), start, noise, 12, lr=0.01)
    assert deviation(found, [expected], start) < 1e-3


@pytest.mark.parametrize("name", ["adadiag", "soap"])
def test_vectors_and_long_sides_are_adamw(name):
    start = draws([(40,), (7, 8)], seed=1)
    options = {"betas": (0.9, 0.95)}
    found, optimizer = follow(build_pipeline(name, limit=6, **options), start, noise, 9, lr=0.01)
    late = name == "soap"  # its first gradient only starts the bases
    expected, _ = follow(
        build_pipeline("adamw", **options),
        start,
        lambda weights, step: noise(weights, step + late),
        9 - late,
        lr=0.01,
    )
    assert deviation(found, expected, start) < 1e-5
    held = {key: t.numel() for key, t in optimizer.state_tensors().items() if "basis" in key}
    assert set(held.values()) == {1}


@pytest.mark.parametrize("name", ["adadiag", "soap"])
def test_bases_stay_between_their_turns(name):
    start = draws([(5, 5)], seed=1)
    pipeline = build_pipeline(name, every=4)
    bases = []
    for num_steps in range(1, 7):
        _, optimizer = follow(pipeline, start, noise, num_steps, lr=0.01)
        bases.append(optimizer.state_tensors()["w0/left_basis/value"].clone())
    for basis in bases:
        torch.testing.assert_close(basis @ basis.mT, torch.eye(5), rtol=0, atol=1e-5)
    assert [torch.equal(a, b) for a, b in pairwise(bases)] == [
        True,
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("adadiag", {"sides": "both"}), ("adadiag", {"reproject": True}), ("soap", {})],
    ids=str,
)
def test_directions_without_gradient_do_not_move(name, options, storage):
    start = draws([(12, 20)], seed=1)
    directions = torch.linalg.qr(draws([(12, 12)], seed=2)[0]).Q
    inside, outside = directions[:, :3], directions[:, 3:].double()

    def low_rank(weights, step):
        return [inside @ noise([torch.zeros(3, 20)], step)[0]]

    pipeline = build_pipeline(name, every=3, storage=storage, **options)
    found, _ = follow(pipeline, start, low_rank, 20, lr=0.01)
    change = found[0] - start[0]
    assert (outside.mT @ change).norm() < 1e-3 * change.norm() > 0


def test_a_gradient_that_is_not_finite_does_not_stop_the_run():
    start = draws([(5, 5)], seed=1)
    for name in ("adadiag", "soap"):
        found, _ = follow(
            build_pipeline(name, every=1),
            start,
            lambda weights, _: [torch.full_like(w, torch.nan) for w in weights],
            2,
            lr=0.01,
        )
        assert found[0].isnan().all()


def test_a_side_of_a_vector_or_beyond_the_limit_keeps_one_number():
    left = Slot("basis", Role.EXACT, extent=Extent.LEFT, limit=8)
    right = Slot("basis", Role.EXACT, extent=Extent.RIGHT, limit=8)
    assert left.shape(2, 8, 9) == (2, 8, 8)
    assert right.shape(2, 8, 9) == left.shape(2, 9, 8) == (2, 1, 1)
    assert right.shape(2, 1, 8) == left.shape(2, 8, 1) == (2, 1, 1)


def test_a_stride_keeps_every_nth_column_of_a_matrix():
    slot = Slot("start", Role.EXACT, stride=3)
    assert [slot.shape(1, 4, cols)[2] for cols in (1, 3, 4, 7)] == [1, 1, 2, 3]
    assert slot.shape(1, 1, 7) == (1, 1, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adadiag", {"sides": "top"}, "sides of adadiag"),
        ("adadiag", {"every": 0}, "at least 1"),
        ("soap", {"limit": 0}, "at least 1"),
        ("soap", {"eps": 0.0}, "eps must be positive"),
        ("soap", {"shampoo_beta": 1.0}, "betas"),
    ],
)
def test_a_wrong_option_is_refused(name, options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline(name, **options)


@pytest.mark.parametrize("size", [1.0, 1e-17])
def test_soap_begins_on_an_embedding_most_of_whose_rows_have_no_gradient(size):
    """The products' eigenvalues are mostly zero, the others far apart: solvers give up on that."""
    (rows,) = draws([(600, 16)], seed=1)
    lengths = torch.logspace(0, -6, 600).unsqueeze(1)
    grad = size * rows * lengths * (torch.arange(600) % 10 == 0).unsqueeze(1)
    start = [torch.zeros(600, 16)]
    found, optimizer = follow(build_pipeline("soap"), start, lambda *_: [grad], 2, lr=0.01)
    basis = optimizer.state_tensors()["w0/left_basis/value"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(600), rtol=0, atol=1e-4)
    assert found[0].isfinite().all()
    assert found[0].any() or size < 1e-8  # less than eps does not move


def test_soaps_momentum_is_not_dampened_at_its_first_gradient():
    start = draws([(40,)], seed=1)
    momentum = {"name": "heavy_ball", "dampening": 0.9}
    plain, _ = follow(build_pipeline("soap"), start, noise, 2, lr=0.01)
    found, _ = follow(build_pipeline("soap", momentum=momentum), start, noise, 2, lr=0.01)
    assert deviation(found, plain, start) < 1e-5  # the corrected average of one gradient is it too
