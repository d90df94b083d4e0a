"""ACMSAO by the arguments of its document."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ACMSAO, build_pipeline
from acmsao_cli.optim import acmsao as module
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.phases import Phase

SHAPE = (5, 7)


def course(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    way = torch.randn(SHAPE, generator=generator)
    sizes = [8.0 if step % 7 == 5 else 1.0 for step in range(steps)]
    return [size * (way + 2 * torch.randn(SHAPE, generator=generator)) for size in sizes]


def trained(steps: int = 60, **options: Any) -> Tensor:
    parameter = torch.nn.Parameter(torch.ones(SHAPE))
    optimizer = ACMSAO([parameter], **options)
    for grad in course(steps):
        parameter.grad = grad
        optimizer.step()
    return parameter.detach()


def test_the_arguments_are_the_documents():
    declared = inspect.signature(ACMSAO.__init__).parameters
    found = {n: p.default for n, p in declared.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found.items())[2:] == [
        ("lr", 1e-3),
        ("betas", (0.9, 0.999)),
        ("eps", 1e-8),
        ("weight_decay", 0.0),
        ("amsgrad", False),
        ("cycle_period", 1000),
        ("num_scales", 3),
        ("history_size", 8),  # the document's 1000 are 15.4 TB for SDXL
        ("sparsity_factor", 0.1),
        ("magnitude_threshold", 0.5),
        ("ram_offload", None),
    ]


def test_bare_it_is_the_rule_of_its_name():
    parameter = torch.nn.Parameter(torch.ones(SHAPE))
    optimizer = ComposedOptimizer([parameter], build_pipeline("acmsao"), lr=1e-3)
    for grad in course(60):
        parameter.grad = grad
        optimizer.step()
    assert torch.equal(trained(), parameter.detach())


LARGE: dict[str, Any] = {"admission": "magnitude"}
RING: dict[str, Any] = {"bank": "ring"}
LITERAL: dict[str, Any] = {"mode": "document"}
CHANGED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (mode, option)
    for mode in ({"total_steps": 60}, LITERAL)
    for option in (
        {"lr": 2e-3},
        {"betas": (0.8, 0.999)},
        {"betas": (0.9, 0.9)},
        {"eps": 0.5},
        {"weight_decay": 0.1},
        {"amsgrad": True, "betas": (0.9, 0.5)},
        {"cycle_period": 9},
        {"num_scales": 2},
        {"cycle": 0.4},
        {"sparsity_factor": 0.9},
        {"phases": (Phase("up", 0.5, 1.3), Phase("down", 1.0, 0.5))},
    )
]
CHANGED += [
    (RING, {"history_size": 2}),
    (LITERAL, {"history_size": 2}),
    (LARGE, {"magnitude_threshold": 4.0}),
    (LITERAL, {"magnitude_threshold": 4.0}),
    (RING, {"temperature": 2.0}),
    (LITERAL, {"temperature": 2.0}),
    (LITERAL, {"similarity": "cosine"}),
]
CHANGED += [
    ({"total_steps": 60}, option)
    for option in (
        {"total_steps": 30},
        {"scales": (1, 2)},
        {"horizon": 2.0},
        {"alpha": 0.5},
        {"attention": "none"},
        {"admission": "always"},
        {"kappa": 3.0},
        {"nesterov": False},
        {"visits": "gradient"},
        {"bank": "ring"},
        {"lagged": False},
        {"growth": 3.0},
        {"ramp": 3.0},
        {"inner": "lion"},
    )
]


as_usual = functools.cache(trained)  # many changes are compared with the same


@pytest.mark.parametrize(("usual", "changed"), CHANGED, ids=str)
def test_every_argument_changes_the_way_where_it_applies(usual, changed):
    beside = {"betas": changed["betas"]} if "amsgrad" in changed else {}
    assert not torch.equal(as_usual(**usual, **beside), trained(**(usual | changed)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_size": 4}, "history_size=4 would change nothing"),
        ({"magnitude_threshold": 0.9}, "magnitude_threshold=0.9 would change nothing"),
        ({"sparsity_factor": 0.9, "admission": "always"}, "sparsity_factor=0.9 would change"),
        ({"similarity": "cosine"}, "similarity has no effect with mode=scalable"),
        ({"temperature": 0.3}, "temperature=0.3 would change nothing"),
        *(
            ({"mode": "document", **option}, f"{next(iter(option))} has no effect with mode=")
            for option in (
                {"total_steps": 100},
                {"scales": (1, 4)},
                {"horizon": 10.0},
                {"alpha": 1.0},
                {"attention": "none"},
                {"admission": "always"},
                {"kappa": 2.0},
                {"nesterov": False},
                {"visits": "gradient"},
                {"bank": "ring"},
                {"lagged": False},
                {"pace": "learning_rate"},
                {"growth": 2.0},
                {"ramp": 2.0},
            )
        ),
        ({"bank": "ring", "horizon": 3.0}, "horizon=3.0 would change nothing"),
        ({"bank": "ring", "growth": 3.0}, "growth=3.0 would change nothing"),
        ({"bank": "ring", "scales": "auto"}, "scales=auto would change nothing"),
        ({"growth": 3.0, "scales": "auto"}, "scales=auto would change nothing"),
        ({"attention": "none", "lagged": False}, "lagged=False would change nothing"),
        ({"ramp": 1.0, "growth": 3.0, "pace": "learning_rate"}, "pace=learning_rate would"),
        ({"cycle": 0.0, "admission": "always", "cycle_period": 9}, "cycle_period=9 would"),
        ({"inner": "lion", "nesterov": False}, "nesterov=False would change nothing"),
        ({"inner": "adopt", "scales": "auto"}, "scales=auto cannot measure"),
        ({"inner": "simplified_ademamix"}, "replaces the sum"),
        ({"mode": "loose"}, "mode cannot be `loose`"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"ram_offload": (True,)}, "1 flags for 3 scales"),
        ({"ram_offload": (True,), "mode": "document"}, "1 flags for 3 scales"),
        ({"num_scales": 0}, "num_scales must be 1 or more"),
        ({"num_scales": 2, "scales": (1, 4, 16)}, "num_scales is 2, but scales names 3"),
        ({"inner": "lion", "eps": 0.1}, "eps is Adam's"),
        ({"inner": "lion", "amsgrad": True}, "amsgrad is Adam's"),
        ({"attention": "element", "direction_edits": ["cautious"]}, "drop `cautious`"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        ACMSAO([torch.nn.Parameter(torch.ones(2))], **options)


def test_a_cycle_of_the_schedules_length_needs_it():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    with pytest.raises(OptimizerError, match="needs to know the run's length"):
        ACMSAO([parameter], cycle_period="schedule").step()


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="ACMSAO has no argument `num_scale`"):
        ACMSAO([torch.nn.Parameter(torch.ones(2))], num_scale=3)


def test_num_scales_and_scales_say_one_thing():
    assert torch.equal(trained(num_scales=2), trained(scales=(1, 4)))
    assert torch.equal(trained(num_scales=3), trained(scales=[1, 4, 16]))
    assert torch.equal(trained(num_scales=2, scales=(1, 5)), trained(scales=(1, 5)))


# A long history


@pytest.mark.parametrize("options", [LITERAL, RING], ids=str)
def test_a_long_history_is_named_in_bytes(options):
    parameter = torch.nn.Parameter(torch.ones(1, 1))
    with pytest.warns(UserWarning, match=r"history of 1000 entries for each scale takes .* MB"):
        ACMSAO([parameter], history_size=1000, **options)


@pytest.mark.parametrize("options", [LITERAL, RING], ids=str)
def test_one_that_takes_much_of_the_memory_is_named_and_more_than_is_free_refused(
    options, monkeypatch
):
    parameter = torch.nn.Parameter(torch.ones(100, 100))  # 8 entries, 3 scales: about 1 MB
    for free, total in ((10**9, 10**9), (2 * 10**6, 10**6 * 2), (10**5, 10**9)):
        monkeypatch.setattr(module, "memory_of", lambda device, both=(free, total): both)
        if free == 10**9:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ACMSAO([parameter], **options)
        elif free > 10**6:
            with pytest.warns(UserWarning, match=r"takes 1\.\d+ MB of cpu memory"):
                ACMSAO([parameter], **options)
        else:
            with pytest.raises(OptimizerError, match=r"cpu has 0.1 MB free") as caught:
                ACMSAO([parameter], **options)
            assert caught.value.hint


def test_a_mean_is_never_long(monkeypatch):
    monkeypatch.setattr(module, "memory_of", lambda device: (0, 0))
    ACMSAO([torch.nn.Parameter(torch.ones(100, 100))])


@pytest.mark.parametrize("mode", ["scalable", "document"])
@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": "no"},
        {"eps": "1e-8"},
        {"betas": "ab"},
        {"betas": 0.9},
        {"betas": (".9", ".9")},
        {"betas": None},
        {"num_scales": "3"},
        {"num_scales": True},
    ],
    ids=str,
)
def test_options_of_another_type_are_refused_at_once(mode, options):
    with pytest.raises(OptimizerError, match=f"`{next(iter(options))}` of ACMSAO must be"):
        ACMSAO([torch.nn.Parameter(torch.zeros(3))], mode=mode, **options)
