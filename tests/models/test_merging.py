"""A merged model computes what the trained one computed, on the base that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_model, build_recipe, build_tokenizer
from micro.sdxl import RecipeFor, Widths, examples, micro_pipeline
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from acmsao_cli.data.randomness import Draw
from acmsao_cli.models.base import TrainingFacts
from acmsao_cli.models.causal_lm.family import FAMILY as LANGUAGE
from acmsao_cli.models.lora import adapted_layers
from acmsao_cli.models.merging import merged_weight
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl.family import FAMILY as PICTURES

CPU = torch.device("cpu")
FACTS = TrainingFacts("micro", 1, 3, 1e-4, "adamw", 0)


def perturb(trainee: Any) -> None:
    """Adapters that count."""
    generator = torch.Generator().manual_seed(1)
    for group in trainee.parameter_groups():
        for _, parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def language_model(folder: Path, kind: str, **sections: Any) -> Any:
    with quiet_libraries():
        build_model(kind).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    recipe = build_recipe(folder, output={"formats": ["merged"]}, **sections)
    trainee = LANGUAGE.open(recipe, CPU, torch.float32)
    perturb(trainee)
    return trainee


CASES = [
    ("llama", "none", {}),
    ("llama", "nf4", {}),
    ("llama", "int8", {}),
    ("llama-tied", "nf4", {}),
    ("llama-tied", "none", {"targets": ["q_proj", "lm_head"]}),
    ("qwen2", "none", {"dora": True, "rslora": True}),
    ("gpt2", "none", {"dora": True}),
    ("gpt2", "none", {}),
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(("kind", "quantize", "method"), CASES, ids=str)
def test_a_merged_language_model_answers_as_the_trained_one(
    tmp_path: Path, kind: str, quantize: str, method: dict[str, Any]
) -> None:
    trainee = language_model(
        tmp_path / "base",
        kind,
        model={"quantize": quantize},
        method={"kind": "lora", "rank": 4, **method},
    )
    (exported,) = trainee.export(tmp_path, FACTS)
    assert exported.format == "merged"
    merged = AutoModelForCausalLM.from_pretrained(exported.path)
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    trainee.model.train()  # the library's 8-bit products round their inputs in answers only
    with torch.no_grad():
        ours, theirs = (one(input_ids=ids).logits for one in (trainee.model, merged))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_base_that_was_trained_is_not_the_one_it_was_packed_from(
    tmp_path: Path, quantize: str
) -> None:
    written = {}
    for kept in ("none", quantize):
        trainee = language_model(
            tmp_path / "base",
            "llama",
            model={"quantize": kept},
            method={"kind": "lora", "rank": 4},
        )
        (exported,) = trainee.export(tmp_path / kept, FACTS)
        written[kept] = load_file(exported.path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    apart = (written["none"][name] - written[quantize][name]).abs().max()
    assert apart > 1e-4


@pytest.mark.parametrize("dtype", ["same", "fp32"])
def test_the_sum_is_rounded_once_to_the_dtype_of_the_file(tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    language_model(base, "llama")
    output = {"formats": ["merged"], "dtype": dtype}
    recipe = build_recipe(base, method={"kind": "lora", "rank": 4}, output=output)
    trainee = LANGUAGE.open(recipe, CPU, torch.bfloat16)
    perturb(trainee)
    (exported,) = trainee.export(tmp_path, FACTS)
    written = load_file(exported.path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    exact = merged_weight(dict(adapted_layers(trainee.model))[name])
    expected = exact if dtype == "fp32" else exact.bfloat16()
    assert torch.equal(written[f"{name}.weight"], expected)


@pytest.mark.parametrize(
    ("quantize", "method"),
    [
        ("none", {"dora": True, "targets": ["to_q", "conv1"]}),
        ("none", {"text_encoders": True}),
        ("fp8", {"targets": ["to_q", "conv1", "ff.net.2"]}),
        ("nf4", {}),
    ],
    ids=str,
)
def test_a_merged_sdxl_has_the_loss_of_the_trained_one(
    tmp_path: Path, quantize: str, method: dict[str, Any]
) -> None:
    base = tmp_path / "base"
    with quiet_libraries():
        micro_pipeline(Widths()).save_pretrained(base)
    recipe_for = RecipeFor()
    recipe = recipe_for(
        base, model={"quantize": quantize}, method=method, output={"formats": ["merged"]}
    )
    losses = []
    trainee = PICTURES.open(recipe, CPU, torch.float32)
    perturb(trainee)
    for _ in range(2):
        items = trainee.encode(examples()[:2])
        batch = trainee.collate(items, [Draw(5, number) for number in range(2)])
        losses.append(trainee.loss(batch).detach())
        if len(losses) == 1:
            (exported,) = trainee.export(tmp_path, FACTS)
            assert exported.max_error == 0
            plain = recipe_for(exported.path, method={"text_encoders": "text_encoders" in method})
            trainee = PICTURES.open(plain, CPU, torch.float32)
            assert any(adapted_layers(trainee.parts.unet))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
