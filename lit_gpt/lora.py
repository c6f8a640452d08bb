"""LoRA: which matrices get an adapter, and how an adapter is merged into the weights it was trained on.

W' = W + (alpha / r) B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685), in litgpt's layout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import litgpt.lora
import torch
from litgpt.config import Config
from torch import Tensor

from lit_gpt.command import DataError
from lit_gpt.model import LoRAGPT


@dataclass(frozen=True)
class LoRASettings:
    """Rank, scale (alpha / r), dropout, and which matrices are adapted."""

    r: int
    alpha: int
    dropout: float
    query: bool
    key: bool
    value: bool
    projection: bool
    mlp: bool
    head: bool

    def extend(self, config: Config) -> litgpt.lora.Config:
        """litgpt's LoRA config for the base model `config`."""
        return litgpt.lora.Config(**asdict(config), **{f"lora_{name}": value for name, value in asdict(self).items()})


def is_adapter(name: str) -> bool:
    """Whether a state dict's key belongs to an adapter."""
    return "lora_" in name.rsplit(".", 1)[-1]


def base_name(name: str) -> str:
    """The base model's name of a LoRA model's frozen tensor, such as `transformer.h.0.attn.qkv.linear.weight`."""
    return name.replace(".linear.", ".")


@torch.no_grad()
def merge_adapter(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: Config, settings: LoRASettings
) -> dict[str, Tensor]:
    """The base weights with the adapter merged into them, computed in fp32, in the base's dtype.

    Args:
        base: the base model's state dict.
        adapter: the adapter's, with keys such as `transformer.h.0.attn.qkv.lora_A`.

    Raises:
        DataError: if a key of the adapter was not used or is missing, or if no weight changed.
    """
    merged = dict(base)
    unused = set(adapter)
    changed = 0
    with torch.device("meta"):
        model = LoRAGPT(settings.extend(config))
    layers = [(name, m) for name, m in model.named_modules() if hasattr(m, "lora_A")]
    for name, on_meta in layers:
        layer = copy.deepcopy(on_meta).to_empty(device="cpu").float()
        for part in ("lora_A", "lora_B"):
            _fill(getattr(layer, part), adapter, f"{name}.{part}")
            unused.discard(f"{name}.{part}")
        key = f"{name}.weight"
        if key not in base:
            raise DataError(f"the base model has no {key}, which the adapter changes: not the model it was trained on")
        weight = base[key]
        merged[key] = (weight.float() + layer.get_lora_AB()).to(weight.dtype)
        changed += not torch.equal(merged[key], weight)
    if unused:
        raise DataError(f"{len(unused)} adapter tensors found no place in the model, such as {min(unused)}")
    if not changed:
        raise DataError(
            f"the adapter changes none of its {len(layers)} matrices: it is untrained or its effect is lost"
        )
    return merged


def _fill(parameter: Tensor, adapter: Mapping[str, Tensor], key: str) -> None:
    if key not in adapter:
        raise DataError(f"the adapter lacks {key}: it was trained with other --lora_* settings")
    if adapter[key].shape != parameter.shape:
        raise DataError(f"the adapter's {key} has shape {list(adapter[key].shape)}, expected {list(parameter.shape)}")
    parameter.copy_(adapter[key])
