"""samples.jsonl: what a model went on with, at each validation of a run; a line per prompt, as JSON.

A line has the `step`, the prompt's `number` in its file, what was `asked` (a text or messages), the `text` that the
model wrote, its `tokens`, and whether it `ended` by itself.
"""

import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError
from utils.files.atomic import write_atomically
from utils.run.csv_log import complete_lines

SAMPLES = "samples.jsonl"
_KINDS = {"step": int, "number": int, "text": str, "tokens": int, "ended": bool}


class SamplesFile:
    """Appends what is written at once."""

    def __init__(self, run_dir: Path) -> None:
        self._file = (run_dir / SAMPLES).open("a", encoding="utf-8")

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        self._file.write("".join(map(_line, records)))
        self._file.flush()

    def sync(self) -> None:
        """Waits until everything is on the disk, where it survives the node."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """The complete lines, none without a file; a `DataError` for one that is not this program's."""
    path = run_dir / SAMPLES
    records = []
    for number, line in enumerate(complete_lines(path).splitlines(), start=1):
        if not line.strip(b"\0"):  # a lost node leaves zeros where blocks did not reach the disk
            continue
        try:
            record = json.loads(line.strip(b"\0"))
            is_own = isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in _KINDS.items())
        except (ValueError, RecursionError):
            is_own = False
        if not is_own:
            raise DataError(f"{path}, line {number} is no sample that this program wrote; move the file away")
        records.append(record)
    return records


def drop_samples_after(run_dir: Path, step: int, keep_validation: bool = True) -> None:
    """Removes what was written at steps after `step`, and without `keep_validation` at `step`: it is written again."""
    path = run_dir / SAMPLES
    if path.is_file():
        last = step if keep_validation else step - 1
        # always a new file: what a process that was cut off from the run still writes into the old one is not seen
        write_atomically(path, "".join(_line(record) for record in read_samples(run_dir) if record["step"] <= last))


def _line(record: dict[str, Any]) -> str:
    return readable_json(record) + "\n"


def readable_json(value: Any) -> str:
    """JSON in which text of all scripts can be read, and that holds nothing that a terminal would act on."""
    return readable(json.dumps(value, ensure_ascii=False))


def readable(text: str) -> str:
    """The text with what cannot be shown, a line's end included, written as in JSON."""
    return "".join(map(_readable, text))


def _readable(character: str) -> str:
    # beside letters and signs, other spaces, and what joins letters and emoji or keeps them apart
    is_shown = character.isprintable() or unicodedata.category(character) == "Zs" or character in "\u200c\u200d"
    return character if is_shown else json.dumps(character)[1:-1]
