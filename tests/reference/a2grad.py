"""A2Grad as printed: Deng et al. 2018 (arXiv:1810.00553), algorithm 1 and section 3, in float64."""

import torch
from torch import Tensor


def a2grad(
    weights: Tensor,
    grads: list[Tensor],
    *,
    variant: str,
    beta: float = 10.0,
    lips: float = 10.0,
    rho: float = 0.5,
    scalar: bool = False,
) -> Tensor:
    """Three points: where the gradient is taken, x, and the average of the x."""
    x = weights.double().clone()
    average = weights.double().clone()
    seen: list[Tensor] = []
    deviations: list[Tensor] = []
    smooth, largest = 0.0, torch.zeros(())
    here = weights.double()
    for k, grad in enumerate(grads):
        g = grad.double()
        seen.append(g)
        deviation = (g - torch.stack(seen).mean(0)).square()
        deviations.append(deviation.sum() if scalar else deviation)
        if variant == "uni":
            h = sum(deviations).sqrt()
        elif variant == "inc":  # (1, 2, ..., k + 1) / (k + 1), squared
            h = sum(d * ((i + 1) / (k + 1)) ** 2 for i, d in enumerate(deviations)).sqrt()
        else:
            smooth = deviations[0] if k == 0 else rho * smooth + (1 - rho) * deviations[-1]
            largest = smooth if k == 0 else torch.maximum(largest, smooth)
            h = ((k + 1) * largest).sqrt()
        coefficient = 1 / (2 * lips / (k + 1) + beta * h)
        alpha, next_alpha = 2 / (k + 2), 2 / (k + 3)
        x_new = x - coefficient * g
        average = here + alpha * (x_new - x)  # (1 - alpha) average + alpha x_new
        x = x_new
        here = (1 - next_alpha) * average + next_alpha * x
    return here


def a2grad_of_torch_optimizer(
    weights: Tensor,
    grads: list[Tensor],
    *,
    variant: str,
    beta: float = 10.0,
    lips: float = 10.0,
    rho: float = 0.5,
) -> Tensor:
    """The recurrences of torch_optimizer 0.3, with one h for each tensor."""
    w, x_k = weights.double().clone(), weights.double().clone()
    alpha_k, v_k, v_kk, avg = 1.0, 0.0, 0.0, grads[0].double()
    for step, grad in enumerate(grads):
        g = grad.double()
        gamma_k = 2 * lips / (step + 1)
        avg = (avg * step + g) / (step + 1)
        square = float((g - avg).square().sum())
        if variant == "exp":
            v_kk = square if step == 0 else rho * v_kk + (1 - rho) * square
            v_k = max(v_k, v_kk)
            h_k = ((step + 1) * v_k) ** 0.5
        else:
            if variant == "inc":
                v_k *= (step / (step + 1)) ** 2
            v_k += square
            h_k = v_k**0.5
        alpha_k_1 = 2 / (step + 3)
        coef = 1 / (gamma_k + beta * h_k)
        x_k = x_k - coef * g
        w = (1 - alpha_k_1) * w + alpha_k_1 * x_k - (1 - alpha_k_1) * alpha_k * coef * g
        alpha_k = alpha_k_1
    return w
