"""Models: made empty, sharded by the caller, and filled with weights or with random numbers."""

import math
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.errors import DataError
from lit_gpt.model.gpt import GPT, LoRAGPT
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.model.lora import LoRASettings, base_name, is_adapter
from lit_gpt.model.qlora import FrozenFormat, qlora_layers, replace_frozen_layers


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
    quantize: FrozenFormat | None = None,
) -> nn.Module:
    """A model on the meta device, which takes no memory, to be sharded and then filled by `materialise`.

    What is trained has `dtype`: everything, or with `lora` the adapters alone, on a base in `frozen_dtype` (default:
    `dtype`). `quantize` keeps the matrices of the base's blocks in that format; a UserError if a package is missing.
    """
    assert lora or not quantize, "what is trained is not kept in NF4 or int8"
    with torch.device("meta"):
        model = LoRAGPT(lora.extend(config)) if lora else GPT(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype if parameter.requires_grad else frozen_dtype or dtype)
    if quantize:
        replace_frozen_layers(model, quantize)
    return model


@torch.no_grad()
def materialise(model: nn.Module, weights: Mapping[str, Tensor] | None, seed: int, device: torch.device) -> None:
    """Fills a model of `empty_model`, also one whose parameters FSDP2 has sharded, in place on `device`.

    A process reads, converts and keeps only its own part of a sharded parameter. QLoRA's matrices are quantised one at
    a time, whole on every process, which keeps its part of the bytes where they are shared. An unsharded parameter
    shares the memory of a tensor in `weights` that has its dtype and device. Random numbers come from `seed` alone,
    tensor by tensor on the host, so that any number of processes gets the same values.

    `weights` are the base model's, best memory-mapped, or None for random ones; adapters are always fresh. A DataError
    says that they are not those of a model of this config.
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
    for name, layer in qlora_layers(model):
        assert weights is not None, "random weights are not kept in NF4 or int8"
        layer.fill(weights[base_name(f"{name}.weight")], device)
    refresh_rotary_tables(model, device)


def refresh_rotary_tables(model: nn.Module, device: torch.device) -> None:
    """Computes the model's cosines and sines anew, in fp32: in bf16 they would blur positions beyond 256."""
    model.cos, model.sin = model.rope_cache(device=device)


def _own_part(value: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    if not hasattr(parameter, "placements"):  # not a DTensor
        return value.to(device, parameter.dtype)
    # 519 modules and 0.7 s, for sharded models alone
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
    sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    ranges = [slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
    part = value[tuple(ranges)]
    part = part.to(device, parameter.dtype, copy=True)  # a view would keep the whole tensor
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = {base_name(name): list(p.shape) for name, p in model.named_parameters() if not is_adapter(name)}
    for name, layer in qlora_layers(model):
        expected[base_name(f"{name}.weight")] = [layer.out_features, layer.in_features]
    found = {name: list(spec.shape) for name, spec in specs_of(weights).items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} has no place" for name in found if name not in expected]
    for name, shape in expected.items():
        if found.get(name, shape) != shape:
            problems.append(f"{name} has shape {found[name]}, not {shape}")
    if problems:
        raise DataError(f"the weights are not of the model '{model.config.name}': {problems[0]}")


def _random_base(
    parameters: Mapping[str, Tensor], layers: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's initialisation: N(0, 0.02), the projections into the residual stream scaled by 1/sqrt(2·layers)."""
    for name, parameter in parameters.items():
        if is_adapter(name):
            continue
        value = torch.ones(parameter.shape)  # norms
        if name.endswith(".bias"):
            value.zero_()
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
