"""The optimisers of --optimizer over what is trained: AdamW here, the smaller ones in files of their own."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from utils.train.adafactor import Adafactor
from utils.train.adamw_8bit import AdamW8bit
from utils.train.masters import MasterOptimizer

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor"]


class MasterAdamW(MasterOptimizer):
    """AdamW that keeps an fp32 copy of each weight and its moments in fp32, for weights in bf16.

    It costs 12 bytes per trained parameter; moments in bf16 alone cost 4.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], lr: float = 1e-3, eps: float = 1e-8) -> None:
        super().__init__(params, masters=True, lr=lr, betas=betas, eps=eps)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # torch.distributed.checkpoint gives every optimiser None
        """Updates the copies and rounds the weights from them."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self.state_of(weight) for weight in weights]
            masters = [state["master"] for state in states]
            adamw(
                masters,
                [weight.grad.to(master.dtype) for weight, master in zip(weights, masters, strict=True)],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=self.found_inf,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)

    def _begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        state["exp_avg"] = torch.zeros_like(state["master"])
        state["exp_avg_sq"] = torch.zeros_like(state["master"])


def trained_of(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def rate_warnings(name: OptimizerName, learning_rate: float) -> list[str]:
    """Warns of a rate that is AdamW's: from scratch, Adafactor learns nearly nothing at 8e-4 in 150 steps."""
    if name != "adafactor" or learning_rate >= 1e-3:
        return []
    return [
        f"warning: --learning_rate {learning_rate:g} is a share of the weights' size with --optimizer adafactor, "
        "where 0.01 is usual"
    ]


def make_optimizer(
    model: nn.Module,
    weight_decay: float,
    betas: tuple[float, float],
    master_weights: bool = False,
    name: OptimizerName = "adamw",
) -> Optimizer:
    """The optimiser of that name over what is trained; matrices decay, vectors (norms, biases) do not."""
    trained = trained_of(model.parameters())
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw_8bit":
        return AdamW8bit(groups, betas, master_weights)
    if name == "adafactor":
        return Adafactor(groups, master_weights)
    if master_weights:
        return MasterAdamW(groups, betas)
    return AdamW(groups, betas=betas, fused=True)
