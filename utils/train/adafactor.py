"""Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235): a matrix's second moments by row and by column.

The moments of a matrix [out, in] are out + in numbers instead of AdamW's 2 · out · in. There is no first moment. An
update is clipped to a root mean square of 1 and scaled by that of the weight (at least 1e-3): the learning rate is the
relative change of a step. It comes from the run's schedule, in place of the paper's min(1e-2, 1 / √step). The weight
decay is AdamW's: a share of learning rate · decay.

The arithmetic is the paper's; torch's own Adafactor takes no DTensor, stops at a gradient that is not finite, and its
epsilon is above the squared gradients of a large model whose gradient has a norm of 1.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from utils.train.masters import MasterOptimizer, local, shared_like

_DECAY = -0.8
"""The moments' decay in step t is 1 - t^-0.8."""
_EPS_GRADIENT, _EPS_WEIGHT = 1e-30, 1e-3
_LARGEST_UPDATE = 1.0


class Adafactor(MasterOptimizer):
    """Adafactor with relative steps. The processes exchange two tensors a step, however many weights there are.

    It waits for the device once a step, to know whether the step is skipped.
    """

    def __init__(self, params: Iterable[Any], masters: bool = False) -> None:
        super().__init__(params, masters)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # torch.distributed.checkpoint gives every optimiser None
        """Updates weights and moments."""
        if self._is_to_skip():
            return
        found = list(self._with_gradients())
        weight_sizes = self._update_moments(found)
        update_sums = []
        for _, weight, state in found:
            update_sums.append(torch.linalg.vector_norm(_direction(weight, state)).square())
        sums = _summed(update_sums, found)
        for (group, weight, state), weight_size, update_sum in zip(found, weight_sizes, sums, strict=True):
            size = (update_sum / weight.numel()).sqrt() / _LARGEST_UPDATE
            update = _direction(weight, state)  # again: keeping all of them would take a copy of the gradients
            update.mul_(-group["lr"] * weight_size.clamp(min=_EPS_WEIGHT) / size.clamp(min=1.0))
            target = local(state.get("master", weight))
            target.add_(update.add_(target, alpha=-group["lr"] * group["weight_decay"]))
            del update  # before the next one is made
            if self.masters:
                weight.copy_(state["master"])

    def _begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        if weight.dim() < 2:
            state["variance"] = torch.zeros_like(weight, dtype=torch.float32)
            return
        rows = local(weight).new_zeros((local(weight).size(0), 1), dtype=torch.float32)
        state["row_variance"] = shared_like(weight, rows, 1)
        state["column_variance"] = local(weight).new_zeros((1, weight.size(1)), dtype=torch.float32)  # on every process

    def _update_moments(self, found: list[tuple[dict[str, Any], Tensor, dict[str, Tensor]]]) -> list[Tensor]:
        """Updates the moments; returns the root mean square of each weight."""
        sums = []
        for _, weight, state in found:
            sums.append(torch.linalg.vector_norm(local(state.get("master", weight)), dtype=torch.float32).square())
            if weight.dim() > 1:
                columns = torch.linalg.vector_norm(local(weight.grad), dim=0, keepdim=True, dtype=torch.float32)
                sums.append(columns.square_())
        sums = iter(_summed(sums, found))
        sizes = []
        for _, weight, state in found:
            sizes.append((next(sums) / weight.numel()).sqrt())
            state["step"] += 1
            share = state["step"] ** _DECAY
            gradient = local(weight.grad)
            if weight.dim() < 2:
                local(state["variance"]).lerp_(gradient.float().square() + _EPS_GRADIENT, share)
                continue
            rows = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float32).square_()
            local(state["row_variance"]).lerp_(rows / weight.size(1) + _EPS_GRADIENT, share)
            state["column_variance"].lerp_(next(sums) / weight.size(0) + _EPS_GRADIENT, share)
        return sizes


def _direction(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
    """This process's part of the gradient divided by its expected size, in fp32."""
    gradient = local(weight.grad)
    if weight.dim() < 2:
        return gradient * local(state["variance"]).rsqrt()
    columns = state["column_variance"]
    # the mean over the columns is that over the rows, which no process has all of
    rows = (local(state["row_variance"]) / columns.mean()).rsqrt_()
    return (gradient * rows).mul_(columns.rsqrt())


def _summed(parts: list[Tensor], found: list[tuple[dict[str, Any], Tensor, dict[str, Tensor]]]) -> list[Tensor]:
    """The sums of each of the `parts` over the processes that share the weights, by one exchange."""
    sharded = [weight for _, weight, _ in found if isinstance(weight, DTensor)]
    if not sharded:
        return parts
    assert len(sharded) == len(found), "a weight that every process has whole would be counted several times"
    together = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(together, group=sharded[0].device_mesh.get_group())
    split = together.split([part.numel() for part in parts])
    return [one.view(part.shape) for one, part in zip(split, parts, strict=True)]
