"""The names of the files that hold a model's weights, in Hugging Face's layout and litgpt's, and JSON beside them."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from lit_gpt.json_files import read_json

WEIGHTS = "lit_model.pth"  # litgpt's names
CONFIG = "model_config.yaml"

SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
WEIGHT_FILES = ("model.safetensors", SAFETENSORS_INDEX, "pytorch_model.bin", PICKLE_INDEX)
"""The files of which transformers 5 reads the first that is there, and no other."""

# Patterns of all files of a model, as safetensors and as `torch.save` wrote it.
SAFETENSORS_LAYOUT = ("model.safetensors", "model-*-of-*.safetensors", SAFETENSORS_INDEX)
PICKLE_LAYOUT = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", PICKLE_INDEX)
ANY_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # an adapter's too

ADAPTER_CONFIG = "adapter_config.json"  # peft's names
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LAYOUT = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?")


def shard_name(number: int, count: int) -> str:
    """The name of file `number`, from 1, of `count` files; of an only one without numbers."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def is_of_model(name: str) -> bool:
    """Whether `name` is one of the files of a model's weights: a loader would read one that an earlier model left."""
    return _LAYOUT.fullmatch(name) is not None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def find_weights(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The file or the index that transformers reads in `folder`; of an index also the file of each tensor, by name.

    A UserError says that there is none, and that an adapter would be read with it. A DataError says what is wrong with
    the index, and names both layouts where there are two: who reads the other one has another model.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder} holds an adapter ({ADAPTER_CONFIG}) beside a model; move one of them away")
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}")
    path = found[0]
    where = _read_index(path) if path.suffix == ".json" else {}
    read = {path.name} | {file.name for file in where.values()}
    index = folder / SAFETENSORS_INDEX
    if path.name == "model.safetensors" and index in found and set(_read_index(index).values()) == {path}:
        read.add(index.name)  # some programs write an index of an only file
    others = sorted({file.name for file in folder.iterdir() if is_of_model(file.name)} - read)
    if others:
        raise DataError(
            f"{folder} holds two layouts of weights: {path.name}, which transformers reads, and {_some(others)};"
            " move one of the two away"
        )
    return path, where


def _some(names: list[str]) -> str:
    return ", ".join([*names[:4], f"… ({len(names)} files)"] if len(names) > 4 else names)


def _read_index(path: Path) -> dict[str, Path]:
    """The file of each tensor; a DataError if the index has none, or names files elsewhere or that are missing."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{path} has no weight_map")
    if outside := {str(file) for file in weight_map.values() if not _is_plain_name(file)}:
        raise DataError(f"{path} names files outside its folder: {', '.join(sorted(outside))}")
    suffix = ".safetensors" if path.name == SAFETENSORS_INDEX else ".bin"
    if others := {file for file in weight_map.values() if not file.endswith(suffix)}:
        raise DataError(f"{path} names files that do not end in {suffix}: {', '.join(sorted(others))}")
    where = {name: path.parent / file for name, file in weight_map.items()}
    if absent := sorted({file.name for file in where.values() if not file.is_file()}):
        raise DataError(f"{path} names files that are not there: {', '.join(absent)}; download them again")
    return where


def _is_plain_name(file: Any) -> bool:
    return isinstance(file, str) and file not in ("", ".", "..") and not re.search(r"[/\\\0]", file)


def noted_sums(folder: Path) -> dict[str, tuple[str, Path]]:
    """The SHA-256 of the weight files in `folder` that the Hub's client noted when it fetched them, and where."""
    noted = {}
    for path in folder.glob(".cache/huggingface/download/*.metadata"):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:2]
        if is_of_model(path.stem) and (folder / path.stem).is_file() and re.fullmatch(r"[0-9a-f]{64}", "".join(lines)):
            noted[path.stem] = lines[0], path
    return noted
