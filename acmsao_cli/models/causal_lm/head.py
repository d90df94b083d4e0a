"""From the decoder's last hidden states to the loss, a chunk of positions at a time.

Logits are the largest tensors of a language model: a token's are as wide as the vocabulary. Only
positions that something is learned of are projected, and where they are many, chunk after chunk:
each chunk's gradients are taken at once, so that no two chunks' logits exist together (as Liger's
fused linear cross-entropy does, arXiv:2410.10989). The model's own forward projects, with its
decoder standing still, so whatever it does behind it (scales, caps, adapters) is done here too.

A trained head's gradient is as large as the head. It can be left to be computed in rows, while the
head is stepped: a slice of the vocabulary at a time, from the states and the log-sums of forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmsao_cli.errors import ConfigError
from acmsao_cli.models.causal_lm.loss import (
    LOSS_HEAD,
    SLICE_ENTRIES,
    cross_entropy_and_log_sums,
    summed_cross_entropy,
)
from acmsao_cli.optim.in_rows import GradientInRows
from acmsao_cli.optim.tracing import counted_as, tell_claimed

# Logits of a chunk, where the recipe leaves its size to us: 128 MiB in bf16.
LOGITS_AT_ONCE: Final = 2**26


def positions_at_once(chunk: int | Literal["auto"] | None, vocabulary: int) -> int | None:
    """Positions that are projected together; None is all of them."""
    return max(1, LOGITS_AT_ONCE // vocabulary) if chunk == "auto" else chunk


Left: TypeAlias = list[tuple[Tensor, GradientInRows]]


def summed_loss(
    model: Any,
    inputs: Mapping[str, Tensor],
    kept: Tensor,
    targets: Tensor,
    at_once: int | None,
    left: Left | None = None,
) -> Tensor:
    """Cross-entropy summed over the positions `kept`, 0-d fp32.

    `inputs` are the model's, of (batch, length); `kept` (k,) int64 numbers positions in the order
    of memory, `targets` (k,) are the tokens they predict. With a list `left`, the head's gradient
    is not taken by backward, which leaves it there. Raises ConfigError where that cannot be.
    """
    decoder = model.get_decoder()
    if left is not None:
        at_once = at_once or len(kept)
    whole = left is None and (at_once is None or len(kept) <= at_once)
    found: list[tuple[Any, Tensor]] = []

    def pick(module: nn.Module, arguments: Any, output: Any) -> Any:
        picked = _hidden(output).flatten(0, 1)[kept]
        found.append((_with_hidden(output, picked[None, :0].detach()), picked))
        return _with_hidden(output, (picked if whole else picked[:1].detach())[None])

    handle = decoder.register_forward_hook(pick) if decoder is not model else None
    try:
        with _plain(model, decoder) if left is not None else nullcontext():
            logits = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    tell_claimed([logits], LOSS_HEAD)
    with counted_as(LOSS_HEAD):
        if not found:  # a model whose decoder is no module of its own
            return summed_cross_entropy(logits.flatten(0, 1)[kept], targets)
        if whole or at_once is None:
            return summed_cross_entropy(logits[0], targets)
        del logits
        output, picked = found[-1]
        head = Head(model, decoder, output, inputs, left)
        total: Tensor = _ChunkedLoss.apply(picked, head, targets, at_once, *head.trained)  # type: ignore[no-untyped-call]
        return total


def _hidden(output: Any) -> Tensor:
    states: Tensor = output[0]
    return states


def _with_hidden(output: Any, states: Tensor) -> Any:
    if isinstance(output, tuple):
        return (states, *output[1:])
    return type(output)(**{**output, "last_hidden_state": states})


@dataclass(eq=False)
class Head:
    """What the model does behind its decoder; `trained` are the weights it trains by that.

    The gradient of a linear head is summed in place, in `sink`: a head is as large as several
    layers, and the gradients of two chunks need not exist together.
    """

    model: Any
    decoder: nn.Module
    output: Any
    inputs: Mapping[str, Tensor]
    left: Left | None = None
    trained: list[Tensor] = field(init=False)
    sink: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Find the weights."""
        self.linear = self.model.get_output_embeddings()
        inside = set(self.decoder.parameters())
        behind = [p for p in self.model.parameters() if p not in inside]
        own = list(self.linear.parameters()) if self.linear is not None else []
        self.trained = [p for p in dict.fromkeys([*own, *behind]) if p.requires_grad]
        if self.left is not None:
            self.trained = [p for p in self.trained if p is not self.linear.weight]

    @property
    def sinking(self) -> Tensor | None:
        """The weight whose gradient is summed in `sink`, if there is one."""
        plain = type(self.linear) is nn.Linear and "forward" not in vars(self.linear)
        sinks = plain and self.left is None and self.linear.weight.requires_grad
        return self.linear.weight if sinks else None

    def logits(self, states: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary), by the model's own forward."""
        still = _with_hidden(self.output, states[None])
        instead = self._projection()
        own = nullcontext() if instead is None else _answering(self.linear, instead)
        with _answering(self.decoder, lambda *_, **__: still), own:
            found: Tensor = self.model(**self.inputs, use_cache=False).logits[0]
            return found

    def _projection(self) -> Callable[[Tensor], Tensor] | None:
        """What the linear layer does instead where backward must not give its weight a gradient."""
        linear, weight = self.linear, self.sinking
        if self.left is not None:
            fixed = linear.weight.detach()
            return lambda value: F.linear(value, fixed, linear.bias)
        if weight is None:
            return None
        if self.sink is None:
            self.sink = torch.zeros_like(weight)
        sink = self.sink

        def into_sink(value: Tensor) -> Tensor:
            product: Tensor = _IntoSink.apply(value, weight.detach(), sink)  # type: ignore[no-untyped-call]
            return product if linear.bias is None else product + linear.bias

        return into_sink

    def leave(self, states: Tensor, targets: Tensor, log_sums: Tensor, scale: Tensor) -> None:
        """Leave the weight's gradient to be computed: that of `scale` times the summed loss.

        `states` (k, hidden) went into the head, `log_sums` (k,) are of its logits.
        """
        assert self.left is not None
        weight = self.linear.weight.detach()
        bias = None if self.linear.bias is None else self.linear.bias.detach().clone()

        def compute(start: int, stop: int) -> Tensor:
            found: Tensor = weight.new_zeros(stop - start, weight.shape[1])
            own = None if bias is None else bias[start:stop]
            at_once = max(1, SLICE_ENTRIES // (stop - start))
            for part in (slice(first, first + at_once) for first in range(0, len(states), at_once)):
                logits = F.linear(states[part], weight[start:stop], own)
                slope = logits.float().sub_(log_sums[part, None]).exp_()
                here = (targets[part] >= start) & (targets[part] < stop)
                index = (targets[part] - start).clamp(0, stop - start - 1)
                slope.scatter_add_(1, index[:, None], -here.float()[:, None]).mul_(scale)
                found.addmm_(slope.to(weight.dtype).t(), states[part])
            return found

        self.left.append((self.linear.weight, GradientInRows(weight, compute)))


@contextmanager
def _plain(model: Any, decoder: nn.Module) -> Iterator[None]:
    """Within, see that logits are what a linear head of its own gives. Raises ConfigError."""
    linear = model.get_output_embeddings()
    if decoder is model:
        raise _refusal("has no decoder apart from its head")
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        raise _refusal("has no plain linear head")
    if any(linear.weight is weight for weight in decoder.parameters()):
        raise _refusal("embeds by its head, which so has another gradient besides")
    found: list[Tensor] = []
    handles = [
        linear.register_forward_hook(lambda module, arguments, output: found.append(output)),
        model.register_forward_hook(lambda module, arguments, output: found.append(output.logits)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != 2 or found[0] is not found[1] or found[0]._version:
        raise _refusal("does something to its logits behind the head")


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        f"`memory.slice_head` cannot be: this model {why}", hint="set memory.slice_head=false"
    )


@contextmanager
def _answering(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the module answers what `forward` does."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


class _IntoSink(torch.autograd.Function):
    """A product with a weight (out, in), whose gradient is added to `sink` instead of returned."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, sink: Tensor) -> Tensor:
        ctx.save_for_backward(value, weight)
        ctx.sink = sink
        return value @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        value, weight = ctx.saved_tensors
        slope = gradients[0].flatten(0, -2)
        ctx.sink.addmm_(slope.t(), value.flatten(0, -2))
        return gradients[0] @ weight, None, None


class _ChunkedLoss(torch.autograd.Function):
    """The loss of states (k, hidden), its gradients taken in forward and handed over once."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Head, targets: Tensor, at_once: int, *trained: Tensor
    ) -> Tensor:
        sinking = head.sinking
        others = [parameter for parameter in trained if parameter is not sinking]
        sums: list[Tensor | None] = [None] * len(others)
        slopes, losses, log_sums = torch.empty_like(states), [], []
        for start in range(0, len(states), at_once):
            part = slice(start, start + at_once)
            with torch.enable_grad(), _kept_here():
                piece = states[part].detach().requires_grad_()
                loss, log_sum = cross_entropy_and_log_sums(head.logits(piece), targets[part])
            log_sums.append(log_sum)
            slopes[part], *given = torch.autograd.grad(loss, [piece, *others], allow_unused=True)
            losses.append(loss.detach())
            sums = [_added(known, more) for known, more in zip(sums, given, strict=True)]
        by_weight = dict(zip(others, sums, strict=True))
        if sinking is not None:
            by_weight[sinking], head.sink = head.sink, None
        ctx.given = [slopes, *(by_weight[parameter] for parameter in trained)]
        ctx.leave = None
        if head.left is not None:
            ctx.leave = partial(head.leave, states.detach(), targets, torch.cat(log_sums))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        leave, ctx.leave = ctx.leave, None
        if leave is not None:
            leave(gradients[0])
        given, ctx.given = ctx.given, None
        slopes, *of_weights = (one if one is None else one.mul_(gradients[0]) for one in given)
        return slopes, None, None, None, *of_weights


def _added(known: Tensor | None, more: Tensor | None) -> Tensor | None:
    if known is None or more is None:
        return known if more is None else more
    return known.add_(more)


def _kept_here() -> Any:
    """A chunk lives too briefly to be sent anywhere by whoever sends saved tensors away."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
