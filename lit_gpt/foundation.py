"""Foundation models: litgpt checkpoint directories (`lit_model.pth`, `model_config.yaml`, tokenizer files)."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.command import DataError, UserError, as_os_error
from lit_gpt.lora import LoRASettings, is_adapter
from lit_gpt.model import GPT, LoRAGPT

WEIGHTS = "lit_model.pth"
CONFIG = "model_config.yaml"


def read_config(path: Path, vocab_size: int | None = None) -> Config:
    """The model config of a YAML file with litgpt's fields, or of the directory that holds `model_config.yaml`.

    Args:
        path: the file or the directory.
        vocab_size: the tokenizer's, for a file that leaves the model's open.

    Raises:
        UserError: if there is no such file, or its fields do not make a model.
    """
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{path} is missing: not a litgpt checkpoint directory (lit_gpt/scripts/convert_hf_checkpoint.py)"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if vocab_size is not None and not {"vocab_size", "padded_vocab_size"} & values.keys():
            values |= {"vocab_size": vocab_size, "padded_vocab_size": vocab_size}
        return Config(**values)
    except (ValueError, TypeError, AttributeError, AssertionError, yaml.YAMLError) as e:
        raise UserError(f"{path} is no model config: {e}") from None


def config_values(config: Config) -> dict[str, Any]:
    """The config as plain YAML values, as litgpt writes them."""
    return yaml.safe_load(yaml.dump(asdict(config)))


def read_weights(checkpoint_dir: Path) -> dict[str, Tensor]:
    """The state dict of `checkpoint_dir/lit_model.pth`, memory-mapped: processes of a node share the pages.

    Raises:
        UserError: if it is missing.
        DataError: if it cannot be read as a state dict.
    """
    path = checkpoint_dir / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{path} is missing: not a litgpt checkpoint directory (lit_gpt/scripts/convert_hf_checkpoint.py)"
        )
    try:
        weights = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises RuntimeError, UnpicklingError, EOFError and others for one broken file
        raise DataError(f"{path} cannot be read: {' '.join(str(e).split())[:200]}") from e
    weights = weights.get("model", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path} is not a state dict")
    return weights


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and a sample of each tensor's values.

    Of each tensor 64 values are read, evenly spread: enough to tell any two trained models apart without reading
    hundreds of gigabytes at each start.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        flat = weights[name].reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].float()
        digest.update(f"{name} {list(weights[name].shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_model(
    config: Config, weights: Mapping[str, Tensor] | None, lora: LoRASettings | None, seed: int, dtype: torch.dtype
) -> nn.Module:
    """A model on the CPU: with `weights`, or random ones when None; with fresh adapters when `lora` is given.

    Equal on every process: random numbers come from `seed`.

    Raises:
        DataError: if `weights` are not those of a model of this config.
    """
    with torch.device("meta"):
        model = LoRAGPT(lora.extend(config)) if lora else GPT(config)
    torch.manual_seed(seed)
    if weights is None:
        model.to_empty(device="cpu")
        _initialise(model, config)
    else:
        _load(model, weights, config)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A = nn.Parameter(torch.empty(module.lora_A.shape))
            module.lora_B = nn.Parameter(torch.empty(module.lora_B.shape))
            module.reset_parameters()
    model = model.to(dtype)
    refresh_rotary_tables(model, torch.device("cpu"))
    return model


def refresh_rotary_tables(model: nn.Module, device: torch.device) -> None:
    """Computes the model's cosines and sines anew, in fp32: in bf16 they would blur positions beyond 256."""
    model.cos, model.sin = model.rope_cache(device=device)


def _load(model: nn.Module, weights: Mapping[str, Tensor], config: Config) -> None:
    try:
        missing, unexpected = model.load_state_dict(dict(weights), strict=False, assign=True)
    except RuntimeError as e:
        raise DataError(
            f"the weights are not of the model '{config.name}': {str(e).splitlines()[-1].strip()}"
        ) from None
    missing = [name for name in missing if not is_adapter(name)]
    if missing or unexpected:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place"
        raise DataError(f"the weights are not of the model '{config.name}': {first}")
    trained = LoRAGPT if isinstance(model, LoRAGPT) else GPT
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained is GPT or is_adapter(name))


def _initialise(model: nn.Module, config: Config) -> None:
    """GPT-2's initialisation: N(0, 0.02), the projections into the residual stream scaled by 1/sqrt(2·layers)."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm) or type(module).__name__ == "RMSNorm":
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith((".proj.weight", ".proj.linear.weight")):
            parameter.data.mul_((2 * config.n_layer) ** -0.5)


def write_foundation(folder: Path, config: Config, weights: Mapping[str, Tensor], companions: Iterable[Path]) -> Path:
    """Makes `folder` a litgpt checkpoint directory, `lit_model.pth` last and whole or not at all.

    Args:
        folder: made if it does not exist; other files in it stay.
        config: written to `model_config.yaml`.
        weights: litgpt's names.
        companions: files copied along (the tokenizer's, Hugging Face's config.json).

    Returns:
        The path of `lit_model.pth`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for companion in companions:
        if companion.parent.resolve() != folder.resolve():
            shutil.copyfile(companion, folder / companion.name)
    (folder / CONFIG).write_text(yaml.safe_dump(config_values(config), sort_keys=False), encoding="utf-8")
    staged = folder / f".{WEIGHTS}.tmp"
    try:
        with staged.open("wb") as file:
            torch.save(dict(weights), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as e:
        staged.unlink(missing_ok=True)
        raise as_os_error(e, staged) or e from e
    return staged.rename(folder / WEIGHTS)
