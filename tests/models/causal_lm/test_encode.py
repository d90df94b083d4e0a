"""Which tokens are learned: the answers with their end marks, texts with EOS, padding never."""

from __future__ import annotations

import logging

import pytest
import torch

from acmsao_cli.data.base import Message, TextExample
from acmsao_cli.errors import DataError, ModelError
from acmsao_cli.models.causal_lm import encode
from acmsao_cli.models.causal_lm.chat import chat_tokens, end_of_turn, plain_template
from acmsao_cli.models.causal_lm.family import FAMILY

CPU = torch.device("cpu")


def pieces(tokenizer, tokens):
    """The text in pieces, learned ones in brackets."""
    item = encode.Item(torch.tensor(tokens.ids), torch.tensor(tokens.trained))
    return "".join(encode.marked_text(tokenizer, item))


@pytest.mark.parametrize("template", ["chatml", "chatml-marked"])
def test_every_answer_is_trained_with_its_end_mark(template, tokenizer, chat):
    words = tokenizer(template)
    example = chat("hi", "  two\n\nlines ", "and é?", "yes 🦊", system="be brief")
    tokens = chat_tokens(words, example, everything=False)
    assert pieces(words, tokens) == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n[[  two\n\nlines <|im_end|>]]\n"
        "<|im_start|>user\nand é?<|im_end|>\n"
        "<|im_start|>assistant\n[[yes 🦊<|im_end|>]]\n"
    )


def test_templates_with_and_without_marks_give_the_same_tokens(tokenizer, chat):
    example = chat("hi", " a ", "", "b\n", "c", "")
    one, other = (
        chat_tokens(tokenizer(template), example, everything=False)
        for template in ("chatml", "chatml-marked")
    )
    assert list(one.ids) == list(other.ids)
    assert one.trained == other.trained


def test_bos_written_by_the_template_is_not_doubled(tokenizer, chat):
    words = tokenizer("llama2", bos=True)
    tokens = chat_tokens(words, chat("hi", "yes", "why", "so"), everything=False)
    assert pieces(words, tokens) == "<s>[INST] hi [/INST][[ yes</s>]][INST] why [/INST][[ so</s>]]"
    assert list(tokens.ids).count(words.bos_token_id) == 1


def test_a_template_without_end_marks_gets_a_trained_eos(tokenizer, chat):
    words = tokenizer("bare")
    everything = chat_tokens(words, chat("hi", "yes"), everything=True)
    assert pieces(words, everything) == "[[user: hi\nassistant: yes\n</s>]]"
    answers = chat_tokens(words, chat("hi", "yes"), everything=False)
    assert pieces(words, answers) == "user: hi\nassistant: [[yes\n</s>]]"


def test_a_token_that_is_partly_answer_is_trained(tokenizer, chat):
    words = tokenizer("bare")
    assert words.tokenize(" blue") == ["Ġblue"]
    tokens = chat_tokens(words, chat("hi", "blue"), everything=False)
    assert pieces(words, tokens) == "user: hi\nassistant:[[ blue\n</s>]]"


def test_everything_trains_the_whole_chat(tokenizer, chat):
    words = tokenizer("chatml")
    tokens = chat_tokens(words, chat("hi", "yes"), everything=True)
    assert all(tokens.trained)
    assert (
        list(tokens.ids)
        == words.apply_chat_template(
            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        )["input_ids"]
    )


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_remedy(tokenizer, chat):
    words = tokenizer("forgetful")
    with pytest.raises(DataError, match=r"a\.jsonl:1.*earlier turns differently") as caught:
        chat_tokens(words, chat("hi", "yes", "why", "so"), everything=False)
    assert "train_on=everything" in caught.value.hint
    assert chat_tokens(words, chat("hi", "yes"), everything=False)
    assert chat_tokens(words, chat("hi", "yes", "why", "so"), everything=True)


def test_a_template_that_raises_is_a_data_error_with_its_words(tokenizer, chat):
    with pytest.raises(DataError, match="no system role"):
        chat_tokens(tokenizer("llama2"), chat("hi", "yes", system="s"), everything=False)


def test_a_chat_without_answer_trains_nothing(tokenizer, chat):
    assert not any(chat_tokens(tokenizer(), chat("hi"), everything=False).trained)


@pytest.mark.parametrize(
    ("template", "end"), [("chatml", "<|im_end|>"), ("llama2", "</s>"), ("bare", "</s>")]
)
def test_the_end_of_a_turn_is_found(template, end, tokenizer):
    words = tokenizer(template)
    assert end_of_turn(words) == words.convert_tokens_to_ids(end)


@pytest.mark.parametrize("bos", [False, True])
def test_a_text_ends_with_a_trained_eos_and_begins_as_the_tokenizer_wants(
    bos, tokenizer, text, recipe
):
    words = tokenizer("none", bos=bos)
    tokens = encode.tokenize(words, text("hello world"), recipe("m").data)
    start = [words.bos_token_id] if bos else []
    body = words("hello world", add_special_tokens=False)["input_ids"]
    assert list(tokens.ids) == [*start, *body, words.eos_token_id]
    assert tokens.trained[-1]


def test_eos_is_trained_and_padding_never_even_if_they_are_the_same(tokenizer, text, recipe):
    words = tokenizer("none", pad="</s>")
    items = encode.encode(
        words, [text("hello"), text("hello world, how are you?")], recipe("m").data, 64, _silent
    )
    batch = encode.collate(items, words.pad_token_id, CPU)
    targets = torch.full(batch.inputs["input_ids"].shape, -100)
    targets.view(-1)[batch.inputs["kept"]] = batch.inputs["targets"]
    short = len(items[0].ids)
    assert targets[0, short - 2] == words.eos_token_id
    assert (targets[0, short - 1 :] == -100).all()
    assert batch.inputs["attention_mask"][0].tolist() == [1] * short + [0] * (
        len(items[1].ids) - short
    )
    assert batch.weight == (targets != -100).sum() == sum(len(item.ids) - 1 for item in items)


def _silent(done: int, total: int) -> None:
    pass


def test_only_positions_that_predict_are_kept(tokenizer, chat, recipe):
    words = tokenizer()
    (item,) = encode.encode(words, [chat("hi there", "yes")], recipe("m").data, 64, _silent)
    batch = encode.collate([item], 0, CPU)
    assert "attention_mask" not in batch.inputs
    learned = item.trained.nonzero()[:, 0]
    assert batch.inputs["kept"].tolist() == (learned - 1).tolist()
    assert batch.inputs["targets"].tolist() == item.ids[learned].tolist()


def test_long_examples_are_cut_or_dropped_as_the_recipe_says(tokenizer, text, recipe, caplog):
    words, examples = tokenizer(), [text("hello"), text("hello world, " * 20)]
    cut = encode.encode(words, examples, recipe("m").data, 16, _silent)
    assert [len(item.ids) for item in cut][1] == 16
    assert words.eos_token_id not in cut[1].ids
    assert "1 of 2 examples were cut at 16 tokens" in caplog.text
    caplog.clear()
    data = recipe("m", data={"over_long": "drop"}).data
    assert len(encode.encode(words, examples, data, 16, _silent)) == 1
    assert "1 of 2 examples have more than 16 tokens and were left out" in caplog.text


def test_examples_whose_answer_is_cut_off_are_dropped_and_counted(tokenizer, chat, recipe, caplog):
    examples = [chat("hi", "yes"), chat("hello world, " * 20, "yes")]
    with caplog.at_level(logging.WARNING):
        items = encode.encode(tokenizer(), examples, recipe("m").data, 32, _silent)
    assert len(items) == 1
    assert "1 of 2 examples have nothing to learn within 32 tokens" in caplog.text
    with pytest.raises(DataError, match="none of the 1 examples has a token to learn"):
        encode.encode(tokenizer(), examples[1:], recipe("m").data, 32, _silent)


def test_empty_texts_are_dropped(tokenizer, text, recipe):
    items = encode.encode(tokenizer(), [text(""), text("a")], recipe("m").data, 32, _silent)
    assert len(items) == 1


def test_a_chat_for_a_tokenizer_without_template_is_refused_with_the_remedy(
    tokenizer, chat, recipe
):
    with pytest.raises(ModelError, match="no chat template") as caught:
        encode.tokenize(tokenizer("none"), chat("hi", "yes"), recipe("m").data)
    assert "data.format=instruction" in caught.value.hint


@pytest.mark.parametrize("bos", [False, True])
def test_instructions_have_a_plain_template_where_the_tokenizer_has_none(
    bos, tokenizer, chat, recipe
):
    words, chosen = tokenizer("none", bos=bos), recipe("m", data={"format": "instruction"})
    encode.prepare_tokenizer(words, chosen)
    assert words.chat_template == plain_template(tokenizer("none", bos=bos))
    tokens = encode.tokenize(words, chat("hi", "yes"), chosen.data)
    assert pieces(words, tokens) == ("<s>" if bos else "") + (
        "### Instruction:\nhi\n\n### Response:\n[[yes</s>]]"
    )


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    item = encode.Item(torch.tensor([1, 328]), torch.tensor([False, True]))
    with pytest.raises(ModelError, match="token 328, but the model has only 328"):
        encode.check_ids([item], 328)


def test_preview_cuts_where_training_does(model_folder, recipe, text):
    chosen = recipe(model_folder("gpt2", "none"), data={"max_length": 500})
    (shown,) = FAMILY.preview(chosen, [text("hello " * 90)])
    assert "trained 63 of 64 tokens (cut from" in shown


def test_progress_counts_the_examples(tokenizer, text, recipe):
    seen = []
    encode.encode(
        tokenizer(), [text("a"), text("b")], recipe("m").data, 9, lambda *at: seen.append(at)
    )
    assert seen == [(1, 2), (2, 2)]


def test_preview_marks_what_is_learned_and_counts_it(model_folder, recipe, chat):
    examples = [
        chat("hi", "yes"),
        TextExample("b.jsonl:2", messages=(Message("user", "hello " * 40),)),
    ]
    shown, left_out = FAMILY.preview(recipe(model_folder()), examples)
    count, text = shown.split("\n", 1)
    assert count.startswith("a.jsonl:1: trained ")
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[yes<|im_end|>]]\n"
    assert left_out.startswith("b.jsonl:2: left out, nothing to learn")
