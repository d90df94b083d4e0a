"""SDXL under training: what is trained, what is computed once, and the loss of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.config.sdxl import SdxlLora, SdxlRecipe
from acmsao_cli.data.base import Example, ImageExample, Unusable, refused
from acmsao_cli.data.images import bucket_sizes
from acmsao_cli.data.randomness import Draw
from acmsao_cli.data.workers import in_order
from acmsao_cli.errors import DataError, ModelError
from acmsao_cli.models.base import (
    Batch,
    Exported,
    ParameterGroup,
    Progress,
    Sample,
    TrainingFacts,
    silent,
)
from acmsao_cli.models.lora import attach_lora, split_targets
from acmsao_cli.models.sdxl.closed_form import activation_bytes
from acmsao_cli.models.sdxl.components import (
    CLASSES,
    TEXT_ENCODERS,
    Components,
    latent_stride,
)
from acmsao_cli.models.sdxl.encode import Item, encode_picture, fitting, stack
from acmsao_cli.models.sdxl.export import Work, export_all
from acmsao_cli.models.sdxl.loss import Diffusion
from acmsao_cli.models.sdxl.sample import draw_samples, visiting
from acmsao_cli.models.sdxl.text import TextCondition, condition, num_cut, token_ids
from acmsao_cli.optim.in_rows import GradientInRows

logger = logging.getLogger(__name__)

EMPTY = ""
CAPTIONS_AT_ONCE = 8

# The words of `method.targets`. All-linear is every linear layer of the transformer blocks, which
# is what kohya's trainer adapts and every program that loads SDXL LoRAs knows.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
TARGET_WORDS = {
    "attention": ATTENTION,
    "all-linear": (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "fc1", "fc2"),
}
TEXT_ENDINGS = frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"})


class SdxlTrainee:
    """A pipeline with a method applied; see `models.base.Trainee`."""

    def __init__(
        self,
        recipe: SdxlRecipe,
        parts: Components,
        diffusion: Diffusion,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.recipe = recipe
        self.parts = parts
        self.diffusion = diffusion
        self.device = device
        self.dtype = dtype
        self._captions: tuple[str, ...] = ()
        self._conditions: dict[str, TextCondition] = {}
        self._token_ids: dict[str, tuple[Tensor, Tensor]] = {}
        self._apply_method()

    # What is trained

    def _apply_method(self) -> None:
        method, trained = self.recipe.method, self.modules()
        for component in ("unet", "vae", *TEXT_ENCODERS):
            self.parts.module(component).requires_grad_(False).eval()
        if isinstance(method, SdxlLora):
            targets = split_targets(_endings(method), trained)
            for component, module in trained.items():
                seed = self.recipe.training.seed
                attach_lora(module, method, targets[component], seed, component)
        else:
            for module in trained.values():
                module.requires_grad_(True)
        for module in trained.values():
            module.train()
        if self.recipe.training.gradient_checkpointing:
            for module in trained.values():
                _checkpoint_activations(module)

    def modules(self) -> Mapping[str, nn.Module]:
        """The UNet; the text encoders too if they are trained (else their work is cached)."""
        trained = ("unet", *TEXT_ENCODERS) if self.recipe.method.text_encoders else ("unet",)
        return {component: self.parts.module(component) for component in trained}

    def blocks(self) -> Sequence[nn.Module]:
        """The UNet's residual and transformer blocks; what lies between them is small."""
        unet = self.parts.unet
        stages = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        return [block for stage in stages for block in _blocks_of(stage)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group for each trained component, named `component.weight`."""
        return [
            ParameterGroup(
                tuple(
                    (f"{component}.{name}", parameter)
                    for name, parameter in module.named_parameters()
                    if parameter.requires_grad
                ),
                None if component == "unet" else self.recipe.method.text_encoder_lr,
            )
            for component, module in self.modules().items()
        ]

    # What is computed once

    def activation_bytes(self, batch_size: int, *, checkpointed: bool, offloaded: bool) -> int:
        """By formula, of the largest pictures."""
        return activation_bytes(self, batch_size, checkpointed=checkpointed, offloaded=offloaded)

    def at_rest(self) -> Sequence[nn.Module]:
        """The VAE, and the text encoders unless they are trained."""
        return [self.parts.module(name) for name in CLASSES if name not in self.modules()]

    @property
    def item_bytes(self) -> int:
        """Its latents' distributions, one more if it may be mirrored, and its text condition."""
        inputs = self.meta_batch(1).inputs
        posterior = 2 * 2 * inputs["latents"].numel()  # fp16 mean and deviation
        text = sum(inputs[name].nbytes for name in ("embeds", "pooled") if name in inputs)
        return posterior * (2 if self.recipe.data.flip else 1) + text

    def encode(
        self,
        examples: Sequence[Example],
        progress: Progress = silent,
        unusable: Unusable = refused,
    ) -> Sequence[Item]:
        """Latents of the pictures; the captions' conditions, or their tokens if those train."""
        pictured = [_pictured(example) for example in examples]
        captions = dict.fromkeys([EMPTY, *(example.caption for example in pictured)])
        missing = [caption for caption in captions if caption not in self._known_captions()]
        pictures, total = len(pictured), len(pictured) + len(missing)
        items = self._encode_pictures(pictured, lambda done: progress(done, total), unusable)
        self._captions = tuple(item.caption for item in items)
        self._tell_cut_captions()
        if self.recipe.method.text_encoders:
            for caption in missing:
                self._token_ids[caption] = self._tokens([caption])
        else:
            self._encode_captions(missing, lambda done: progress(pictures + done, total))
        return items

    def _encode_pictures(
        self, examples: Sequence[ImageExample], tell: Callable[[int], None], unusable: Unusable
    ) -> list[Item]:
        """Of those that are still what they were found to be, and make finite numbers."""
        vae, data, items = self.parts.vae, self.recipe.data, []
        jobs = [fitting(example, data) for example in examples]
        with visiting([vae], self.device), in_order(jobs, data.workers) as found:
            for done, (example, fitted) in enumerate(zip(examples, found, strict=True), 1):
                try:
                    if isinstance(fitted, DataError):
                        raise fitted
                    items.append(encode_picture(vae, example, fitted, flip=data.flip))
                except (DataError, ModelError) as error:
                    unusable(example, error)
                tell(done)
        return items

    def _tell_cut_captions(self) -> None:
        tokenizer = self.parts.tokenizer
        cut, most = num_cut(tokenizer, self._captions), tokenizer.model_max_length
        if cut:
            total = len(self._captions)
            logger.warning("%d of %d captions were cut at %d tokens", cut, total, most)

    def _known_captions(self) -> Mapping[str, object]:
        return self._token_ids if self.recipe.method.text_encoders else self._conditions

    def _tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        parts = self.parts
        return token_ids(parts.tokenizer, captions), token_ids(parts.tokenizer_2, captions)

    def _encode_captions(self, captions: Sequence[str], tell: Callable[[int], None]) -> None:
        encoders = self.parts.text_encoder, self.parts.text_encoder_2
        with visiting(list(encoders), self.device):
            for start in range(0, len(captions), CAPTIONS_AT_ONCE):
                chunk = captions[start : start + CAPTIONS_AT_ONCE]
                ids, ids_2 = (ids.to(self.device) for ids in self._tokens(chunk))
                embeds, pooled = condition(*encoders, ids, ids_2)
                for caption, *found in zip(chunk, embeds.cpu(), pooled.cpu(), strict=True):
                    self._conditions[caption] = TextCondition(*(one.clone() for one in found))
                tell(start + len(chunk))

    # Batches

    def group_key(self, item: Item) -> Hashable:
        """Pictures of one batch have latents of one shape."""
        return tuple(item.orientations[0].mean.shape)

    def collate(self, items: Sequence[Item], draws: Sequence[Draw]) -> Batch:
        """Each picture with its draw's orientation, posterior, noise, timestep and dropout."""
        latents = [
            item.orientations[draw.integer("flip", len(item.orientations))].sample(draw)
            for item, draw in zip(items, draws, strict=True)
        ]
        share = self.recipe.data.caption_dropout
        dropped = [draw.uniform("caption-dropout") < share for draw in draws]
        steps = len(self.diffusion.signal)
        inputs = {
            "latents": stack(latents, self.device),
            "noise": stack(
                [
                    draw.normal("noise", tuple(one.shape))
                    for one, draw in zip(latents, draws, strict=True)
                ],
                self.device,
            ),
            "timesteps": torch.tensor(
                [draw.integer("timestep", steps) for draw in draws], device=self.device
            ),
            "time_ids": torch.tensor(
                [item.time_ids for item in items], dtype=torch.float32, device=self.device
            ),
        }
        captions = [item.caption for item in items]
        text = self._token_inputs if self.recipe.method.text_encoders else self._cached_inputs
        return Batch(float(len(items)), inputs | text(captions, dropped))

    def _cached_inputs(self, captions: Sequence[str], dropped: Sequence[bool]) -> dict[str, Tensor]:
        zeros = TextCondition(*(torch.zeros_like(one) for one in self._conditions[EMPTY]))
        empty = zeros if self.parts.force_zeros else self._conditions[EMPTY]
        chosen = [
            empty if drop else self._conditions[caption]
            for caption, drop in zip(captions, dropped, strict=True)
        ]
        return {
            "embeds": stack([one.embeds for one in chosen], self.device),
            "pooled": stack([one.pooled for one in chosen], self.device),
        }

    def _token_inputs(self, captions: Sequence[str], dropped: Sequence[bool]) -> dict[str, Tensor]:
        """`keep` is 0 where the pipeline's empty prompt is zeros, not an encoded text."""
        chosen = [
            EMPTY if drop else caption for caption, drop in zip(captions, dropped, strict=True)
        ]
        zeroed = [drop and self.parts.force_zeros for drop in dropped]
        tokens = [self._token_ids[caption] for caption in chosen]
        return {
            "ids": torch.cat([ids for ids, _ in tokens]).to(self.device),
            "ids_2": torch.cat([ids for _, ids in tokens]).to(self.device),
            "keep": torch.tensor([float(not zero) for zero in zeroed], device=self.device),
        }

    def meta_batch(self, batch_size: int) -> Batch:
        """Zeros of the shapes of the largest bucket."""
        data, parts = self.recipe.data, self.parts
        sizes = bucket_sizes(data.resolution, data.bucket_step) if data.buckets else ()
        square = (data.resolution, data.resolution)
        height, width = max(sizes, key=lambda size: size[0] * size[1], default=square)
        stride = latent_stride(parts.vae.config)
        latents = (batch_size, parts.vae.config.latent_channels, height // stride, width // stride)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        inputs = {
            "latents": zeros(*latents),
            "noise": zeros(*latents),
            "timesteps": zeros(batch_size, dtype=torch.int64),
            "time_ids": zeros(batch_size, 6),
        }
        lengths = [tokens.model_max_length for tokens in (parts.tokenizer, parts.tokenizer_2)]
        if self.recipe.method.text_encoders:
            inputs["ids"], inputs["ids_2"] = (
                zeros(batch_size, length, dtype=torch.int64) for length in lengths
            )
            inputs["keep"] = zeros(batch_size)
        else:
            width_2 = parts.text_encoder_2.config.projection_dim
            wide = parts.unet.config.cross_attention_dim
            inputs["embeds"] = zeros(batch_size, lengths[0], wide, dtype=self.dtype)
            inputs["pooled"] = zeros(batch_size, width_2, dtype=self.dtype)
        return Batch(float(batch_size), inputs)

    # The loss

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean squared errors, summed over the pictures; fp32, 0-d."""
        inputs = batch.inputs
        latents, noise, timesteps = (inputs[name] for name in ("latents", "noise", "timesteps"))
        text = self._condition(inputs)
        predicted = self.parts.unet(
            self.diffusion.noisy(latents, noise, timesteps).to(self.dtype),
            timesteps,
            encoder_hidden_states=text.embeds,
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": inputs["time_ids"]},
            return_dict=False,
        )[0]
        target = self.diffusion.target(latents, noise, timesteps)
        return self.diffusion.loss(predicted, target, timesteps)

    def _condition(self, inputs: Mapping[str, Tensor]) -> TextCondition:
        if not self.recipe.method.text_encoders:
            return TextCondition(inputs["embeds"], inputs["pooled"])
        encoders = self.parts.text_encoder, self.parts.text_encoder_2
        text = condition(*encoders, inputs["ids"], inputs["ids_2"])
        keep = inputs["keep"].to(text.pooled.dtype)
        return TextCondition(text.embeds * keep[:, None, None], text.pooled * keep[:, None])

    def gradients_in_rows(self) -> Sequence[tuple[Tensor, GradientInRows]]:
        """Backward takes every gradient."""
        return ()

    # What comes out

    def sample(self) -> Iterator[Sample]:
        """A picture for each of the recipe's prompts."""
        return draw_samples(
            self.parts, self.recipe.samples, self.recipe.data.resolution, self.device
        )

    def export(self, directory: Path, facts: TrainingFacts) -> list[Exported]:
        """Write the recipe's formats and load each back."""
        work = Work(self.recipe, self.parts, self.diffusion.prediction, facts, self._captions)
        return export_all(work, directory)


def _blocks_of(stage: Any) -> Iterator[nn.Module]:
    """Those of a stage in turn: a residual block, then the transformer behind it."""
    attentions = getattr(stage, "attentions", ())
    for residual, attention in zip_longest(stage.resnets, attentions):
        yield residual
        yield from getattr(attention, "transformer_blocks", ())


def _endings(method: SdxlLora) -> Sequence[str]:
    """The endings that `method.targets` means; a word's, only those the trained parts have."""
    if not isinstance(method.targets, str):
        return method.targets
    words = TARGET_WORDS[method.targets]
    return [name for name in words if method.text_encoders or name not in TEXT_ENDINGS]


def _checkpoint_activations(module: nn.Module) -> None:
    """Each library has its own switch, and transformers has renamed its own."""
    switch: Any
    if switch := getattr(module, "enable_gradient_checkpointing", None):
        switch()
    elif switch := getattr(module, "activation_checkpointing_enable", None):
        switch(activation_checkpointing_kwargs={"use_reentrant": False})
    elif switch := getattr(module, "gradient_checkpointing_enable", None):
        switch(gradient_checkpointing_kwargs={"use_reentrant": False})


def _pictured(example: Example) -> ImageExample:
    assert isinstance(example, ImageExample), "SDXL is given pictures"
    return example
