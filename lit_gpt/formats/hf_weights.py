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

from lit_gpt.errors import DataError
from lit_gpt.formats.families import Architecture
from lit_gpt.formats.hf_config import BIASES, architecture_of, is_text_part
from lit_gpt.formats.hf_files import find_weights
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

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

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


class ForeignWeights:
    """The weights of a Hugging Face folder, every tensor of its files accounted for.

    Raises what `TensorFiles` does, and a DataError for a tensor that is missing, left over or of no use here. `tied`
    says whether the output layer has the embeddings' numbers; `notes` are lines about what is not as config.json says;
    `spare` are the tensors of the files that are not read, being computed.
    """

    def __init__(self, checkpoint_dir: Path, config: Config, hf: Mapping[str, Any]) -> None:
        architecture = architecture_of(hf)
        self.notes: list[str] = []
        self._files = TensorFiles(checkpoint_dir)
        self._stored = self._names_of_class(architecture, hf)
        head = f"{architecture.outer['lm_head']}.weight"
        embeddings = f"{architecture.outer['transformer.wte']}.weight"
        self.tied = {**architecture.defaults, **hf}["tie_word_embeddings"]
        if self.tied and {head, embeddings} <= self._stored.keys():
            hf = {**hf, "tie_word_embeddings": False}  # transformers 5 leaves them apart where both are stored
            self.tied = self._compare_with_embeddings(head, embeddings)
        elif self.tied and head in self._stored:
            self._stored[embeddings] = self._stored[head]  # transformers ties both ways
        self._weights = weights_of(config, hf)
        self._account_for_all(config, head)

    def _names_of_class(self, architecture: Architecture, hf: Mapping[str, Any]) -> dict[str, str]:
        """The names in the files by those that the architecture's class has."""
        wrapped = {name for name in self._files if re.search(r"^module\.|(^|\.)_orig_mod\.", name)}
        if wrapped:
            raise DataError(
                f"{len(wrapped)} tensors have names such as {min(wrapped)}, which transformers does not read: the model"
                " was saved as torch.compile or DistributedDataParallel wraps it; save model._orig_mod or model.module"
            )
        head = f"{architecture.outer['lm_head']}.weight"
        stored: dict[str, str] = {}
        pictures = 0
        for stored_name in self._files:
            name = stored_name
            if is_text_part(hf):
                if _PICTURES.match(stored_name):
                    pictures += 1
                    continue
                name = _TEXT.sub(r"\1", stored_name)
            if not name.startswith(architecture.prefix) and name != head:
                name = architecture.prefix + name
            if name in stored:
                raise DataError(f"the weight files hold one tensor twice: {stored[name]} and {stored_name}")
            stored[name] = stored_name
        if pictures:
            self.notes.append(f"{pictures} tensors of the part that reads pictures are left out")
        return stored

    def _compare_with_embeddings(self, head: str, embeddings: str) -> bool:
        same = torch.equal(self._files[self._stored[head]], self._files[self._stored[embeddings]])
        if not same:
            self.notes.append(
                f"config.json ties the output layer to the embeddings, but the files hold another {head}:"
                " both are kept, as transformers 5 does (earlier versions drop it)"
            )
        return same

    def _account_for_all(self, config: Config, head: str) -> None:
        needed = set().union(*(weight.theirs for weight in self._weights))
        _complain_of_names("missing from the weight files", needed - self._stored.keys())
        _complain_of_names("in the weight files, but not in their index", self._files.unlisted)
        spare = {name for name in self._stored.keys() - needed if name.endswith(_COMPUTED)}
        if head not in needed:
            spare.add(head)  # tied, and the only one of the two that is stored
        _complain_of_names("in the weight files, but not in this architecture", self._stored.keys() - needed - spare)
        types = {self._stored[name]: self._files.specs[self._stored[name]].dtype for name in needed}
        _complain_of_names(
            "of a type that is no floating-point number's (the model is quantised?)",
            {name for name, dtype in types.items() if dtype not in _FLOATS},
        )
        computed = [name for name in sorted(spare - {head}) if name in self._stored]
        self.spare = [self._stored[name] for name in computed]
        for name in computed:
            _check_computed(name, self._files[self._stored[name]], config)
        if computed:
            self.notes.append(f"{len(computed)} stored masks and frequencies are left out, being what is computed")
        if self._files.doubles:
            self.notes.append(f"{self._files.doubles} tensors are stored in two files, equal")

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """litgpt's tensors, one after the other; `dtype` None keeps theirs. A DataError names one of another shape."""
        for weight in self._weights:
            yield from _our_tensors(weight, self._files, self._stored, dtype)

    def lazy(self) -> LazyTensors:
        """litgpt's tensors in the files' types, each read when it is asked for; nothing is written."""
        any_dtype = next(iter(self._files.specs.values())).dtype
        specs, holders = {}, {}
        for weight in self._weights:
            types = [self._files.specs[self._stored[name]].dtype for name in weight.theirs]
            for name, shape in weight.ours.items():
                specs[name] = torch.empty(shape, dtype=next(iter(types), any_dtype), device="meta")
                holders[name] = weight
        return LazyTensors(specs, lambda name: dict(_our_tensors(holders[name], self._files, self._stored, None))[name])


def _check_computed(name: str, tensor: torch.Tensor, config: Config) -> None:
    """Raises a DataError if a mask, or frequencies, that an older checkpoint carries are not those of its config.json.

    transformers does not read them any more; the model was trained with them.
    """
    if name.endswith(".inv_freq"):
        exponents = torch.arange(0, config.rope_n_elem, 2) / config.rope_n_elem
        expected = 1.0 / config.rope_base**exponents
        kind = torch.finfo(tensor.dtype if tensor.is_floating_point() else torch.float32)
        tolerance, smallest = max(1e-5, 4 * kind.eps), kind.tiny * kind.eps
        same = tensor.shape == expected.shape and torch.allclose(tensor.float(), expected, tolerance, smallest)
    elif name.endswith(".masked_bias"):
        same = tensor.numel() == 1 and tensor.item() <= -9e3  # -10,000, which is -9,984 in bfloat16
    else:
        length = tensor.shape[-1] if tensor.dim() else 0
        seen = tensor.reshape(-1, length).bool() if tensor.numel() == length**2 else torch.zeros(0)
        same = torch.equal(seen, torch.ones(length, length, dtype=torch.bool).tril())
    if not same:
        raise DataError(f"{name} in the weight files is not what config.json gives: one of the two is another model's")


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


class TensorFiles(LazyTensors):
    """The tensors of a Hugging Face checkpoint: safetensors or pytorch_model*.bin, one file or several.

    A UserError says that there are none; a DataError names a file that is missing or damaged, also on reading a tensor.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        path, self._where = find_weights(checkpoint_dir)
        files = {file: open_tensors(file) for file in sorted(set(self._where.values()) or {path})}
        if not self._where:
            self._where = dict.fromkeys(files[path], path)
        specs = {}
        for name, file in self._where.items():
            if name not in files[file]:
                raise DataError(f"{file} does not hold {name}, which its index says it does; download it again")
            specs[name] = files[file].specs[name]
        self.doubles = 0  # tensors that another file holds too
        self.unlisted: set[str] = set()  # tensors that the index does not name
        for file, tensors in files.items():
            self.unlisted |= tensors.keys() - self._where.keys()
            for name in sorted(name for name in tensors if self._where.get(name, file) != file):
                self.doubles += 1
                # transformers takes the last file's, whatever the index says
                if not torch.equal(tensors[name], files[self._where[name]][name]):
                    raise DataError(f"{file} holds another {name} than {self._where[name]}; download them again")
        super().__init__(specs, lambda name: files[self._where[name]][name])

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`; a DataError if it has another shape."""
        found = tuple(self.specs[name].shape)
        if found != shape:
            raise DataError(f"{name} in {self._where[name]} has shape {found}, config.json says {shape}")
        return self[name]
