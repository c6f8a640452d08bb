"""The weights of Hugging Face checkpoints ⇄ litgpt's, tensor by tensor.

`families.py` says how an architecture names its modules. From that and the model's own shapes `weights_of` makes one
list of tensors, which serves both directions, so that what is read can be written back bit for bit. In both directions
every tensor has to be accounted for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.families import Architecture
from lit_gpt.formats.hf_config import BIASES, architecture_of
from lit_gpt.formats.hf_files import WEIGHT_FILES, read_json
from lit_gpt.formats.tensor_files import open_tensors
from lit_gpt.model.gpt import GPT
from lit_gpt.model.lazy_tensors import LazyTensors, specs_of

# Buffers that older checkpoints carry along, masks and frequencies; every implementation computes them.
_COMPUTED = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)

# In a model that also reads pictures: the tensors that are left out, and how the names of its text part begin.
_PICTURES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
_TEXT = re.compile(r"^(model\.)?language_model\.")


@dataclass(frozen=True)
class Weight:
    """The same numbers in both formats: tensors of litgpt and of Hugging Face, one under the other."""

    ours: dict[str, tuple[int, ...]]  # names and shapes
    theirs: dict[str, int]  # names and rows; empty: Hugging Face has none, it counts as zeros
    transposed: bool = False  # theirs are [columns, rows]
    runs: tuple[int, ...] = ()  # rows of queries, keys and values in a group, where theirs has group after group


def weights_of(config: Config, hf: Mapping[str, Any]) -> list[Weight]:
    """All tensors of the model, in litgpt's names and in Hugging Face's."""
    architecture = architecture_of(hf)
    hf = {**architecture.defaults, **hf}
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in GPT(config).named_parameters()}
    weights = _named_weights(architecture.outer, "", "", shapes)
    for layer in range(config.n_layer):
        block = _named_weights(
            architecture.block(hf), f"transformer.h.{layer}.", f"{architecture.layers}.{layer}.", shapes
        )
        weights += [_in_their_layout(weight, config, architecture, hf) for weight in block]
    assert shapes.keys() == set().union(*(weight.ours for weight in weights)), "a module that its family lacks"
    if hf["tie_word_embeddings"]:
        head = next(weight for weight in weights if "lm_head.weight" in weight.ours)
        embeddings = next(weight for weight in weights if "transformer.wte.weight" in weight.ours)
        weights[weights.index(head)] = replace(head, theirs=embeddings.theirs)
    return weights


def _named_weights(
    names: Mapping[str, str], prefix: str, their_prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> list[Weight]:
    """Weights and biases of the modules that the model has, theirs as yet with all rows under one name."""
    weights = []
    for left, right in names.items():
        for kind in ("weight", "bias"):
            own = [f"{prefix}{module}.{kind}" for module in left.split()]
            ours = {name: shapes[name] for name in own if name in shapes}
            rows = sum(shape[0] for shape in ours.values())
            theirs = [f"{their_prefix}{module}.{kind}" for module in right.split()]
            if ours:
                weights.append(Weight(ours, dict.fromkeys(theirs, rows)))
    return weights


def _in_their_layout(weight: Weight, config: Config, architecture: Architecture, hf: Mapping[str, Any]) -> Weight:
    """A tensor of a block with the rows of each of theirs, their order and their orientation."""
    name, shape = next(iter(weight.ours.items()))
    if name.endswith(".bias") and ".norm" not in name:
        for option, module in BIASES.items():
            if f".{module}." in name and option in architecture.defaults and not hf[option]:
                return replace(weight, theirs={})
    group = (config.n_head // config.n_query_groups * config.head_size, config.head_size, config.head_size)
    if len(weight.theirs) == 3:
        rows = (count * config.n_query_groups for count in group)
        weight = replace(weight, theirs=dict(zip(weight.theirs, rows, strict=True)))
    runs = group if architecture.interleaved and ".attn.qkv." in name else ()
    return replace(weight, transposed=architecture.transposed and len(shape) == 2, runs=runs)


def tensors_from_hf(
    checkpoint_dir: Path, config: Config, hf: Mapping[str, Any], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """litgpt's tensors, one after the other, read from the weight files of `checkpoint_dir`; `dtype` None keeps theirs.

    Raises what `TensorFiles` does, and a DataError for a tensor that is missing, left over or of another shape.
    """
    architecture = architecture_of(hf)
    files = TensorFiles(checkpoint_dir)
    weights = weights_of(config, hf)
    head = f"{architecture.outer['lm_head']}.weight"
    stored = {}
    for stored_name in files:
        if _PICTURES.match(stored_name):
            continue
        name = _TEXT.sub(r"\1", stored_name)
        if not name.startswith(architecture.prefix) and name != head:
            name = architecture.prefix + name
        stored[name] = stored_name
    needed = set().union(*(weight.theirs for weight in weights))
    _complain_of_names("missing from the weight files", needed - stored.keys())
    spare = {head} if head not in needed else set()  # tied to the embeddings
    left_over = {name for name in stored.keys() - needed - spare if not name.endswith(_COMPUTED)}
    _complain_of_names("in the weight files, but not in this architecture", left_over)
    for weight in weights:
        yield from _our_tensors(weight, files, stored, dtype)


def _our_tensors(
    weight: Weight, files: TensorFiles, stored: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    columns = next(iter(weight.ours.values()))[1:]
    parts = []
    for name, rows in weight.theirs.items():
        part = files.read(stored[name], (*columns, rows) if weight.transposed else (rows, *columns))
        parts.append(part.T.contiguous() if weight.transposed else part)
    if not parts:
        rows = sum(shape[0] for shape in weight.ours.values())
        parts = [torch.zeros((rows, *columns), dtype=next(iter(files.specs.values())).dtype)]
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
    if weight.runs:
        tensor = by_kind(tensor, weight.runs)
    if dtype is not None:
        tensor = tensor.to(dtype)
    return zip(weight.ours, tensor.split([shape[0] for shape in weight.ours.values()]), strict=True)


def tensors_to_hf(
    state_dict: Mapping[str, torch.Tensor], config: Config, hf: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face's tensors, one after the other; views of litgpt's where the layout is the same.

    Also on the meta device (`specs_of`). A DataError names one of ours that is missing, left over or misshapen.
    """
    weights = weights_of(config, hf)
    shapes = {}
    for weight in weights:
        shapes |= weight.ours
    found = {name: tuple(spec.shape) for name, spec in specs_of(state_dict).items()}
    _complain_of_names("missing from the trained model", shapes.keys() - found.keys())
    _complain_of_names("in the trained model, but not in its configuration", found.keys() - shapes.keys())
    for name, shape in shapes.items():
        if found[name] != shape:
            raise DataError(f"{name} has shape {found[name]}, its configuration says {shape}")
    written: set[str] = set()
    for weight in weights:
        # else it is the output layer of tied embeddings, or nothing at all
        if not weight.theirs or not weight.theirs.keys() <= written:
            yield from _their_tensors(weight, state_dict)
        written |= weight.theirs.keys()


def _their_tensors(weight: Weight, state_dict: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    parts = [state_dict[name] for name in weight.ours]
    if not weight.theirs:
        if any(not part.is_meta and part.any() for part in parts):
            names = ", ".join(weight.ours)
            raise DataError(f"{names} is not zero, and Hugging Face's architecture has no place for it")
        return []
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
    if weight.runs:
        tensor = by_run(tensor, weight.runs)
    split = tensor.split(list(weight.theirs.values()))
    if weight.transposed:
        split = [part.T for part in split]
    return list(zip(weight.theirs, split, strict=True))


def by_kind(tensor: torch.Tensor, run: tuple[int, ...]) -> torch.Tensor:
    """Rows of queries, keys and values in turn, `run` of them → all queries, all keys, all values."""
    groups = tensor.unflatten(0, (-1, sum(run)))
    return torch.cat([kind.flatten(0, 1) for kind in groups.split(run, dim=1)])


def by_run(tensor: torch.Tensor, run: tuple[int, ...]) -> torch.Tensor:
    """All queries, all keys, all values → rows of them in turn, `run` of each."""
    count = len(tensor) // sum(run)
    kinds = tensor.split([count * rows for rows in run])
    groups = [kind.unflatten(0, (count, rows)) for kind, rows in zip(kinds, run, strict=True)]
    return torch.cat(groups, 1).flatten(0, 1)


def _complain_of_names(what: str, names: set[str]) -> None:
    if names:
        listed = sorted(names)
        some = ", ".join([*listed[:4], "…"] if len(listed) > 4 else listed)
        raise DataError(f"{len(names)} tensors are {what}: {some}")


def _read_index(path: Path) -> dict[str, Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{path} has no weight_map")
    if outside := {str(file) for file in weight_map.values() if file != Path(str(file)).name}:
        raise DataError(f"{path} names files outside its folder: {', '.join(sorted(outside))}")
    where = {name: path.parent / file for name, file in weight_map.items()}
    if absent := sorted({file.name for file in where.values() if not file.is_file()}):
        raise DataError(f"{path} names files that are not there: {', '.join(absent)}; download them again")
    return where


class TensorFiles(LazyTensors):
    """The tensors of a Hugging Face checkpoint: safetensors or pytorch_model*.bin, one file or several.

    A UserError says that there are none; a DataError names a file that is missing or damaged, also on reading a tensor.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        found = [checkpoint_dir / name for name in WEIGHT_FILES if (checkpoint_dir / name).is_file()]
        if not found:
            raise UserError(f"{checkpoint_dir} has no weights: none of {', '.join(WEIGHT_FILES)}")
        path = found[0]
        if path.suffix == ".json":
            self._where = _read_index(path)
            files = {file: open_tensors(file) for file in set(self._where.values())}
        else:
            files = {path: open_tensors(path)}
            self._where = dict.fromkeys(files[path], path)
        specs = {}
        for name, file in self._where.items():
            if name not in files[file]:
                raise DataError(f"{file} does not hold {name}, which its index says it does; download it again")
            specs[name] = files[file].specs[name]
        super().__init__(specs, lambda name: files[self._where[name]][name])

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`; a DataError if it has another shape."""
        found = tuple(self.specs[name].shape)
        if found != shape:
            raise DataError(f"{name} in {self._where[name]} has shape {found}, config.json says {shape}")
        return self[name]
