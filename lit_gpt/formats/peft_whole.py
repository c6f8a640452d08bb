"""Embeddings and a head that were trained whole, beside an adapter: the `modules_to_save` of the peft library.

Its file has them under the names that they have in the base model, with all their rows. Where tokens were added, these
are more than the base model has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import architecture_of
from lit_gpt.formats.hf_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lit_gpt.formats.peft_config import WAY_OUT, PeftConfig, read_peft_config
from lit_gpt.model.growing import grow, grown_config

_PREFIX = "base_model.model."


def _keys(hf: Mapping[str, Any], config: Config) -> dict[str, dict[str, str]]:
    """Hugging Face's module → our tensors of it, each with its name in peft's file."""
    outer = architecture_of(hf).outer
    ours = {"transformer.wte": ["weight"], "lm_head": ["weight", "bias"] if config.lm_head_bias else ["weight"]}
    return {
        outer[module]: {f"{module}.{kind}": f"{_PREFIX}{outer[module]}.{kind}" for kind in kinds}
        for module, kinds in ours.items()
    }


def to_peft(
    adapter: Mapping[str, Tensor], config: Config, hf: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """What of our adapter was trained whole, by its names in peft's file, and the names for `modules_to_save`."""
    tensors, modules = {}, []
    for module, keys in _keys(hf, config).items():
        if found := {theirs: adapter[ours].contiguous() for ours, theirs in keys.items() if ours in adapter}:
            tensors |= found
            modules.append(module.rpartition(".")[2])
    return tensors, modules


def take_whole(
    path: Path, tensors: dict[str, Tensor], described: PeftConfig, config: Config, hf: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Takes what was trained whole out of the `tensors` of peft's file, by our names.

    A UserError names a module other than the embeddings and the head, a DataError a tensor that is missing.
    """
    taken = {}
    for keys in _saved(path, described, config, hf):
        for ours, theirs in keys.items():
            if theirs not in tensors:
                raise DataError(f"{path} lacks {theirs}, which {ADAPTER_CONFIG} has among modules_to_save")
            taken[ours] = tensors.pop(theirs)
            _drop_repeated(path, tensors, theirs, taken[ours])
    return taken


def _drop_repeated(path: Path, tensors: dict[str, Tensor], name: str, trained: Tensor) -> None:
    """Takes out what peft stores once more where its base had been given more rows: the trained tensor, and the one
    that it replaces, of which it makes no use when it loads the adapter. A DataError if the former is another one."""
    module, _, kind = name.rpartition(".")
    repeated = tensors.pop(f"{module}.modules_to_save.{kind}", trained)
    if not torch.equal(repeated, trained):
        raise DataError(f"{path} holds two tensors {name}, which differ")
    tensors.pop(f"{module}.original_module.{kind}", None)


def _saved(path: Path, described: PeftConfig, config: Config, hf: Mapping[str, Any]) -> list[dict[str, str]]:
    known = _keys(hf, config)
    by_name = {module.rpartition(".")[2]: keys for module, keys in known.items()} | known
    if unknown := sorted(set(described.saved) - by_name.keys()):
        raise UserError(
            f"{path.with_name(ADAPTER_CONFIG)} has modules_to_save {', '.join(unknown)}, of which only "
            f"{' and '.join(known)} can be read; {WAY_OUT}"
        )
    return [by_name[name] for name in dict.fromkeys(described.saved)]


def with_rows_for(
    folder: Path, config: Config, weights: Mapping[str, Tensor], hf: Mapping[str, Any]
) -> tuple[Config, Mapping[str, Tensor]]:
    """The base model's config and weights, with as many rows as peft's embeddings and head have."""
    rows = _rows_of(folder, config, hf)
    added = rows - config.padded_vocab_size
    if added <= 0:
        return config, weights
    config = grown_config(config, rows)
    return config, grow(weights, config, added)


def _rows_of(folder: Path, config: Config, hf: Mapping[str, Any]) -> int:
    """The rows of peft's embeddings and head, where it has both whole; else the base model's, of which `config` is."""
    path = folder / ADAPTER_WEIGHTS
    described = read_peft_config(folder)
    if not described.saved or not path.is_file():
        return config.padded_vocab_size
    saved = _saved(path, described, config, hf)
    keys = [theirs for module in saved for theirs in module.values()]
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
            rows = {file.get_slice(key).get_shape()[0] for key in keys if key in there}
    except SafetensorError as e:
        raise DataError(f"{path} cannot be read ({e}); fetch it again") from None
    return rows.pop() if len(saved) == 2 and len(rows) == 1 else config.padded_vocab_size
