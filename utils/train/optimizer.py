"""AdamW over what is trained, with fp32 copies of bf16 weights where they are asked for."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw


class MasterAdamW(Optimizer):
    """AdamW that keeps an fp32 copy of each weight and its moments in fp32, for weights in bf16.

    A bf16 weight has eight bits: an update below 0.2 % of it is rounded away, and late in a training most are. So the
    copy is updated and rounded to the weight. It costs 12 bytes per trained parameter; moments in bf16 alone cost 4.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], lr: float = 1e-3, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def add_up_in_fp32(self) -> None:
        """From now on gradients of several micro-batches are added up in fp32.

        Not before a checkpoint is read, for which torch makes gradients of the weights' own type.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                if not isinstance(weight, DTensor):  # FSDP2 does it by itself
                    weight.grad_dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # torch.distributed.checkpoint gives every optimiser None
        """Updates the copies and rounds the weights from them."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self._state_of(weight) for weight in weights]
            masters = [state["master"] for state in states]
            adamw(
                masters,
                [weight.grad.to(master.dtype) for weight, master in zip(weights, masters, strict=True)],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=getattr(self, "found_inf", None),
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads as torch's does, which alone would round everything to the weights' bf16."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(weights, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to(weight.device)

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["master"] = weight.detach().float().clone()
            state["exp_avg"] = torch.zeros_like(state["master"])
            state["exp_avg_sq"] = torch.zeros_like(state["master"])
        return state


def trained_of(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def make_optimizer(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], master_weights: bool = False
) -> Optimizer:
    """AdamW over what is trained, fused; matrices decay, vectors (norms, biases) do not."""
    trained = trained_of(model.parameters())
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if master_weights:
        return MasterAdamW(groups, betas)
    return AdamW(groups, betas=betas, fused=True)
