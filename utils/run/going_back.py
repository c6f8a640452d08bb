"""Going back to an earlier checkpoint after a divergence: which one, and what becomes of all that came after it.

Nothing is thrown away: newer checkpoints move to `set_aside/<number>/checkpoints`, beside the CSV files as they were.
That folder has a run.yaml: it can be drawn, validated and exported like any run's.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from lit_gpt.errors import UserError
from utils.files.atomic import sync
from utils.run.checkpoint_folders import CHECKPOINTS, list_checkpoints, step_of
from utils.run.csv_log import METRICS, VALIDATION, VALIDATION_COLUMNS, drop_rows_after, read_csv
from utils.run.progress import TrainingProgress
from utils.run.record import RunRecord
from utils.run.samples_file import SAMPLES

SET_ASIDE = "set_aside"

_RISE = 0.5
"""Nats by which the loss at a checkpoint may lie above the lowest one before: more is a divergence under way."""


def named_checkpoint(run_dir: Path, name: str) -> Path:
    """The complete checkpoint of that name in a run; a `UserError` that lists the run's if there is none."""
    found = {path.name: path for path in list_checkpoints(run_dir)}
    if name not in found:
        names = ", ".join(found) or "no complete checkpoint"
        raise UserError(f"--resume_from {name}: {run_dir} has {names}")
    return found[name]


def healthy_checkpoint(run_dir: Path, last_good_step: int) -> Path | None:
    """The newest checkpoint to go back to when all steps after `last_good_step` were skipped; None if there is none.

    The step after it was a good one: of a newer one nobody knows whether its weights give a finite gradient. And its
    training loss had not begun to rise.
    """
    losses = {}
    for checkpoint in list_checkpoints(run_dir):
        state = TrainingProgress.load(checkpoint)
        if state.step < last_good_step and not state.skipped_in_a_row:
            losses[checkpoint] = state.train_loss
    known = [loss for loss in losses.values() if loss is not None]
    for checkpoint, loss in reversed(losses.items()):
        if loss is None or loss <= min(known) + _RISE:
            return checkpoint
    return None


def goes_back(run_dir: Path, options: dict[str, object]) -> bool:
    """Whether a start with these options, of which `resume_from` is one, is to go back to that checkpoint.

    The same command may come again after an interruption, by Slurm or a person: it has gone back already then.
    """
    record = RunRecord.load(run_dir)
    last = record.history[-1] if record.history else {}
    return record.options != options or bool(last.get("diverged"))


def set_aside_after(run_dir: Path, step: int) -> str:
    """Moves what a run has of the steps after `step` out of the way; says in words what and where to.

    metrics.csv is only copied: the start that follows drops its lines.
    """
    newer = [path for path in (run_dir / CHECKPOINTS).glob("step-*") if _is_newer(path, step)]
    rows = [*read_csv(run_dir / METRICS), *read_csv(run_dir / VALIDATION)]
    if not newer and all(int(row["step"]) <= step for row in rows):
        return "nothing came after it"
    number = 1
    while (folder := run_dir / SET_ASIDE / str(number)).exists():
        number += 1
    (folder / CHECKPOINTS).mkdir(parents=True)
    for path in run_dir.iterdir():
        if path.suffix in (".csv", ".yaml") or path.name == SAMPLES:
            shutil.copy2(path, folder / path.name)
    with suppress(FileNotFoundError):  # W&B's run has the steps that are given up: the run gets another one
        (run_dir / "wandb" / "run_id").rename(folder / "wandb_run_id")
    sync([*(path for path in folder.iterdir() if path.is_file()), folder])
    for path in sorted(newer, reverse=True):  # should this be cut short, the next start finds the rest
        path.rename(folder / CHECKPOINTS / path.name)
    drop_rows_after(run_dir / VALIDATION, VALIDATION_COLUMNS, step)
    sync([run_dir / CHECKPOINTS, folder / CHECKPOINTS])
    return f"{len(newer)} newer checkpoint(s), and the CSV files as they were, are now in {folder}"


def _is_newer(checkpoint: Path, step: int) -> bool:
    return checkpoint.name.removeprefix("step-").isdigit() and step_of(checkpoint) > step


def advice(run_dir: Path, progress: TrainingProgress, learning_rate: float) -> str:
    """What to do about a run whose last steps were all skipped."""
    if progress.skipped == progress.step:
        return (
            "no step of this run had a finite gradient, which no --learning_rate mends: look at the base model, the "
            "precision and the samples, which are in training_log.out"
        )
    checkpoint = healthy_checkpoint(run_dir, progress.last_good_step)
    if checkpoint is None:
        return (
            "there is no healthy checkpoint to go back to: begin again with another --out_dir and a lower "
            f"--learning_rate (now {learning_rate}); the samples are in training_log.out"
        )
    return (
        f"the newest healthy checkpoint is {checkpoint.name}: run the same command with --resume_from "
        f"{checkpoint.name} --learning_rate {learning_rate / 2:g} (now {learning_rate:g}); the samples are in "
        "training_log.out"
    )
