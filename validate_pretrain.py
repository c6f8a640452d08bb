"""Offline validation: every checkpoint of a run on every dataset, appended to the run's validation.csv.

It may run beside the training, again and again: what validation.csv already holds is not measured again.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_gpt.errors import DataError, UserError, raise_problems
from utils import cli

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from utils.data.manifest import DatasetSplit, Manifest
    from utils.train.training import Loss


@dataclass(frozen=True)
class ValidateOptions:
    """Validate all checkpoints of a run on each dataset separately and on all together."""

    out_dir: Path
    """Run folder that pretrain.py writes."""
    data_dir: Path | None = None
    """Folder of shards. Default: the run's."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the run's."""
    language: str | None = None
    """Only the datasets of this language (`fr`)."""
    max_batches: int | None = None
    """Measure on at most this many batches per dataset. Default: all."""
    batch_size: int = 8
    """Samples per forward pass."""
    devices: int | None = None
    """Processes per node. Default: as Slurm's step has them, else all GPUs, else 1."""
    num_nodes: int | None = None
    """Nodes. Default: as Slurm's step has them, else 1."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    """Arithmetic. Default: the run's."""
    verify_data: bool = True
    """Compare every shard with the manifest's SHA-256 first."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        names = ("max_batches", "batch_size", "devices", "num_nodes")
        values = vars(self)
        raise_problems([f"--{name} must be above 0" for name in names if (values[name] or 1) <= 0])


@dataclass(frozen=True)
class Task:
    """What is measured, and where it is written."""

    options: ValidateOptions
    fabric: Fabric
    data_dir: Path
    manifest: Manifest
    entries: list[DatasetSplit]
    precision: str
    run_precision: str

    @property
    def settings(self) -> dict[str, str]:
        """The columns that say under which settings a loss was measured: only equal ones may be compared."""
        samples = (self.options.max_batches or 0) * self.options.batch_size
        data = self.manifest.fingerprint(self.entries)[:12]
        return {"max_samples": str(samples or ""), "precision": self.precision, "data": data}


def main(options: ValidateOptions) -> None:
    from utils.cluster.launch import launch, resolve_processes
    from utils.cluster.slurm import every_task_needed
    from utils.data.manifest import TEST, Manifest
    from utils.run.record import RunRecord

    record = RunRecord.load(options.out_dir)
    data_dir = options.data_dir or Path(record.options["data_dir"])
    manifest = Manifest.load(data_dir)
    entries = manifest.select(TEST, options.language)
    check_tokenizer(manifest, options.out_dir, data_dir)
    run_precision = record.options["precision"]
    precision = options.precision or run_precision
    fabric = launch(*resolve_processes(options.devices, options.num_nodes), precision)
    with every_task_needed():
        validate_run(Task(options, fabric, data_dir, manifest, entries, precision, run_precision))


def validate_run(task: Task) -> None:
    """Measures each of the run's checkpoints.

    Raises:
        UserError: if there is none.
        DataError: if a shard or, once the others are measured, a checkpoint is damaged.
    """
    from utils.cluster.collectives import on_rank_zero
    from utils.data.batches import verify_data
    from utils.run.checkpoint_folders import list_checkpoints

    options = task.options
    if options.verify_data:
        verify_data(task.data_dir, task.entries)
    checkpoints = on_rank_zero(lambda: list_checkpoints(options.out_dir))
    if not checkpoints:
        raise UserError(f"the run in {options.out_dir} has no complete checkpoint yet")
    damaged = [checkpoint for checkpoint in checkpoints if not validate_checkpoint(task, checkpoint)]
    if damaged:
        raise DataError(f"{len(damaged)} of {len(checkpoints)} checkpoints are damaged, the first {damaged[0]}")


def check_tokenizer(manifest: Manifest, run_dir: Path, data_dir: Path) -> None:
    """Raises unless the shards were made with the tokenizer of the run's newest checkpoint."""
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.run.checkpoint_folders import list_checkpoints

    checkpoints = list_checkpoints(run_dir)
    if checkpoints and Tokenizer(checkpoints[-1]).fingerprint != manifest.tokenizer:
        raise DataError(f"the shards in {data_dir} were made with another tokenizer than the run in {run_dir}")


def validate_checkpoint(task: Task, checkpoint: Path) -> bool:
    """Measures one checkpoint, unless it was done before, and appends its losses; False if it is damaged."""
    import torch

    from lit_gpt.model.building import empty_model
    from utils.cluster.collectives import on_rank_zero
    from utils.cluster.launch import place_model
    from utils.run.checkpoint_folders import verify_checkpoint
    from utils.run.csv_log import VALIDATION, read_csv
    from utils.run.merged_model import load_merged_model
    from utils.run.record import RunRecord
    from utils.train.training import validate

    options, fabric = task.options, task.fabric
    done = on_rank_zero(lambda: read_csv(options.out_dir / VALIDATION))
    if any(was_measured(task, checkpoint, row) for row in done):
        say(task, f"{checkpoint.name}: done before")
        return True
    if problem := on_rank_zero(lambda: verify_checkpoint(checkpoint)):
        say(task, f"{checkpoint.name}: passed over, {problem}")
        return False
    trained = load_merged_model(checkpoint, options.checkpoint_dir, verify=False)
    dtype = torch.bfloat16 if task.precision == "bf16-true" else torch.float32
    model = place_model(fabric, empty_model(trained.config, None, dtype), trained.state_dict, 0, task.precision)
    mask_documents = RunRecord.load(checkpoint).identity.mask_documents
    max_rows = options.max_batches and options.max_batches * options.batch_size
    losses = validate(
        fabric, model, task.data_dir, task.entries, task.manifest.window, options.batch_size, max_rows, mask_documents
    )
    on_rank_zero(lambda: append(task, checkpoint, losses))
    return True


def was_measured(task: Task, checkpoint: Path, row: dict[str, str]) -> bool:
    """Whether a line of validation.csv is of this checkpoint under these settings.

    The first versions did not write the precision; what they measured counts as measured in the run's.
    """
    precision = row.get("precision") or task.run_precision
    return {**row, "precision": precision}.items() >= {"checkpoint": checkpoint.name, **task.settings}.items()


def append(task: Task, checkpoint: Path, losses: dict[str, Loss]) -> None:
    from utils.run.csv_log import ALL, PLACE_COLUMNS, VALIDATION, VALIDATION_COLUMNS, CsvLog
    from utils.run.progress import TrainingProgress

    progress = asdict(TrainingProgress.load(checkpoint))
    where = {column: round(progress[column], 3) for column in PLACE_COLUMNS}
    log = CsvLog(task.options.out_dir / VALIDATION, VALIDATION_COLUMNS)
    log.write(
        {"checkpoint": checkpoint.name, **where, "dataset": name, "loss": loss.mean, "targets": loss.targets}
        | task.settings
        for name, loss in losses.items()
    )
    log.close()
    each = "  ".join(f"{name} {loss.mean:.4f}" for name, loss in losses.items() if name != ALL)
    say(task, f"{checkpoint.name}: {losses[ALL].mean:.4f}  ({each})")


def say(task: Task, text: str) -> None:
    if task.fabric.is_global_zero:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(ValidateOptions)))
