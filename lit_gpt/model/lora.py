"""LoRA: which matrices get an adapter, and how an adapter is merged into the weights it was trained on.

The embeddings and the head can be trained whole beside it: an adapter's tensors are then A and B of its matrices, and
these, by the base model's names.

W' = W + (alpha / r) B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685), in litgpt's layout.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import litgpt.lora
import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.errors import DataError
from lit_gpt.model.gpt import LoRAConfig, LoRAGPT
from lit_gpt.model.lazy_tensors import LazyTensors, specs_of
from lit_gpt.model.one_core import on_one_core


@dataclass(frozen=True)
class LoRASettings:
    """An adapter's shape, and which matrices have one."""

    r: int  # rank
    alpha: int  # the adapter's product is multiplied by alpha / r
    dropout: float
    query: bool
    key: bool
    value: bool
    projection: bool
    mlp: bool
    head: bool
    train_embeddings: bool = False  # whole, beside the adapters
    train_head: bool = False

    def extend(self, config: Config) -> LoRAConfig:
        """The LoRA model's config for the base model `config`."""
        own = {f"lora_{name}": value for name, value in asdict(self).items()}
        return LoRAConfig(**asdict(config), **own)

    def recorded(self) -> dict[str, Any]:
        """Its fields for run.yaml, which without anything trained whole says what earlier versions did."""
        return {name: value for name, value in asdict(self).items() if value or not name.startswith("train_")}


def is_adapter(name: str) -> bool:
    return "lora_" in name.rsplit(".", 1)[-1]


def base_name(name: str) -> str:
    """The base model's name of a LoRA model's frozen tensor, such as `transformer.h.0.attn.qkv.linear.weight`."""
    return name.replace(".linear.", ".")


def merge_adapter(
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    config: Config,
    settings: LoRASettings,
    dtype: torch.dtype | None = None,
) -> LazyTensors:
    """The base weights with the adapter merged into them, computed in fp32; each matrix when it is asked for.

    `dtype` None keeps the base's. A DataError: an adapter's key is unused or missing, or no weight changes.
    """
    layers, whole = _changed_by(config, settings)
    specs = specs_of(base)
    for name, spec in whole.items():
        if name not in adapter or name not in specs:
            raise DataError(f"the {'adapter' if name in specs else 'base model'} lacks {name}, which was trained whole")
        if adapter[name].shape != spec.shape or specs[name].shape != spec.shape:
            found = f"{list(adapter[name].shape)} in the adapter, {list(specs[name].shape)} in the base model"
            raise DataError(f"{name}, which was trained whole, has shape {found}, expected {list(spec.shape)}")
    for key, layer in layers.items():
        if key not in specs:
            raise DataError(f"the base model has no {key}, which the adapter changes: not the model it was trained on")
        for part in _parts(key):
            expected = list(getattr(layer, part.rsplit(".", 1)[1]).shape)
            if part not in adapter:
                raise DataError(f"the adapter lacks {part}: it was trained with other --lora_* settings")
            if list(adapter[part].shape) != expected:
                raise DataError(f"the adapter's {part} has shape {list(adapter[part].shape)}, expected {expected}")
    if unused := adapter.keys() - {part for key in layers for part in _parts(key)} - whole.keys():
        raise DataError(f"{len(unused)} adapter tensors found no place in the model, such as {min(unused)}")

    def read(name: str) -> Tensor:
        weight = base[name]
        target = dtype or weight.dtype
        if name in whole:
            return adapter[name].to(target)
        if name not in layers:
            return weight.to(target)
        a, b = (adapter[part].float() for part in _parts(name))
        return _merged(weight, layers[name], a, b, target)

    def is_unchanged(name: str) -> bool:
        weight = base[name]
        return torch.equal(read(name), weight.to(dtype or weight.dtype))

    changed = [*layers, *whole]
    if all(map(is_unchanged, changed)):  # mostly the first one has changed
        raise DataError(
            f"the adapter changes none of its {len(changed)} matrices: it is untrained or its effect is lost"
        )
    return LazyTensors({name: spec.to(dtype or spec.dtype) for name, spec in specs.items()}, read)


def _changed_by(config: Config, settings: LoRASettings) -> tuple[dict[str, litgpt.lora.LoRALinear], dict[str, Tensor]]:
    """The layers that have an adapter, and what is trained whole, on the meta device, by the base model's names."""
    with torch.device("meta"):
        model = LoRAGPT(settings.extend(config))
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    trained = [(name, spec) for name, spec in model.named_parameters() if spec.requires_grad]
    return layers, {base_name(name): spec for name, spec in trained if not is_adapter(name)}


def _parts(weight: str) -> tuple[str, str]:
    layer = weight.removesuffix(".weight")
    return f"{layer}.lora_A", f"{layer}.lora_B"


MERGED_AT_ONCE = 1 << 17  # values, of which there is an fp32 copy: 512 KB stay in the cache, 3 times as fast as 16 MB


@on_one_core()
@torch.no_grad()
def _merged(weight: Tensor, layer: litgpt.lora.LoRALinear, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """W + scale · B A of a layer; where queries, keys and values have an A and a B each, all their products."""
    merged = weight.to(dtype, copy=True)
    rows = max(1, MERGED_AT_ONCE // weight.size(1))
    for first, down, up in _products(layer, a, b):
        for start in range(0, len(up), rows):
            own = up[start : start + rows]
            changed = slice(first + start, first + start + len(own))
            merged[changed] = torch.addmm(weight[changed].float(), own, down, alpha=layer.scaling)
    return merged


def _products(layer: litgpt.lora.LoRALinear, a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The products of a layer: the first of the matrix's rows that one changes, its A and its B."""
    if not isinstance(layer, litgpt.lora.LoRAQKVLinear):
        yield 0, a, b
        return
    first = 0
    for heads, enabled in zip((layer.n_head, *[layer.n_query_groups] * 2), layer.enable_lora, strict=True):
        count = heads * layer.head_size
        if enabled:
            yield first, a[: layer.r], b[:count]
            a, b = a[layer.r :], b[count:]
        first += count


def check_merged(
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    config: Config,
    settings: LoRASettings,
) -> None:
    """Raises a DataError if a tensor differs by more than rounding from the base's, or from litgpt's merging of it."""
    layers, whole = _changed_by(config, settings)
    adapted = list(layers)

    @torch.no_grad()
    def agrees(name: str) -> bool:
        weight, found = base[name], merged[name]
        layer = layers.pop(name)  # which will hold the matrix
        a, b = (adapter[part].float() for part in _parts(name))
        changes = _litgpt_changes(layer, weight, a, b)
        return all(_is_rounded(found[rows], weight[rows].float() + change) for rows, change in changes)

    with on_one_core(), ThreadPoolExecutor(max_workers=2) as pool:
        equal = dict(zip(adapted, pool.map(agrees, adapted), strict=True))
    for name in base:
        if name not in equal:
            found, source = merged[name], adapter if name in whole else base
            equal[name] = torch.equal(found, source[name].to(found.dtype))
        if not equal[name]:
            raise DataError(f"{name} is not what merging the adapter makes of it")


def _litgpt_changes(
    layer: litgpt.lora.LoRALinear, weight: Tensor, a: Tensor, b: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix, and what litgpt adds to them."""
    layer.linear.weight = nn.Parameter(weight, requires_grad=False)  # it asks for its device
    layer.lora_A = nn.Parameter(a, requires_grad=False)
    layer.lora_B = nn.Parameter(b, requires_grad=False)
    # of queries, keys and values litgpt computes all at once
    whole = layer.get_lora_AB() if isinstance(layer, litgpt.lora.LoRAQKVLinear) else None
    step = max(1, MERGED_AT_ONCE // weight.size(1))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        if whole is None:
            layer.lora_B = nn.Parameter(b[rows], requires_grad=False)
        yield rows, layer.get_lora_AB() if whole is None else whole[rows]


def _is_rounded(found: Tensor, exact: Tensor) -> bool:
    """Whether `found` is the fp32 tensor `exact` in its own type; sums may differ in fp32's last places."""
    size = exact.abs()
    noise = 4 * torch.finfo(torch.float32).eps * float(size.max())
    differences = (found - exact).abs_()
    # in place, torch.allclose takes three times as long; a NaN is within nothing
    return bool((differences <= size.mul_(torch.finfo(found.dtype).eps).add_(noise)).all())
