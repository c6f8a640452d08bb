"""What a GGUF file says of its model, and its tokens' names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

import struct
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.special_tokens import CONTROL_NAME

_MAGIC, _STRING, _ARRAY = b"GGUF", 8, 9
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are not made of a text's characters


def read_metadata(path: Path) -> dict[str, Any]:
    """All keys of a GGUF file with their values; arrays of numbers as numpy's. A DataError if it is none."""
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise DataError(f"{path} is no GGUF file")
            version, _, count = struct.unpack("<IQQ", _exactly(file, 20))
            if version not in (2, 3):
                raise DataError(f"{path} is a GGUF file of version {version}; 2 and 3 are read")
            return {_text(file): _value(file, _number(file, "<I")) for _ in range(count)}
    except (EOFError, KeyError, ValueError, OverflowError, MemoryError):
        raise DataError(f"{path} is damaged: its metadata cannot be read") from None


def _exactly(file: IO[bytes], count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _number(file: IO[bytes], kind: str) -> int:
    return struct.unpack(kind, _exactly(file, struct.calcsize(kind)))[0]


def _text(file: IO[bytes]) -> str:
    return _exactly(file, _number(file, "<Q")).decode("utf-8", errors="replace")


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if inner in _NUMBERS:
            dtype = np.dtype(_NUMBERS[inner])
            return np.frombuffer(_exactly(file, dtype.itemsize * count), dtype)
        return [_value(file, inner) for _ in range(count)]
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(_exactly(file, dtype.itemsize), dtype)[0].item()


class GGUFTokens:
    """The names of a GGUF file's tokens, as a chat template asks for them; llama.cpp itself makes tokens of text."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.directory = path
        names = metadata.get("tokenizer.ggml.tokens", [])
        kinds = metadata.get("tokenizer.ggml.token_type", [])
        self._ids = {name: index for index, name in enumerate(names)}
        self.config = {}
        for key in ("bos", "eos", "unknown", "padding"):
            index = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if index is not None and 0 <= index < len(names):
                self.config[{"unknown": "unk_token", "padding": "pad_token"}.get(key, f"{key}_token")] = names[index]
        ends = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        self.end_ids = {metadata[key] for key in ends if key in metadata}
        typed = list(zip(names, kinds, strict=False))
        self.control_tokens = [name for name, kind in typed if kind == _CONTROL]
        self._added = [name for name, kind in typed if kind == _USER_DEFINED]

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    @cached_property
    def special_tokens(self) -> list[str]:
        return self.control_tokens + self._added

    @cached_property
    def chat_control_tokens(self) -> list[str]:
        return self.control_tokens + sorted(name for name in self._added if CONTROL_NAME.fullmatch(name))
