"""metrics.csv and validation.csv: they grow line by line and are whole at any moment but for the last line.

`CsvLog` and `drop_metrics_after` give the file of an older version today's columns before they use it. A file with
columns that this version does not know is refused, never misread.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError
from utils.files.atomic import write_atomically

METRICS, VALIDATION = "metrics.csv", "validation.csv"

ALL = "all"
"""The dataset name of a validation over all datasets, weighted by their targets."""

PROGRESS_COLUMNS = ("step", "samples", "tokens", "seconds", "device_seconds")
"""How far the run was: counters of `TrainingProgress`."""

LOSS_COLUMNS = ("dataset", "loss", "targets")
"""A mean loss in nats per target, and the number of targets it is the mean of."""

END_COLUMNS = ("end_at_ends", "end_inside")
"""Of chats, the mean probability of the tokens that end an answer: where answers end, and at their other targets."""

SAMPLES_COLUMN = "samples_ended"
"""The share of --sample_prompts' continuations that ended by themselves."""

ENDING_COLUMNS = (*END_COLUMNS, SAMPLES_COLUMN)
"""Whether a model learns to stop."""

SETTING_COLUMNS = ("max_samples", "precision", "data")
"""The settings under which validate_pretrain.py measures."""

VALIDATION_COLUMNS = ("checkpoint", *PROGRESS_COLUMNS, *LOSS_COLUMNS, *SETTING_COLUMNS, *END_COLUMNS)
"""A line per checkpoint and dataset."""


class CsvLog:
    """An append-only CSV file whose lines are on their way to the disk as soon as they are written.

    A file that an older version wrote gets today's `columns`, in their order: values stay, new columns are empty. It
    raises what `check_columns` and `read_csv` raise; an `OSError` leaves the old file.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)  # what a killed process began
        if check_columns(path, columns) != list(columns):
            _write(path, columns, read_csv(path))
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows (column → value; what is not given stays empty) and hands them to the operating system."""
        self._writer.writerows(rows)
        self._file.flush()

    def sync(self) -> None:
        """Waits until everything is on the disk, where it survives the node."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def complete_lines(path: Path) -> bytes:
    """A file's lines, none without a file. A process is writing a last one without its end, or was killed in it."""
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The complete lines of a CSV file, none without a file; a `DataError` if one has other fields than the header."""
    text = complete_lines(path).decode("utf-8", errors="replace")
    header, *lines = text.split("\n")
    columns = _split(header)
    rows = []
    for number, line in enumerate(lines, start=2):
        if not line or "\0" in line:  # A lost node leaves zeros where blocks did not reach the disk.
            continue
        fields = _split(line)
        if len(fields) != len(columns):
            raise DataError(
                f"{path}, line {number} has {len(fields)} fields, the header {len(columns)}: a version with other "
                "columns wrote it, or the file is damaged; remove such lines"
            )
        rows.append(dict(zip(columns, fields, strict=True)))
    return rows


def check_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """The columns of a CSV file's header; none where there is no file, or no complete line in it.

    A `DataError` if one of them is not among `columns`, or comes twice.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        header = file.readline()
    if not header.endswith(b"\n"):
        return []
    found = _split(header.decode("utf-8", errors="replace"))
    unknown = [column for column in found if column not in columns or found.count(column) > 1]
    if unknown:
        raise DataError(
            f"{path} has columns that this version does not write ({', '.join(unknown)}): another program's file, or a "
            "later version's; move it away"
        )
    return found


def drop_metrics_after(run_dir: Path, columns: Sequence[str], step: int, keep_validation: bool = True) -> None:
    """Removes the lines of steps after `step` from metrics.csv: a resumed run takes them again.

    Without `keep_validation` those of the validation at `step` go too. It raises what `CsvLog` raises.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return
    check_columns(path, columns)
    last = {"train": step, "valid": step if keep_validation else step - 1}
    # Always a new file: what a process that was cut off from the run still writes into the old one is not seen.
    _write(path, columns, (row for row in read_csv(path) if int(row["step"]) <= last[row["split"]]))


def drop_rows_after(path: Path, columns: Sequence[str], step: int) -> None:
    """Removes the lines of checkpoints after `step` from validation.csv: others will have their names."""
    if path.is_file():
        check_columns(path, columns)
        _write(path, columns, (row for row in read_csv(path) if int(row["step"]) <= step))


def _split(line: str) -> list[str]:
    return next(csv.reader([line.replace("\0", "")]), [])


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
