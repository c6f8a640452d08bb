"""The loss in chunks, and what it tells of watched tokens, against whole logits in float64."""

from __future__ import annotations

import pytest
import torch
from litgpt.lora import LoRALinear
from torch import Tensor, nn

from lit_gpt.model import loss
from lit_gpt.model.loss import IGNORE, cross_entropies

VOCABULARY, WIDTH = 50, 16
# The largest error of a gradient, as a part of the largest gradient: one rounding is 6e-8 and 4e-3.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def whole(head: nn.Linear, hidden: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients by hidden states, weight and bias, from all logits at once, in float64."""
    inputs = [t.detach().double().requires_grad_() for t in (hidden, *head.parameters())]
    logits = nn.functional.linear(*inputs)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logs = logits.log_softmax(-1).flatten(0, 1)
    wanted = [(place, target) for place, target in enumerate(targets.flatten().tolist()) if target != IGNORE]
    value = -torch.stack([logs[place, target] for place, target in wanted]).sum()
    return value, list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("chunk", [1, 4 * VOCABULARY, 1 << 25])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_loss_and_gradients_are_those_of_whole_logits(
    dtype: torch.dtype, chunk: int, bias: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    hidden = torch.randn(3, 11, WIDTH).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (3, 11))
    targets[0, :5] = IGNORE
    expected, gradients = whole(head, hidden, targets, softcap)
    monkeypatch.setattr(loss, "_LOGITS_PER_CHUNK", chunk)
    found, rows = cross_entropies(head, hidden, targets, softcap)
    alone = [whole(head, hidden[i : i + 1], targets[i : i + 1], softcap)[0] for i in range(3)]
    torch.testing.assert_close(rows.double(), torch.stack(alone), rtol=TOLERANCES[dtype], atol=0)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance / 4, atol=0)
    factor = 1 / 7  # no power of two: rounded to bf16 it would be 0.2 % off
    for own, twin in zip(torch.autograd.grad(found * factor, (hidden, *head.parameters())), gradients, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), twin * factor, rtol=0, atol=tolerance * float(twin.abs().max()))


def test_under_autocast_products_are_bf16_and_the_sum_is_not() -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(1, 4096, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (1, 4096))
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropies(head, hidden, targets).sum
    expected, gradients = whole(head, hidden, targets, None)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    own = torch.autograd.grad(found, (hidden, head.weight))
    assert [g.dtype for g in own] == [torch.float32] * 2
    torch.testing.assert_close(own[1].double(), gradients[1], rtol=0, atol=1e-2 * float(gradients[1].abs().max()))


def test_a_frozen_head_has_no_gradient_and_validation_has_none() -> None:
    head, hidden = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(1, 8, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (1, 8))
    head.requires_grad_(False)
    cross_entropies(head, hidden, targets).sum.backward()
    assert head.weight.grad is None and hidden.grad is not None
    with torch.no_grad():
        assert not cross_entropies(head, hidden, targets).sum.requires_grad


def test_rows_without_targets_lose_nothing() -> None:
    head, hidden = nn.Linear(WIDTH, VOCABULARY), torch.randn(1, 8, WIDTH, requires_grad=True)
    found, rows = cross_entropies(head, hidden, torch.full((1, 8), IGNORE))
    found.backward()
    assert found == 0 and not rows.any() and not hidden.grad.any() and not head.weight.grad.any()


@pytest.mark.parametrize("kind", ["linear", "adapted"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_watched_tokens_have_the_probability_of_a_softmax(
    kind: str, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY)
    if kind == "adapted":
        head = LoRALinear(WIDTH, VOCABULARY, r=2, lora_alpha=4)
        nn.init.normal_(head.lora_B)
    hidden, targets = 4 * torch.randn(3, 11, WIDTH), torch.randint(0, VOCABULARY, (3, 11))
    targets[0, :5] = IGNORE  # such positions are watched too
    monkeypatch.setattr(loss, "_chunk", lambda *_: 4)
    watched = torch.tensor([4, 17])
    with torch.no_grad():
        found = cross_entropies(head, hidden, targets, softcap, watched=watched)
        logits = head(hidden).double()
        plain = cross_entropies(head, hidden, targets, softcap)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    torch.testing.assert_close(found.watched.double(), logits.softmax(-1)[..., watched].sum(-1), rtol=1e-5, atol=0)
    assert torch.equal(found.sum, plain.sum) and torch.equal(found.rows, plain.rows)
    # of a model that processes share, each has some positions
    with torch.no_grad():
        part = cross_entropies(head, hidden.flatten(0, 1)[8:20], targets, softcap, first=8, watched=watched)
    inside = torch.zeros(33, dtype=torch.bool)
    inside[8:20] = True
    assert torch.equal(part.watched.flatten()[~inside], torch.zeros(21))
    torch.testing.assert_close(part.watched.flatten()[inside], found.watched.flatten()[inside])
