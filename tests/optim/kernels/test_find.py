"""A kernel is found for what it equals, and for nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from optim.kernels.twins import CPU, needs_compiler

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, Pipeline, build_pipeline
from acmsao_cli.optim.kernels import build, find, require
from acmsao_cli.optim.rules.base import rule
from acmsao_cli.optim.storage.policy import storage
from acmsao_cli.optim.tracing import StorageTracer

BF16 = torch.bfloat16


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No kernel is known, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for cached in (find, build.load):
        cached.cache_clear()
    yield tmp_path / "acmsao" / "kernels"
    for cached in (find, build.load):
        cached.cache_clear()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("kept", ["fp32", "bf16", "factored"])
def test_plain_pipelines_have_kernels(name: str, kept: str, dtype: torch.dtype) -> None:
    assert find(build_pipeline(name, storage=kept), CPU, dtype) is not None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("adamw", {"direction_edits": ["cautious"]}, "cautious"),
        ("adamw", {"gradient_edits": ["orthograd"]}, "orthograd"),
        ("adamw", {"momentum": "ademamix"}, "ademamix"),
        ("adamw", {"momentum": "nesterov"}, "nesterov"),
        ("adamw", {"amsgrad": True}, "amsgrad=True"),
        ("adamw", {"correction": "none"}, "correction="),
        ("adamw", {"ratio": "floored"}, "floored"),
        ("adamw", {"decay": "cautious"}, "cautious"),
        ("adamw", {"decay": "l2"}, "l2"),
        ("adamw", {"rounding": "kahan"}, "kahan"),
        ("lion", {"momentum": "ademamix"}, "ademamix"),
    ],
)
def test_any_other_part_is_named(name: str, options: dict[str, Any], reason: str) -> None:
    pipeline = build_pipeline(name, **options)
    assert find(pipeline, CPU, BF16) is None
    with pytest.raises(OptimizerError, match=reason) as caught:
        require(pipeline, CPU, BF16)
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(set(rule.parts) - {"adamw", "lion"}))
def test_other_rules_have_none(name: str) -> None:
    assert find(build_pipeline(name), CPU, BF16) is None


@pytest.mark.parametrize("kept", sorted(set(storage.parts) - {"fp32", "bf16", "factored"}))
def test_storages_without_a_kernel_are_not_taken_for_others(kept: str) -> None:
    pipeline = build_pipeline("adamw", storage=kept)
    codecs = {type(pipeline.storage.codec(slot)).__name__ for slot in pipeline.slots}
    if not codecs <= {"Full", "Half", "Rank1", "SignedRank1"}:
        assert find(pipeline, CPU, BF16) is None


def test_other_devices_and_types_have_none() -> None:
    pipeline = build_pipeline("adamw")
    assert find(pipeline, torch.device("xpu"), BF16) is None
    assert find(pipeline, CPU, torch.float16) is None


def test_on_meta_a_kernel_is_recognised_and_not_built(fresh: Path) -> None:
    meta = torch.device("meta")
    with pytest.raises(OptimizerError, match="orthograd"):
        require(build_pipeline("adamw", gradient_edits=["orthograd"]), meta, BF16)
    parameter = torch.nn.Parameter(torch.empty(4, 40, dtype=BF16, device=meta))
    optimizer = ComposedOptimizer(
        [("w", parameter)], build_pipeline("adamw"), lr=1e-3, use_kernels=True
    )
    parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    assert optimizer.global_step == 1
    assert not fresh.exists()


@needs_compiler
@pytest.mark.parametrize("kept", ["bf16", "factored"])
def test_what_is_planned_on_meta_bounds_what_a_kernel_takes(kept: str) -> None:
    def peak(device: str) -> int:
        shapes = [(700, 1000), (64, 16), (64, 16), (100_000,), (2000, 3)]
        parameters = [
            torch.nn.Parameter(torch.ones(shape, dtype=BF16, device=device)) for shape in shapes
        ]
        pipeline = build_pipeline("adamw", storage=kept)
        optimizer = ComposedOptimizer(parameters, pipeline, lr=1e-3, use_kernels=True)
        optimizer.allocate()
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with StorageTracer() as tracer:
            optimizer.step()
        return tracer.peak_bytes

    assert peak("cpu") < peak("meta")


@needs_compiler
def test_a_kernel_is_compiled_once(fresh: Path) -> None:
    pipeline = build_pipeline("lion")
    require(pipeline, CPU, BF16)
    [first] = fresh.iterdir()
    compiled = first.stat().st_mtime_ns
    build.load.cache_clear()
    require(pipeline, CPU, BF16)
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [compiled]


@needs_compiler
def test_two_may_compile_the_same_at_once(fresh: Path) -> None:
    pipeline = build_pipeline("lion")
    workers = [
        threading.Thread(target=require, args=(pipeline, CPU, BF16), daemon=True) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list(fresh.iterdir())) == 1
    require(pipeline, CPU, BF16)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "none is installed"),
        ({"CC": "no-such-compiler"}, "no-such-compiler"),
        ({"CC": "false"}, "could not compile"),
    ],
)
def test_without_a_working_compiler_the_pipeline_runs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pipeline: Pipeline = build_pipeline("lion")
    assert find(pipeline, CPU, BF16) is None
    with pytest.raises(OptimizerError, match=reason) as caught:
        require(pipeline, CPU, BF16)
    assert caught.value.hint


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(fresh: Path) -> None:
    fresh.parent.parent.joinpath("acmsao").write_text("in the way")
    with pytest.raises(OptimizerError, match="cannot be kept") as caught:
        require(build_pipeline("lion"), CPU, BF16)
    assert "XDG_CACHE_HOME" in str(caught.value.hint)
