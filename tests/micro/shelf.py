"""Foreign micro models and data on disk, with recipes for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from micro.causal_lm import build_model, build_tokenizer
from micro.sdxl import Widths, micro_pipeline
from PIL import Image

from acmsao_cli.models.quiet import quiet_libraries


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of other configurations than ours, pictures and chats."""
    shelf = tmp_path_factory.mktemp("shelf")
    with quiet_libraries():
        micro_pipeline(Widths()).save_pretrained(shelf / "sdxl")
        micro_pipeline(
            Widths(unet=(16, 16, 32), text=(24, 16), projection=16, prediction="v_prediction")
        ).save_pretrained(shelf / "sdxl-v")
        build_model("llama").save_pretrained(shelf / "lm")
        build_tokenizer().save_pretrained(shelf / "lm")
        build_model("qwen2").save_pretrained(shelf / "lm-tied")
        build_tokenizer().save_pretrained(shelf / "lm-tied")
    pictures = shelf / "pictures"
    pictures.mkdir()
    for number in range(6):
        image = Image.new("RGB", (64 + 16 * number, 72), (40 * number, 100, 200 - 30 * number))
        image.save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a red square, number {number}")
    with (shelf / "chats.jsonl").open("w") as stream:
        for number in range(10):
            turns = [("user", f"what is {number}?"), ("assistant", f"it is {number}")]
            messages = [{"role": role, "content": text} for role, text in turns]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return shelf


def write_recipe(path: Path, **sections: dict[str, object]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(sections, indent=1))
    return path


@pytest.fixture
def sdxl(shelf: Path, tmp_path: Path) -> Path:
    """A recipe for the micro SDXL."""
    return write_recipe(
        tmp_path / "picture.yaml",
        model={"family": "sdxl", "source": str(shelf / "sdxl")},
        method={"kind": "lora", "rank": 4},
        data={"source": str(shelf / "pictures"), "resolution": 64, "bucket_step": 16},
        training={"steps": 4, "batch_size": 2},
        samples={"prompts": ["a red square"], "steps": 2},
        checkpoint={"every": 2},
    )


@pytest.fixture
def lm(shelf: Path, tmp_path: Path) -> Path:
    """A recipe for the micro language model."""
    return chat_recipe(shelf, tmp_path)


def chat_recipe(shelf: Path, folder: Path) -> Path:
    """The same, in any folder."""
    return write_recipe(
        folder / "chat.yaml",
        model={"family": "causal_lm", "source": str(shelf / "lm")},
        method={"kind": "full"},
        data={"source": str(shelf / "chats.jsonl"), "max_length": 64},
        optimizer={"lr": 0.01},
        training={"steps": 6, "batch_size": 4},
        samples={"prompts": ["what is 3?"], "max_new_tokens": 4},
        checkpoint={"every": 2},
    )
