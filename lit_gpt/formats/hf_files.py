"""The names of the files that hold a model's weights in Hugging Face's layout, and the JSON beside them."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError

SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
WEIGHT_FILES = (SAFETENSORS_INDEX, "model.safetensors", PICKLE_INDEX, "pytorch_model.bin")  # a reader's, best first

# Patterns of all files of a model, as safetensors and as `torch.save` wrote it.
SAFETENSORS_LAYOUT = ("model.safetensors", "model-*-of-*.safetensors", SAFETENSORS_INDEX)
PICKLE_LAYOUT = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", PICKLE_INDEX)
ANY_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # an adapter's too

_LAYOUT = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def shard_name(number: int, count: int) -> str:
    """The name of file `number`, from 1, of `count` files; of an only one without numbers."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def is_of_model(name: str) -> bool:
    """Whether `name` is one of the files of a model's weights: a loader would read one that an earlier model left."""
    return _LAYOUT.fullmatch(name) is not None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in `path`; a DataError names the file if it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise DataError(f"{path} is not valid JSON: {e}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return values
