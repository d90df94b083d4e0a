"""What is said of a run's sources that are not what its checkpoint was made with."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.shelf import sdxl, shelf
from PIL import Image

from acmsao_cli import identity
from acmsao_cli.checkpoint.store import Checkpoint
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.manifest import manifest
from acmsao_cli.data.reading import read
from acmsao_cli.engine.continuation import (
    Continuation,
    check_continuation,
    differences,
    made_with,
    sources_of,
)
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.errors import CheckpointError
from acmsao_cli.identity import Item, Kind, digest

__all__ = ["sdxl", "shelf"]


def ignore(event: Any) -> None:
    """A listener that does not listen."""


class Begun:
    """A run of pictures; of what it left only what its sources were."""

    def __init__(self, recipe: Path, place: Path) -> None:
        self.place, self.folder, self.recipe = place, RunFolder(place / "out"), recipe
        values = json.loads(recipe.read_text())
        for section, name in (("model", "sdxl"), ("data", "pictures")):
            shutil.copytree(values[section]["source"], place / name)
            values[section]["source"] = f"./{name}"
        recipe.write_text(json.dumps(values))
        config, data = self.config(), self.data()
        self.folder.keep_data(data, [])
        with sources_of(config, data, self.folder, None, ignore) as sources:
            header = {"recipe": config.as_dict(), **sources.as_header(torch.device("cpu"))}
        self.checkpoint = Checkpoint(Path("step-00000002"), 2, header)

    def config(self) -> RunConfig:
        return resolve(Request(str(self.recipe)))

    def data(self) -> dict[str, Item]:
        return manifest(read(self.config().recipe.data).examples, self.folder.data_items())

    def again(self, allowed: Collection[Kind] = ()) -> Continuation:
        return check_continuation(
            self.config(), self.data(), self.folder, self.checkpoint, allowed, ignore
        )


@pytest.fixture
def begun(sdxl: Path, tmp_path: Path) -> Begun:
    return Begun(sdxl, tmp_path)


def test_pictures_and_captions_that_changed_are_named(begun: Begun) -> None:
    assert begun.again([Kind.data]).allowed == {"data": []}
    pictures = begun.place / "pictures"
    Image.new("RGB", (64, 72), "green").save(pictures / "0.png")
    (pictures / "1.txt").write_text("another caption")
    for suffix in ("png", "txt"):
        (pictures / f"2.{suffix}").rename(pictures / f"9.{suffix}")
        (pictures / f"3.{suffix}").unlink()
    with pytest.raises(CheckpointError, match="pictures is not what step-00000002") as caught:
        begun.again()
    told = ["changed: 0.png, 1.png (its caption)", "added: 9.png", "removed: 2.png, 3.png"]
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == told
    allowed = begun.again([Kind.data])
    assert [change["change"] for change in allowed.recorded()] == told


def test_components_and_settings_of_a_pipeline_that_changed_are_named(begun: Begun) -> None:
    file = begun.place / "sdxl/vae/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    schedule = begun.place / "sdxl/scheduler/scheduler_config.json"
    schedule.write_text(schedule.read_text().replace("epsilon", "v_prediction"))
    with pytest.raises(CheckpointError) as caught:
        begun.again()
    assert "changed: scheduler/scheduler_config.json, vae/diffusion" in caught.value.message
    assert "--allow-changed model" in str(caught.value.hint)


def test_of_settings_that_may_change_those_that_later_bits_follow_from_are_recorded(
    begun: Begun,
) -> None:
    values = json.loads(begun.recipe.read_text())
    values["training"] |= {"steps": 9, "gradient_checkpointing": True, "nonfinite_steps": 5}
    values["optimizer"] = {"storage": "int8"}
    begun.recipe.write_text(json.dumps(values))
    found = begun.again()
    assert len(found.free) == 4
    altering = ["optimizer.storage: fp32 -> int8", "training.steps: 4 -> 9"]
    assert list(found.recorded()) == [
        {"step": 2, "what": "recipe", "change": line} for line in altering
    ]


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"a": Item(says="x"), "b": Item(says="y")}, []),
        ({"b": Item(says="y"), "a": Item(says="x")}, ["the order is another"]),
        ({"a": Item(says="z"), "b": Item(says="y")}, ["changed: a"]),
        ({name: Item() for name in "abcdef"}, ["changed: a, b", "added: c, d, e and 1 more"]),
        ({"a\x1b[2J": Item()}, ["added: a?[2J", "removed: a, b"]),
    ],
)
def test_differences_are_few_lines(now: dict[str, Item], says: list[str]) -> None:
    before = {"a": Item(says="x"), "b": Item(says="y")}
    assert differences(before, now, digest(before)) == says


def test_libraries_device_and_threads_are_what_a_checkpoint_was_made_with() -> None:
    found = made_with(torch.device("cpu"))
    assert (found["device"], found["threads"]) == ("cpu", str(torch.get_num_threads()))
    assert {"acmsao", "python", "torch", "diffusers", "transformers", "pillow"} <= found.keys()


def test_who_waits_for_the_hash_of_the_model_is_told(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing, asked = identity.sha256_of, threading.Event()

    def late(*arguments: Any) -> str:
        assert asked.wait(10)
        return hashing(*arguments)

    monkeypatch.setattr(identity, "sha256_of", late)
    events: list[Any] = []

    def listen(event: Any) -> None:
        events.append(event)
        asked.set()

    begun.folder.keep_model({})
    with sources_of(begun.config(), begun.data(), begun.folder, None, listen) as sources:
        assert sources.model() == begun.checkpoint.header["model"]
    assert {event.task for event in events} == {"waiting for the model's hash"}
    assert [events[0].done, events[-1].done] == [0, events[-1].total]
