"""Offline validation: every checkpoint of a run on every dataset, appended to the run's validation.csv.

It may run beside the training, again and again: what validation.csv already holds is not measured again.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt import command
from lit_gpt.command import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from utils.shards import DatasetSplit, Manifest


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
        command.raise_problems([f"--{name} must be above 0" for name in names if (values[name] or 1) <= 0])


def main(options: ValidateOptions) -> None:
    from utils.checkpoint import list_checkpoints
    from utils.launch import launch, resolve_processes
    from utils.run_folder import RunRecord
    from utils.shards import TEST, Manifest, verify_shards

    record = RunRecord.load(options.out_dir)
    data_dir = options.data_dir or Path(record.options["data_dir"])
    manifest = Manifest.load(data_dir)
    check_tokenizer(manifest, options.out_dir, data_dir)
    entries = manifest.select(TEST, options.language)
    if options.verify_data and command.process_rank() == 0:
        verify_shards(data_dir, entries)
    precision = options.precision or record.options["precision"]
    fabric = launch(*resolve_processes(options.devices, options.num_nodes), precision)
    checkpoints = fabric.broadcast(list_checkpoints(options.out_dir))
    if not checkpoints:
        raise UserError(f"the run in {options.out_dir} has no complete checkpoint yet")
    for checkpoint in checkpoints:
        validate_checkpoint(fabric, options, checkpoint, data_dir, manifest, entries, precision)


def check_tokenizer(manifest: Manifest, run_dir: Path, data_dir: Path) -> None:
    """Raises unless the shards were made with the tokenizer of the run's newest checkpoint."""
    from lit_gpt.command import DataError
    from lit_gpt.tokenizer import Tokenizer
    from utils.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(run_dir)
    if checkpoints and Tokenizer(checkpoints[-1]).fingerprint != manifest.tokenizer:
        raise DataError(f"the shards in {data_dir} were made with another tokenizer than the run in {run_dir}")


def validate_checkpoint(
    fabric: Fabric,
    options: ValidateOptions,
    checkpoint: Path,
    data_dir: Path,
    manifest: Manifest,
    entries: list[DatasetSplit],
    precision: str,
) -> None:
    """Measures what validation.csv lacks of one checkpoint, and appends it."""
    import torch

    from lit_gpt.foundation import build_model, refresh_rotary_tables
    from utils.run_folder import ALL, VALIDATION, RunRecord, read_csv
    from utils.trained import load_trained
    from utils.training import validate

    done = fabric.broadcast(read_csv(options.out_dir / VALIDATION))
    names = [*(entry.dataset for entry in entries), ALL]
    wanted = {settings_key(checkpoint.name, name, options, manifest) for name in names}
    if wanted <= {(row["checkpoint"], row["dataset"], row["max_samples"], row["data"]) for row in done}:
        if fabric.is_global_zero:
            print(f"{checkpoint.name}: done before")
        return
    trained = load_trained(checkpoint, options.checkpoint_dir)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = fabric.setup(build_model(trained.config, trained.state_dict, None, 0, dtype))
    refresh_rotary_tables(model.module, fabric.device)
    mask_documents = RunRecord.load(checkpoint).identity["mask_documents"]
    max_rows = options.max_batches and options.max_batches * options.batch_size
    losses = validate(fabric, model, data_dir, entries, manifest.window, options.batch_size, max_rows, mask_documents)
    if fabric.is_global_zero:
        append(options, checkpoint, manifest, losses)


def settings_key(checkpoint: str, dataset: str, options: ValidateOptions, manifest: Manifest) -> tuple[str, ...]:
    """What makes two measurements the same one."""
    return checkpoint, dataset, str((options.max_batches or 0) * options.batch_size or ""), manifest.fingerprint[:12]


def append(options: ValidateOptions, checkpoint: Path, manifest: Manifest, losses: dict[str, Any]) -> None:
    from utils.checkpoint import Progress
    from utils.run_folder import ALL, PLACE_COLUMNS, VALIDATION, VALIDATION_COLUMNS, CsvLog

    progress = asdict(Progress.load(checkpoint))
    where = {column: round(progress[column], 3) for column in PLACE_COLUMNS}
    settings = settings_key(checkpoint.name, "", options, manifest)
    log = CsvLog(options.out_dir / VALIDATION, VALIDATION_COLUMNS)
    log.write(
        {"checkpoint": checkpoint.name, **where, "dataset": name, "loss": loss.mean, "targets": loss.targets}
        | {"max_samples": settings[2], "data": settings[3]}
        for name, loss in losses.items()
    )
    log.close()
    each = "  ".join(f"{name} {loss.mean:.4f}" for name, loss in losses.items() if name != ALL)
    print(f"{checkpoint.name}: {losses[ALL].mean:.4f}  ({each})", flush=True)


if __name__ == "__main__":
    sys.exit(command.run(ValidateOptions, main))
