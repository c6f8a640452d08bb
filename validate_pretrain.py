"""Offline validation: every checkpoint of a run on every dataset, appended to the run's validation.csv.

It may run beside the training, again and again: what validation.csv already holds is not measured again.
"""

import sys

from utils import cli
from utils.train.options import ValidateOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(ValidateOptions)  # --help and mistakes are answered before the imports below

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from lightning.fabric import Fabric

from lit_gpt.errors import DataError, UserError
from lit_gpt.model.building import empty_model
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.cluster.collectives import on_rank_zero
from utils.cluster.launch import launch, resolve_processes
from utils.cluster.meeting import every_task_needed
from utils.data.batches import verify_data
from utils.data.manifest import TEST, DatasetSplit, Manifest
from utils.run.checkpoint_folders import list_checkpoints, verify_checkpoint
from utils.run.csv_log import PROGRESS_COLUMNS, VALIDATION, VALIDATION_COLUMNS, CsvLog, read_csv
from utils.run.merged_model import load_merged_model
from utils.run.progress import TrainingProgress
from utils.run.record import RunRecord
from utils.train.placement import place_model
from utils.train.validation import Validation, end_ids_of, template_of, told, validate


@dataclass(frozen=True)
class OfflineValidation:
    """What is measured, and where it is written."""

    options: ValidateOptions
    fabric: Fabric
    data_dir: Path
    manifest: Manifest
    entries: list[DatasetSplit]
    precision: str
    run_precision: str

    @cached_property
    def end_ids(self) -> list[int]:
        return end_ids_of(template_of(self.data_dir, self.manifest))

    @cached_property
    def settings(self) -> dict[str, str]:
        """The columns that say under which settings a loss was measured: only equal ones may be compared."""
        samples = (self.options.max_batches or 0) * self.options.batch_size
        data = self.manifest.fingerprint(self.entries)[:12]
        return {"max_samples": str(samples or ""), "precision": self.precision, "data": data}


def main(options: ValidateOptions) -> None:
    record = RunRecord.load(options.out_dir)
    data_dir = options.data_dir or Path(record.options["data_dir"])
    manifest = Manifest.load(data_dir)
    check_tokenizer(manifest, options.out_dir, data_dir)
    check_template(manifest, record, options.out_dir, data_dir)
    entries = manifest.select(TEST, options.language)
    run_precision = record.options["precision"]
    precision = options.precision or run_precision
    fabric = launch(*resolve_processes(options.devices, options.num_nodes), precision)
    with every_task_needed():
        validate_run(OfflineValidation(options, fabric, data_dir, manifest, entries, precision, run_precision))


def validate_run(task: OfflineValidation) -> None:
    """Measures each of the run's checkpoints; raises for the damaged ones once the others are measured."""
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
    checkpoints = list_checkpoints(run_dir)
    if checkpoints and Tokenizer(checkpoints[-1]).fingerprint != manifest.tokenizer:
        raise DataError(f"the shards in {data_dir} were made with another tokenizer than the run in {run_dir}")


def check_template(manifest: Manifest, record: RunRecord, run_dir: Path, data_dir: Path) -> None:
    """Raises if the run was trained on chats by another template; data without chats are measured as they are."""
    trained_by = record.identity.template
    if trained_by and manifest.template not in ("", trained_by):
        raise DataError(f"the shards in {data_dir} were made with another chat template than the run in {run_dir}")


def validate_checkpoint(task: OfflineValidation, checkpoint: Path) -> bool:
    """Measures one checkpoint, unless it was done before, and appends its losses; False if it is damaged."""
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
        fabric,
        model,
        task.data_dir,
        task.entries,
        task.manifest.window,
        options.batch_size,
        max_rows,
        mask_documents,
        task.end_ids,
    )
    on_rank_zero(trained.check.finish)
    on_rank_zero(lambda: append(task, checkpoint, losses))
    return True


def was_measured(task: OfflineValidation, checkpoint: Path, row: dict[str, str]) -> bool:
    """Whether a line of validation.csv is of this checkpoint under these settings.

    The first versions did not write the precision; what they measured counts as measured in the run's.
    """
    precision = row.get("precision") or task.run_precision
    return {**row, "precision": precision}.items() >= {"checkpoint": checkpoint.name, **task.settings}.items()


def append(task: OfflineValidation, checkpoint: Path, losses: dict[str, Validation]) -> None:
    progress = asdict(TrainingProgress.load(checkpoint))
    where = {column: round(progress[column], 3) for column in PROGRESS_COLUMNS}
    log = CsvLog(task.options.out_dir / VALIDATION, VALIDATION_COLUMNS)
    log.write(
        {"checkpoint": checkpoint.name, **where, "dataset": name} | loss.columns | task.settings
        for name, loss in losses.items()
    )
    log.close()
    say(task, f"{checkpoint.name}: {told(losses)}")


def say(task: OfflineValidation, text: str) -> None:
    if task.fabric.is_global_zero:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
