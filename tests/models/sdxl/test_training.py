"""The loss and its conditions are diffusers' own; batches follow from items and draws alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from micro.sdxl import RecipeFor, Widths, examples
from torch import Tensor

from acmsao_cli.config.sdxl import SdxlRecipe
from acmsao_cli.data.images import fit
from acmsao_cli.data.randomness import Draw
from acmsao_cli.models.base import Batch
from acmsao_cli.models.lora import ADAPTER, adapted_layers
from acmsao_cli.models.quiet import quiet_libraries
from acmsao_cli.models.sdxl import encode
from acmsao_cli.models.sdxl.encode import pixels
from acmsao_cli.models.sdxl.family import FAMILY
from acmsao_cli.models.sdxl.trainee import SdxlTrainee

CPU, META = torch.device("cpu"), torch.device("meta")
METHODS: list[dict[str, Any]] = [
    {"kind": "lora"},
    {"kind": "lora", "dora": True, "rslora": True},
    {"kind": "lora", "targets": ["to_q", "conv1"], "dora": True},
    {"kind": "full"},
    {"kind": "lora", "text_encoders": True},
    {"kind": "full", "text_encoders": True},
]


def opened(recipe: SdxlRecipe, dtype: torch.dtype = torch.float32) -> SdxlTrainee:
    return FAMILY.open(recipe, CPU, dtype)


def batch_of(trainee: SdxlTrainee, count: int = 2, first: int = 0) -> Batch:
    items = trainee.encode(examples()[:count])
    return trainee.collate(items, [Draw(5, first + n) for n in range(count)])


def plain_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    with quiet_libraries():
        return StableDiffusionXLPipeline.from_pretrained(folder)


def perturb(trainee: SdxlTrainee) -> None:
    """Move the adapters off zero, so that they count."""
    generator = torch.Generator().manual_seed(1)
    for group in trainee.parameter_groups():
        for _, parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_equals_a_plain_transcription_with_diffusers_schedulers(
    folder_of: Callable[[Widths], Path], recipe_for: RecipeFor, prediction: str, gamma: float | None
) -> None:
    folder = folder_of(Widths(prediction=prediction))
    recipe = recipe_for(
        folder,
        method={"kind": "full"},
        loss={"min_snr_gamma": gamma},
        data={"caption_dropout": 0.0},
    )
    trainee = opened(recipe)
    ours = trainee.loss(batch_of(trainee))

    pipeline = plain_pipeline(folder)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    expected = torch.zeros(())
    for number, example in enumerate(examples()[:2]):
        draw = Draw(5, number)
        fitted = fit(example.open(), 64, True, 16)
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels(fitted.image)).latent_dist
            text, _, pooled, _ = pipeline.encode_prompt(
                example.caption, device="cpu", do_classifier_free_guidance=False
            )
        scale = pipeline.vae.config.scaling_factor
        mean, deviation = (posterior.mean * scale).half(), (posterior.std * scale).half()
        shape = tuple(mean.shape[1:])
        latents = mean.float() + deviation.float() * draw.normal("posterior", shape)
        noise = draw.normal("noise", shape)[None]
        timesteps = torch.tensor([draw.integer("timestep", 1000)])
        time_ids = pipeline._get_add_time_ids(
            fitted.original_size, fitted.crop, fitted.target_size, torch.float32, 24
        )
        predicted = pipeline.unet(
            scheduler.add_noise(latents, noise, timesteps),
            timesteps,
            text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
        velocity = scheduler.get_velocity(latents, noise, timesteps)
        target = noise if prediction == "epsilon" else velocity
        error = (predicted - target).square().mean()
        if gamma is not None:
            snr = compute_snr(scheduler, timesteps)
            capped = snr.clamp(max=gamma)
            error = error * (capped / (snr + 1 if prediction == "v_prediction" else snr)).sum()
        expected = expected + error
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-6)
    assert ours.dtype == torch.float32
    assert ours.shape == ()


def test_conditions_are_those_of_the_pipelines_own_encode_prompt(
    micro: Path, recipe_for: RecipeFor
) -> None:
    trainee = opened(recipe_for(micro, data={"caption_dropout": 0.0}))
    batch = batch_of(trainee)
    pipeline = plain_pipeline(micro)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            [one.caption for one in examples()[:2]], device="cpu", do_classifier_free_guidance=False
        )
    torch.testing.assert_close(batch.inputs["embeds"], embeds)
    torch.testing.assert_close(batch.inputs["pooled"], pooled)


def test_size_conditions_are_original_crop_and_target_height_first(
    micro: Path, recipe_for: RecipeFor
) -> None:
    trainee = opened(recipe_for(micro, data={"buckets": False}))
    items = trainee.encode(examples())
    assert items[2].time_ids == (80, 160, 0, 32, 64, 64)
    batch = trainee.collate(items[2:], [Draw(0, 0)])
    assert batch.inputs["time_ids"].tolist() == [[80, 160, 0, 32, 64, 64]]


def test_items_of_one_bucket_share_their_key(micro: Path, recipe_for: RecipeFor) -> None:
    trainee = opened(recipe_for(micro))
    square, other, wide = (trainee.group_key(item) for item in trainee.encode(examples()))
    assert square == other
    assert square != wide


@pytest.mark.parametrize("force_zeros", [True, False])
@pytest.mark.parametrize("text_encoders", [True, False])
def test_a_dropped_caption_is_the_pipelines_own_empty_prompt(
    folder_of: Callable[[Widths], Path],
    recipe_for: RecipeFor,
    force_zeros: bool,
    text_encoders: bool,
) -> None:
    folder = folder_of(Widths(force_zeros=force_zeros))
    recipe = recipe_for(
        folder,
        method={"kind": "full", "text_encoders": text_encoders},
        data={"caption_dropout": 0.9999},
    )
    trainee = opened(recipe)
    text = trainee._condition(batch_of(trainee, 1).inputs)
    pipeline = plain_pipeline(folder)
    with torch.no_grad():
        _, embeds, _, pooled = pipeline.encode_prompt("red", device="cpu")
    torch.testing.assert_close(text.embeds, embeds)
    torch.testing.assert_close(text.pooled, pooled)
    assert bool((text.embeds == 0).all()) == force_zeros


def test_training_the_text_encoders_starts_at_the_same_loss(
    micro: Path, recipe_for: RecipeFor
) -> None:
    def start(trained: bool) -> Tensor:
        method = {"kind": "lora", "text_encoders": trained}
        trainee = opened(recipe_for(micro, method=method, data={"caption_dropout": 0.5}))
        return trainee.loss(batch_of(trainee, first=3))

    torch.testing.assert_close(start(True), start(False))


def test_a_batch_is_its_pictures_whatever_they_are_grouped_with(
    micro: Path, recipe_for: RecipeFor
) -> None:
    trainee = opened(recipe_for(micro, data={"flip": True, "caption_dropout": 0.5}))
    items = trainee.encode(examples()[:2])
    draws = [Draw(0, 7), Draw(0, 8)]
    both = trainee.collate(items, draws)
    for n in range(2):
        alone = trainee.collate([items[n]], [draws[n]])
        for name, value in both.inputs.items():
            assert torch.equal(value[n : n + 1], alone.inputs[name]), name
    parts = sum(trainee.loss(trainee.collate([items[n]], [draws[n]])) for n in range(2))
    torch.testing.assert_close(trainee.loss(both), parts)
    assert both.weight == 2


def test_flip_draws_both_orientations(micro: Path, recipe_for: RecipeFor) -> None:
    trainee = opened(recipe_for(micro, data={"flip": True}))
    (item,) = trainee.encode(examples()[:1])
    draws = [Draw(0, n) for n in range(10)]
    seen = set()
    for draw in draws:
        latents = trainee.collate([item], [draw]).inputs["latents"][0]
        seen |= {n for n in (0, 1) if torch.equal(latents, item.orientations[n].sample(draw))}
    assert seen == {0, 1}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_recomputing_activations_changes_no_gradient(
    micro: Path, recipe_for: RecipeFor, method: dict[str, Any]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        training = {"steps": 1, "gradient_checkpointing": checkpointing}
        trainee = opened(recipe_for(micro, method=method, training=training))
        perturb(trainee)
        trainee.loss(batch_of(trainee, 1)).backward()
        gradients.append(
            {
                name: parameter.grad
                for group in trainee.parameter_groups()
                for name, parameter in group.parameters
                if parameter.grad is not None
            }
        )
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], recomputed[name])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_meta_twin_has_the_same_weights_batches_and_gradients_in_shape(
    micro: Path, recipe_for: RecipeFor, method: dict[str, Any]
) -> None:
    dtype = torch.bfloat16
    recipe = recipe_for(micro, method=method, training={"gradient_checkpointing": True, "steps": 1})
    real, meta = opened(recipe, dtype), FAMILY.open(recipe, META, dtype)
    batch, meta_batch = batch_of(real), meta.meta_batch(2)
    real.loss(batch).backward()
    meta.loss(meta_batch).backward()
    assert {name: (one.dtype, one.ndim) for name, one in batch.inputs.items()} == {
        name: (one.dtype, one.ndim) for name, one in meta_batch.inputs.items()
    }
    assert all(one.is_meta for one in meta_batch.inputs.values())
    described = [
        [
            (group.lr, name, parameter.shape, parameter.dtype, parameter.grad is None)
            for group in trainee.parameter_groups()
            for name, parameter in group.parameters
        ]
        for trainee in (real, meta)
    ]
    assert described[0] == described[1]


def test_bf16_weights_train_fp32_adapters_close_to_fp32(micro: Path, recipe_for: RecipeFor) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        trainee = opened(recipe_for(micro), dtype)
        perturb(trainee)
        losses.append(trainee.loss(batch_of(trainee)))
        assert next(trainee.parts.vae.parameters()).dtype == torch.float32
        for _, layer in adapted_layers(trainee.parts.unet):
            assert layer.lora_A[ADAPTER].weight.dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)


def test_only_what_the_method_trains_has_gradients(micro: Path, recipe_for: RecipeFor) -> None:
    trainee = opened(recipe_for(micro, method={"kind": "full"}))
    (group,) = trainee.parameter_groups()
    assert len(group.parameters) == len(list(trainee.parts.unet.parameters()))
    assert all(name.startswith("unet.") for name, _ in group.parameters)
    for frozen in (trainee.parts.vae, trainee.parts.text_encoder, trainee.parts.text_encoder_2):
        assert not frozen.training
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_text_encoders_have_their_own_learning_rate(micro: Path, recipe_for: RecipeFor) -> None:
    method = {"kind": "lora", "text_encoders": True, "text_encoder_lr": 1e-5}
    groups = opened(recipe_for(micro, method=method)).parameter_groups()
    assert [group.lr for group in groups] == [None, 1e-5, 1e-5]
    names = [name for group in groups for name, _ in group.parameters]
    assert len(names) == len(set(names))


def test_all_linear_is_every_linear_layer_of_the_transformer_blocks(
    micro: Path, recipe_for: RecipeFor
) -> None:
    trainee = opened(recipe_for(micro, method={"kind": "lora", "text_encoders": True}))
    unet = {name for name, _ in adapted_layers(trainee.parts.unet)}
    expected = {
        name.removesuffix(".base_layer")
        for name, module in trainee.parts.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and "attentions" in name and "lora_" not in name
    }
    assert unet == expected
    assert len(list(adapted_layers(trainee.parts.text_encoder))) == 2 * 6


def test_progress_ends_at_its_total(micro: Path, recipe_for: RecipeFor) -> None:
    told: list[tuple[int, int]] = []
    opened(recipe_for(micro)).encode(examples(), lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_picture_of_which_the_vae_makes_no_numbers_is_told_and_left_out(
    micro: Path, recipe_for: RecipeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior, made = encode.posterior, []

    def second_is_infinite(vae: Any, image: Any) -> encode.Posterior:
        made.append(posterior(vae, image))
        return made[-1] if len(made) != 2 else replace(made[-1], deviation=made[-1].mean / 0)

    monkeypatch.setattr(encode, "posterior", second_is_infinite)
    told: list[str] = []
    trainee = opened(recipe_for(micro))
    items = trainee.encode(examples(), unusable=lambda one, error: told.append(error.message))
    assert [item.caption for item in items] == ["red round", "blue round"]
    assert told == ["the VAE makes numbers that are not finite of b.png"]


@pytest.mark.parametrize("text_encoders", [False, True])
def test_captions_that_are_cut_are_counted_once(
    micro: Path,
    recipe_for: RecipeFor,
    caplog: pytest.LogCaptureFixture,
    text_encoders: bool,
) -> None:
    trainee = opened(recipe_for(micro, method={"text_encoders": text_encoders}))
    whole, *_ = examples()
    long = replace(whole, caption="red round " * 100)
    trainee.encode([whole])
    assert caplog.messages == []
    trainee.encode([long, whole, long])
    most = trainee.parts.tokenizer.model_max_length
    assert caplog.messages == [f"2 of 3 captions were cut at {most} tokens"]
