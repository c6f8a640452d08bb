"""Empty models and their filling: bit by bit what one process makes, on any number of them, in a part of the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_gpt.errors import DataError
from lit_gpt.formats.litgpt_directory import read_weights, write_litgpt_directory
from lit_gpt.model.building import build_model, empty_model, materialise
from lit_gpt.model.gpt import GPT, LoRAGPT
from lit_gpt.model.lora import base_name, is_adapter
from tests.conftest import ROOT
from tests.model.loading_worker import BF16, CASES, CONFIG, FP32, LARGE, LORA, SEED, anonymous_memory, loss_of

CPU = torch.device("cpu")


def reference(lora: bool, weights: dict[str, torch.Tensor] | None = None, seed: int = SEED) -> nn.Module:
    """The model as torch's and litgpt's own means make it: whole, in fp32, one module's numbers after the other's."""
    model = LoRAGPT(LORA.extend(CONFIG)) if lora else GPT(CONFIG)
    torch.manual_seed(seed)
    if weights is None:
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in model.named_parameters():
            if name.endswith((".proj.weight", ".proj.linear.weight")):
                parameter.data.mul_((2 * CONFIG.n_layer) ** -0.5)
    else:
        model.load_state_dict(weights, strict=False)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.reset_parameters()
    return model


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in reference(lora=False, seed=9).state_dict().items()}


@pytest.fixture(scope="module")
def folder(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models `tiny` and `large` (600 MB), and 2.pt and 3.pt: what 2 and 3 processes made of them."""
    folder = tmp_path_factory.mktemp("loading")
    write_litgpt_directory(folder / "tiny", CONFIG, weights, [])
    shapes = empty_model(LARGE, None, FP32).state_dict()
    zeros = {name: torch.zeros(1).expand(tensor.shape).clone() for name, tensor in shapes.items()}
    path = write_litgpt_directory(folder / "large", LARGE, zeros, [])
    del zeros
    worker = [sys.executable, "-m", "tests.model.loading_worker", str(folder)]
    done = subprocess.run(worker, cwd=ROOT, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    path.unlink()


def assert_identical(values: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_model_is_what_torch_and_litgpt_make_of_the_seed(
    given: bool, lora: bool, dtype: torch.dtype, weights: dict[str, torch.Tensor]
) -> None:
    model = build_model(CONFIG, weights if given else None, LORA if lora else None, SEED, dtype)
    expected = reference(lora, weights if given else None)
    assert_identical(model.state_dict(), expected.to(dtype).state_dict())
    assert all(p.requires_grad == (not lora or is_adapter(name)) for name, p in model.named_parameters())
    cos, sin = reference(lora).rope_cache()  # never in bf16
    assert_identical(dict(model.named_buffers()), {"cos": cos, "sin": sin})


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model(CONFIG, None, LORA, SEED, FP32)
    assert torch.equal(torch.rand(4), expected)


def test_an_empty_model_takes_no_memory_and_knows_its_dtypes() -> None:
    model = empty_model(CONFIG, LORA, FP32, BF16)
    for name, parameter in model.named_parameters():
        assert parameter.is_meta
        assert parameter.dtype == (FP32 if is_adapter(name) else BF16), name
        assert parameter.requires_grad == is_adapter(name)


def test_mapped_weights_of_the_right_dtype_are_not_copied(folder: Path) -> None:
    mapped = read_weights(folder / "tiny")
    model = build_model(CONFIG, mapped, LORA, SEED, FP32)
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            assert parameter.data_ptr() == mapped[base_name(name)].data_ptr(), name


def test_weights_of_another_model_are_refused(weights: dict[str, torch.Tensor]) -> None:
    name = "transformer.h.1.attn.qkv.weight"
    adapter = {"lm_head.lora_A": torch.zeros(4, 32)}
    wrong = {
        f"{name} is missing": {key: tensor for key, tensor in weights.items() if key != name},
        "lm_head.lora_A has no place": weights | adapter,
        rf"{name} has shape \[3, 32\], not \[64, 32\]": weights | {name: torch.zeros(3, 32)},
    }
    for message, tensors in wrong.items():
        for lora, quantize in ((None, None), (LORA, None), (LORA, "bnb.nf4")):
            with pytest.raises(DataError, match=f"not of the model 'tiny': {message}"):
                materialise(empty_model(CONFIG, lora, FP32, quantize=quantize), tensors, SEED, CPU)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_gets_the_same_model_and_gradient(
    case: str, processes: int, folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    found: dict[str, Any] = torch.load(folder / f"{processes}.pt", weights_only=True)[case]
    given, adapted, *how = CASES[case]
    model = empty_model(CONFIG, LORA if adapted else None, *how)
    materialise(model, weights if given else None, SEED, CPU)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert_identical(found["values"], values)
    assert_identical(found["buffers"], dict(model.named_buffers()))
    # Fabric's set-up leaves the dtypes as they are
    assert found["dtypes"] == {name: value.dtype for name, value in values.items()}
    assert_identical(found["saved"], {name: v for name, v in values.items() if is_adapter(name) or not adapted})
    with torch.autocast("cpu", BF16):
        loss = loss_of(model)
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        assert (name in found["gradients"]) == (parameter.grad is not None)
        if parameter.grad is not None:  # the mean over processes that all saw the same, so only rounding can differ
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-2, atol=1e-6)


def test_a_process_holds_its_part_of_the_weights_alone(folder: Path) -> None:
    mapped = read_weights(folder / "large")
    whole = sum(tensor.numel() * 4 for tensor in mapped.values())
    assert whole > 550e6
    with anonymous_memory() as grown:
        model = build_model(LARGE, mapped, None, SEED, BF16)
    assert 0.45 < grown[0] / whole < 0.6  # that the measure works: all of it in bf16
    del model
    found = torch.load(folder / "2.pt", weights_only=True)
    assert 0.45 * whole < found["bytes of full"] < 0.55 * whole  # half of it in fp32
    assert 0.2 * whole < found["bytes of adapters"] < 0.3 * whole  # half of it in bf16
