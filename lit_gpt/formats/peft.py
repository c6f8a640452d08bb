"""LoRA adapters as the peft library keeps them: `adapter_model.safetensors` and `adapter_config.json`.

litgpt has an A and a B for each of queries, keys and values; where Hugging Face keeps several of them in one matrix, as
GPT-2 and Falcon do, peft has one pair for all. There the A stand one under the other and the B in blocks side by side,
so that the rank is the sum of theirs; the way back gives each of them the whole A and its own rows of B. What was
trained whole is in peft_whole.py.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from litgpt.config import Config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_gpt.checksums import add_sums
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import architecture_of
from lit_gpt.formats.hf_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lit_gpt.formats.hf_weights import Weight, by_kind, by_run, tensors_to_hf, weights_of
from lit_gpt.formats.peft_config import CHANGED_BASE, PeftConfig, read_peft_config
from lit_gpt.formats.peft_whole import take_whole, to_peft
from lit_gpt.formats.tensor_files import write_safetensors_file
from lit_gpt.model.gpt import LoRAGPT
from lit_gpt.model.growing import EMBEDDINGS, HEAD
from lit_gpt.model.lora import LoRASettings

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_COPY = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?(\.weight|\.bias)")  # of a tensor of the base model


class _Part(NamedTuple):
    """Rows of a matrix of ours (several of them one under the other) that have an A and a B of their own."""

    name: str  # our layer's
    kind: str  # the option that adapts it: `query`, `key`, `value`, `projection`, `mlp` or `head`
    rows: slice


class _Pair(NamedTuple):
    """W' = W + scale · B A, with A [r, inputs] and B [rows, r]."""

    a: Tensor
    b: Tensor
    scale: float


def write_peft(
    folder: Path,
    adapter: Mapping[str, Tensor],
    config: Config,
    settings: LoRASettings,
    hf: Mapping[str, Any],
    base: str | None,
) -> int:
    """Writes an adapter for peft into `folder`; returns the number of modules it changes.

    `hf` is the base model's config.json, and `base` says where that model is to be found, or None.
    """
    tensors: dict[str, Tensor] = {}
    patterns: dict[str, dict[str, float]] = {"rank_pattern": {}, "alpha_pattern": {}}
    targets = set()
    block = re.compile(rf"^{re.escape(architecture_of(hf).layers)}\.\d+\.")
    for module, a, b in _theirs(adapter, config, settings, hf):
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
        suffix = block.sub("", module)
        targets.add(suffix)
        if (rank := len(a)) != settings.r:
            patterns["rank_pattern"][suffix] = rank
            patterns["alpha_pattern"][suffix] = settings.alpha * rank // settings.r
    modules = len(tensors) // 2
    whole, saved = to_peft(adapter, config, hf)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted(targets),
        **patterns,
        "bias": "none",
        **({"modules_to_save": saved} if saved else {}),
        "fan_in_fan_out": architecture_of(hf).transposed,
        "inference_mode": True,
    }
    tensors = dict(sorted((tensors | whole).items()))
    sha256 = write_safetensors_file(folder / ADAPTER_WEIGHTS, tensors, iter(tensors.items()))
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    add_sums(folder, {ADAPTER_WEIGHTS: sha256})
    return modules + len(saved)


def read_peft(
    folder: Path, config: Config, hf: Mapping[str, Any], base: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoRASettings]:
    """peft's adapter in `folder` as litgpt's tensors in fp32, with their scale in B: so alpha is the rank.

    `base` is the model it is for. A UserError says that it is not a plain LoRA adapter, a DataError that it is damaged
    or adapts another model.
    """
    described = read_peft_config(folder)
    path = folder / ADAPTER_WEIGHTS
    tensors = _read_tensors(path)
    pairs = _take_pairs(path, tensors, described)
    whole = take_whole(path, tensors, described, config, hf)
    if described.takes_out and tensors:  # peft puts these in the place of what it took a part out of
        reason = f"init_lora_weights {described.takes_out} {CHANGED_BASE}"
        raise UserError(f"{path}: {min(tensors)} is stored beside the adapter, whose {reason}")
    _check_copies(path, tensors, config, hf, base)
    weights = weights_of(config, hf)
    _check_places(folder / ADAPTER_CONFIG, described, pairs, weights, hf)
    found: dict[tuple[str, str], _Pair] = {}
    for weight in weights:
        for module, pair in _pairs_of(weight, pairs, config, hf):
            if described.takes_out:
                if described.takes_out == "olora" and weight.transposed:
                    raise UserError(f"{folder}: init_lora_weights olora on {module}, which peft gets wrong (Conv1D)")
                pair = _with_what_was_taken_out(pair, _matrix(weight, module, base, hf), described.takes_out)
            found |= _ours(weight, module, pair, config, hf)
    if pairs:
        raise DataError(f"{folder}: {len(pairs)} modules are not in the base model, such as {min(pairs)}")
    if not found:
        raise DataError(f"{path} has no A and B")
    rank = max(len(pair.a) for pair in found.values())
    kinds = {kind for _, kind in found}
    adapted = {name: name in kinds for name in ("query", "key", "value", "projection", "mlp", "head")}
    trained = {"train_embeddings": EMBEDDINGS in whole, "train_head": HEAD in whole}
    settings = LoRASettings(rank, rank, 0.0, **adapted, **trained)
    return dict(_filled(found, config, settings)) | whole, settings


def _parts(weight: Weight, config: Config) -> list[_Part]:
    """The parts of a matrix; none for biases, norms and embeddings."""
    parts = []
    start = 0
    for name, (rows, *columns) in weight.ours.items():
        layer = name.removesuffix(".weight")
        if layer == name or not columns or layer.endswith((".wte", ".wpe")):
            return []
        if layer.endswith(".attn.qkv"):
            heads = {"query": config.n_head, "key": config.n_query_groups, "value": config.n_query_groups}
            sizes = {kind: count * config.head_size for kind, count in heads.items()}
        elif layer.endswith(".attn.proj"):
            sizes = {"projection": rows}
        else:
            sizes = {"head" if layer == "lm_head" else "mlp": rows}
        for kind, size in sizes.items():
            parts.append(_Part(layer, kind, slice(start, start + size)))
            start += size
    return parts


def _modules(weight: Weight, hf: Mapping[str, Any]) -> Iterator[tuple[str, slice]]:
    """Hugging Face's modules of a matrix and their rows, in the order of ours."""
    if "lm_head.weight" in weight.ours:  # by its own name, also where its weights are the embeddings'
        yield architecture_of(hf).outer["lm_head"], slice(0, weight.ours["lm_head.weight"][0])
        return
    start = 0
    for name, rows in weight.theirs.items():
        yield name.removesuffix(".weight"), slice(start, start + rows)
        start += rows


def _theirs(
    adapter: Mapping[str, Tensor], config: Config, settings: LoRASettings, hf: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Hugging Face's adapted modules with their A and B."""
    for weight in weights_of(config, hf):
        pairs = _split(adapter, _parts(weight, config), settings)
        for module, rows in _modules(weight, hf):
            inside = [(part, a, b) for part, a, b in pairs if rows.start <= part.rows.start < rows.stop]
            if not inside:
                continue
            down = torch.cat([a for _, a, _ in inside])
            up = down.new_zeros(rows.stop - rows.start, len(down))
            for index, (part, _, b) in enumerate(inside):
                columns = slice(index * settings.r, (index + 1) * settings.r)
                up[part.rows.start - rows.start : part.rows.stop - rows.start, columns] = b
            if weight.runs:
                up = by_run(up, weight.runs)
            yield module, down, up


def _split(
    adapter: Mapping[str, Tensor], parts: list[_Part], settings: LoRASettings
) -> list[tuple[_Part, Tensor, Tensor]]:
    adapted = [part for part in parts if f"{part.name}.lora_A" in adapter and getattr(settings, part.kind)]
    pairs = []
    for name in dict.fromkeys(part.name for part in adapted):
        own = [part for part in adapted if part.name == name]
        downs = adapter[f"{name}.lora_A"].chunk(len(own))
        ups = adapter[f"{name}.lora_B"].split([part.rows.stop - part.rows.start for part in own])
        pairs += zip(own, downs, ups, strict=True)
    return pairs


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: not an adapter of peft (older .bin files: load and save it with peft)")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as e:
        raise DataError(f"{path} cannot be read ({e}); fetch it again") from None
    if not tensors:
        raise DataError(f"{path} is empty")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DataError(f"{path}: {name} has values that are not finite")
    return tensors


def _take_pairs(path: Path, tensors: dict[str, Tensor], described: PeftConfig) -> dict[str, _Pair]:
    """Takes the A and B out of `tensors`, by module."""
    pairs = {}
    for module in dict.fromkeys(match[1] for match in map(_KEY.fullmatch, tensors) if match):
        a = tensors.pop(f"base_model.model.{module}.lora_A.weight", None)
        b = tensors.pop(f"base_model.model.{module}.lora_B.weight", None)
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or b.size(1) != len(a):
            raise DataError(f"{path}: A and B of {module} do not belong together")
        if (rank := described.rank(module)) != len(a):
            raise DataError(f"{path}: {module} has rank {len(a)}, {ADAPTER_CONFIG} says {rank}")
        pairs[module] = _Pair(a, b, described.scale(module))
        if not (b * pairs[module].scale).isfinite().all():
            raise DataError(f"{path}: {module} times its scale, {pairs[module].scale:g}, is not finite")
        if described.takes_out and not pairs[module].scale > 0:
            raise DataError(
                f"{path}: {module} has the scale {pairs[module].scale:g}, {described.takes_out} needs one above 0"
            )
    # one of them may be: gradients, or the choice of targets, can leave a module as it was
    if pairs and not any(pair.a.any() and pair.b.any() and pair.scale for pair in pairs.values()):
        raise DataError(f"{path}: the adapters of all {len(pairs)} modules are zero: it changes nothing")
    return pairs


def _check_copies(
    path: Path, tensors: Mapping[str, Tensor], config: Config, hf: Mapping[str, Any], base: Mapping[str, Tensor]
) -> None:
    """Raises a DataError unless `tensors` are the base model's: peft stores an adapted head's own weights too."""
    copies = {}
    for name, tensor in tensors.items():
        match = _COPY.fullmatch(name)
        if match is None:
            raise DataError(f"{path}: {name} is no part of a LoRA adapter of linear layers")
        copies[match[1] + match[2]] = (name, tensor)
    head = (architecture_of(hf).outer["lm_head"] + ".weight", base["lm_head.weight"])  # also where it is tied
    for found, tensor in chain([head], tensors_to_hf(base, config, hf)):
        if not copies:
            return
        name, copy = copies.pop(found, (found, None))
        if copy is not None and not torch.equal(copy, tensor.float()):
            raise DataError(f"{path}: {name} differs from the base model's: the adapter is for another, or replaces it")
    if copies:
        name, _ = copies[min(copies)]
        raise DataError(f"{path}: {name} is no part of a LoRA adapter of the base model")


def _check_places(
    path: Path, described: PeftConfig, pairs: Mapping[str, _Pair], weights: Iterable[Weight], hf: Mapping[str, Any]
) -> None:
    """Raises a DataError unless the weights are of the modules that peft adapts by the configuration."""
    modules = set()
    for weight in weights:
        modules |= {module for module, _ in _modules(weight, hf) if not module.endswith(".bias")}
    outer = {".".join(name.split(".")[:length]) for name in modules for length in range(1, name.count(".") + 1)}
    targets = {module for module in modules | outer if described.targets(module)}
    if without := targets - pairs.keys():
        raise DataError(f"{path} adapts {len(without)} modules whose A and B are not there, such as {min(without)}")
    if spare := (pairs.keys() & modules) - targets:
        raise DataError(f"{path} does not adapt {len(spare)} modules whose A and B are there, such as {min(spare)}")


def _pairs_of(
    weight: Weight, pairs: dict[str, _Pair], config: Config, hf: Mapping[str, Any]
) -> Iterator[tuple[str, _Pair]]:
    """Takes out of `pairs` what belongs to a matrix of ours; a DataError if the shape differs."""
    for module, rows in _modules(weight, hf):
        if module not in pairs or not _parts(weight, config):
            continue
        pair = pairs.pop(module)
        columns = next(iter(weight.ours.values()))[1]
        shape, expected = (len(pair.b), pair.a.size(1)), (rows.stop - rows.start, columns)
        if shape != expected:
            raise DataError(
                f"the adapter of {module} is for a matrix {list(shape)}, the base model's is {list(expected)}"
            )
        yield module, pair


def _matrix(weight: Weight, module: str, base: Mapping[str, Tensor], hf: Mapping[str, Any]) -> Tensor:
    """The base model's matrix of Hugging Face's module, [rows, inputs] in fp32."""
    whole = torch.cat([base[name] for name in weight.ours]).float()
    return (by_run(whole, weight.runs) if weight.runs else whole)[dict(_modules(weight, hf))[module]]


def _with_what_was_taken_out(pair: _Pair, matrix: Tensor, initialisation: str) -> _Pair:
    """The change of the base model as it is on the disk, of twice the rank.

    peft begins with a part of the matrix as the adapter and takes that part out of the base, before training and again
    when it loads the adapter: pissa (https://arxiv.org/abs/2404.02948) the largest singular values, olora
    (https://arxiv.org/abs/2406.01775) the first columns of Q and rows of R, times the scale.
    """
    rank = len(pair.a)
    if initialisation == "pissa":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        up, down = left[:, :rank] * (values[:rank] / pair.scale), right[:rank]
    else:
        left, right = torch.linalg.qr(matrix)
        up, down = left[:, :rank], right[:rank]
    return _Pair(torch.cat([pair.a, down]), torch.cat([pair.b, -up], 1), pair.scale)


def _ours(
    weight: Weight, module: str, pair: _Pair, config: Config, hf: Mapping[str, Any]
) -> dict[tuple[str, str], _Pair]:
    """The adapter of Hugging Face's module by our layer and kind."""
    rows = dict(_modules(weight, hf))[module]
    up = by_kind(pair.b, weight.runs) if weight.runs else pair.b
    found = {}
    for part in _parts(weight, config):
        if rows.start <= part.rows.start < rows.stop:
            own = up[part.rows.start - rows.start : part.rows.stop - rows.start]
            found[part.name, part.kind] = _Pair(pair.a, own, pair.scale)
    return found


def _filled(
    found: Mapping[tuple[str, str], _Pair], config: Config, settings: LoRASettings
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of litgpt's adapter: zeros where there is none, and where a rank is less than the largest."""
    with torch.device("meta"):
        model = LoRAGPT(settings.extend(config))
    for name, layer in model.named_modules():
        if getattr(layer, "lora_A", None) is None:
            continue
        own = {kind: pair for (layer_name, kind), pair in found.items() if layer_name == name}
        down, up = torch.zeros(layer.lora_A.shape), torch.zeros(layer.lora_B.shape)
        if name.endswith(".attn.qkv"):
            kinds = [kind for kind in ("query", "key", "value") if getattr(settings, kind)]
            rows = up.split(layer.qkv_shapes)
        else:
            kinds, rows = [next(iter(own), "none")], [up]
        for kind, a, b in zip(kinds, down.chunk(len(kinds)), rows, strict=True):
            if pair := own.get(kind):
                a[: len(pair.a)] = pair.a
                b[:, : len(pair.a)] = pair.b * pair.scale
        yield f"{name}.lora_A", down
        yield f"{name}.lora_B", up
