"""ACMSAO's scalable form as its equations say it: one parameter, in float64, by plain loops.

Steps count from 1. `draw(step, scale)` is the number in [0, 1) by which luck decides. With `lagged`
a sum over the parameter that attention goes by is that of the step before, and 0 at first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Phase = tuple[str, float, float, float]  # name, until, factor, recency
Draw = Callable[[int, int], float]


@dataclass
class Options:
    """Everything the optimizer takes, with its defaults."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    scales: Sequence[int] | str = (1, 4, 16)
    horizon: float | None = None
    alpha: float | Sequence[float] = 2.0
    nesterov: bool = True
    visits: str = "momentum"
    attention: str = "element"
    temperature: float = 0.1
    lagged: bool = True
    admission: str = "robust"
    kappa: float = 1.0
    sparsity_factor: float = 0.1
    magnitude_threshold: float = 0.5
    bank: str = "mean"
    history_size: int = 8
    cycle: float = 0.1
    cycle_period: float | str = 1000
    phases: Sequence[Phase] | None = None
    total_steps: int | None = None
    pace: str = "steps"
    growth: Callable[[int], float] | None = None
    ramp: Callable[[int], float] | None = None

    @property
    def strides(self) -> list[int]:
        return [1, 4, 16] if self.scales == "auto" else [int(one) for one in self.scales]

    @property
    def length(self) -> float:
        """Steps of the run."""
        return self.total_steps or 10 * (self.horizon or 25) * max(self.strides)

    @property
    def visits_at_the_end(self) -> float:
        """The horizon, of which a quarter of a run of known length is the longest."""
        if self.horizon is not None:
            return self.horizon
        if self.total_steps is None:
            return 25.0
        return min(0.25 * self.total_steps / max(self.strides), 50.0)

    @property
    def weights(self) -> list[float]:
        """alpha w_i; a ramp says the whole weight itself."""
        number = len(self.strides)
        if self.ramp is not None:
            return [1 / number] * number
        alphas = [self.alpha] * number if isinstance(self.alpha, int | float) else self.alpha
        return [alpha / number for alpha in alphas]


class Entry(NamedTuple):
    """Something a ring took in."""

    value: Tensor
    step: int


@dataclass
class Bank:
    """The past of one scale."""

    mean: Tensor
    entries: list[Entry] = field(default_factory=list)
    admitted: int = 0
    refused_in_a_row: int = 0
    steps: list[int] = field(default_factory=list)  # at which something was taken in


@dataclass
class State:
    """One parameter's."""

    momentum: Tensor
    square: Tensor
    largest: Tensor
    banks: list[Bank]
    step: int = 0
    progress: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    peak_rate: float = 0.0
    last: dict[str, list[float]] = field(default_factory=dict)  # what lagged sums know
    mix: Tensor | None = None  # d of the last step
    fresh: Tensor | None = None


def start(weights: Tensor, options: Options) -> State:
    def zeros() -> Tensor:
        return torch.zeros(weights.shape, dtype=torch.float64)

    return State(zeros(), zeros(), zeros(), [Bank(zeros()) for _ in options.strides])


def phase_at(step: int, options: Options) -> tuple[float, float]:
    """Factor and recency of the phase in which a step from 0 lies."""
    period = options.cycle_period
    if isinstance(period, str):
        period = options.length / 2
    cycle = math.floor(1 + step / (2 * period))
    x = abs(step / period - 2 * cycle + 1)
    if options.phases is None:
        if x < 0.25:
            return 1 + options.cycle, 2.0
        if x > 0.75:
            return 1 - options.cycle, 0.5
        return 1.0, 1.0
    for _, until, factor, recency in options.phases[:-1]:
        if x < until or (x == until and until > 0.5):
            return factor, recency
    return options.phases[-1][2:]


def observe(state: State, norm: float) -> None:
    """mu and var; after three steps a norm counts as at most ten means."""
    seen = min(norm, 10 * state.mean) if state.step > 3 and state.mean > 0 else norm
    state.mean = 0.9 * state.mean + 0.1 * seen
    state.variance = 0.9 * state.variance + 0.1 * (seen - state.mean) ** 2


def admits(
    state: State, index: int, norm: float, chance: float, recency: float, options: Options
) -> bool:
    """Whether the bank of a scale takes in what it is shown at this visit."""
    if options.admission == "always":
        return True
    bank, spread = state.banks[index], math.sqrt(state.variance)
    if chance < options.sparsity_factor * recency / (index + 1):
        return True
    if options.admission == "magnitude":
        return norm > state.mean + options.magnitude_threshold * (spread + 1e-8)
    if options.admission == "importance":
        return chance * state.mean <= norm
    if bank.admitted < 3 or bank.refused_in_a_row == 4:
        return True
    return norm <= 1.25 * state.mean + options.kappa * spread


def visit(state: State, grad: Tensor, corrected: Tensor, options: Options, draw: Draw) -> None:
    """Show the banks whose turn it is what there is to remember."""
    norm = math.sqrt(float((grad * grad).sum()))
    _, recency = phase_at(state.step - 1, options)
    horizon = visits_remembered(state, corrected, options)
    for index, (stride, bank) in enumerate(zip(options.strides, state.banks, strict=True)):
        if state.step % stride:
            continue
        if not admits(state, index, norm, draw(state.step, index), recency, options):
            bank.refused_in_a_row += 1
            continue
        bank.admitted, bank.refused_in_a_row = bank.admitted + 1, 0
        bank.steps.append(state.step)
        shown = grad if stride == 1 or options.visits == "gradient" else corrected
        bank.mean = bank.mean + (shown - bank.mean) / horizon
        bank.entries = [*bank.entries, Entry(shown, state.step)][-options.history_size :]


def visits_remembered(state: State, corrected: Tensor, options: Options) -> float:
    if options.growth is not None:
        return max(1.0, options.growth(state.step))
    horizon = options.visits_at_the_end * state.progress
    if options.scales == "auto":
        (square,) = known(state, "square", [float((corrected**2).sum())], options)
        power = max(state.mean**2 + state.variance, 1e-30)
        signal = min(max(square / power, 1e-3), 1.0)
        horizon *= min(max(math.sqrt((1 - signal) / signal / 10), 0.25), 4.0)
    return max(1.0, horizon)


def known(state: State, name: str, now: list[float], options: Options) -> list[float]:
    """Sums of this step, or of the one before."""
    if not options.lagged:
        return now
    before = state.last.get(name, [0.0] * len(now))
    state.last[name] = now
    return before


def cosine(dot: float, a: float, b: float) -> float:
    length = math.sqrt(a) * math.sqrt(b)
    return dot / length if length > 1e-30 else 0.0


def softmax(scores: Sequence[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def recalled(state: State, grad: Tensor, index: int, options: Options) -> Tensor:
    """What the bank of a scale has to say to a gradient."""
    bank, stride = state.banks[index], options.strides[index]
    if options.bank == "mean":
        return bank.mean
    if not bank.entries:
        return torch.zeros_like(grad)
    own = float((grad * grad).sum())
    scores = []
    for entry in bank.entries:
        similar = cosine(
            float((grad * entry.value).sum()), own, float((entry.value * entry.value).sum())
        )
        age = (state.step - entry.step) / stride
        scores.append(similar / (1 + age) / options.temperature)
    mixed = torch.zeros_like(grad)
    for weight, entry in zip(softmax(scores), bank.entries, strict=True):
        mixed = mixed + weight * entry.value
    return mixed


def remembered(state: State, grad: Tensor, options: Options) -> Tensor:
    """alpha sum_i w_i H_i, with the attention that acts on the memory."""
    values = [recalled(state, grad, index, options) for index in range(len(state.banks))]
    memory = torch.zeros_like(grad)
    for weight, value in zip(options.weights, values, strict=True):
        memory = memory + weight * value
    if options.attention in ("none", "element"):
        return memory
    if options.attention == "tensor":
        return max(0.0, similarities(state, grad, [memory], options)[0]) * memory
    if options.attention == "element_per_scale":
        agree = [(value * grad >= 0).double() for value in values]
        shares = known(state, "kept", [float(one.mean()) for one in agree], options)
        result = torch.zeros_like(grad)
        for weight, value, one, share in zip(options.weights, values, agree, shares, strict=True):
            kept = value * one / max(share if share > 0 else 1.0, least(options))
            result = result + weight * kept
        return result
    similar = similarities(state, grad, values, options)
    if options.attention == "scale":
        of_scales = [max(0.0, one) for one in similar]
    else:
        of_scales = [
            len(values) * one for one in softmax([s / options.temperature for s in similar])
        ]
    result = torch.zeros_like(grad)
    for weight, share, value in zip(options.weights, of_scales, values, strict=True):
        result = result + weight * share * value
    return result


def least(options: Options) -> float:
    """A kept share counts as at least so much: of the step before it says less."""
    return 0.25 if options.lagged else 1e-3


def similarities(
    state: State, grad: Tensor, values: Sequence[Tensor], options: Options
) -> list[float]:
    """Cosines between the gradient and each of the values."""
    now = [float((grad * grad).sum())]
    now += [float((grad * value).sum()) for value in values]
    now += [float((value * value).sum()) for value in values]
    own, *rest = known(state, "similarity", now, options)
    number = len(values)
    return [cosine(rest[index], own, rest[number + index]) for index in range(number)]


def attended(state: State, update: Tensor, grad: Tensor, options: Options) -> Tensor:
    """Keep the elements that the gradient does not contradict."""
    if options.attention != "element":
        return update
    agree = (update * grad >= 0).double()
    (share,) = known(state, "share", [float(agree.mean())], options)
    return update * agree / max(share if share > 0 else 1.0, least(options))


def step(state: State, weights: Tensor, grad: Tensor, options: Options, draw: Draw) -> Tensor:
    """Return the weights after one gradient."""
    state.step += 1
    t, (beta1, beta2) = state.step, options.betas
    state.momentum = beta1 * state.momentum + (1 - beta1) * grad
    state.square = beta2 * state.square + (1 - beta2) * grad * grad
    state.peak_rate = max(state.peak_rate, options.lr)
    pace = options.lr / state.peak_rate if options.pace == "learning_rate" else 1.0
    state.progress = min(1.0, state.progress + pace / options.length)
    observe(state, math.sqrt(float((grad * grad).sum())))
    corrected = state.momentum / (1 - beta1**t)
    visit(state, grad, corrected, options, draw)
    state.fresh = corrected
    if options.nesterov:
        state.fresh = (beta1 * state.momentum + (1 - beta1) * grad) / (1 - beta1 ** (t + 1))
    ramp = state.progress if options.ramp is None else options.ramp(t)
    state.mix = state.fresh + ramp * remembered(state, grad, options)
    second = state.square
    if options.amsgrad:
        second = state.largest = torch.maximum(state.largest, state.square)
    update = state.mix / ((second / (1 - beta2**t)).sqrt() + options.eps)
    update = attended(state, update, grad, options)
    rate = options.lr * phase_at(t - 1, options)[0]
    return weights * (1 - rate * options.weight_decay) - rate * update


def train(
    weights: Tensor,
    grads: Iterable[Tensor],
    options: Options,
    draw: Draw,
    rates: Sequence[float] | None = None,
) -> tuple[Tensor, State]:
    """Return the weights and the state after all gradients; `rates` is a learning rate for each."""
    state, weights = start(weights, options), weights.double()
    for index, grad in enumerate(grads):
        if rates is not None:
            options.lr = rates[index]
        weights = step(state, weights, grad.double(), options, draw)
    return weights, state
