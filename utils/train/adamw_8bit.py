"""AdamW whose moments are kept in 8 bits, by bitsandbytes' kernels.

A moment is a byte per number, one of 256 levels that lie closer together near zero, and an fp32 scale per block of 256
numbers (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861). A block never leaves its row: so the processes' parts
of a matrix, which are rows, have whole blocks, and a checkpoint is read on any number of processes to the last bit.
Where rows are a multiple of 256 long the result is that of bitsandbytes' own AdamW8bit; other rows are padded.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.model.qlora import import_bitsandbytes
from utils.train.masters import MasterOptimizer, local, shared_like

_BLOCK = 256
_SMALLEST = 4096
"""Matrices of fewer numbers keep fp32 moments, as in bitsandbytes."""
_PIECE = 1 << 24
"""Numbers that one call updates: the kernels count to 2^31, and padded rows are copied."""


class AdamW8bit(MasterOptimizer):
    """AdamW with moments in 8 bits; those of vectors, and of matrices that are small or have short rows, are in fp32.

    It waits for the device once a step: the kernels want the number of steps made, which skipped ones do not raise.
    """

    def __init__(self, params: Iterable[Any], betas: tuple[float, float], masters: bool = False) -> None:
        super().__init__(params, masters, betas=betas, eps=1e-8)
        self._levels: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # torch.distributed.checkpoint gives every optimiser None
        """Updates weights and moments."""
        if self._is_to_skip():
            return
        for group, weight, state in self._with_gradients():
            state["step"] += 1
            target = local(state.get("master", weight))
            if target.numel():  # with more processes than rows some have none
                self._update_rows(group, target, local(weight.grad).to(target.dtype), state)
            if self.masters:
                weight.copy_(state["master"])

    def _begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32)  # on the host, where it is needed
        if not in_8_bits(weight):
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
            return
        blocks = -(-weight.size(1) // _BLOCK)
        own = local(weight)
        for name in ("exp_avg", "exp_avg_sq"):
            codes = own.new_zeros((own.size(0), blocks * _BLOCK), dtype=torch.uint8)
            scales = own.new_zeros((own.size(0), blocks), dtype=torch.float32)
            state[name] = shared_like(weight, codes, blocks * _BLOCK)
            state[f"{name}_scale"] = shared_like(weight, scales, blocks)

    def _update_rows(self, group: dict[str, Any], target: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """Updates `target`, this process's rows, a piece at a time."""
        moments = [local(state[name]) for name in ("exp_avg", "exp_avg_sq")]
        scales = [local(state[f"{name}_scale"]) for name in ("exp_avg", "exp_avg_sq") if f"{name}_scale" in state]
        width = max(1, target[0].numel())
        padding = moments[0][0].numel() - width
        rows = max(1, _PIECE // width)
        for begin in range(0, target.size(0), rows):
            part = slice(begin, begin + rows)
            weight, direction = target[part], gradient[part].contiguous()
            if padding:
                weight, direction = F.pad(weight, (0, padding)), F.pad(direction, (0, padding))
            parts = [moment[part] for moment in moments], [scale[part] for scale in scales]
            self.update(group, state["step"], weight, direction, *parts)
            if padding:
                target[part] = weight[:, :width]

    def update(
        self,
        group: dict[str, Any],
        steps: Tensor,
        weight: Tensor,
        gradient: Tensor,
        moments: list[Tensor],
        scales: list[Tensor],
    ) -> None:
        """Calls the kernel for `weight` and its moments, in place; without `scales` the moments are in fp32."""
        functional = import_bitsandbytes("--optimizer adamw_8bit").functional
        step, (beta1, beta2) = int(steps), group["betas"]
        lr, decay, eps = group["lr"], group["weight_decay"], group["eps"]
        if not scales:
            functional.optimizer_update_32bit(
                *("adam", gradient, weight, moments[0], beta1, eps, step, lr, moments[1], beta2), weight_decay=decay
            )
            return
        functional.optimizer_update_8bit_blockwise(
            *("adam", gradient, weight, *moments, beta1, beta2, 0.0, 0.0, eps, step, lr),
            *(*self._levels_on(weight.device), *(scale.view(-1) for scale in scales), decay),
        )

    def _levels_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The levels of the first moment, which has a sign, and of the second."""
        if device not in self._levels:
            functional = import_bitsandbytes("--optimizer adamw_8bit").functional
            signed, unsigned = (functional.create_dynamic_map(signed=signed).to(device) for signed in (True, False))
            self._levels[device] = (signed, unsigned)
        return self._levels[device]


def in_8_bits(weight: Tensor) -> bool:
    """Whether a weight's moments are kept in 8 bits. Padding then adds a quarter at most."""
    if weight.dim() < 2 or weight.numel() < _SMALLEST:
        return False
    return weight.size(1) % _BLOCK == 0 or weight.size(1) >= 3 * _BLOCK


def check_adamw_8bit() -> None:
    """Makes one update on the machine's kind of device; a `UserError` says that bitsandbytes is missing, or cannot."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight = torch.zeros(1, _SMALLEST, device=device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    try:
        AdamW8bit([weight], (0.9, 0.95)).step()
    except (RuntimeError, NotImplementedError, AttributeError) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"--optimizer adamw_8bit: bitsandbytes cannot run on {device.type} ({reason})") from None
