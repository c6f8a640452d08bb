"""AdamW with fp32 copies of bf16 weights: no update is rounded away."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from utils.train.optimizer import MasterAdamW, make_optimizer


def test_masters_take_the_steps_of_fp32_weights() -> None:
    """The same gradients into torch's AdamW on fp32 weights: the masters are those weights, the weights their bf16."""
    torch.manual_seed(0)
    start = [torch.randn(7, 5), torch.randn(11)]
    weights = [nn.Parameter(tensor.to(torch.bfloat16)) for tensor in start]
    exact = [nn.Parameter(weight.detach().float()) for weight in weights]
    ours = MasterAdamW([{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:]}], (0.9, 0.95), lr=1e-4)
    theirs = AdamW([{"params": exact[:1]}, {"params": exact[1:], "weight_decay": 0.0}], 1e-4, (0.9, 0.95), 1e-8, 0.1)
    for _ in range(50):
        for weight, twin in zip(weights, exact, strict=True):
            weight.grad = torch.randn(weight.shape).to(torch.bfloat16)
            twin.grad = weight.grad.float()
        ours.step()
        theirs.step()
    for weight, twin in zip(weights, exact, strict=True):
        torch.testing.assert_close(ours.state[weight]["master"], twin.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(weight, ours.state[weight]["master"].to(torch.bfloat16))


def test_masters_add_up_gradients_in_fp32() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    make_optimizer(torch.nn.ParameterList([weight]), 0.0, (0.9, 0.95), master_weights=True).add_up_in_fp32()
    for _ in range(300):  # in bf16 the sum stops at 256
        weight.sum().backward()
    assert weight.grad.dtype == torch.float32 and torch.equal(weight.grad, torch.full((2, 2), 300.0))


def test_bf16_alone_stagnates_and_masters_do_not() -> None:
    """1,000 steps of one ten-thousandth up from 1: to bf16, whose next number is 1.008, none of them is a step."""
    moved = {}
    for masters in (True, False):
        module = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
        nn.init.ones_(module.weight)
        optimizer = make_optimizer(module, 0.0, (0.9, 0.95), masters)
        optimizer.param_groups[0]["lr"] = 1e-4
        for _ in range(1000):
            module.weight.grad = -torch.ones_like(module.weight)
            optimizer.step()
        moved[masters] = float(module.weight.detach().mean())
    assert moved == {True: pytest.approx(1.1, rel=1e-2), False: 1.0}


@pytest.mark.parametrize("masters", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(masters: bool) -> None:
    """`found_inf` is what `optimiser_step` sets: weights, moments and their count stay."""
    dtype = torch.bfloat16 if masters else torch.float32
    module = nn.Linear(3, 3, bias=False, dtype=dtype)
    optimizer = make_optimizer(module, 0.1, (0.9, 0.95), masters)

    def step(gradient: float) -> dict[str, torch.Tensor]:
        module.weight.grad = torch.full_like(module.weight, gradient)
        optimizer.found_inf = (~torch.tensor(gradient).isfinite()).float()
        optimizer.step()
        state = {name: value.clone() for name, value in optimizer.state[module.weight].items()}
        return state | {"weight": module.weight.detach().clone()}

    before, after = step(0.5), step(float("nan"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(step(0.5)["exp_avg"], before["exp_avg"])
