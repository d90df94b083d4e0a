"""Where weights and activations are kept changes no bit, and bounds what is on the device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from micro.causal_lm import build_model, build_recipe, build_tokenizer
from micro.sdxl import RecipeFor, Widths, examples, micro_pipeline
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.data.base import TextExample
from acmsao_cli.data.randomness import Draw
from acmsao_cli.engine import activations, streaming
from acmsao_cli.engine.step import Core, NotFiniteError, build_core, let_go_of_step, training_step
from acmsao_cli.engine.streaming import WINDOW, spread
from acmsao_cli.engine.symptoms import excerpt
from acmsao_cli.errors import ConfigError
from acmsao_cli.models import catalog
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.optim.tracing import FROM_DEVICE, TO_DEVICE, StorageTracer

FUSED = {"fused_backward": True, "storage": "factored", "lr": 0.01}
FULL = {"method": {"kind": "full"}, "optimizer": FUSED}
LORA = {"method": {"kind": "lora", "rank": 4}, "optimizer": {"lr": 0.01}}
TWO_PASS = {"clip": "two_pass", "clip_norm": 0.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    with quiet_libraries():
        micro_pipeline(Widths(transformers=(1, 2, 2))).save_pretrained(base / "sdxl")
        build_model("llama").save_pretrained(base / "causal_lm")
        build_tokenizer().save_pretrained(base / "causal_lm")
    return {name: base / name for name in ("sdxl", "causal_lm")}


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and activations of micro models are small."""
    monkeypatch.setattr(streaming, "SMALLEST", 1)
    monkeypatch.setattr(activations, "SMALLEST", 1)


def recipe_of(family: str, folder: Path, memory: dict[str, Any], **sections: Any) -> Recipe:
    training = {"steps": 3, "batch_size": 2, "clip_norm": None} | sections.pop("training", {})
    build: Callable[..., Recipe] = RecipeFor() if family == "sdxl" else build_recipe
    return build(folder, training=training, memory=memory, **sections)


def trained(
    recipe: Recipe, steps: int = 2, *, guard_first: bool = False
) -> tuple[Core, dict[str, Tensor], list[float]]:
    """Step a few times; the core, its weights and the losses.

    `guard_first`: every step is first left out at its loss, and then taken.
    """

    def refuse(what: str, value: Tensor) -> None:
        raise NotFiniteError(what)

    device = torch.device("cpu")
    trainee = catalog.family(recipe.model.family).open(recipe, device, torch.float32)
    core = build_core(recipe, trainee)
    if recipe.model.family == "sdxl":
        items = trainee.encode(examples()[:2])
    else:
        texts = ("hello world, how are you?", "the sky is blue.")
        items = trainee.encode([TextExample(f"{n}", text=text) for n, text in enumerate(texts)])
    losses, portions = [], recipe.training.accumulation
    for step in range(steps):
        batches = [
            trainee.collate(items, [Draw(0, 10 * step + n) for n in range(2)])
            for _ in range(portions)
        ]
        if guard_first:
            with pytest.raises(NotFiniteError):
                training_step(core, batches, first_micro_batch=0, lr_factor=1.0, guard=refuse)
            let_go_of_step(core)
        result = training_step(core, batches, first_micro_batch=portions * step, lr_factor=1.0)
        losses.append(float(result.loss))
    with core.at_home():
        groups = trainee.parameter_groups()
        return core, {n: p.detach().clone() for g in groups for n, p in g.parameters}, losses


CASES = {
    "full": FULL,
    "full-checkpointed": FULL | {"training": {"gradient_checkpointing": True}},
    "full-accumulated": FULL | {"training": {"accumulation": 2}},
    "full-two-pass": FULL | {"training": TWO_PASS | {"gradient_checkpointing": True}},
    "lora": LORA,
    "lora-checkpointed": LORA | {"training": {"gradient_checkpointing": True}},
}


@dataclass(eq=False)
class Resident:
    """What runs with everything on the device end at: each is made once, as it is asked for."""

    folders: Mapping[str, Path]
    known: dict[tuple[str, str], tuple[dict[str, Tensor], list[float]]] = field(
        default_factory=dict
    )

    def __call__(self, family: str, case: str) -> tuple[dict[str, Tensor], list[float]]:
        """Weights and losses."""
        if (family, case) not in self.known:
            recipe = recipe_of(family, self.folders[family], {}, **CASES[case])
            _, weights, losses = trained(recipe)
            self.known[family, case] = weights, losses
        return self.known[family, case]


@pytest.fixture(scope="module")
def resident_run(folders: dict[str, Path]) -> Resident:
    return Resident(folders)


@pytest.mark.parametrize(
    ("case", "resident"), [*((case, 0) for case in CASES), ("full", 1), ("lora", 1)]
)
@pytest.mark.parametrize("family", ["sdxl", "causal_lm"])
def test_streamed_weights_end_at_the_bits_of_resident_ones(
    family: str, case: str, resident: int, folders: dict[str, Path], resident_run: Resident
) -> None:
    expected, losses = resident_run(family, case)
    streamed = recipe_of(family, folders[family], {"resident_blocks": resident}, **CASES[case])
    core, weights, others = trained(streamed)
    assert losses == others
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
    assert core.stream is not None
    assert len(core.stream.blocks) == len(core.trainee.blocks()) - resident
    assert 0 < core.stream.most_here <= WINDOW
    assert all(w.untyped_storage().nbytes() == 0 for b in core.stream.blocks for w in b.weights)


def test_a_block_that_the_last_portion_leaves_out_is_stepped_all_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is the first portion's, and it is at home when backward is over."""
    forward, calls = LlamaDecoderLayer.forward, Counter[nn.Module]()

    def sometimes(self: Any, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        calls[self] += 1
        if self.self_attn.layer_idx == 1 and calls[self] % 2 == 0:
            return hidden_states
        return forward(self, hidden_states, *arguments, **keywords)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", sometimes)
    case = CASES["full-accumulated"]
    _, expected, losses = trained(recipe_of("causal_lm", folders["causal_lm"], {}, **case))
    streamed = recipe_of("causal_lm", folders["causal_lm"], {"resident_blocks": 0}, **case)
    core, weights, others = trained(streamed)
    assert losses == others
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())
    assert core.stream is not None
    assert core.stream.most_here <= WINDOW
    assert not any(block.here for block in core.stream.blocks)


@pytest.mark.parametrize("sliced", [False, True])
def test_a_step_that_is_left_out_leaves_nothing_behind(
    folders: dict[str, Path], sliced: bool
) -> None:
    """Neither a block on the device nor a head's gradient that the next step would take."""
    memory = {"resident_blocks": 0, "offload_activations": True, "slice_head": sliced}
    recipe = recipe_of("causal_lm", folders["causal_lm"], memory, **FULL)
    _, expected, losses = trained(recipe)
    core, weights, others = trained(recipe, guard_first=True)
    assert losses == others
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())
    assert not core.trainee.gradients_in_rows()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["sdxl", "causal_lm"])
def test_activations_kept_by_the_host_change_no_bit(
    family: str, case: str, folders: dict[str, Path], resident_run: Resident
) -> None:
    expected, losses = resident_run(family, case)
    memory = {"offload_activations": True, "resident_blocks": 0}
    _, weights, others = trained(recipe_of(family, folders[family], memory, **CASES[case]))
    assert losses == others
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


def test_weights_that_wait_in_host_memory_can_be_watched(folders: dict[str, Path]) -> None:
    """Their storage on the device is empty meanwhile."""
    nearest = {"optimizer": {"fused_backward": True, "rounding": "nearest"}}
    recipe = recipe_of("causal_lm", folders["causal_lm"], {"resident_blocks": 0}, **FULL | nearest)
    trainee = catalog.family("causal_lm").open(recipe, torch.device("cpu"), torch.bfloat16)
    looked_at = excerpt(build_core(recipe, trainee))
    assert looked_at is not None
    assert looked_at.unmoved() == 1.0


def test_optimizer_state_of_trained_blocks_lives_with_them(folders: dict[str, Path]) -> None:
    recipe = recipe_of("causal_lm", folders["causal_lm"], {"resident_blocks": 0}, **FULL)
    core, _, _ = trained(recipe, 1)
    assert core.optimizer.state_bytes() > 0
    resident = sum(piece.nbytes for piece in core.optimizer.resident_state())
    assert resident < 0.1 * core.optimizer.state_bytes()


@pytest.mark.parametrize(("method", "goes_home"), [(LORA, False), (FULL, True)])
def test_only_a_block_that_was_stepped_goes_home(
    folders: dict[str, Path], method: dict[str, Any], goes_home: bool
) -> None:
    recipe = recipe_of("causal_lm", folders["causal_lm"], {"resident_blocks": 0}, **method)
    with StorageTracer() as tracer:
        core, _, _ = trained(recipe, 1)
    assert core.stream is not None
    assert tracer.crossed[TO_DEVICE] >= core.stream.nbytes
    least, most = (core.stream.nbytes, math.inf) if goes_home else (0, 0)
    assert least <= tracer.crossed[FROM_DEVICE] <= most
    weights = [weight for block in core.stream.blocks for weight in block.weights]
    assert all(weight.requires_grad == goes_home for weight in weights)


def test_the_blocks_that_stay_are_spread_evenly() -> None:
    blocks = [nn.Identity() for _ in range(8)]
    places = [[blocks.index(block) for block in spread(blocks, count)] for count in (0, 1, 4, 8)]
    assert places == [[], [0], [0, 2, 4, 6], list(range(8))]


def test_a_sliced_head_beside_streamed_blocks_has_the_bits_of_one_beside_resident_ones(
    folders: dict[str, Path],
) -> None:
    memory = {"slice_head": True}
    _, resident, losses = trained(recipe_of("causal_lm", folders["causal_lm"], memory, **FULL))
    away = memory | {"resident_blocks": 0, "offload_activations": True}
    _, streamed, others = trained(recipe_of("causal_lm", folders["causal_lm"], away, **FULL))
    assert losses == others
    for name, value in resident.items():
        assert torch.equal(value, streamed[name]), name


def test_more_blocks_than_there_are_cannot_stay(folders: dict[str, Path]) -> None:
    recipe = recipe_of("causal_lm", folders["causal_lm"], {"resident_blocks": 99}, **FULL)
    with pytest.raises(ConfigError, match=r"resident_blocks` is 99, but this model has \d+ blocks"):
        trained(recipe, steps=0)
