"""What the training engine promises beside right gradients: no rounding away, no recompilation, no waiting."""

from __future__ import annotations

import pytest
import torch
import yaml
from litgpt.config import Config
from torch import nn
from torch.optim import AdamW

from lit_gpt.model.building import build_model
from tests.conftest import TINY_MODEL
from utils.train.optimizer import MasterAdamW, make_optimizer

CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=97, padded_vocab_size=97)


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


def test_no_layout_of_documents_is_compiled_for_anew() -> None:
    import torch._dynamo

    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["stats"]
    model = build_model(CONFIG, None, None, seed=1, dtype=torch.float32)
    for block in model.transformer.h:
        block.forward = torch.compile(block.forward)
    torch.manual_seed(0)
    compiled = []
    for documents in (3, 5, 1, 7, 2, 30, 4):
        cuts = torch.randperm(79)[: documents - 1].sort().values + 1
        bounds = torch.cat([torch.tensor([0]), cuts, torch.tensor([80])]).unique().int()
        bounds = torch.cat([bounds, torch.tensor([40], dtype=torch.int32)]).unique()
        ids = torch.randint(0, 97, (2, 40))
        model(ids, segments=bounds, targets=ids).sum.backward()
        compiled.append(counter["unique_graphs"])
    assert compiled[0] > 0
    assert compiled[2:] == [compiled[1]] * 5, "the second batch may differ in the number of documents, none after it"
