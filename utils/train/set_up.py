"""The set-up of a training: the model built, the run's start recorded, its files opened."""

import os
import platform
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from lit_gpt.checksums import Check
from lit_gpt.errors import DataError
from lit_gpt.formats.litgpt_directory import CONFIG
from lit_gpt.model.building import empty_model
from lit_gpt.model.flops import flops_per_token, mean_context
from utils import cli
from utils.cluster.collectives import on_rank_zero
from utils.cluster.stop_request import StopRequest
from utils.cluster.watchdog import Watchdog
from utils.data.mixture import MIXTURE, mixture_table, table_csv, table_text
from utils.files.atomic import write_atomically
from utils.files.folder_lock import FolderLock
from utils.run.checkpoint_folders import verify_checkpoint
from utils.run.checkpoint_reader import load_checkpoint, newest_valid_checkpoint
from utils.run.checkpoint_writer import CheckpointWriter
from utils.run.csv_log import METRICS, CsvLog, drop_metrics_after
from utils.run.foundation import begin_check, expected_base
from utils.run.going_back import goes_back, named_checkpoint, set_aside_after
from utils.run.log import LOG, RunLog
from utils.run.progress import TrainingProgress
from utils.run.record import RUN, RunRecord, software_versions, source_commit
from utils.run.samples_file import SamplesFile, drop_samples_after
from utils.train.loggers import open_logger
from utils.train.metrics import METRIC_COLUMNS, Meter, Metrics, device_peak
from utils.train.optimizer import make_optimizer, trained_of
from utils.train.options import PretrainOptions
from utils.train.placement import place_model
from utils.train.plan import TrainingPlan, check_out_dir, tokenizer_files
from utils.train.profiler import StepProfiler, parse_profile_steps
from utils.train.workload import elements


@dataclass(frozen=True)
class Training:
    """What the training loop works with, on every process."""

    options: PretrainOptions
    plan: TrainingPlan
    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer
    writer: CheckpointWriter
    stop: StopRequest
    watchdog: Watchdog
    log: RunLog
    metrics: Metrics | None
    """metrics.csv and the curves of --logger, on process 0."""
    meter: Meter
    profiler: StepProfiler

    def close(self) -> None:
        """Waits until curves and profiles are written."""
        with closing(self.profiler):
            if self.metrics:
                self.metrics.close()


def set_up(
    fabric: Fabric,
    options: PretrainOptions,
    plan: TrainingPlan,
    lock: FolderLock | None,
    stop: StopRequest,
    watchdog: Watchdog,
    warnings: list[str],
) -> tuple[Training, TrainingProgress]:
    """Builds the model on every process, loads the checkpoint to continue from and opens the run's files.

    `lock` is the run folder's, on process 0; `warnings` are lines for the run's log.
    """
    check = begin_check(expected_base(options.checkpoint_dir) if plan.weights else [])
    model, optimizer = build(fabric, options, plan)
    on_rank_zero(lambda: check_out_dir(options, plan.identity))  # again: now nobody else can begin a run there
    log = RunLog(options.out_dir / LOG if fabric.is_global_zero else None)
    back = on_rank_zero(lambda: checkpoint_to_go_back_to(options))
    checkpoint = back or find_checkpoint(options, log)
    progress = TrainingProgress()
    if checkpoint:
        progress = load_checkpoint(checkpoint, model.module, optimizer.optimizer).as_another_try()
    last_step = progress.step if checkpoint else -1
    opened: list[Metrics] = []

    def open_metrics() -> None:
        if back:
            log.line(f"going back to {back.name} (--resume_from); {set_aside_after(options.out_dir, last_step)}")
        file, samples = open_files(options.out_dir, plan, last_step, not progress.validation_pending)
        for change in save_record(options, plan, fabric.world_size, progress):
            log.line(f"changed since the last start: {change}")
        for line in [training_summary(options, plan, fabric.world_size), *warnings]:
            log.line(line)
        record_mixture(options, plan, log)
        if checkpoint:
            log.line(f"going on from {checkpoint}")
        curves = open_logger(options.logger, options.out_dir, last_step, cli.public_values(options), log.line)
        opened.append(Metrics(file, curves, samples))
        opened[0].show_earlier(options.out_dir / METRICS)

    on_rank_zero(open_metrics)  # its errors are known on every process
    profiled = None
    if fabric.is_global_zero and options.profile_steps:
        profiled = parse_profile_steps(options.profile_steps)
    training = Training(
        options=options,
        plan=plan,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        writer=make_writer(options, plan, lock, check),
        stop=stop,
        watchdog=watchdog,
        log=log,
        metrics=opened[0] if opened else None,
        meter=make_meter(options, plan, fabric),
        profiler=StepProfiler(profiled, options.out_dir),
    )
    return training, progress


def open_files(
    run_dir: Path, plan: TrainingPlan, last_step: int, keep_validation: bool
) -> tuple[CsvLog, SamplesFile | None]:
    """Opens metrics.csv and samples.jsonl, without what the run takes again; raises what `CsvLog` raises."""
    drop_metrics_after(run_dir, METRIC_COLUMNS, last_step, keep_validation)
    drop_samples_after(run_dir, last_step, keep_validation)
    return CsvLog(run_dir / METRICS, METRIC_COLUMNS), SamplesFile(run_dir) if plan.samples else None


def build(fabric: Fabric, options: PretrainOptions, plan: TrainingPlan) -> tuple[nn.Module, Optimizer]:
    # of gradients that processes share torch cannot tell whether they hold a NaN
    torch.autograd.set_detect_anomaly(options.debug, check_nan=options.tensor_parallel == 1)
    dtype = torch.bfloat16 if options.precision == "bf16-true" else torch.float32
    frozen_dtype = torch.float32 if options.precision == "32-true" else torch.bfloat16
    empty = empty_model(plan.config, plan.lora, dtype, frozen_dtype, options.quantize)
    empty.noise = options.neftune_alpha
    prepare_blocks(empty, options)
    model = place_model(fabric, empty, plan.weights, options.seed, options.precision)
    betas = (options.beta1, options.beta2)
    optimizer = make_optimizer(model, options.weight_decay, betas, options.keeps_master_weights, options.optimizer)
    return model, fabric.setup_optimizers(optimizer)


def prepare_blocks(model: nn.Module, options: PretrainOptions) -> None:
    """Sets what the blocks compute again, and compiles them."""
    if options.compile:
        # A block has variants: training or not, with a window or not, the first batch's number of documents or any.
        torch._dynamo.config.recompile_limit = 32
    for block in model.transformer.h:
        block.recompute = options.activation_checkpointing
        if options.compile:
            block.forward = torch.compile(block.forward)  # not the block: the names of its parameters stay


def find_checkpoint(options: PretrainOptions, log: RunLog) -> Path | None:
    """The newest valid checkpoint; None for a new run. Every process raises if there are some and none verifies."""
    if options.resume == "never":
        return None
    checkpoint, problems = newest_valid_checkpoint(options.out_dir)
    for problem in problems:
        log.line(f"checkpoint passed over: {problem}")
    if problems and checkpoint is None:
        raise DataError(
            f"no checkpoint of {options.out_dir} is valid ({problems[0]}); restore one, or give another --out_dir"
        )
    return checkpoint


def checkpoint_to_go_back_to(options: PretrainOptions) -> Path | None:
    """The checkpoint that --resume_from names; None if it names none, or the same command has gone back to it before.

    A `DataError` if it is damaged.
    """
    if options.resume_from is None:
        return None
    checkpoint = named_checkpoint(options.out_dir, options.resume_from)
    if not goes_back(options.out_dir, cli.public_values(options)):
        return None
    if problem := verify_checkpoint(checkpoint):
        raise DataError(f"--resume_from {options.resume_from}: {problem}; name an earlier one")
    return checkpoint


def make_writer(
    options: PretrainOptions, plan: TrainingPlan, lock: FolderLock | None, check: Check
) -> CheckpointWriter:
    """The writer of the run's checkpoints, each of which gets what it needs to be used alone."""
    companions = [options.out_dir / RUN, options.out_dir / CONFIG, *tokenizer_files(plan, options)]
    return CheckpointWriter(options.out_dir, companions, lock, check)


def make_meter(options: PretrainOptions, plan: TrainingPlan, fabric: Fabric) -> Meter:
    def flops(lengths: np.ndarray) -> float:
        windowed = mean_context(lengths, plan.config.sliding_window_size)
        return flops_per_token(plan.config, plan.lora, mean_context(lengths), windowed)

    peak = device_peak(options.peak_tflops, options.precision)
    return Meter(fabric.device, fabric.world_size, peak, flops)


def save_record(options: PretrainOptions, plan: TrainingPlan, world_size: int, progress: TrainingProgress) -> list[str]:
    """Writes run.yaml and model_config.yaml; returns which options changed since the start before."""
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
    total, trained = elements(model.parameters()), elements(trained_of(model.parameters()))
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
