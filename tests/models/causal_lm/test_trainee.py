"""What is trained, what is shown on the way, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acmsao_cli.errors import ConfigError, DataError
from acmsao_cli.models.causal_lm import sample as sampling
from acmsao_cli.models.causal_lm.family import FAMILY
from acmsao_cli.models.causal_lm.sample import prompt_ids, stop_ids

CPU, META = torch.device("cpu"), torch.device("meta")


def opened(recipe, device=CPU, dtype=torch.float32):
    return FAMILY.open(recipe, device, dtype)


def names(trainee):
    return [name for group in trainee.parameter_groups() for name, _ in group.parameters]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_meta_and_real_trainees_have_the_same_weights(kind, method, model_folder, recipe):
    chosen = recipe(model_folder(kind), method={"kind": method})
    real, meta = opened(chosen, dtype=torch.bfloat16), opened(chosen, META, torch.bfloat16)

    def shapes(trainee):
        return [
            (name, weight.shape, weight.dtype)
            for group in trainee.parameter_groups()
            for name, weight in group.parameters
        ]

    assert shapes(real) == shapes(meta)
    everything = [
        {name: (p.shape, p.dtype) for name, p in trainee.model.named_parameters()}
        for trainee in (real, meta)
    ]
    assert everything[0] == everything[1]


def test_full_training_trains_every_weight_and_tied_ones_once(model_folder, recipe):
    tied = opened(recipe(model_folder("llama-tied")))
    assert "lm_head.weight" not in names(tied)
    assert len(names(tied)) == len(list(tied.model.parameters()))
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
    assert "lm_head.weight" in names(opened(recipe(model_folder("llama"))))


@pytest.mark.parametrize(
    ("kind", "targets", "expected"),
    [
        ("llama", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (
            "llama",
            "all-linear",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        ("llama", ["q_proj", "mlp.up_proj"], {"q_proj", "up_proj"}),
        ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}),
    ],
)
def test_lora_adapts_the_layers_that_targets_names(kind, targets, expected, model_folder, recipe):
    method = {"kind": "lora", "rank": 4, "targets": targets}
    trainee = opened(recipe(model_folder(kind), method=method))
    assert {name.split(".lora_")[0].split(".")[-1] for name in names(trainee)} == expected
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in names(trainee))


def test_attention_of_a_gpt2_leaves_its_mlp_alone(model_folder, recipe):
    method = {"kind": "lora", "rank": 4, "targets": "attention"}
    trainee = opened(recipe(model_folder("gpt2"), method=method))
    assert {name.split(".")[3] for name in names(trainee)} == {"attn"}


def test_a_target_that_names_nothing_is_refused(model_folder, recipe):
    method = {"kind": "lora", "rank": 4, "targets": ["q_prj"]}
    with pytest.raises(ConfigError, match="q_prj"):
        opened(recipe(model_folder(), method=method), META)


def test_full_training_on_a_cpu_leaves_the_model_file_alone(model_folder, recipe):
    trainee = opened(recipe(model_folder("qwen2")))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = [line.split()[0] for line in maps if str(model_folder("qwen2")) in line]
    ranges = [tuple(int(end, 16) for end in part.split("-")) for part in mapped]
    for weight in trainee.model.parameters():
        assert not any(start <= weight.data_ptr() < end for start, end in ranges)


def test_checkpointing_changes_no_gradient(kind, model_folder, recipe, text):
    def gradients(checkpointing):
        parts = {"gradient_checkpointing": checkpointing}
        trainee = opened(
            recipe(model_folder(kind), method={"kind": "lora", "rank": 4}, training=parts)
        )
        batch = trainee.collate(trainee.encode([text("hello world")]), [])
        trainee.loss(batch).backward()
        return [p.grad for _, p in trainee.parameter_groups()[0].parameters]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_of_adapters_is_active_in_training_and_off_in_samples(model_folder, recipe, text):
    method = {"kind": "lora", "rank": 4, "dropout": 0.5}
    trainee = opened(recipe(model_folder(), method=method, samples={"prompts": ["hello"]}))
    for name, weight in trainee.parameter_groups()[0].parameters:
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    batch = trainee.collate(trainee.encode([text("hello world")]), [])
    assert not torch.equal(trainee.loss(batch), trainee.loss(batch))
    assert list(trainee.sample()) == list(trainee.sample())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sampling_leaves_training_and_random_numbers_as_they_were(
    checkpointing, kind, model_folder, recipe, text
):
    chosen = recipe(
        model_folder(kind),
        method={"kind": "lora", "rank": 4, "dropout": 0.1},
        training={"gradient_checkpointing": checkpointing},
        samples={"prompts": ["hello", "the sky"], "max_new_tokens": 5},
    )
    trainee = opened(chosen)
    batch = trainee.collate(trainee.encode([text("hello world")]), [])
    modes = [module.training for module in trainee.model.modules()]
    settings = trainee.model.config.to_dict()
    torch.manual_seed(1)
    expected = trainee.loss(batch)
    torch.manual_seed(1)
    samples = list(trainee.sample())
    assert torch.equal(trainee.loss(batch), expected)
    assert [module.training for module in trainee.model.modules()] == modes
    assert trainee.model.config.to_dict() == settings
    assert [sample.prompt for sample in samples] == ["hello", "the sky"]
    assert all(isinstance(sample.text, str) for sample in samples)


def test_answers_come_one_at_a_time_and_training_may_go_on_between_them(
    model_folder, recipe, monkeypatch
):
    trainee = opened(recipe(model_folder(), samples={"prompts": ["hello", "the sky"]}))
    asked = []
    monkeypatch.setattr(sampling, "answer", lambda *given: asked.append(given[2]) or "yes")
    answers = trainee.sample()
    assert next(answers).prompt == "hello"
    assert asked == ["hello"]
    assert trainee.model.training
    assert torch.is_grad_enabled()
    assert next(answers).prompt == "the sky"


def test_samples_are_the_most_likely_tokens_up_to_an_end_mark(model_folder, recipe):
    chosen = recipe(model_folder(), samples={"prompts": ["hello"], "max_new_tokens": 6})
    trainee = opened(chosen)
    (sample,) = trainee.sample()
    ids = prompt_ids(trainee.tokenizer, "hello")
    start, ends = len(ids), stop_ids(trainee.model, trainee.tokenizer)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(trainee.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    assert sample.text == trainee.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_answers_end_where_the_context_does(kind, model_folder, recipe):
    prompts = ["hello", "hello " * 90]
    trainee = opened(
        recipe(model_folder(kind), samples={"prompts": prompts, "max_new_tokens": 100})
    )
    short, long = trainee.sample()
    assert short.text != long.text
    assert long.text == "[the prompt fills the model's whole context]"


def test_prompts_go_through_the_chat_template_or_stay_as_they_are(tokenizer):
    chatty, plain = tokenizer("chatml"), tokenizer("none", bos=True)
    assert chatty.decode(prompt_ids(chatty, "hi")) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert plain.decode(prompt_ids(plain, "hi")) == "<s>hi"


def test_answers_stop_at_the_templates_end_of_turn(model_folder, recipe):
    trainee = opened(recipe(model_folder()))
    ends = trainee.tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert stop_ids(trainee.model, trainee.tokenizer) == sorted(ends)


def test_a_chat_that_the_template_refuses_is_told_and_left_out(model_folder, recipe, chat):
    trainee, told = opened(recipe(model_folder())), []
    odd = "{% if messages[0].content == 'odd' %}{{ raise_exception('odd') }}{% endif %}"
    trainee.tokenizer.chat_template = odd + trainee.tokenizer.chat_template
    examples = [chat("odd", "yes"), chat("hi", "yes")]
    items = trainee.encode(examples, unusable=lambda one, error: told.append((one, str(error))))
    assert len(items) == 1
    assert [one for one, _ in told] == examples[:1]
    with pytest.raises(DataError, match="chat template refuses this chat: odd"):
        trainee.encode(examples)


def test_a_context_shorter_than_max_length_is_used_and_told(model_folder, recipe, text, caplog):
    chosen = recipe(model_folder("gpt2"), data={"max_length": 500})
    trainee = opened(chosen)
    assert "data.max_length is 500, but the model reads 64 tokens" in caplog.text
    (item,) = trainee.encode([text("hello " * 200)])
    assert len(item.ids) == 64
    assert trainee.meta_batch(3).inputs["input_ids"].shape == (3, 64)
    assert torch.isfinite(trainee.loss(trainee.collate([item], [])))
