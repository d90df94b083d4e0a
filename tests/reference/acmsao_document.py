"""ACMSAO as its document prints it (sections 5.2.1 to 5.2.6), repaired where it cannot run.

The order and the names are the document's: one parameter at a time, entries in Python lists, in
float64. Repairs are numbered as in docs/acmsao-document.md. `draw(step, scale)` stands for
`random.random()`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Entry(NamedTuple):
    """(grad, grad_magnitude, step)."""

    grad: Tensor
    magnitude: float
    step: int


@dataclass
class Group:
    """The constructor's arguments."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # 17
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    cycle_period: int = 1000
    num_scales: int = 3
    history_size: int = 8  # 15
    sparsity_factor: float = 0.1
    magnitude_threshold: float = 0.5
    ram_offload: tuple[bool, ...] | None = None  # 3 to 6: where entries live changes no number
    similarity: str = "dot"
    temperature: float = 1.0
    factors: dict[str, float] = field(
        default_factory=lambda: {"high": 1.1, "mid": 1.0, "low": 0.9}  # 13
    )


@dataclass
class State:
    """One parameter's."""

    step: int = 0  # 1
    avg_magnitude: float = 0.0  # 2
    magnitude_var: float = 0.0
    multi_scale_history: list[list[Entry]] = field(default_factory=list)
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    max_exp_avg_sq: Tensor | None = None


def get_cycle_phase(step: int, cycle_period: int) -> str:
    cycle = math.floor(1 + step / (2 * cycle_period))
    x = abs(step / cycle_period - 2 * cycle + 1)
    if x < 0.25:
        return "high"
    if x > 0.75:
        return "low"
    return "mid"


def update_multi_scale_history(
    state: State, grad: Tensor, group: Group, draw: Callable[[int, int], float]
) -> None:
    grad_magnitude = float(torch.linalg.vector_norm(grad))
    state.avg_magnitude = 0.9 * state.avg_magnitude + 0.1 * grad_magnitude
    deviation = grad_magnitude - state.avg_magnitude
    state.magnitude_var = 0.9 * state.magnitude_var + 0.1 * deviation**2
    spread = math.sqrt(state.magnitude_var) + 1e-8
    adaptive_threshold = max(state.avg_magnitude + group.magnitude_threshold * spread, 1e-30)  # 16
    cycle_phase = get_cycle_phase(state.step, group.cycle_period)
    for i, history in enumerate(state.multi_scale_history):
        if state.step % (4**i) != 0:
            continue
        temporal_factor = 1 / (i + 1)
        if cycle_phase == "high":
            temporal_factor *= 2
        elif cycle_phase == "low":
            temporal_factor *= 0.5
        lucky = draw(state.step, i) < group.sparsity_factor * temporal_factor  # 14
        magnitude_importance = grad_magnitude / adaptive_threshold
        entry = Entry(grad.clone(), grad_magnitude, state.step)
        if len(history) < group.history_size:
            if magnitude_importance > 1 or lucky:
                history.append(entry)
        else:
            replace_score = magnitude_importance * temporal_factor
            min_score, min_idx = float("inf"), -1
            for idx, (_, h_mag, h_step) in enumerate(history):
                score = (h_mag / adaptive_threshold) * (1 / (state.step - h_step + 1))
                if score < min_score:
                    min_score, min_idx = score, idx
            if replace_score > min_score or lucky:
                history[min_idx] = entry


def compute_attention(state: State, grad: Tensor, group: Group) -> list[Tensor | None]:
    """Weights by scale; None where the scale has no entries."""
    attention_weights: list[Tensor | None] = []
    for i, history in enumerate(state.multi_scale_history):
        if not history:
            attention_weights.append(None)
            continue
        grads = torch.stack([h.grad.reshape(-1) for h in history])  # 7
        similarities = grads @ grad.reshape(-1)
        if group.similarity == "cosine":
            lengths = torch.linalg.vector_norm(grads, dim=1) * torch.linalg.vector_norm(grad)
            similarities = similarities / lengths.clamp(min=1e-30)
        ages = torch.tensor([(state.step - h.step) / (4**i) for h in history]).double()  # 8
        adjusted = similarities / (1 + ages) / group.temperature
        attention_weights.append(torch.softmax(adjusted, dim=0))
    return attention_weights


def compute_update(
    state: State, param: Tensor, grad: Tensor, weights: list[Tensor | None], group: Group
) -> Tensor:
    state.step += 1
    beta1, beta2 = group.betas
    if state.exp_avg is None or state.exp_avg_sq is None:
        state.exp_avg, state.exp_avg_sq = torch.zeros_like(param), torch.zeros_like(param)  # 9
    attn_grad = torch.zeros_like(param)
    for history, of_scale in zip(state.multi_scale_history, weights, strict=True):
        if of_scale is not None:
            for entry, weight in zip(history, of_scale, strict=True):
                attn_grad += weight * entry.grad
    if all(of_scale is None for of_scale in weights):
        attn_grad = grad  # 10
    state.exp_avg = beta1 * state.exp_avg + (1 - beta1) * attn_grad
    state.exp_avg_sq = beta2 * state.exp_avg_sq + (1 - beta2) * attn_grad**2
    second = state.exp_avg_sq
    if group.amsgrad:  # 12
        before = second if state.max_exp_avg_sq is None else state.max_exp_avg_sq
        second = state.max_exp_avg_sq = torch.maximum(before, second)
    bias_correction1 = 1 - beta1**state.step
    bias_correction2 = 1 - beta2**state.step
    denom = second.sqrt() / math.sqrt(bias_correction2) + group.eps
    step_size = group.lr / bias_correction1
    update = state.exp_avg / denom
    update = update + group.weight_decay * param  # 11
    return step_size * update


def step(
    state: State, param: Tensor, grad: Tensor, group: Group, draw: Callable[[int, int], float]
) -> Tensor:
    """Return the parameter after one gradient."""
    if not state.multi_scale_history:
        state.multi_scale_history = [[] for _ in range(group.num_scales)]
    update_multi_scale_history(state, grad, group, draw)
    attention_weights = compute_attention(state, grad, group)
    update = compute_update(state, param, grad, attention_weights, group)
    factor = group.factors[get_cycle_phase(state.step, group.cycle_period)]
    return param - update * factor


def train(
    param: Tensor, grads: Iterable[Tensor], group: Group, draw: Callable[[int, int], float]
) -> tuple[Tensor, State]:
    """Return the parameter and its state after all gradients."""
    state, param = State(), param.double()
    for grad in grads:
        param = step(state, param, grad.double(), group, draw)
    return param, state
