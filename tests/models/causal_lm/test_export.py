"""Files load with plain peft and transformers, and give the trained model's logits."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from acmsao_cli.errors import OutputError
from acmsao_cli.models.base import TrainingFacts
from acmsao_cli.models.causal_lm import export as module
from acmsao_cli.models.causal_lm.family import FAMILY

# peft asks transformers by a name that newer versions call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CPU = torch.device("cpu")
FACTS = TrainingFacts(
    name="blue", steps=7, num_examples=3, learning_rate=1e-4, optimizer="adamw", seed=3, loss=0.5
)
IDS = torch.arange(40, 60)[None]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def trained(recipe, dtype=torch.float32):
    """A trainee whose trained weights have all moved."""
    trainee = FAMILY.open(recipe, CPU, dtype)
    torch.manual_seed(5)
    with torch.no_grad():
        for _, weight in trainee.parameter_groups()[0].parameters:
            weight.add_(torch.randn_like(weight) * 0.1)
    trainee.model.eval()
    return trainee


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    "extra", [{}, {"rslora": True, "alpha": 8.0}, {"dora": True}, {"targets": "attention"}]
)
def test_an_adapter_gives_the_same_logits_in_plain_peft(extra, model_folder, recipe, tmp_path):
    folder = model_folder("llama-tied")
    trainee = trained(recipe(folder, method={"kind": "lora", "rank": 4, **extra}))
    (exported,) = trainee.export(tmp_path, FACTS)
    assert (exported.format, exported.max_error) == ("peft", 0.0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, exported.path)), logits(trainee.model)
    )


def test_an_adapter_of_each_kind_finds_its_base_model_by_itself(
    kind, model_folder, recipe, tmp_path
):
    trainee = trained(recipe(model_folder(kind), method={"kind": "lora", "rank": 4}))
    (exported,) = trainee.export(tmp_path, FACTS)
    alone = AutoPeftModelForCausalLM.from_pretrained(exported.path)
    torch.testing.assert_close(logits(alone), logits(trainee.model))


def test_a_hub_id_is_kept_as_the_adapters_base(model_folder, recipe, tmp_path):
    method = {"kind": "lora", "rank": 4}
    trainee = trained(recipe(model_folder(), method=method))
    trainee.recipe = recipe("owner/name", model={"revision": "v1"}, method=method)
    (exported,) = trainee.export(tmp_path, FACTS)
    config = json.loads((exported.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/name"
    assert config["revision"] == "v1"


def test_a_full_model_gives_the_same_logits_in_plain_transformers(
    kind, model_folder, recipe, tmp_path
):
    trainee = trained(recipe(model_folder(kind)))
    (exported,) = trainee.export(tmp_path, FACTS)
    assert (exported.format, exported.max_error) == ("transformers", 0.0)
    alone = AutoModelForCausalLM.from_pretrained(exported.path)
    torch.testing.assert_close(logits(alone), logits(trainee.model), rtol=0, atol=0)
    words = AutoTokenizer.from_pretrained(exported.path)
    assert words("hello")["input_ids"] == trainee.tokenizer("hello")["input_ids"]
    assert words.chat_template == trainee.tokenizer.chat_template


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_output_dtype_is_honoured(method, dtype, model_folder, recipe, tmp_path):
    parts = {"method": {"kind": method}, "output": {"dtype": dtype}}
    trainee = trained(recipe(model_folder("llama-tied"), **parts))
    (exported,) = trainee.export(tmp_path, FACTS)
    (file,) = exported.path.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {DTYPES[dtype]}  # noqa: SIM118
    if method == "full":
        assert AutoModelForCausalLM.from_pretrained(exported.path).dtype == DTYPES[dtype]
    assert trainee.dtype == trainee.model.dtype == torch.float32


def test_bf16_weights_stay_bf16(model_folder, recipe, tmp_path):
    (exported,) = trained(recipe(model_folder()), torch.bfloat16).export(tmp_path, FACTS)
    assert AutoModelForCausalLM.from_pretrained(exported.path).dtype == torch.bfloat16


def test_a_trained_end_mark_stops_the_exported_model(model_folder, recipe, tmp_path):
    trainee = trained(recipe(model_folder()))
    (exported,) = trainee.export(tmp_path, FACTS)
    ends = json.loads((exported.path / "generation_config.json").read_text())["eos_token_id"]
    assert trainee.tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert trainee.model.generation_config.eos_token_id == 2


def test_generation_settings_that_the_library_would_not_write_are_exported(
    model, tokenizer, recipe, tmp_path
):
    model("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    settings = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    (exported,) = trained(recipe(tmp_path / "model")).export(tmp_path, FACTS)
    written = json.loads((exported.path / "generation_config.json").read_text())
    assert (written["temperature"], written["do_sample"]) == (0.6, True)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("metadata", [True, False])
def test_facts_are_written_unless_metadata_are_off(
    method, metadata, model_folder, recipe, tmp_path
):
    parts = {"method": {"kind": method}, "output": {"metadata": metadata}}
    (exported,) = trained(recipe(model_folder(), **parts)).export(tmp_path, FACTS)
    card = exported.path / "README.md"
    assert card.exists() == metadata
    if metadata:
        assert "| steps | 7 |" in card.read_text()
    if method == "lora":
        with safe_open(exported.path / "adapter_model.safetensors", "pt") as tensors:
            assert ("acmsao" in tensors.metadata()) == metadata


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_that_come_back_different_are_an_output_error(
    method, model_folder, recipe, tmp_path, monkeypatch
):
    reader = "_read_model" if method == "full" else "_read_adapter"
    read = getattr(module, reader)

    def damaged(*given):
        weights = read(*given)
        name = next(iter(weights))
        return {**weights, name: weights[name] + 1.0}

    monkeypatch.setattr(module, reader, damaged)
    trainee = trained(recipe(model_folder(), method={"kind": method}))
    with pytest.raises(OutputError, match="differs by up to 1"):
        trainee.export(tmp_path, FACTS)


def test_weights_that_are_not_numbers_are_an_output_error(model_folder, recipe, tmp_path):
    trainee = trained(recipe(model_folder()))
    with torch.no_grad():
        next(trainee.model.parameters()).fill_(torch.nan)
    with pytest.raises(OutputError, match="differs by up to nan"):
        trainee.export(tmp_path, FACTS)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_folder_that_cannot_be_written_is_an_output_error(method, model_folder, recipe, tmp_path):
    (tmp_path / ("transformers" if method == "full" else "peft")).write_text("a file")
    trainee = trained(recipe(model_folder(), method={"kind": method}))
    with pytest.raises(OutputError):
        trainee.export(tmp_path, FACTS)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_that_breaks_off_leaves_no_half_folder(
    method, model_folder, recipe, tmp_path, monkeypatch
):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    trainee = trained(recipe(model_folder(), method={"kind": method}))
    monkeypatch.setattr(module, "_write_card", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        trainee.export(tmp_path, FACTS)
    assert list(tmp_path.iterdir()) == []
