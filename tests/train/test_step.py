"""The optimiser step against a brute-force twin."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import litgpt.lora
import litgpt.model
import pytest
import torch
import torch.nn.functional as F

import lit_gpt.model.gpt
import utils.train.step
from tests import warm_start
from tests.conftest import random_rows
from tests.model import gradient_worker
from tests.model.gradient_worker import CONFIG, LORA, SAMPLES, VOCABULARY, WINDOW, make_model
from utils.train.step import all_finite, clip_gradients

# Processes, how many of them share each matrix, precision → (kind, micro-batch sizes, variant): see gradient_worker.
WAYS: dict[tuple[int, int, str], list[tuple[str, list[int], str]]] = {
    (1, 1, "32-true"): [
        ("full", [12, 4, 1], "plain"),
        ("lora", [4], "plain"),
        ("full", [4], "chunks"),
        ("full", [4], "compile"),
        ("full", [4], "selective"),
        ("full", [4], "full"),
        ("gpt2", [4], "plain"),
        ("gemma", [4], "plain"),
    ],
    (2, 1, "32-true"): [
        ("full", [6, 1], "plain"),
        ("lora", [3], "plain"),
        ("full", [3], "chunks"),
        ("lora", [3], "compile"),
        ("full", [3], "selective"),
        ("lora", [3], "full"),
        ("gpt2", [3], "selective"),
        ("gemma", [3], "compile"),
    ],
    (3, 1, "32-true"): [("full", [2], "plain")],
    (4, 1, "32-true"): [("full", [3], "plain")],
    (1, 1, "bf16-mixed"): [("full", [4], "plain"), ("lora", [4], "plain")],
    (2, 1, "bf16-mixed"): [(kind, [3], "plain") for kind in ("full", "neox", "gpt2")],
    (1, 1, "bf16-true"): [("full", [12, 1], "plain")],
    (4, 1, "bf16-true"): [("full", [3], "plain")],
    (2, 2, "32-true"): [
        ("full", [12, 4], "plain"),
        ("full", [4], "compile"),
        ("full", [4], "selective"),
        ("neox", [4], "plain"),
    ],
    (4, 2, "32-true"): [("full", [6, 2], "chunks")],
    (4, 2, "bf16-mixed"): [("full", [3], "plain")],
}


# Of the loss and the norm relative to themselves, of a gradient to the largest of its matrix: bf16 has three digits.
TOLERANCES = {"bf16-mixed": (2e-3, 3e-2, 0.1), "bf16-true": (5e-3, 5e-2, 0.2)}


@cache
def brute_force(kind: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient in float64 with litgpt's own model: each document alone, one after the other.

    It does not know GPT-2's positions, for which tests/formats/test_families.py has transformers.
    """
    ours = make_model(kind)
    made = lit_gpt.model.gpt.GPT if kind == "gpt2" else litgpt.model.GPT
    twin = (litgpt.lora.GPT(LORA.extend(CONFIG)) if kind == "lora" else made(ours.config)).double()
    twin.load_state_dict(ours.state_dict())
    losses, targets = [], 0
    for row in random_rows(SAMPLES, WINDOW, VOCABULARY):
        place = 0
        for length, overlap in zip(row.segment_lengths, row.segment_overlaps, strict=True):
            ids = torch.from_numpy(row.tokens[place : place + length].astype("int64"))
            place += length
            if length > overlap:
                logits = twin(ids[None, :-1])[0, overlap - 1 :]
                losses.append(F.cross_entropy(logits, ids[overlap:], reduction="sum"))
                targets += length - overlap
    loss = torch.stack(losses).sum() / targets
    names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [dict(twin.named_parameters())[name] for name in names])
    return loss.item(), dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize(("devices", "tensor_parallel", "precision"), WAYS)
def test_gradient_is_that_of_the_whole_step(devices: int, tensor_parallel: int, precision: str, tmp_path: Path) -> None:
    ways = WAYS[devices, tensor_parallel, precision]
    launch = {"devices": devices, "num_nodes": 1, "precision": precision, "tensor_parallel": tensor_parallel}
    output = tmp_path / "gradients.pt"
    done = warm_start.run(gradient_worker.main, [launch, ways, output], devices, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    loss_tolerance, norm_tolerance, tolerance = TOLERANCES.get(precision, (1e-6, 1e-5, 1e-5))
    for result in torch.load(output, weights_only=True):
        loss, gradients = brute_force(result["kind"])
        norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients.values()))
        assert result["loss"] == pytest.approx(loss, rel=loss_tolerance), result["way"]
        assert result["norm"] == pytest.approx(norm, rel=norm_tolerance), result["way"]
        assert result["gradient"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            difference = float((result["gradient"][name] - gradient).abs().max())
            assert difference <= tolerance * float(gradient.abs().max()), (result["way"], name)


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.linspace(1, 40, 1000).bfloat16()
    expected = parameter.grad.double().norm().item()
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert parameter.grad.double().norm().item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_finite_if_all_processes_say_so(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """A process with a damaged copy of its own would else end alone, and the others wait for it in the checkpoint."""
    sound = [torch.full((300, 3), 3e38, dtype=dtype), torch.zeros(0, dtype=dtype)]
    assert all_finite(sound) and all_finite([])
    for value in (math.nan, math.inf, -math.inf):
        damaged = torch.ones(5, dtype=dtype)
        damaged[3] = value
        assert not all_finite([*sound, damaged])
    monkeypatch.setattr(utils.train.step, "any_process", lambda flag: True)
    assert not all_finite(sound)
