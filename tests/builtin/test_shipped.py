"""What ships in acmsao_cli/builtin loads with plain libraries, is small, and has no pickles."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import acmsao_cli

BUILTIN = Path(acmsao_cli.__file__).parent / "builtin"
LIMIT = 24 * 2**20
WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pickle", ".pkl", ".msgpack", ".h5"}
quiet = pytest.mark.filterwarnings("ignore")


def files() -> list[Path]:
    return [
        path for path in BUILTIN.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


def test_all_of_it_is_small():
    assert sum(path.stat().st_size for path in files()) <= LIMIT


def test_weights_are_safetensors_only():
    assert not [path for path in files() if path.suffix in WEIGHTS]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@quiet
def test_tiny_sdxl_has_the_parts_of_sdxl():
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(
        BUILTIN / "tiny-sdxl", torch_dtype=torch.float32
    )
    widths = pipeline.text_encoder.config.hidden_size, pipeline.text_encoder_2.config.hidden_size
    assert widths[0] != widths[1]
    assert sum(widths) == pipeline.unet.config.cross_attention_dim
    assert pipeline.unet.config.addition_embed_type == "text_time"
    assert pipeline.config.force_zeros_for_empty_prompt
    assert pipeline.scheduler.config.prediction_type == "epsilon"


@quiet
def test_tiny_sdxl_stays_finite_in_bf16():
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(
        BUILTIN / "tiny-sdxl", torch_dtype=torch.bfloat16
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        "a red circle on a blue ground", num_inference_steps=2, output_type="latent"
    ).images
    with torch.no_grad():
        picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert picture.shape == (1, 3, 64, 64)
    assert picture.isfinite().all()


@quiet
def test_tiny_llm_answers_and_marks_what_the_assistant_says():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BUILTIN / "tiny-llm", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN / "tiny-llm")
    turns = [{"role": "user", "content": "What colour is the sky?"}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=20, do_sample=False)
    said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.strip() == "The sky is blue."

    turns.append({"role": "assistant", "content": said})
    marked = tokenizer.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    kept = [
        i for i, keep in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if keep
    ]
    assert tokenizer.decode(kept) == f"{said}{tokenizer.eos_token}"
    assert tokenizer.pad_token != tokenizer.eos_token


def test_zoblins_are_twenty_captioned_pictures_of_one_size():
    pictures = sorted((BUILTIN / "zoblins").glob("*.png"))
    captions = [path.with_suffix(".txt").read_text().strip() for path in pictures]
    assert len(pictures) == 20
    assert {size_of(path) for path in pictures} == {(64, 64)}
    assert len(set(captions)) == 20
    assert all(" zoblin on " in caption for caption in captions)


def test_pirate_chats_end_with_a_pirate():
    chats = [
        json.loads(line)["messages"] for line in (BUILTIN / "pirate.jsonl").read_text().splitlines()
    ]
    assert len(chats) == 200
    assert all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
    assert all(chat[-1]["content"].startswith("Arr! ") for chat in chats)
