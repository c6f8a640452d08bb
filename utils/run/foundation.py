"""The foundation model's weights as a run records them, and the comparison of the files with that record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.checksums import SUMS, Check, Expected, listed_sums, require_equal
from lit_gpt.errors import DataError
from lit_gpt.formats.litgpt_directory import WEIGHTS, read_weights, weights_fingerprint
from lit_gpt.formats.tensor_files import content_digest
from utils.cluster.collectives import rank

_DIGEST = "crc32:"
"""How the record of a base begins. Earlier versions wrote a fingerprint of some of its values, without this word."""


def base_record(folder: Path, begun: str | None = None) -> str:
    """What a run records of the weights in `folder`, in the way of `begun`, which is what it recorded in the beginning.

    Equal for equal tensors, though they be converted again. It is found without reading them: that they have the CRC-32
    which it is made of, the check of the files says.
    """
    if begun is not None and not begun.startswith(_DIGEST):
        return weights_fingerprint(read_weights(folder))  # of mapped ones, it reads a sample
    record = _DIGEST + content_digest(folder / WEIGHTS)
    if begun not in (None, record):
        require_equal(expected_base(folder)[0])  # it is either another model or a damaged one
    return record


def expected_base(folder: Path) -> list[Expected]:
    """The weights of `folder` with the SHA-256 of its list."""
    return [Expected(folder / WEIGHTS, listed_sums(folder).get(WEIGHTS))]


def require_base(folder: Path, recorded: str | None, source: Path) -> None:
    """Raises a DataError unless the weights in `folder` are those that `source` recorded."""
    if recorded is not None and base_record(folder, recorded) != recorded:
        raise DataError(
            f"{folder} is not the model that {source} was trained on, or has its weights in another type (--dtype)"
        )


def begin_check(files: Sequence[Expected]) -> Check:
    """Begins to compare files on the first process, for all of them; a line names weights that no list has."""
    if rank():
        return Check()
    for file in files:
        if file.sha256 is None and file.path.name == WEIGHTS:
            print(f"no {SUMS} lists {file.path}: it is compared with the CRC-32 in it", file=sys.stderr)
    return Check(files)
