"""Cross-entropy from hidden states, without the logits of a whole batch.

The head's product, the softmax and both gradients are made chunk by chunk in the forward pass; the backward pass only
scales them. So the logits exist once, for some positions, and no product is made twice. torch 2.13 has this as
`linear_cross_entropy`, but in bf16 that sums the loss in bf16 (1.4 % wrong over 1,024 positions) and knows neither soft
caps nor autocast. The sum here is fp32 whatever the logits' type.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.model.tensor_parallel import gathered

IGNORE = -100  # the target of a position that predicts nothing

# Logits of a chunk: 2^25 are 1,024 positions at a vocabulary of 32,000, 128 MB in fp32. On the CPU 16 MB, which malloc
# keeps for the next chunk: of more than 32 MB each chunk's pages are new, which took 17 % of a step.
_LOGITS_PER_CHUNK = 1 << 25
_LOGITS_PER_CHUNK_ON_CPU = 1 << 22


class Losses(NamedTuple):
    """Cross-entropies of a batch: their sum, a scalar to differentiate, and the sum of each row [B], to look at."""

    sum: Tensor
    rows: Tensor


class WatchedLosses(NamedTuple):
    """Likewise, and the probability that each position [B, T] gives to the watched tokens together, in fp32."""

    sum: Tensor
    rows: Tensor
    watched: Tensor


def cross_entropies(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    first: int = 0,
    watched: Tensor | None = None,
) -> Losses | WatchedLosses:
    """Cross-entropy in fp32 (float64 for float64 states), summed over the positions that have a target.

    `hidden` is [B, T, C]; or [positions, C], those from number `first` on: only they count then. `targets` are [B, T]
    int64, `IGNORE` where there is nothing to predict. With a `softcap` logits are softcap · tanh(logits / softcap).
    `watched`, int64 [tokens], are for validation, without gradients: they take no product of their own.
    """
    hidden = hidden.flatten(0, -2)
    end = first + len(hidden)

    def over_batch(values: Tensor) -> Tensor:
        return F.pad(values, (first, targets.numel() - end)).view(targets.shape)

    total, each, chances = _each_position(head, hidden, targets.flatten()[first:end], softcap, watched)
    losses = Losses(total, over_batch(each).sum(1))
    return losses if chances is None else WatchedLosses(*losses, over_batch(chances))


def _each_position(
    head: nn.Module, hidden: Tensor, targets: Tensor, softcap: float | None, watched: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sum, the losses [positions] without gradient, and the probabilities of the watched tokens [positions]."""
    if getattr(head, "r", None) == 0:
        head = head.linear  # litgpt's LoRA layer without an adapter
    if type(head) is not nn.Linear:
        return _by_recomputation(head, hidden, targets, softcap, watched)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    with torch.autocast(device, enabled=False):
        return _ChunkedLoss.apply(
            hidden,
            gathered(head.weight),
            head.bias if head.bias is None else gathered(head.bias),
            targets,
            softcap,
            watched,
            dtype,
            _chunk(head.out_features, device),
            torch.is_grad_enabled(),
        )


def _chunk(vocabulary: int, device: str) -> int:
    logits = min(_LOGITS_PER_CHUNK, _LOGITS_PER_CHUNK_ON_CPU) if device == "cpu" else _LOGITS_PER_CHUNK
    return max(1, logits // vocabulary)


def _by_recomputation(
    head: nn.Module, hidden: Tensor, targets: Tensor, softcap: float | None, watched: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """For an adapted head: autograd does it, and each chunk's logits are computed again in the backward pass."""
    chances: list[Tensor] = []

    def chunk_loss(states: Tensor, chunk_targets: Tensor) -> Tensor:
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        losses = F.cross_entropy(logits, chunk_targets, ignore_index=IGNORE, reduction="none")
        if watched is not None:
            chances.append(_watched(F.log_softmax(logits, dim=-1), watched))
        return losses

    size = _chunk(getattr(head, "linear", head).out_features, hidden.device.type)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    losses = torch.cat([checkpoint(chunk_loss, *part, use_reentrant=False) for part in parts])
    return losses.sum(), losses.detach(), torch.cat(chances) if chances else None


def _watched(logs: Tensor, tokens: Tensor) -> Tensor:
    """[positions, vocabulary] log-probabilities → [positions], the probability of the tokens together."""
    return logs[:, tokens].exp().sum(1)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        watched: Tensor | None,
        dtype: torch.dtype,
        chunk: int,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert watched is None or not with_gradients, "tokens are watched in validation"
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        exact = torch.promote_types(dtype, torch.float32)
        matrix = weight.to(dtype)
        losses = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        chances = None if watched is None else torch.empty_like(losses)
        grads = [
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=exact) if wanted[1] else None,
            torch.zeros_like(bias, dtype=exact) if wanted[2] else None,
        ]
        for begin in range(0, len(hidden), chunk):
            part = slice(begin, begin + chunk)
            states = hidden[part].to(dtype)
            logits = F.linear(states, matrix)
            losses[part], slope = _losses_and_slope(logits, bias, targets[part], softcap, any(wanted))
            if chances is not None:
                chances[part] = _watched(slope, watched)  # without gradients these are the log-probabilities
            if wanted[2]:
                grads[2] += slope.sum(0)
            slope = slope.to(dtype)
            if wanted[0]:
                grads[0][part] = slope @ matrix
            if wanted[1]:
                grads[1] += slope.T @ states
        for index, tensor in enumerate((hidden, weight, bias)):
            if grads[index] is not None:
                grads[index] = grads[index].to(tensor.dtype)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses, chances

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        # a factor rounded to bf16 would be wrong by up to 0.4 %, for every gradient of the model
        exact = torch.promote_types(grad.dtype, torch.float32)
        grads = []
        for saved in ctx.saved_tensors:
            grads.append(saved if saved is None else (saved.to(exact) * grad).to(saved.dtype))
        return *grads, None, None, None, None, None, None


def _losses_and_slope(
    logits: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """The losses [positions], and their derivatives by the logits before the soft cap [positions, vocabulary].

    Instead of the derivatives the log-probabilities, if `with_slope` is false.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    capped = None
    if bias is not None:
        logits = logits.to(exact) + bias
    if softcap:
        capped = torch.tanh(logits.to(exact) / softcap)
        logits = capped * softcap
    logs = F.log_softmax(logits, dim=-1, dtype=exact)
    has_target = targets != IGNORE
    index = targets.clamp(min=0).unsqueeze(1)
    losses = -logs.gather(1, index).squeeze(1) * has_target
    if not with_slope:
        return losses, logs
    slope = logs.exp_()
    slope.scatter_add_(1, index, torch.full_like(index, -1, dtype=exact))
    if capped is not None:
        slope *= 1 - capped**2
    slope *= has_target.unsqueeze(1)
    return losses, slope
