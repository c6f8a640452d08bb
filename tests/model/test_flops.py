"""FLOPs against those torch counts while it computes, and peaks against what devices are called."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.throughput import _CUDA_FLOPS
from litgpt.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt.errors import UserError
from lit_gpt.model.building import build_model
from lit_gpt.model.flops import flops_per_token, mean_context, peak_flops
from lit_gpt.model.lora import LoRASettings
from tests.conftest import TINY_MODEL

POSITIONS = 16
LLAMA = Config(**yaml.safe_load(TINY_MODEL), vocab_size=90, padded_vocab_size=96)  # grouped queries, three MLP matrices
NEOX = Config(n_layer=2, n_embd=32, n_head=4, block_size=64, padded_vocab_size=97, bias=True, lm_head_bias=True)
SHARED_NORM = replace(NEOX, shared_attention_norm=True)
# With a group per head litgpt adapts query, key and value by a grouped convolution, and torch's counter (2.13) takes
# the gradient of its weight for that of a full one.
GROUPED_NEOX = replace(NEOX, n_query_groups=2)
EXPERTS = replace(
    LLAMA, mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2, moe_intermediate_size=24, intermediate_size=64
)
WIDE_HEADS = replace(LLAMA, head_size=16, n_query_groups=1, bias=True)
NAMES = ("query", "key", "value", "projection", "mlp", "head")


def adapters(*names: str) -> LoRASettings:
    return LoRASettings(r=4, alpha=8, dropout=0.1, **{name: name in names for name in NAMES})


def counted(config: Config, lora: LoRASettings | None) -> float:
    """FLOPs per position of a real forward and backward pass, through litgpt's own attention.

    That computes all scores, the masked ones too: every query meets all `POSITIONS` keys.
    """
    model = build_model(config, None, lora, seed=1, dtype=torch.float32)
    ids = torch.randint(0, 90, (2, POSITIONS))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("config", [LLAMA, NEOX, SHARED_NORM, EXPERTS, WIDE_HEADS], ids=lambda c: c.mlp_class_name)
def test_full_training_costs_what_torch_counts(config: Config) -> None:
    assert flops_per_token(config, None, POSITIONS) == counted(config, None)


@pytest.mark.parametrize("config", [LLAMA, GROUPED_NEOX, EXPERTS], ids=lambda c: c.mlp_class_name)
@pytest.mark.parametrize(
    "names", [("query", "value"), ("key",), ("projection",), ("mlp",), ("head",), ("mlp", "head"), NAMES]
)
def test_lora_costs_what_torch_counts(config: Config, names: tuple[str, ...]) -> None:
    assert flops_per_token(config, adapters(*names), POSITIONS) == counted(config, adapters(*names))


@pytest.mark.parametrize("whole", [("train_embeddings",), ("train_head",), ("train_embeddings", "train_head")])
def test_what_is_trained_whole_costs_what_torch_counts(whole: tuple[str, ...]) -> None:
    lora = replace(adapters("value"), **dict.fromkeys(whole, True))
    assert flops_per_token(LLAMA, lora, POSITIONS) == counted(LLAMA, lora)


def test_every_choice_of_adapters_costs_what_torch_counts() -> None:
    config = GROUPED_NEOX  # parallel: what lies upstream of a matrix is not all that is before it
    for names in (names for count in (1, 2, 3) for names in itertools.combinations(NAMES, count)):
        lora = adapters(*names)
        assert flops_per_token(config, lora, POSITIONS) == counted(config, lora), names


def test_the_rule_of_thumb_holds() -> None:
    """6 per weight in full training, 4 per frozen weight with LoRA, for a shape whose head is small: within 2 %."""
    config = replace(LLAMA, n_layer=24, n_embd=256, n_head=8, intermediate_size=704, head_size=32)
    weights = 24 * (256 * (8 + 2 * 2) * 32 + 256 * 256 + 3 * 256 * 704) + 256 * 96
    assert flops_per_token(config, None, 0) == 6 * weights
    lora = LoRASettings(1, 1, 0.0, *(name == "query" for name in NAMES))
    assert flops_per_token(config, lora, 0) == pytest.approx(4 * weights, rel=0.02)


def test_attention_costs_by_what_is_attended_to() -> None:
    per_key = flops_per_token(LLAMA, None, 11) - flops_per_token(LLAMA, None, 10)
    assert per_key == 3 * 4 * 8 * 4 * 2  # passes · two products of 2 FLOPs · head_size · n_head · n_layer


def test_layers_with_a_sliding_window_attend_to_less() -> None:
    config = replace(LLAMA, sliding_window_size=8, sliding_window_indices=[1, 0])
    full, per_key = flops_per_token(LLAMA, None, 16), 3 * 4 * 8 * 4
    assert flops_per_token(config, None, 16) == full - 8 * per_key
    assert flops_per_token(config, None, 16, 6.5) == full - 9.5 * per_key
    assert flops_per_token(config, None, 4) == flops_per_token(LLAMA, None, 4)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_mean_context_is_what_queries_see(window: int | None) -> None:
    lengths = np.array([3, 1, 12])
    seen = [min(position + 1, window or 1000) for length in lengths for position in range(length)]
    assert mean_context(lengths, window) == pytest.approx(np.mean(seen))


def test_a_model_that_cannot_be_trained_here_is_refused() -> None:
    sizes = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    latent = dict.fromkeys(sizes, 8)
    with pytest.raises(UserError, match="latent_attention"):
        flops_per_token(replace(LLAMA, n_query_groups=LLAMA.n_head, latent_attention=latent), None, 8)


@pytest.mark.parametrize(
    ("device", "sixteen", "fp32"),
    [
        ("Tesla V100-SXM2-32GB", 125, 15.7),
        ("Tesla V100-PCIE-16GB", 112, 14),
        ("Tesla V100S-PCIE-32GB", 130, 16.4),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51.2),
        ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA GH200 480GB", 989.4, 66.9),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("AMD Instinct MI250X", 191.5, 47.85),
        ("AMD Instinct MI300X", 1307.4, 163.4),
    ],
)
def test_a_device_is_known_by_the_name_torch_gives_it(device: str, sixteen: float, fp32: float) -> None:
    assert peak_flops(device, "bf16-mixed") == peak_flops(device, "16-true") == pytest.approx(sixteen * 1e12)
    assert peak_flops(device, "32-true") == pytest.approx(fp32 * 1e12)


@pytest.mark.parametrize(
    "device", ["cpu", "", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA A100-SXM-64GB", "NVIDIA A10G"]
)
def test_an_unknown_device_has_no_peak(device: str) -> None:
    assert peak_flops(device, "bf16-mixed") is None


def test_the_peak_in_fp32_is_that_of_the_units_torch_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops("NVIDIA A100-SXM4-40GB", "32-true") == 156e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "bf16-true") == 312e12


@pytest.mark.parametrize("name", ["a100", "h100 sxm", "h100 pcie", "l4", "l40", "v100 sxm", "v100 pcie", "v100s pcie"])
def test_the_peaks_are_lightnings_where_those_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _CUDA_FLOPS[name]
    assert peak_flops(name, "16-true") == pytest.approx(theirs[torch.float16], rel=1e-3)
    assert peak_flops(name, "32-true") == pytest.approx(theirs[torch.float32], rel=1e-3)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(name, "32-true") == pytest.approx(theirs.get("tfloat32", theirs[torch.float32]), rel=1e-3)
