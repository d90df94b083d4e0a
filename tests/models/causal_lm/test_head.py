"""The loss in chunks is the loss at once, for whatever a model does behind its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_model, build_recipe, build_tokenizer
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from acmsao_cli.config.rules import broken_rules
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.causal_lm.family import FAMILY
from acmsao_cli.models.causal_lm.head import LOGITS_AT_ONCE, positions_at_once
from acmsao_cli.models.causal_lm.loss import LOSS_HEAD
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.optim.tracing import StorageTracer

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = {"vocab_size": 328, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LIBRARYS = {
    "cohere": lambda: CohereForCausalLM(
        CohereConfig(**SIZE, intermediate_size=48, logit_scale=0.5, bos_token_id=1, eos_token_id=2)
    ),
    "granite": lambda: GraniteForCausalLM(
        GraniteConfig(**SIZE, intermediate_size=48, logits_scaling=3.0, tie_word_embeddings=True)
    ),
    "granite-untied": lambda: GraniteForCausalLM(
        GraniteConfig(**SIZE, intermediate_size=48, logits_scaling=3.0, tie_word_embeddings=False)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=16, dropout=0.0)
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZE, intermediate_size=48)),
}
KINDS = ["llama", "llama-tied", "gemma2", "gpt2", *LIBRARYS]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        torch.manual_seed(0)
        with quiet_libraries():
            model = LIBRARYS[kind]() if kind in LIBRARYS else build_model(kind)
            model.save_pretrained(base / kind)
            build_tokenizer().save_pretrained(base / kind)
    return {kind: base / kind for kind in KINDS}


def opened(folder: Path, chunk: Any, method: dict[str, Any], device=CPU, **more: Any) -> Any:
    recipe = build_recipe(folder, method=method, memory={"loss_chunk": chunk}, **more)
    with torch.random.fork_rng(devices=[]):
        return FAMILY.open(recipe, device, torch.float32)


def batch_of(trainee: Any, chat: Any, text: Any) -> Any:
    examples = [chat("what colour is the sky?", "blue", "hello", "hi"), text("hello world")]
    return trainee.collate(trainee.encode(examples), [])


def loss_and_gradients(trainee: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = trainee.loss(batch) / 7.0
    loss.backward()
    groups = trainee.parameter_groups()
    return loss.detach(), {name: p.grad for group in groups for name, p in group.parameters}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_have_the_loss_and_gradients_of_the_whole(
    kind, method, checkpointing, folders, chat, text
):
    found = []
    for chunk in (None, 5):
        trainee = opened(
            folders[kind],
            chunk,
            METHODS[method],
            training={"gradient_checkpointing": checkpointing},
        )
        batch = batch_of(trainee, chat, text)
        assert len(batch.inputs["kept"]) > 5
        found.append(loss_and_gradients(trainee, batch))
    (whole, slopes), (chunked, others) = found
    torch.testing.assert_close(chunked, whole)
    assert slopes.keys() == others.keys()
    for name, slope in slopes.items():
        assert (slope is None) == (others[name] is None), name
        if slope is not None:
            torch.testing.assert_close(others[name], slope, rtol=2e-4, atol=1e-6, msg=name)


def test_an_adapter_on_the_head_learns_in_chunks(folders, chat, text):
    method = {"kind": "lora", "rank": 4, "targets": ["lm_head", "q_proj"]}
    found = []
    for chunk in (None, 5):
        trainee = opened(folders["llama"], chunk, method)
        with torch.no_grad():
            for name, parameter in trainee.parameter_groups()[0].parameters:
                if "lora_B" in name:
                    parameter.fill_(0.1)
        found.append(loss_and_gradients(trainee, batch_of(trainee, chat, text)))
    for name, slope in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], slope, rtol=2e-4, atol=1e-6, msg=name)


def test_nothing_is_left_on_the_model(folders, chat, text):
    trainee = opened(folders["llama"], 5, METHODS["full"])
    trainee.loss(batch_of(trainee, chat, text)).backward()
    for module in trainee.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_no_more_than_a_chunk_of_logits_exists(kind, method, folders):
    """And the gradient of a trained head once, never one for each chunk."""
    length, batch_size, chunk = 64, 8, 16
    held = {}
    for at_once in (None, chunk):
        trainee = opened(folders[kind], at_once, METHODS[method], META)
        batch = trainee.meta_batch(batch_size)
        tracer = StorageTracer()
        with tracer:
            trainee.loss(batch)
        held[at_once] = max(head_bytes(tracer))
    logits = 4 * 328 * batch_size * (length - 1)
    head = 4 * 328 * 32 if method == "full" else 0
    states = 4 * 32 * batch_size * (length - 1)
    assert held[None] >= logits
    per_chunk = logits * chunk // (batch_size * (length - 1))
    # Logits, their gradient, fp32 copies of a slice; and the states' gradient.
    assert held[chunk] <= 6 * per_chunk + head + states + 4096


def head_bytes(tracer: StorageTracer) -> list[int]:
    """What the loss head held, over time."""
    sizes: dict[int, int] = {}
    totals, total = [], 0
    for number, size, category in tracer.events:
        if category == LOSS_HEAD:
            total += size - sizes.get(number, 0)
            sizes[number] = size
            totals.append(total)
    return totals


def test_auto_makes_chunks_of_so_many_logits():
    assert positions_at_once("auto", 128256) * 128256 <= LOGITS_AT_ONCE
    assert positions_at_once("auto", 2**27) == 1
    assert positions_at_once(None, 1000) is None
    assert positions_at_once(300, 1000) == 300


# A head whose gradient is computed in rows

UNTIED = ["llama", "phi"]


def sliced(folder: Path, slice_head: bool, chunk: Any = 5, device=CPU, **more: Any) -> Any:
    recipe = build_recipe(
        folder,
        method={"kind": "full"},
        memory={"loss_chunk": chunk, "slice_head": slice_head},
        optimizer={"fused_backward": True},
        training={"clip_norm": None} | more,
    )
    with torch.random.fork_rng(devices=[]):
        return FAMILY.open(recipe, device, torch.float32)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("kind", UNTIED)
def test_a_gradient_in_rows_is_the_gradient(kind, rows, chunk, folders, chat, text):
    whole = sliced(folders[kind], False, chunk)
    batch = batch_of(whole, chat, text)
    loss, slopes = loss_and_gradients(whole, batch)
    assert whole.gradients_in_rows() == []

    in_rows = sliced(folders[kind], True, chunk)
    again, others = loss_and_gradients(in_rows, batch)
    torch.testing.assert_close(again, loss)
    ((weight, gradient),) = in_rows.gradients_in_rows()
    assert in_rows.gradients_in_rows() == []
    assert weight is in_rows.model.get_output_embeddings().weight
    assert weight.grad is None
    name = next(n for n, p in in_rows.parameter_groups()[0].parameters if p is weight)
    found = torch.cat([part[0] for part in gradient.split(rows)])
    torch.testing.assert_close(found, slopes[name], rtol=2e-4, atol=1e-6)
    for name, slope in others.items():
        if slope is not None:
            torch.testing.assert_close(slope, slopes[name], rtol=2e-4, atol=1e-6, msg=name)


def test_the_heads_gradient_never_exists(folders):
    held = {}
    for slice_head in (False, True):
        trainee = sliced(folders["llama"], slice_head, 16, META)
        tracer = StorageTracer()
        with tracer:
            trainee.loss(trainee.meta_batch(8)).backward()
        head = 4 * 328 * 32
        held[slice_head] = max(head_bytes(tracer))
    assert held[False] - held[True] >= 0.9 * head


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("llama-tied", "embeds by its head"),
        ("granite-untied", "does something to its logits"),
        ("gpt2", "embeds by its head"),
    ],
)
@pytest.mark.parametrize("device", [CPU, META])
def test_a_head_that_cannot_be_sliced_is_refused(kind, why, device, folders):
    trainee = sliced(folders[kind], True, 5, device)
    batch = (
        trainee.meta_batch(2)
        if device is META
        else trainee.collate([trainee_item(trainee)] * 2, [])
    )
    with pytest.raises(ConfigError, match=why) as told:
        trainee.loss(batch)
    assert "memory.slice_head=false" in str(told.value.hint)


def trainee_item(trainee: Any) -> Any:
    from acmsao_cli.data.base import TextExample

    return trainee.encode([TextExample("one", text="hello world")])[0]


@pytest.mark.parametrize(
    "setting",
    [
        {"method": {"kind": "lora", "rank": 4}},
        {"optimizer": {"fused_backward": False}},
        {"training": {"accumulation": 2, "clip_norm": None}},
        {"training": {"clip_norm": 1.0, "clip": "delayed"}},
    ],
)
def test_what_a_sliced_head_excludes_is_refused(setting, folders):
    sections = {
        "method": {"kind": "full"},
        "memory": {"slice_head": True},
        "optimizer": {"fused_backward": True},
        "training": {"clip_norm": None},
    } | setting
    recipe = build_recipe(folders["llama"], **sections)
    problems = [problem.message for problem in broken_rules(recipe, {}, "here")]
    assert any("memory.slice_head" in message for message in problems)
