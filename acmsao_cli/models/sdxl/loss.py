"""The denoising loss: what the UNet should have said, and how much each error counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.models.sdxl.components import Config, Prediction, noise_schedule


@dataclass(frozen=True)
class Diffusion:
    """x_t = a_t x + s_t e with a_t² + s_t² = 1; tables over t, fp32 [steps].

    `weights` is min-SNR's (arXiv:2303.09556): min(snr, gamma) / snr for epsilon, / (snr + 1)
    for v; ones without gamma.
    """

    prediction: Prediction
    signal: Tensor
    noise: Tensor
    weights: Tensor

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t."""
        signal, sigma = self._at(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """e, or v = a_t e - s_t x (arXiv:2202.00512)."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._at(timesteps)
        return signal * noise - sigma * latents

    def loss(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """0-d fp32: each picture's mean squared error times its weight, summed over pictures."""
        errors = (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))
        return (errors * self.weights[timesteps]).sum()

    def _at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal[timesteps].view(-1, 1, 1, 1), self.noise[timesteps].view(-1, 1, 1, 1)


def diffusion(
    scheduler: Config, prediction: Prediction, min_snr_gamma: float | None, device: torch.device
) -> Diffusion:
    """The tables of the model's own noise schedule, on `device`."""
    kept = noise_schedule(scheduler).alphas_cumprod.float()
    snr = kept / (1 - kept)
    weights = torch.ones_like(snr)
    if min_snr_gamma is not None:
        weights = snr.clamp(max=min_snr_gamma) / (snr if prediction == "epsilon" else snr + 1)
    return Diffusion(
        prediction,
        signal=kept.sqrt().to(device),
        noise=(1 - kept).sqrt().to(device),
        weights=weights.to(device),
    )
