"""What is said of a model before it is loaded, and which folders are refused, with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from acmsao_cli.errors import ModelError
from acmsao_cli.models.causal_lm.family import FAMILY

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of a sound model that may be spoilt."""
    copy = tmp_path / "model"
    shutil.copytree(model_folder("llama-tied"), copy)
    return copy


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_facts_count_parameters_and_name_the_architecture(kind, model_folder, recipe, model):
    facts = FAMILY.facts(recipe(model_folder(kind)))
    assert facts.parameters == {"model": sum(p.numel() for p in model(kind).parameters())}
    assert facts.details["architecture"] == type(model(kind)).__name__
    assert facts.details["vocabulary"] == "328"
    assert facts.details["context"] == "64"
    assert facts.details["stored as"] == "F32"
    assert "warning" not in facts.details


def test_facts_warn_when_examples_may_be_longer_than_the_context(model_folder, recipe):
    facts = FAMILY.facts(recipe(model_folder(), data={"max_length": 65}))
    assert "the model reads 64 tokens" in facts.details["warning"]


def test_facts_need_no_weights(folder, recipe):
    path = folder / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: 8 + header] + b"\xff" * (size - 8 - header))
    assert FAMILY.facts(recipe(folder))


@pytest.mark.parametrize("device", [CPU, META])
def test_weights_come_in_the_dtype_that_is_asked_for(device, model_folder, recipe):
    trainee = FAMILY.open(recipe(model_folder()), device, torch.bfloat16)
    assert {p.dtype for p in trainee.model.parameters()} == {torch.bfloat16}
    assert (trainee.device, trainee.dtype) == (device, torch.bfloat16)


def test_sharded_weights_are_read(model, tokenizer, recipe, tmp_path):
    whole = model("qwen2")
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    trainee = FAMILY.open(recipe(tmp_path), CPU, torch.float32)
    for name, weight in whole.named_parameters():
        assert torch.equal(trainee.model.get_parameter(name), weight)


def no_config(folder):
    (folder / "config.json").unlink()


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()


def remote_code(folder):
    edit(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    (folder / "mine.py").write_text("raise SystemExit('was run')")


def remote_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    auto_map = {"AutoTokenizer": ["mine.Mine", None]}
    edit(folder, "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map)
    (folder / "mine.py").write_text("raise SystemExit('was run')")


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def renamed_tensor(folder):
    def rename(weights):
        weights["model.layers.0.mlp.up.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")

    edit_weights(folder, rename)


def one_layer_less(folder):
    edit(folder, num_hidden_layers=1)


def other_shape(folder):
    def reshape(weights):
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = weights[name].t().contiguous()

    edit_weights(folder, reshape)


REFUSED = {
    no_config: "has no config.json",
    pickled: "pickled weights",
    no_weights: "has no model.safetensors",
    no_tokenizer: "no tokenizer that works",
    remote_code: "needs its own Python code",
    remote_tokenizer: "no tokenizer that works",
    cut_short: "not a sound safetensors file",
    renamed_tensor: "the weight files lack 1 tensor: model.layers.0.mlp.up_proj.weight",
    one_layer_less: "the weight files also hold 9 tensors",
    other_shape: "the weight files misshape 1 tensor: model.layers.0.mlp.up_proj.weight",
    lambda at: edit(at, num_hidden_layers=3): r"describes \d+ parameters, but the weight files",
    lambda at: edit(at, num_hidden_layers=10**6): "1000000 layers, but its weights are only",
    lambda at: edit(at, hidden_size=2**50): "its configuration makes no model|describes",
    lambda at: edit(at, num_attention_heads="four"): "config.json cannot be used",
    lambda at: edit(
        at, model_type="bert", architectures=["BertForMaskedLM"]
    ): "is a bert, not a causal",
    lambda at: edit(at, model_type="t5"): "is a t5, not a causal",
    lambda at: edit(at, model_type="nothing"): "does not know the model_type `nothing`",
    lambda at: edit(at, model_type=[1]): "does not know the model_type",
    lambda at: edit(at, quantization_config={"bits": 4}): "quantised weights",
    lambda at: edit(at, attn_implementation="someone/kernel"): "code to be fetched from the hub",
    lambda at: (at / "config.json").write_text("{"): "not sound JSON",
    lambda at: (at / "adapter_config.json").write_text("{}"): "is a LoRA adapter, not a model",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_refused_with_the_reason(spoil, folder, recipe):
    spoil(folder)
    with pytest.raises(ModelError, match=REFUSED[spoil]):
        FAMILY.open(recipe(folder), CPU, torch.float32)


def test_a_file_is_not_a_model_folder(folder, recipe):
    with pytest.raises(ModelError, match="single file"):
        FAMILY.facts(recipe(folder / "model.safetensors"))


def test_the_files_that_decide_are_weights_configuration_and_tokenizer(
    folder, model, tokenizer, recipe, tmp_path
):
    for name in ("README.md", "training.json", "optimizer.bin"):
        (folder / name).write_text("{}")
    found = FAMILY.files(recipe(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(
        found
    )
    assert not {"README.md", "training.json", "optimizer.bin", "generation_config.json"} & set(
        found
    )
    assert all(path == folder / name for name, path in found.items())
    shards = tmp_path / "shards"
    model("llama").save_pretrained(shards, max_shard_size="20KB")
    tokenizer().save_pretrained(shards)
    names = set(FAMILY.files(recipe(shards)))
    assert {file.name for file in shards.glob("model*")} <= names
    assert len([name for name in names if name.startswith("model-")]) > 1
