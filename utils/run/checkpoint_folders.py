"""The folders of a run's checkpoints: their names, which of them are complete, undamaged, and the best.

`checkpoints/step-00001000/` is the checkpoint after 1000 steps. It is written as `.step-00001000.7.partial` (7 is the
number of the writer's lock on the run folder) and renamed when it is whole.
"""

import math
from pathlib import Path

from lit_gpt.checksums import SUMS, find_difference, read_sums
from lit_gpt.errors import DataError
from utils.run.csv_log import ALL, METRICS, VALIDATION, read_csv

CHECKPOINTS = "checkpoints"
_STEP = "step-"


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps. Names sort by step."""
    return run_dir / CHECKPOINTS / f"{_STEP}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The number of optimiser steps before a checkpoint, from its folder's name."""
    return int(checkpoint.name.removeprefix(_STEP))


def staging_folder(checkpoint: Path, lock_number: int) -> Path:
    """The folder in which the lock's owner writes `checkpoint`: two writers never share one."""
    return checkpoint.with_name(f".{checkpoint.name}.{lock_number}.partial")


def abandoned_folders(run_dir: Path, lock_number: int) -> list[Path]:
    """The staging folders that the owner of that lock and earlier owners left."""
    found = []
    for path in (run_dir / CHECKPOINTS).glob(f".{_STEP}*.partial"):
        number = path.name.split(".")[2]
        if not number.isdigit() or int(number) <= lock_number:
            found.append(path)
    return found


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    return sorted(path for path in (run_dir / CHECKPOINTS).glob(f"{_STEP}*") if (path / SUMS).is_file())


def verify_checkpoint(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """Says what is wrong with a checkpoint (a missing file, a checksum that differs), None if nothing is.

    Processes that share the work take every `parts`-th file from number `part` on.
    """
    try:
        return find_difference(checkpoint, read_sums(checkpoint), part=part, parts=parts)
    except DataError as e:
        return str(e)
    except OSError as e:
        return f"{e.filename} cannot be read ({e})"


def best_checkpoint(run_dir: Path, checkpoints: list[Path]) -> Path:
    """The one of the lowest validation loss among a run's `checkpoints` (oldest first), else the newest."""
    steps = {step_of(path): path for path in checkpoints}
    # The two logs may be over different data: their losses are never mixed.
    for log in (METRICS, VALIDATION):
        losses = _validation_losses(read_csv(run_dir / log))
        measured = [step for step in losses if step in steps]
        if measured:
            return steps[min(measured, key=lambda step: (losses[step], step))]
    return checkpoints[-1]


def _validation_losses(rows: list[dict[str, str]]) -> dict[int, float]:
    """The finite losses over all datasets by step; if over several data folders, those of the newest."""
    losses = {}
    for row in rows:
        is_comparable = row.get("data") == rows[-1].get("data")
        if row["dataset"] == ALL and is_comparable and math.isfinite(float(row["loss"])):
            losses[int(row["step"])] = float(row["loss"])
    return losses
