"""The proof for GPUs runs from end to end on a CPU, with micro models in the place of true ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
TINY = ["--tiny", "--device", "cpu", "--steps", "2"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _scripts(_benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))


def rows_in(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())["cases"]
    return found


def test_every_case_is_planned_and_run_and_the_plan_is_true(tmp_path: Path) -> None:
    import tiers

    path = tmp_path / "tiers.json"
    assert tiers.main([*TINY, "--here", "--json", str(path)]) == 0
    rows = rows_in(path)
    assert list(rows) == [case.name for case in tiers.CASES]
    for case in tiers.CASES:
        row = rows[case.name]
        if case.peer:
            assert row["status"] in ("ran", "not installed")
            continue
        assert (row["status"], row["device"], row["cap_gib"]) == ("ran", "cpu", None)
        assert len(row["losses"]) == len(row["seconds_of_steps"]) == 2
        assert sum(row["planned"]["by_category"].values()) == row["planned"]["allocated_bytes"]
        assert abs(row["prediction_error"]["allocated"]) <= 0.02
    about = json.loads(path.read_text())
    assert about["command"].startswith("python benchmarks/gpu/tiers.py")
    assert about["versions"]["torch"] == torch.__version__


def test_a_case_and_what_it_is_compared_with_step_in_turns_in_their_own_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiers

    path = tmp_path / "tiers.json"
    path.write_text(json.dumps({"cases": {"sdxl-batch-1": {"status": "passed"}}}))
    options = ["--tiny", "--device", "cpu", "--steps", "3", "--json", str(path)]
    assert tiers.main([*options, "--only", "8b-s2048-streamed"]) == 0
    rows = rows_in(path)
    assert list(rows) == ["sdxl-batch-1", "8b-s2048-resident", "8b-s2048-streamed"]
    assert rows["sdxl-batch-1"] == {"status": "passed"}  # of a former call
    streamed = rows["8b-s2048-streamed"]
    assert streamed["planned"]["host_bytes"]["page-locked"] > 0
    ratio = streamed["ratio"]
    assert (ratio["to"], ratio["aim"]) == ("8b-s2048-resident", 1.15)
    assert ratio["same losses"]
    assert ratio["measured"] == "in alternation, step by step"
    assert "8b-s2048-streamed" in capsys.readouterr().out
    still = [name for name in tiers.BY_NAME if name not in rows]
    asked = tiers.parsed(["--tiny", "--missing", "--json", str(path)])
    assert [case.name for case in tiers.chosen(asked)] == still


def test_a_process_that_dies_costs_its_own_case_only() -> None:
    import tiers
    from processes import Child

    child = Child(tiers.CASES[0], tiers.Asked("cpu", tiny=True), limit=0.01)
    row = child.finish(child.hear())
    assert row["status"] == "failed"
    assert "silent" in row["message"]


def test_what_goes_wrong_in_a_case_is_told_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import measuring
    import tiers

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(measuring, "opened", full)
    case = tiers.BY_NAME["8b-s2048"]
    row = measuring.measure(case, tiers.Asked("cpu", 1, tiny=True), lambda: None)
    assert row["status"] == "failed"
    assert row["message"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert row["planned"]["allocated_bytes"] > 0
    assert row["message"] in tiers.line(case.name, row)


def test_a_library_that_is_not_there_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    import measuring
    import tiers

    monkeypatch.setitem(sys.modules, "adv_optm", None)
    case = tiers.BY_NAME["8b-adv_optm"]
    row = measuring.measure(case, tiers.Asked("cpu", 1, tiny=True), lambda: None)
    assert row["status"] == "not installed"
    assert tiers.line(case.name, row).endswith("not installed: adv_optm is not installed")


def test_what_is_reserved_is_held_against_the_cap() -> None:
    import tiers
    from measuring import verdict

    def row(cap: float | None, reserved: int | None) -> dict[str, Any]:
        return {"cap_gib": cap, "measured": {"reserved_bytes": reserved}}

    assert verdict(row(2.0, 2 * tiers.GIB)) == "passed"
    assert verdict(row(2.0, 2 * tiers.GIB + 1)) == "failed"
    assert verdict(row(None, 5)) == verdict(row(2.0, None)) == "ran"


def test_the_budget_ends_a_call_before_the_next_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiers

    begun: list[str] = []

    def row_of(case: Any, *_: object) -> dict[str, Any]:
        begun.append(case.name)
        return {case.name: {"status": "ran"}}

    monkeypatch.setattr(tiers, "rows_of", row_of)
    assert tiers.main([*TINY, "--budget-s", "-1", "--only", "sdxl-batch-1", "32b-full"]) == 0
    assert begun == []
    assert "not begun: sdxl-batch-1, 32b-full" in capsys.readouterr().out
    tiers.main([*TINY, "--only", "sdxl-batch-1", "32b-full"])
    assert begun == ["sdxl-batch-1", "32b-full"]


def test_cases_are_listed_and_an_unknown_one_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tiers

    assert tiers.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(tiers.BY_NAME)
    for refused in (["--only", "sdxl-batch-7"], ["--device", "cpu"]):
        with pytest.raises(SystemExit) as ended:
            tiers.main(refused)
        assert "\n" not in str(ended.value.code)
    with pytest.raises(SystemExit, match="there is no case sdxl-batch-7; cases: sdxl-batch-1"):
        tiers.main(["--only", "sdxl-batch-7"])


def shapes(model: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    """Of all that is stored but what packing says of itself in words."""
    stored = model.state_dict().items()
    return [(name, one.shape, one.dtype) for name, one in stored if not name.endswith("__nf4")]


def test_plans_are_told_on_any_machine(capsys: pytest.CaptureFixture[str]) -> None:
    import tiers

    assert tiers.main(["--plan", "--only", "8b-s2048-resident", "8b-torchao"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("8b-s2048-resident  cap 22.5 GiB: 17.8")


@pytest.mark.slow
def test_every_case_is_planned_to_stay_under_its_cap(tmp_path: Path) -> None:
    from cases import CARD, CASES, config_of
    from measuring import planned
    from weights import write_model

    from acmsao_cli.memory.choose import decide

    for case in CASES:
        if case.cap_gib is None:
            continue
        folder = write_model(case.model, tmp_path / case.name, tiny=False)
        row = planned(decide(config_of(case, folder, "auto", 1, tiny=False), CARD))
        assert row["planned"]["reserved_bytes"] <= case.cap_gib * 2**30, case.name


@pytest.mark.parametrize("model", ["llama-3.1-70b", "llama-3.2-1b"], ids=["untied", "tied"])
def test_a_model_made_in_place_is_the_one_that_would_be_loaded(model: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from cases import BY_NAME, config_of
    from weights import made, write_model

    from acmsao_cli.models import catalog

    case = BY_NAME["70b-qlora"]
    folder = write_model(model, tmp_path / "model", tiny=True)
    recipe = config_of(case, folder, "cpu", 1, tiny=True).recipe
    place = torch.device("cpu"), torch.bfloat16
    loaded = catalog.family("causal_lm").open(recipe, *place).modules()["model"]
    ours = made(recipe, *place).modules()["model"]
    assert [(name, type(one)) for name, one in ours.named_modules()] == [
        (name, type(one)) for name, one in loaded.named_modules()
    ]
    assert shapes(ours) == shapes(loaded)
    trained = [name for name, one in ours.named_parameters() if one.requires_grad]
    assert trained == [name for name, one in loaded.named_parameters() if one.requires_grad]
    for (name, mine), (_, theirs) in zip(ours.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
