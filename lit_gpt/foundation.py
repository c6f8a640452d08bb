"""Foundation models: litgpt checkpoint directories (`lit_model.pth`, `model_config.yaml`, tokenizer files)."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.command import DataError, UserError
from lit_gpt.lora import LoRASettings, base_name, is_adapter
from lit_gpt.model import GPT, LoRAGPT
from lit_gpt.quantize import Quantization, quantise_frozen, quantised_layers
from lit_gpt.tensor_files import LazyTensors, only_tensors, open_tensors, reading, specs_of, write_lit_model

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


def convert_hf_checkpoint(directory: Path, dtype: torch.dtype | None = None) -> list[str]:
    """Writes `lit_model.pth` and `model_config.yaml` beside a Hugging Face checkpoint; returns lines that say so.

    Args:
        directory: with config.json and the weights.
        dtype: of the weights. Default: as in the files.

    Raises:
        UserError: for an architecture that is not supported.
        DataError: for damaged weights, or some that do not fit config.json.
        OSError: if the disk is full.
    """
    from lit_gpt.hf import config_from_hf, read_hf_config, read_json, tensors_from_hf

    hf = read_hf_config(directory)
    config = config_from_hf(hf)
    staged_config, staged_model = (directory / f".{name}.tmp" for name in (CONFIG, WEIGHTS))
    try:
        parameters = write_lit_model(staged_model, tensors_from_hf(directory, config, hf, dtype))
        staged_config.write_text(yaml.safe_dump(asdict(config)))
        staged_config.replace(directory / CONFIG)
        staged_model.replace(directory / WEIGHTS)  # last: where it is, the directory is complete
    finally:
        staged_config.unlink(missing_ok=True)
        staged_model.unlink(missing_ok=True)
    lines = [f"{hf['architectures'][0]}, {parameters:,} parameters, context {config.block_size:,}"]
    if (whole := read_json(directory / "config.json")["architectures"][0]) != hf["architectures"][0]:
        lines.append(f"the text part of a {whole}: what reads pictures is left out")
    if config.sliding_window_size:
        sliding = sum(config.sliding_window_indices)
        lines.append(f"{sliding} of {config.n_layer} layers have a sliding window of {config.sliding_window_size:,}")
    return [*lines, f"wrote {directory / WEIGHTS} and {directory / CONFIG}"]


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
    _check_there(path)
    with reading(path):
        return only_tensors(torch.load(path, mmap=True, weights_only=True, map_location="cpu"))


def lazy_weights(checkpoint_dir: Path) -> LazyTensors:
    """The state dict of `checkpoint_dir/lit_model.pth`, each tensor read and compared with its CRC when asked for.

    Raises:
        UserError: if it is missing.
        DataError: if it cannot be read as a state dict.
    """
    path = checkpoint_dir / WEIGHTS
    _check_there(path)
    return open_tensors(path)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path} is missing: not a litgpt checkpoint directory (lit_gpt/scripts/convert_hf_checkpoint.py)"
        )


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and a sample of each tensor's values.

    Of each tensor 64 values are read, evenly spread: enough to tell any two trained models apart without reading
    hundreds of gigabytes at each start.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].float()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_model(
    config: Config, weights: Mapping[str, Tensor] | None, lora: LoRASettings | None, seed: int, dtype: torch.dtype
) -> nn.Module:
    """A whole model on the CPU, in one dtype: see `empty_model` and `materialise`."""
    model = empty_model(config, lora, dtype)
    materialise(model, weights, seed, torch.device("cpu"))
    return model


def empty_model(
    config: Config,
    lora: LoRASettings | None,
    dtype: torch.dtype,
    frozen_dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
) -> nn.Module:
    """A model on the meta device, which takes no memory, as it is to be sharded and then filled by `materialise`.

    Args:
        config: the base model's.
        lora: adapters; they alone are trained.
        dtype: of what is trained.
        frozen_dtype: of the base under adapters. Default: `dtype`.
        quantize: keeps the matrices of the base's blocks in this format, and computes in `frozen_dtype`; needs `lora`.

    Raises:
        UserError: if `quantize` needs a package that is missing.
    """
    assert lora or not quantize, "what is trained cannot be quantised"
    with torch.device("meta"):
        model = LoRAGPT(lora.extend(config)) if lora else GPT(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype if parameter.requires_grad else frozen_dtype or dtype)
    if quantize:
        quantise_frozen(model, quantize)
    return model


@torch.no_grad()
def materialise(model: nn.Module, weights: Mapping[str, Tensor] | None, seed: int, device: torch.device) -> None:
    """Fills a model of `empty_model`, also one whose parameters FSDP2 has sharded, in place on `device`.

    Of a sharded parameter a process reads, converts and keeps only its own part; quantised matrices are whole on every
    process, and are made one at a time. An unsharded parameter whose tensor in `weights` has the right dtype and device
    shares its memory. Random numbers come from `seed` alone, tensor by tensor on the host, so that any number of
    processes gets the same values.

    Args:
        model: on the meta device.
        weights: the base model's state dict, best memory-mapped (`read_weights`); random ones when None. Adapters are
            always fresh.
        seed: of the random numbers.
        device: where the model is to be.

    Raises:
        DataError: if `weights` are not those of a model of this config.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    adapters = _fresh_adapters(parameters, generator)
    if weights is None:
        values = chain(_random_base(parameters, model.config.n_layer, generator), adapters)
    else:
        _check_weights(model, weights)
        base = ((name, weights[base_name(name)]) for name in parameters if not is_adapter(name))
        values = chain(base, adapters)
    own = {name: _own_part(value, parameters[name], device) for name, value in values}
    model.load_state_dict(own, strict=False, assign=True)  # FSDP2 hears of new tensors by load_state_dict's hooks
    for name, layer in quantised_layers(model):
        assert weights is not None, "random weights are not quantised"
        layer.fill(weights[base_name(f"{name}.weight")], device)
    refresh_rotary_tables(model, device)


def refresh_rotary_tables(model: nn.Module, device: torch.device) -> None:
    """Computes the model's cosines and sines anew, in fp32: in bf16 they would blur positions beyond 256."""
    model.cos, model.sin = model.rope_cache(device=device)


def _own_part(value: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """What this process holds of the whole tensor `value`, in the dtype and the sharding of `parameter`."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(parameter, DTensor):
        return value.to(device, parameter.dtype)
    mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
    sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    part = value[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))]
    part = part.to(device, parameter.dtype, copy=True)  # a view would keep the whole tensor
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = {base_name(name): list(p.shape) for name, p in model.named_parameters() if not is_adapter(name)}
    for name, layer in quantised_layers(model):
        expected[base_name(f"{name}.weight")] = [layer.out_features, layer.in_features]
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    found = {name: list(spec.shape) for name, spec in specs_of(weights).items()}
    differing = [name for name, shape in expected.items() if name in found and found[name] != shape]
    if missing or unexpected or differing:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place" if unexpected else None
        first = first or f"{differing[0]} has shape {found[differing[0]]}, not {expected[differing[0]]}"
        raise DataError(f"the weights are not of the model '{model.config.name}': {first}")


def _random_base(
    parameters: Mapping[str, Tensor], layers: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's initialisation: N(0, 0.02), the projections into the residual stream scaled by 1/sqrt(2·layers)."""
    for name, parameter in parameters.items():
        if is_adapter(name):
            continue
        value = torch.zeros(parameter.shape) if name.endswith(".bias") else torch.ones(parameter.shape)
        if parameter.dim() >= 2:
            value.normal_(std=0.02, generator=generator)
        if base_name(name).endswith(".proj.weight"):
            value *= (2 * layers) ** -0.5
        yield name, value


def _fresh_adapters(parameters: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """litgpt's initialisation: B is zero, A is nn.Linear's."""
    for name, parameter in parameters.items():
        if name.endswith(".lora_A"):
            value = torch.empty(parameter.shape)
            yield name, nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        elif is_adapter(name):
            yield name, torch.zeros(parameter.shape)


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
        write_lit_model(staged, weights.items())
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged.rename(folder / WEIGHTS)
