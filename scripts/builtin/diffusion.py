"""Train the miniature SDXL: UNet and both text encoders jointly, from scratch, on the captioned
world.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from clock import Clock
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from text import END, START, clip_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from vae import SIDE, to_tensor
from world import (
    PALETTE,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    caption,
    estranged,
    random_scene,
    random_view,
    render,
)

BATCH = 16
PEAK_RATE = 1e-3
ZERO_CAPTIONS = 0.1
STRANGE_CAPTIONS = 0.15
HEAVIEST = 50.0
EMA_DECAY = 0.995
BANK = 4096
VOCABULARY = 768
WIDTH_1, WIDTH_2, POOLED = 64, 96, 96
CHANNELS = (32, 64, 96)
TIME_WIDTH = 32
WORD_STEPS = 250
WORDS = 40
ATTRIBUTES = {
    "shape": list(SHAPES),
    "colour": list(PALETTE),
    "ground": list(PALETTE),
    "size": list(SIZES),
    "place": list(PLACES),
}


class Denoiser(nn.Module):
    """What the diffusion loss trains: the UNet and the two text encoders."""

    def __init__(self, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
        super().__init__()
        first, second = tokenizers
        shared = {
            "vocab_size": len(first),
            "max_position_embeddings": 77,
            "bos_token_id": first.convert_tokens_to_ids(START),
            "eos_token_id": first.convert_tokens_to_ids(END),
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
        }
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH_1,
                intermediate_size=4 * WIDTH_1,
                projection_dim=WIDTH_1,
                hidden_act="quick_gelu",
                pad_token_id=first.pad_token_id,
                **shared,
            )
        )
        self.text_encoder_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=WIDTH_2,
                intermediate_size=4 * WIDTH_2,
                projection_dim=POOLED,
                hidden_act="gelu",
                pad_token_id=second.pad_token_id,
                **shared,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=SIDE // 4,
            in_channels=4,
            out_channels=4,
            block_out_channels=CHANNELS,
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 1, 1],
            attention_head_dim=[max(1, c // 32) for c in CHANNELS],
            cross_attention_dim=WIDTH_1 + WIDTH_2,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=6 * TIME_WIDTH + POOLED,
            norm_num_groups=8,
        )

    def encode(self, ids_1: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """SDXL's conditioning: both penultimate states side by side [n, 77, d], and the pooled
        projection [n, p].
        """
        first = self.text_encoder(ids_1, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat(
            [first.hidden_states[-2], second.hidden_states[-2]], dim=-1
        ), second.text_embeds

    def forward(
        self,
        noisy: Tensor,
        steps: Tensor,
        ids: tuple[Tensor, Tensor],
        keep: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """The noise in `noisy`; where `keep` [n] is 0 the caption's embeddings are zeros, as for an
        empty prompt.
        """
        states, pooled = self.encode(*ids)
        added = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        return self.unet(noisy, steps, states * keep[:, None, None], added_cond_kwargs=added).sample


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
        interpolation_type="linear",
        use_karras_sigmas=False,
    )


@dataclass(frozen=True)
class Bank:
    """Encoded pictures [n, 4, h, w], their scenes and SDXL size conditions [n, 6]."""

    latents: Tensor
    scenes: list[Scene]
    time_ids: Tensor


@torch.no_grad()
def encode_bank(vae: AutoencoderKL, seed: int, count: int, device: str) -> Bank:
    """A bank of training scenes, scaled latents in fp32 on `device`."""
    random = Random(seed)
    seen = [(random_scene(random), random_view(random, SIDE)) for _ in range(count)]
    chunks = []
    for start in range(0, count, 32):
        pictures = to_tensor(
            [render(scene, view, random) for scene, view in seen[start : start + 32]]
        )
        chunks.append(
            vae.encode(pictures.to(device)).latent_dist.sample() * vae.config.scaling_factor
        )
    time_ids = torch.tensor([view.time_ids for _, view in seen], dtype=torch.float32, device=device)
    return Bank(torch.cat(chunks), [scene for scene, _ in seen], time_ids)


def _tokens(tokenizer: CLIPTokenizer, captions: list[str], device: str) -> Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids.to(device)


def _training_caption(scene: Scene, random: Random) -> str:
    words = caption(scene, random)
    return estranged(words, scene, random) if random.random() < STRANGE_CAPTIONS else words


@dataclass
class Trainer:
    """Everything one training step touches."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    model: Denoiser
    ema: Denoiser
    optimizer: torch.optim.Optimizer
    signal: Tensor
    device: str
    step: int = 0

    def batch_loss(self, bank: Bank, random: Random) -> Tensor:
        """Weighted mean squared error of the predicted noise over one batch."""
        rows = [random.randrange(len(bank.scenes)) for _ in range(BATCH)]
        captions = [_training_caption(bank.scenes[row], random) for row in rows]
        ids = (
            _tokens(self.tokenizers[0], captions, self.device),
            _tokens(self.tokenizers[1], captions, self.device),
        )
        latents = bank.latents[rows]
        # Colours and places are settled where noise is strong: those steps come a little more
        # often.
        steps = (1000 * torch.rand(BATCH, device=self.device) ** 0.6).long().clamp_(max=999)
        share = self.signal[steps][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        keep = (torch.rand(BATCH, device=self.device) >= ZERO_CAPTIONS).float()
        predicted = self.model(noisy, steps, ids, keep, bank.time_ids[rows])
        # Where noise is strong, a wrong colour hardly shows in the noise's error: weigh it as in
        # the clean picture.
        weight = (1 / share).clamp(max=HEAVIEST)
        return (weight * (predicted - noise).square()).mean()

    def take_step(self, bank: Bank, random: Random, rate: float) -> float:
        """One update of the weights and of their running average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.batch_loss(bank, random)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.model.parameters()), 1 - decay
            )
        return float(loss.detach())


def new_trainer(seed: int, device: str) -> Trainer:
    """A fresh trainer; the vocabulary is learned from captions of the world."""
    torch.manual_seed(seed)
    random = Random(seed)
    tokenizers = clip_tokenizers(
        [caption(random_scene(random), random) for _ in range(4000)], VOCABULARY
    )
    model = Denoiser(tokenizers).to(device)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3
    )
    signal = new_scheduler().alphas_cumprod.to(device)
    return Trainer(tokenizers, model, ema, optimizer, signal, device)


def teach_words(
    model: Denoiser, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], seed: int, steps: int
) -> float:
    """Warm-start the text encoders: throwaway heads read a scene off the embeddings. The last loss.

    The diffusion loss teaches words too, but only after the UNet listens; this lets both start at
    once.
    """
    device, random = str(next(model.parameters()).device), Random(seed)
    heads = nn.ModuleDict(
        {
            name: nn.Linear(POOLED + WIDTH_1 + WIDTH_2, len(values))
            for name, values in ATTRIBUTES.items()
        }
    ).to(device)
    encoders = [*model.text_encoder.parameters(), *model.text_encoder_2.parameters()]
    optimizer = torch.optim.AdamW([*encoders, *heads.parameters()], lr=PEAK_RATE, weight_decay=1e-3)
    for step in range(steps):
        scenes = [random_scene(random) for _ in range(2 * BATCH)]
        captions = [_training_caption(scene, random) for scene in scenes]
        # Later tokens cannot change earlier states: short rows teach the same as padded ones.
        ids_1, ids_2 = (_tokens(tokenizer, captions, device)[:, :WORDS] for tokenizer in tokenizers)
        states, pooled = model.encode(ids_1, ids_2)
        ends = (ids_1 == tokenizers[0].eos_token_id).int().argmax(1)
        read = torch.cat([pooled, states[torch.arange(len(ends)), ends]], dim=-1)
        truths = {
            name: torch.tensor(
                [values.index(getattr(scene, name)) for scene in scenes], device=device
            )
            for name, values in ATTRIBUTES.items()
        }
        loss = sum(
            nn.functional.cross_entropy(head(read), truths[name]) for name, head in heads.items()
        )
        optimizer.param_groups[0]["lr"] = PEAK_RATE * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def save_progress(trainer: Trainer, seconds: float, path: Path) -> None:
    """Write all that a later call needs to go on; whole or not at all."""
    fresh = path.with_suffix(".new")
    state = {
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.state_dict(),
        "step": trainer.step,
        "seconds": seconds,
    }
    torch.save({**state, "optimizer": trainer.optimizer.state_dict()}, fresh)
    fresh.replace(path)


def load_progress(trainer: Trainer, path: Path) -> float:
    """Restore what `save_progress` wrote; the seconds already worked, or 0.0."""
    if not path.exists():
        return 0.0
    state = torch.load(path, map_location=trainer.device)
    trainer.model.load_state_dict(state["model"])
    trainer.ema.load_state_dict(state["ema"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step = state["step"]
    return float(state["seconds"])


def train_denoiser(
    vae: AutoencoderKL, minutes: float, seed: int, device: str, work: Path
) -> tuple[Trainer, float]:
    """Train by the clock; progress goes to `work` every minute and is taken up if there. Also the
    seconds worked.
    """
    saved = work / "denoiser-progress.pt"
    trainer = new_trainer(seed, device)
    clock = Clock(minutes, worked_before=load_progress(trainer, saved))
    if clock.share == 1:
        return trainer, clock.worked_before
    if trainer.step == 0:
        teach_words(trainer.model, trainer.tokenizers, seed, WORD_STEPS)
    bank = encode_bank(vae, seed + trainer.step, BANK, device)
    random, snapshot_at, losses = Random(f"{seed}/{trainer.step}"), clock.seconds + 60, []
    while clock.share < 1:
        losses.append(trainer.take_step(bank, random, clock.rate(PEAK_RATE, trainer.step)))
        if clock.seconds > snapshot_at or clock.share == 1:
            snapshot_at = clock.seconds + 60
            mean = sum(losses) / len(losses)
            print(
                f"denoiser {clock.seconds:5.0f} s  step {trainer.step}  loss {mean:.4f}",
                flush=True,
            )
            losses = []
            save_progress(trainer, clock.seconds, saved)
    return trainer, clock.seconds


def export(trainer: Trainer, vae: AutoencoderKL, out: Path) -> None:
    """Write the averaged weights as a pipeline folder, fp16 safetensors."""
    averaged = copy.deepcopy(trainer.ema).to("cpu", torch.float16)
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).to("cpu", torch.float16),
        text_encoder=averaged.text_encoder,
        text_encoder_2=averaged.text_encoder_2,
        tokenizer=trainer.tokenizers[0],
        tokenizer_2=trainer.tokenizers[1],
        unet=averaged.unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(out)
