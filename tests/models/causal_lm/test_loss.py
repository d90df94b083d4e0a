"""The loss is the sum of next-token cross-entropies, whatever portions it is taken in."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from acmsao_cli.models.causal_lm import loss as module
from acmsao_cli.models.causal_lm.family import FAMILY
from acmsao_cli.models.causal_lm.loss import IGNORED, summed_cross_entropy

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("rows_per_slice", [1, 3, 100])
def test_loss_and_gradient_equal_torchs_cross_entropy(monkeypatch, rows_per_slice):
    monkeypatch.setattr(module, "SLICE_ENTRIES", 11 * rows_per_slice)
    logits = torch.randn(2, 4, 11, requires_grad=True)
    targets = torch.tensor([[3, IGNORED, 0, 10], [IGNORED, 1, 1, IGNORED]])
    theirs = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    (expected,) = torch.autograd.grad(theirs, logits)
    ours = summed_cross_entropy(logits, targets)
    (grad,) = torch.autograd.grad(ours * 2.0, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, expected * 2.0)


def test_bf16_logits_are_summed_in_fp32():
    logits = torch.randn(64, 50).bfloat16().requires_grad_()
    targets = torch.randint(50, (64,))
    loss = summed_cross_entropy(logits, targets)
    expected = functional.cross_entropy(logits.float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_loss_is_transformers_own_mean_times_the_number_of_trained_tokens(
    kind, model_folder, recipe, chat, text
):
    trainee = FAMILY.open(recipe(model_folder(kind)), CPU, torch.float32)
    items = trainee.encode(
        [chat("what colour is the sky?", "blue", "hello", "hi there"), text("hello world")]
    )
    batch = trainee.collate(items, [])
    length = max(len(item.ids) for item in items)
    ids = torch.zeros(2, length, dtype=torch.long)
    labels = torch.full((2, length), IGNORED)
    mask = torch.zeros(2, length, dtype=torch.long)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = item.ids
        labels[row, : len(item.ids)] = torch.where(item.trained, item.ids.long(), IGNORED)
        mask[row, : len(item.ids)] = 1
    theirs = trainee.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert batch.weight == (labels[:, 1:] != IGNORED).sum()
    torch.testing.assert_close(trainee.loss(batch) / batch.weight, theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_in_portions_equals_the_whole(model_folder, recipe, chat, text, checkpointing):
    trainee = FAMILY.open(
        recipe(model_folder("qwen2"), training={"gradient_checkpointing": checkpointing}),
        CPU,
        torch.float32,
    )
    items = trainee.encode(
        [chat("hello", "hi there, how are you?"), text("hello"), text("the sky is blue. " * 3)]
    )
    weights = dict(trainee.parameter_groups()[0].parameters)

    def gradients(portions):
        batches = [trainee.collate(portion, []) for portion in portions]
        total = sum(batch.weight for batch in batches)
        trainee.model.zero_grad()
        for batch in batches:
            (trainee.loss(batch) / total).backward()
        return {name: weight.grad.clone() for name, weight in weights.items()}

    whole = gradients([items])
    parts = gradients([[item] for item in items])
    for name in weights:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "method", [{"kind": "full"}, {"kind": "lora"}, {"kind": "lora", "dora": True}]
)
def test_loss_and_backward_run_on_the_meta_device(
    kind, method, checkpointing, model_folder, recipe
):
    chosen = recipe(
        model_folder(kind),
        method=method,
        training={"gradient_checkpointing": checkpointing},
    )
    trainee = FAMILY.open(chosen, META, torch.bfloat16)
    batch = trainee.meta_batch(2)
    assert batch.weight == 2 * 63
    loss = trainee.loss(batch)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "meta")
    loss.backward()
    for name, weight in trainee.parameter_groups()[0].parameters:
        assert weight.grad is not None, name


def test_padding_changes_nothing(model_folder, recipe, text):
    trainee = FAMILY.open(recipe(model_folder("llama")), CPU, torch.float32)
    short, long = trainee.encode([text("hello"), text("hello world, how are you?")])
    together = trainee.loss(trainee.collate([short, long], []))
    apart = sum(trainee.loss(trainee.collate([item], [])) for item in (short, long))
    torch.testing.assert_close(together, apart)
