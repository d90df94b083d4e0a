"""State is continued only by a rule to which it means the same."""

import pytest
from optim.harness import make, run

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline

OTHERS = {
    "a sum instead of an average": ({"momentum": "ema"}, {"momentum": "accumulator"}),
    "a heavy ball": ({"momentum": "ema"}, {"momentum": "heavy_ball"}),
    "averages kept uncorrected": ({"correction": "momentum"}, {"correction": "none"}),
    "another variant": ({"name": "a2grad"}, {"name": "a2grad", "variant": "inc"}),
    "another inner rule": ({"name": "prodigy"}, {"name": "prodigy", "inner": "nested_adam"}),
    "another first rate": ({"name": "prodigy"}, {"name": "prodigy", "d0": 1e-3}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_state_that_means_something_else_is_refused(what):
    before, after = (build_pipeline(**({"name": "adamw"} | parts)) for parts in OTHERS[what])
    model, optimizer = make(before)
    run(model, optimizer, stop=2)
    with pytest.raises(OptimizerError, match="belongs to") as caught:
        make(after)[1].load_state(optimizer.state_tensors(), optimizer.state_header())
    assert caught.value.hint


def test_a_momentum_that_reads_the_same_state_continues_with_a_notice():
    model, optimizer = make(build_pipeline("adamw"))
    run(model, optimizer, stop=2)
    other = make(build_pipeline("adamw", momentum="nesterov"))[1]
    notices = other.load_state(optimizer.state_tensors(), optimizer.state_header())
    assert any("nesterov" in notice for notice in notices)
