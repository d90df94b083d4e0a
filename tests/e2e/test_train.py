"""`acmsao train` from the command line, on models that were built with the plain libraries."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from acmsao_cli.engine import loop
from acmsao_cli.engine.folder import LOCK, RunFolder
from acmsao_cli.models.quiet import quiet_libraries

FUSED = ("--set", "optimizer.fused_backward=true", "--set", "training.clip_norm=null")
STREAMED = ("-s", "memory.resident_blocks=0", "-s", "memory.offload_activations=true")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a run's last checkpoint."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return dict(load_file(newest / "weights.safetensors"))


def test_a_lora_of_sdxl_leaves_files_that_plain_diffusers_loads(
    acmsao: Any, sdxl: Path, shelf: Path
) -> None:
    done = acmsao("train", str(sdxl))
    assert done.code == 0, done.err
    run = Path("runs/picture-001")
    for name in ("run.yaml", "metrics.jsonl", "loss.png", "samples/before-after.png"):
        assert (run / name).stat().st_size > 0
    trained = weights_of(run)
    with quiet_libraries():
        for file in sorted((run / "final").iterdir()):
            pipeline = StableDiffusionXLPipeline.from_pretrained(shelf / "sdxl")
            pipeline.load_lora_weights(file)
            loaded = {
                name.replace(".default_0", "").replace(".default", ""): parameter
                for name, parameter in pipeline.unet.named_parameters()
                if "lora_" in name
            }
            assert len(loaded) == len(trained)
            for name, value in trained.items():
                plain = name.removeprefix("unet.").replace(".default", "")
                assert torch.equal(loaded[plain], value), (file.name, name)


@pytest.mark.parametrize(("layout", "preset"), [("folder", "cpu"), ("single-file", "16gb")])
def test_a_full_training_of_a_v_prediction_model_comes_back_from_both_formats(
    acmsao: Any, sdxl: Path, shelf: Path, tmp_path: Path, layout: str, preset: str
) -> None:
    source = shelf / "sdxl-v"
    if layout == "single-file":
        exported = acmsao("models", "export", str(source), "file", "--format", "single-file")
        source = tmp_path / exported.out.strip()
    recipe = json.loads(sdxl.read_text())
    recipe["method"] = {"kind": "full"}
    recipe["model"]["source"] = str(source)
    sdxl.write_text(json.dumps(recipe))
    done = acmsao("train", str(sdxl), "--preset", preset, "-s", "training.steps=2", "-o", "out")
    assert done.code == 0, done.err
    assert "v_prediction" in done.out
    trained = weights_of(Path("out"))
    folder = next(path for path in Path("out/final").iterdir() if path.is_dir())
    file = next(Path("out/final").glob("*.safetensors"))
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
        single = StableDiffusionXLPipeline.from_single_file(file, config=str(folder))
    for loaded in (pipeline.unet.state_dict(), single.unet.state_dict()):
        for name, value in trained.items():
            plain = name.removeprefix("unet.")
            assert torch.equal(loaded[plain].to(value.dtype), value), name
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_lora_of_a_language_model_is_a_peft_adapter(acmsao: Any, lm: Path, shelf: Path) -> None:
    recipe = json.loads(lm.read_text())
    recipe["method"] = {"kind": "lora", "rank": 4}
    lm.write_text(json.dumps(recipe))
    done = acmsao("train", str(lm))
    assert done.code == 0, done.err
    trained = weights_of(Path("runs/chat-001"))
    with quiet_libraries():
        base = AutoModelForCausalLM.from_pretrained(shelf / "lm")
        model = PeftModel.from_pretrained(base, "runs/chat-001/final/peft")
    loaded = dict(model.named_parameters())
    for name, value in trained.items():
        assert torch.equal(loaded[f"base_model.model.{name}"], value)
    assert "what is 3?" in Path("runs/chat-001/samples/before-after.md").read_text()


def test_a_full_training_of_a_tied_language_model_learns_and_comes_back(
    acmsao: Any, lm: Path, shelf: Path
) -> None:
    done = acmsao(
        *("train", str(lm), "-o", "out", "-s", f"model.source={shelf / 'lm-tied'}"),
        *("-s", "training.steps=30"),
    )
    assert done.code == 0, done.err
    summary = RunFolder(Path("out")).summary()
    assert summary is not None
    assert summary["loss_to"] < 0.7 * summary["loss_from"]
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(Path("out/final/transformers"))
    loaded = dict(model.named_parameters())
    for name, value in weights_of(Path("out")).items():
        assert torch.equal(loaded[name], value)


def test_a_finished_run_is_already_done_and_a_new_one_gets_a_number(acmsao: Any, lm: Path) -> None:
    assert acmsao("train", str(lm), "--output", "out").code == 0

    def times() -> dict[Path, int]:
        files = (path for path in Path("out").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files if path.name != LOCK}

    before = times()
    again = acmsao("train", str(lm), "--output", "out", "--json")
    assert again.code == 0
    assert "already done" in again.err
    events = [json.loads(line) for line in again.out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert before == times()
    assert acmsao("train", str(lm)).code == 0
    assert acmsao("train", str(lm), "-s", "training.steps=2").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["chat-001", "chat-002"]


def test_a_finished_run_of_another_recipe_is_not_done_and_a_longer_one_goes_on(
    acmsao: Any, lm: Path
) -> None:
    assert acmsao("train", str(lm), "-o", "out").code == 0
    other = acmsao("train", str(lm), "-o", "out", "-s", "optimizer.lr=0.02")
    assert other.code == 5
    assert "optimizer.lr: 0.01 in the run, 0.02 now" in other.err
    assert "0.02" not in Path("out/run.yaml").read_text()
    longer = acmsao("train", str(lm), "-o", "out", "-s", "training.steps=8")
    assert longer.code == 0, longer.err
    assert "continuing at step 6" in longer.out
    summary = RunFolder(Path("out")).summary()
    assert summary is not None
    assert summary["steps"] == 8


def test_warnings_about_the_data_are_told(acmsao: Any, sdxl: Path, tmp_path: Path) -> None:
    recipe = json.loads(sdxl.read_text())
    pictures = tmp_path / "pictures"
    shutil.copytree(recipe["data"]["source"], pictures)
    (pictures / "orphan.txt").write_text("nobody's caption")
    done = acmsao("train", str(sdxl), "-s", "data.source=./pictures", "--dry-run")
    assert "orphan.txt" in done.out


@pytest.mark.parametrize(
    "options", [(), FUSED, (*FUSED, *STREAMED), ("-p", "16gb", "-s", "memory.budget_gib=null")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stopped_goes_on_to_the_same_bits(
    acmsao: Any,
    lm: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    number: signal.Signals,
) -> None:
    assert acmsao("train", str(lm), "-o", "whole", *options).code == 0
    advance = loop.advance

    def interrupted(run: Any, *rest: Any) -> Any:
        if run.step == 2:
            signal.raise_signal(number)
        return advance(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "advance", interrupted)
        stopped = acmsao("train", str(lm), "-o", "parts", *options)
    assert stopped.code == 128 + number
    assert "stopped at step 3 of 6" in stopped.err
    resumed = acmsao("train", str(lm), "-o", "parts", *options)
    assert resumed.code == 0, resumed.err
    assert "continuing at step 3" in resumed.out
    for name, value in weights_of(Path("whole")).items():
        assert torch.equal(value, weights_of(Path("parts"))[name]), name


def test_a_signal_asks_for_a_checkpoint_and_the_run_goes_on(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, saved = loop.advance, []

    def asked(run: Any, *rest: Any) -> Any:
        saved.append(sorted(path.name for path in Path("out/checkpoints").glob("step-*")))
        if run.step == 1:
            signal.raise_signal(signal.SIGUSR1)
        return advance(run, *rest)

    monkeypatch.setattr(loop, "advance", asked)
    assert acmsao("train", str(lm), "-o", "out", "-s", "checkpoint.every=100").code == 0
    assert saved[:2] == [[], []]
    kept = sorted(path.name for path in Path("out/checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000006"]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["lm", "sdxl"])
def test_streamed_weights_are_saved_sampled_and_exported_as_resident_ones(
    acmsao: Any, family: str, method: str, request: pytest.FixtureRequest
) -> None:
    recipe = request.getfixturevalue(family)
    kind = json.loads(recipe.read_text())["method"] | {"kind": method}
    if method == "full":
        kind.pop("rank", None)
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"method": kind}))
    options = FUSED if method == "full" else ()
    for name, more in (("resident", ()), ("streamed", STREAMED)):
        done = acmsao("train", str(recipe), "-o", name, *options, *more)
        assert done.code == 0, done.err
    streamed = weights_of(Path("streamed"))
    for name, value in weights_of(Path("resident")).items():
        assert torch.equal(value, streamed[name]), name
    files = [
        sorted(path.relative_to(run) for path in (run / "samples").rglob("*") if path.is_file())
        for run in (Path("resident"), Path("streamed"))
    ]
    assert files[0] == files[1] != []
    for file in files[0]:
        assert (Path("resident") / file).read_bytes() == (Path("streamed") / file).read_bytes()


def test_a_sliced_head_learns_the_same_and_goes_on_to_the_same_bits(acmsao: Any, lm: Path) -> None:
    for name, options in (("whole", ()), ("sliced", ("-s", "memory.slice_head=true"))):
        done = acmsao("train", str(lm), "-o", name, *FUSED, *options)
        assert done.code == 0, done.err
    sliced = weights_of(Path("sliced"))
    for name, value in weights_of(Path("whole")).items():
        assert torch.allclose(value, sliced[name], atol=2e-3), name
    options = (*FUSED, "-s", "memory.slice_head=true", "-s", "training.steps=4")
    assert acmsao("train", str(lm), "-o", "parts", *options).code == 0
    assert acmsao("train", str(lm), "-o", "parts", *options[:-1], "training.steps=6").code == 0
    for name, value in sliced.items():
        assert torch.equal(value, weights_of(Path("parts"))[name]), name


def test_json_lines_are_for_programs_and_text_is_for_people(acmsao: Any, lm: Path) -> None:
    done = acmsao("train", str(lm), "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.count("step") == 6
    assert "acmsao train chat" in done.err
    failed = acmsao("train", str(lm), "--json", "-s", "training.stps=3")
    assert json.loads(failed.out)["exit_code"] == failed.code == 2


def test_a_dry_run_plans_and_writes_nothing(acmsao: Any, sdxl: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = acmsao("train", str(sdxl), "--dry-run")
    assert done.code == 0, done.err
    assert "predicted" in done.out
    assert sorted(tmp_path.rglob("*")) == before


def test_data_check_shows_what_is_trained(acmsao: Any, lm: Path, sdxl: Path) -> None:
    text = acmsao("data", "check", str(lm))
    assert text.code == 0
    assert "[[it is 0<|im_end|>]]" in text.out
    pictures = acmsao("data", "check", str(sdxl), "--show", "1")
    assert pictures.code == 0
    assert "a red square, number 0" in pictures.out
