"""What a training step costs in floating-point operations, and what a GPU could do at most: together the MFU.

MFU = `flops_per_token` × target tokens per second / (`peak_flops` × devices), as in PaLM, appendix B
(https://arxiv.org/abs/2204.02311): what the model needs is counted, not what the program does. Recomputed activations,
masked scores and padding earn no credit.
"""

import re

import numpy as np
import torch
from litgpt.config import Config
from torch import nn

from lit_gpt.model.gpt import GPT, LoRAGPT
from lit_gpt.model.lora import LoRASettings

# Peak TFLOP/s without sparsity: (16-bit with fp32 sums, TF32, fp32), from the vendors' data sheets, whose figures "with
# sparsity" are halved here, for RTX cards from the GA102 and Ada white papers. AMD: matrix units; torch sees each die
# of an MI250X as a device. Lightning's table (2.6.6) doubles the H100 NVL and the H200, and has no AMD. A MIG slice and
# Leonardo's A100 with 64 GB have other peaks.
_PEAKS: dict[str, tuple[float, float, float]] = {
    r"V100S": (130, 16.4, 16.4),
    r"V100.*PCIe": (112, 14.0, 14.0),
    r"V100": (125, 15.7, 15.7),
    r"T4": (65, 8.1, 8.1),
    r"A100(?!.*64GB)": (312, 156, 19.5),
    r"A10": (125, 62.5, 31.2),
    r"A40": (149.7, 74.8, 37.4),
    r"RTX A6000": (154.8, 77.4, 38.7),
    r"RTX 3090": (71, 35.6, 35.6),
    r"RTX 4090": (165.2, 82.6, 82.6),
    r"L4": (121, 60, 30.3),
    r"L40": (181, 90.5, 90.5),
    r"L40S": (362, 183, 91.6),
    r"H100 PCIe": (756, 378, 51.2),
    r"(H100|H200) NVL": (835.5, 417.5, 60),
    r"(H100|H200|GH200)": (989.4, 494.7, 66.9),
    r"MI210": (181, 45.3, 45.3),
    r"MI250X": (191.5, 47.85, 47.85),
    r"MI300A": (980.6, 490.3, 122.6),
    r"MI300X": (1307.4, 653.7, 163.4),
}


def mean_context(lengths: np.ndarray, window: int | None = None) -> float:
    """Keys that a query attends to on average, itself included: (L + 1) / 2 in a document, or a whole row, of L."""
    lengths = np.asarray(lengths, np.float64)
    growing = np.minimum(lengths, window or np.inf)
    return float((growing * (growing + 1) / 2 + (lengths - growing) * growing).sum() / lengths.sum())


def flops_per_token(
    config: Config, lora: LoRASettings | None, context: float, window_context: float | None = None
) -> float:
    """Floating-point operations of forward and backward pass per position.

    A weight costs 2 per product: forward; backward for its input, if anything before it is trained; backward for
    itself, if it is trained. So it costs 6 in full training; with LoRA a frozen weight costs 4, one before the first
    adapter 2, and one of an adapter 6. The embedding is looked up, not multiplied. The output head counts with all its
    padded rows, and only the experts that a token is sent to count. Attention (q·k and p·v) costs 4 · head_size ·
    n_head · context per layer forward, and twice that backward.

    `context` is the `mean_context`, `window_context` the same in layers with a sliding window (default: the less of
    `context` and the window, which is too much where documents are longer than it).
    """
    with torch.device("meta"):
        model = GPT(config) if lora is None else LoRAGPT(lora.extend(config))
    experts = config.n_expert_per_token / config.n_expert if config.n_expert else 1.0
    if window_context is None:
        window_context = min(context, config.sliding_window_size or context)
    flops = 0.0
    upstream = model.transformer.wte.weight.requires_grad  # whether anything trained lies upstream
    for block in model.transformer.h:
        qkv, attention = _products(block.attn, False, upstream)
        projection, attended = _products(block.attn, True, attention)
        fc, inside = _products(block.mlp, False, upstream if config.parallel_residual else attended, experts)
        down, transformed = _products(block.mlp, True, inside, experts)
        keys = window_context if block.attn.apply_sliding_window_attention else context
        scores = 4 * config.head_size * config.n_head * keys * (3 if attention else 1)
        flops += qkv + scores + projection + fc + down
        upstream = attended or transformed
    return flops + _products(model.lm_head, False, upstream)[0]


def _products(module: nn.Module, outgoing: bool, upstream: bool, experts: float = 1.0) -> tuple[float, bool]:
    """FLOPs per position of a module's matrices, and whether anything up to their results is trained.

    `outgoing`: those named `proj`, which multiply what the others made, else the others. `experts`: their share in use.
    """
    flops, trained = 0.0, False
    for name, parameter in module.named_parameters():
        parts = name.split(".")
        if parameter.dim() < 2 or ("proj" in parts) != outgoing:
            continue
        share = experts if "experts" in parts else 1.0
        input_gradient = upstream or parts[-1] == "lora_B"  # the input of B is what the trained A made
        flops += share * parameter.numel() * (2 + 2 * input_gradient + 2 * parameter.requires_grad)
        trained |= parameter.requires_grad
    return flops, upstream or trained


def peak_flops(device_name: str, precision: str) -> float | None:
    """The most FLOP/s that a device's data sheet promises for dense matrix products; None for one not in the table.

    `precision` is Lightning's name. A V100's or T4's 16 bits are fp16: they have no units for bf16.
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    for pattern, (sixteen, tf32, fp32) in _PEAKS.items():
        if re.search(rf"\b{pattern}\b", device_name, re.IGNORECASE):
            if precision != "32-true":
                return sixteen * 1e12
            return (fp32 if torch.get_float32_matmul_precision() == "highest" else tf32) * 1e12
    return None
