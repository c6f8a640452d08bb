"""What the run's own optimisers share: fp32 copies of bf16 weights, the processes' parts of a state, loading."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_gpt.errors import UserError


class MasterOptimizer(Optimizer):
    """An optimiser that may keep an fp32 copy of each weight, its `master`, for weights in bf16.

    A bf16 weight has eight bits: an update below 0.2 % of it is rounded away, and late in a training most are. So the
    copy is updated and rounded to the weight.
    """

    found_inf: Tensor | None = None
    """Above 0: the gradient is not finite, and weights and state stay as they are. `optimiser_step` sets it."""

    def __init__(self, params: Iterable[Any], masters: bool, **defaults: Any) -> None:
        super().__init__(params, {"lr": 1e-3, "weight_decay": 0.0, **defaults})
        self.masters = masters

    def add_up_in_fp32(self) -> None:
        """From now on gradients of several micro-batches are added up in fp32, where there are masters.

        Not before a checkpoint is read, for which torch makes gradients of the weights' own type.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                if self.masters and not isinstance(weight, DTensor):  # FSDP2 does it by itself
                    if not hasattr(Tensor, "grad_dtype"):  # an older torch would take it for any name
                        raise UserError(f"torch {torch.__version__} sums gradients in bf16: install requirements.txt's")
                    weight.grad_dtype = torch.float32

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads each tensor in its own type: torch's would make all of them the weights'."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        for weight, number in zip(weights, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                device = self.state[weight][name].device if name in self.state[weight] else weight.device
                self.state[weight][name] = value.to(device)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """The weight's state, made at its first step."""
        state = self.state[weight]
        if not state:
            if self.masters:
                state["master"] = weight.detach().float().clone()
            self._begin(weight, state)
        return state

    def _begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        """Puts the state of a weight that was never updated into `state`, beside its master."""
        raise NotImplementedError

    def _with_gradients(self) -> Iterator[tuple[dict[str, Any], Tensor, dict[str, Tensor]]]:
        """Each weight to update, with its group and its state."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    yield group, weight, self.state_of(weight)

    def _is_to_skip(self) -> bool:
        """Whether the gradient is not finite. Waits for the device."""
        return self.found_inf is not None and bool(self.found_inf)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_like(weight: Tensor, part: Tensor, columns: int) -> Tensor:
    """A tensor [rows of `weight`, `columns`]: the processes have the rows that they have of `weight`, here `part`."""
    if not isinstance(weight, DTensor):
        return part
    size = torch.Size((weight.size(0), columns))
    mesh, placements = weight.device_mesh, weight.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=size, stride=(columns, 1))
