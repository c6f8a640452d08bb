"""The start of a run in its folder: metrics.csv up to the checkpoint, run.yaml, the mixture, and what the log says."""

import os
import platform
import time
from pathlib import Path

import torch
import yaml

from lit_gpt.formats.litgpt_directory import CONFIG
from lit_gpt.model.building import empty_model
from utils import cli
from utils.data.mixture import MIXTURE, mixture_table, table_csv, table_text
from utils.files.atomic import write_atomically
from utils.run.csv_log import METRICS, CsvLog, drop_metrics_after
from utils.run.log import RunLog
from utils.run.progress import TrainingProgress
from utils.run.record import RUN, RunRecord, software_versions, source_commit
from utils.train.metrics import METRIC_COLUMNS
from utils.train.options import PretrainOptions
from utils.train.plan import TrainingPlan


def record_start(
    options: PretrainOptions,
    plan: TrainingPlan,
    world_size: int,
    progress: TrainingProgress,
    checkpoint: Path | None,
    warnings: list[str],
    log: RunLog,
) -> CsvLog:
    """Writes down that the run begins, or goes on from `checkpoint`; returns metrics.csv. For process 0 only."""
    last_step = progress.step if checkpoint else -1
    drop_metrics_after(options.out_dir, METRIC_COLUMNS, last_step, keep_validation=not progress.validation_pending)
    file = CsvLog(options.out_dir / METRICS, METRIC_COLUMNS)
    for change in save_record(options, plan, world_size, progress):
        log.line(f"changed since the last start: {change}")
    for line in [training_summary(options, plan, world_size), *warnings]:
        log.line(line)
    record_mixture(options, plan, log)
    if checkpoint:
        log.line(f"going on from {checkpoint}")
    return file


def save_record(options: PretrainOptions, plan: TrainingPlan, world_size: int, progress: TrainingProgress) -> list[str]:
    """Writes run.yaml and model_config.yaml; returns which options changed since the start before.

    The history in run.yaml has the changes too.
    """
    before = RunRecord.load(options.out_dir) if (options.out_dir / RUN).is_file() else None
    now = cli.public_values(options)
    options_before = before.options if before else now
    changed = {key: value for key, value in options_before.items() if now.get(key) != value}
    record = RunRecord(
        identity=plan.identity,
        options=now,
        schedule={
            "steps": plan.schedule.max_steps,
            "samples_per_step": plan.samples_per_step,
            "epochs": plan.schedule.max_steps * plan.samples_per_step / plan.mixture.rows,
            "window": plan.manifest.window,
        },
        versions=software_versions(),
        commit=source_commit(),
        history=before.history if before else [],
        normalised=normalised_datasets(plan),
    )
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "processes": world_size,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "from_step": progress.step,
        "commit": record.commit,
        "changed_from": changed,
    }
    record.history.append(start)
    record.save(options.out_dir)
    write_atomically(options.out_dir / CONFIG, yaml.safe_dump(plan.identity.model, sort_keys=False))
    return [f"--{key} {value} → {now.get(key)}" for key, value in changed.items()]


def normalised_datasets(plan: TrainingPlan) -> dict[str, str]:
    """The mixture's datasets whose conversations were normalised, each with its language."""
    languages = plan.manifest.made_by.get("normalised", {})
    names = [entry.dataset for entry in plan.mixture.entries]
    return {name: languages[name] for name in names if name in languages}


def training_summary(options: PretrainOptions, plan: TrainingPlan, world_size: int) -> str:
    """One line for the log: what is trained, on what, for how long."""
    model = empty_model(plan.config, plan.lora, torch.float32)  # not the real one, whose parts may be quantised
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kind = "full"
    if plan.lora:
        kind = f"LoRA ({options.quantize} base)" if options.quantize else "LoRA"
    return (
        f"{kind} training of {trained:,} of {total:,} parameters, {options.precision}, on {world_size} process(es): "
        f"{plan.schedule.max_steps:,} steps of {plan.samples_per_step} samples from {len(plan.mixture.entries)} "
        f"dataset(s), {plan.mixture.rows:,} rows an epoch; validation on {len(plan.validation)} dataset(s)"
    )


def record_mixture(
    options: PretrainOptions, plan: TrainingPlan, log: RunLog, counts: tuple[int, ...] | None = None
) -> None:
    """Logs the mixture's table and writes it to mixture.csv: as planned, or with the samples made per dataset."""
    table = mixture_table(plan.mixture, plan.schedule.max_steps * plan.samples_per_step, counts)
    write_atomically(options.out_dir / MIXTURE, table_csv(table))
    log.line(f"mixture, {'samples made' if counts else 'planned'}:\n{table_text(table)}")
    if plan.mixture.left_out and not counts:
        log.line(f"left out by {options.mixture}: {', '.join(plan.mixture.left_out)}")
