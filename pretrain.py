"""Continual pretraining: a data folder and a foundation model (or a model config) in, a run folder out.

`main` checks everything that can be checked before a process is started, then launches; `fit` is the loop.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.errors import DataError, Interrupted, UserError, raise_problems
from utils import cli

if TYPE_CHECKING:
    import numpy as np
    import torch
    from lightning.fabric import Fabric
    from litgpt.config import Config
    from torch import nn
    from torch.optim import Optimizer

    from lit_gpt.model.lora import LoRASettings
    from utils.cluster.stop_request import StopRequest
    from utils.cluster.watchdog import Watchdog
    from utils.data.batches import StepData, TrainingData
    from utils.data.manifest import DatasetSplit, Manifest
    from utils.data.mixture import Mixture
    from utils.files.folder_lock import FolderLock
    from utils.run.checkpoint_writer import CheckpointWriter, Saved
    from utils.run.csv_log import CsvLog
    from utils.run.log import RunLog
    from utils.run.progress import TrainingProgress
    from utils.run.record import RunIdentity
    from utils.train.loggers import ScalarLogger
    from utils.train.meter import Meter
    from utils.train.profiler import StepProfiler
    from utils.train.training import Due, Schedule, StepHistory, StepRecord, StepResult


DEFAULT_PEAK = 312e12
"""Operations per second that --dry_run reckons with where there is no GPU and none is stated: an A100's, in bf16."""


@dataclass(frozen=True)
class PretrainOptions:
    """Train a language model on prepared text: full or LoRA, from a foundation model or from scratch."""

    data_dir: Path
    """Folder of shards that prepare_data.py made."""
    checkpoint_dir: Path
    """Foundation model: a litgpt checkpoint directory. With --model_config only its tokenizer is used."""
    out_dir: Path
    """Run folder. If it holds the same run, training goes on from its newest valid checkpoint."""
    model_config: Path | None = None
    """Train from scratch: YAML file with litgpt's model fields; the vocabulary is the tokenizer's unless given."""
    language: str | None = None
    """Use only the datasets of this language (`fr`)."""
    mixture: Path | None = None
    """YAML file of shares, penalties and languages. Default: by rows, each row once per epoch."""
    devices: int | None = None
    """Processes per node, one per GPU. Default: as Slurm's step has them, else all GPUs, else 1."""
    num_nodes: int | None = None
    """Nodes. Default: as Slurm's step has them, else 1."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "bf16-mixed"
    """Weights and arithmetic: all fp32; fp32 weights and bf16 arithmetic; all bf16 (least memory)."""
    tensor_parallel: int = 1
    """Neighbouring devices that share each matrix, for models that do not fit otherwise; divides --devices."""
    batch_size: int = 16
    """Samples per device per optimiser step; with --tensor_parallel, per group of devices that share a model."""
    micro_batch_size: int = 1
    """Samples per forward and backward pass; divides --batch_size."""
    num_epochs: float = 1
    """Passes over the data (as many samples as the datasets have rows)."""
    max_steps: int | None = None
    """Optimiser steps, instead of --num_epochs."""
    max_checkpoints: int | None = None
    """End the training after this many checkpoints."""
    save_interval: int = 1800
    """Seconds or steps between two checkpoints. The last step is always saved."""
    eval_interval: int = 1800
    """Seconds or steps between two validations. The start and the last step are always validated."""
    interval_unit: Literal["time", "steps"] = "time"
    """What --save_interval and --eval_interval count: seconds or optimiser steps."""
    enable_validation: bool | None = None
    """Validate on every dataset's test rows. Default: if there are any."""
    eval_samples: int | None = None
    """Validate on at most this many samples per dataset. Default: all."""
    early_stopping: int | None = None
    """Stop after this many validations without improvement."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    min_learning_rate: float = 0.0
    """Learning rate at the end of the cosine or linear schedule."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 100
    """Optimiser steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's first moment decay."""
    beta2: float = 0.95
    """AdamW's second moment decay."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    use_lora: bool = False
    """Train LoRA adapters instead of all weights."""
    lora_r: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters: alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout on the adapters' input."""
    lora_query: bool = True
    """Adapt the attention's query matrices."""
    lora_key: bool = False
    """Adapt the attention's key matrices."""
    lora_value: bool = True
    """Adapt the attention's value matrices."""
    lora_projection: bool = False
    """Adapt the attention's output matrices."""
    lora_mlp: bool = False
    """Adapt the feed-forward matrices."""
    lora_head: bool = False
    """Adapt the output head."""
    quantize: Literal["bnb.nf4", "bnb.int8"] | None = None
    """With --use_lora, keep the base's matrices in 4 or 8 bits (QLoRA); needs bitsandbytes."""
    mask_documents: bool = True
    """A token attends only to its own document, and positions restart with it."""
    compile: bool = False
    """Compile each block of the model: a minute or more at the start, faster steps on a GPU."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing; all but products and attention; all."""
    master_weights: bool = True
    """With --precision bf16-true, update fp32 copies of the weights: bf16 alone rounds small updates away."""
    log_interval: int | None = None
    """Steps between two looks at the losses, for which a GPU is waited for; after 10 seconds in any case.
    Default: 10 on a GPU, 1 without one."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Where curves go besides metrics.csv."""
    peak_tflops: float | None = None
    """What one device can do at most, in 10^12 operations per second, for the MFU. Default: its data sheet's figure."""
    profile_steps: str | None = None
    """Steps A-B to record with torch's profiler, into OUT_DIR/profile."""
    max_nonfinite_steps: int = 5
    """Stop after this many steps in a row whose gradient is not finite; such steps are skipped and logged."""
    verify_data: bool = True
    """Compare every shard with the manifest's SHA-256 before training."""
    async_checkpoints: bool = True
    """Go on training while a checkpoint is written; takes host memory for a copy of what is saved."""
    hang_timeout: int = 600
    """Seconds that a step, a batch of validation or a checkpoint may take; then the run ends with exit code 75."""
    dry_run: bool = False
    """Print what the run would need (memory, time, disk) and end: on any machine, without the model's weights."""
    gpu_memory: float | None = None
    """With --dry_run, GiB of memory of the GPUs to run on. Default: as here."""
    mfu: float = 0.4
    """With --dry_run, the share of --peak_tflops that is expected to be reached."""
    resume: Literal["auto", "never"] = "auto"
    """What to do when --out_dir holds this run: go on from its newest valid checkpoint, or refuse."""
    seed: int = 1337
    """Of the sample order, the random weights and dropout."""
    try_small: bool = False
    """A quick check of the whole command: 10 steps, validation on 8 samples per dataset, in OUT_DIR-small."""
    debug: bool = False
    """Show tracebacks, and check every backward pass for the operation that made a NaN."""

    def __post_init__(self) -> None:
        positive = ("batch_size", "micro_batch_size", "num_epochs", "save_interval", "eval_interval", "learning_rate")
        positive += ("devices", "num_nodes", "max_steps", "max_checkpoints", "eval_samples", "early_stopping", "lora_r")
        positive += ("max_nonfinite_steps", "lora_alpha", "hang_timeout", "log_interval", "peak_tflops")
        positive += ("gpu_memory", "mfu", "tensor_parallel")
        values = vars(self)
        problems = [f"--{name} must be above 0" for name in positive if values[name] is not None and values[name] <= 0]
        not_negative = ("warmup_steps", "weight_decay", "grad_clip", "min_learning_rate", "seed")
        problems += [f"--{name} must be at least 0" for name in not_negative if values[name] < 0]
        if self.mfu > 1:
            problems.append("--mfu is a share of the peak, at most 1")
        if self.min_learning_rate > self.learning_rate:
            problems.append("--min_learning_rate must not be above --learning_rate")
        in_unit = ("beta1", "beta2", "lora_dropout")
        problems += [f"--{name} must be at least 0 and below 1" for name in in_unit if not 0 <= values[name] < 1]
        adapted = ("query", "key", "value", "projection", "mlp", "head")
        if self.use_lora and not any(values[f"lora_{name}"] for name in adapted):
            problems.append("--use_lora true without any matrix to adapt (--lora_query, … --lora_head)")
        if self.early_stopping and self.enable_validation is False:
            problems.append("--early_stopping needs --enable_validation")
        if self.quantize and not self.use_lora:
            problems.append("--quantize needs --use_lora true: what is trained cannot be quantised")
        if self.use_lora and self.tensor_parallel > 1:
            problems.append("--tensor_parallel trains all weights, not --use_lora's adapters")
        if self.use_lora and self.model_config:
            problems.append("--use_lora needs a foundation model: random weights (--model_config) are not kept")
        raise_problems(problems)


@dataclass(frozen=True)
class Plan:
    """What the run will do, settled before any process is started."""

    manifest: Manifest
    mixture: Mixture
    validation: list[DatasetSplit]
    config: Config
    lora: LoRASettings | None
    weights: dict[str, torch.Tensor] | None
    processes: tuple[int, int]
    schedule: Schedule
    identity: RunIdentity

    @property
    def samples_per_step(self) -> int:
        return self.identity.samples_per_step


@dataclass(frozen=True)
class Run:
    """What the loop works with, on every process."""

    options: PretrainOptions
    plan: Plan
    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer
    writer: CheckpointWriter
    stop: StopRequest
    watchdog: Watchdog
    log: RunLog
    metrics: CsvLog | None
    curves: ScalarLogger | None
    meter: Meter
    profiler: StepProfiler


def main(options: PretrainOptions) -> None:
    from utils.cluster.stop_request import StopRequest

    stop = StopRequest()
    options = try_small(options) if options.try_small else options
    plan = make_plan(options)
    if options.dry_run:
        print("\n".join([describe_needs(options, plan), *gguf_warnings(options, plan)]))
        return

    from utils.cluster.launch import launch
    from utils.cluster.watchdog import Watchdog
    from utils.data.batches import verify_data

    fabric = launch(*plan.processes, options.precision, options.tensor_parallel)
    with Watchdog(options.hang_timeout) as watchdog:
        if options.verify_data:
            verify_data(options.data_dir, [*plan.mixture.entries, *plan.validation])
        with owned(options.out_dir) as lock:
            run, progress = set_up(fabric, options, plan, lock, stop, watchdog)
            with closing(run.profiler), closing(run.curves) if run.curves else nullcontext():
                fit(run, progress)


def try_small(options: PretrainOptions) -> PretrainOptions:
    """The same command over 10 steps, in a run folder of its own: a real run must not go on from it."""
    out_dir = options.out_dir.with_name(options.out_dir.name + "-small")
    small = {"max_steps": 10, "warmup_steps": 2, "eval_samples": 8, "interval_unit": "steps", "out_dir": out_dir}
    return dataclasses.replace(options, **small, eval_interval=5, save_interval=10)


def make_plan(options: PretrainOptions) -> Plan:
    """Reads and checks the data, the model and the run folder; the same on every process.

    Raises:
        UserError, DataError: for whatever would make the training fail or go wrong later.
    """
    from lit_gpt.formats.litgpt_directory import config_values, read_config, read_weights, weights_fingerprint
    from lit_gpt.model.lora import LoRASettings
    from lit_gpt.model.qlora import import_bitsandbytes
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.cluster.launch import resolve_processes
    from utils.data.manifest import TRAIN, Manifest
    from utils.data.mixture import Mixture
    from utils.run.record import RunIdentity
    from utils.train.loggers import check_logger
    from utils.train.profiler import parse_profile_steps

    check_logger(options.logger)
    if options.quantize and not options.dry_run:
        import_bitsandbytes()
    profiled = parse_profile_steps(options.profile_steps) if options.profile_steps else None
    manifest = Manifest.load(options.data_dir)
    config = read_config(options.model_config or options.checkpoint_dir, manifest.vocab_size)
    check_data_fits(manifest, Tokenizer(options.checkpoint_dir), config, options)
    mixture = Mixture.of(manifest.select(TRAIN, options.language), options.mixture)
    processes = (options.devices or 1, options.num_nodes or 1)
    if not options.dry_run:
        processes = resolve_processes(options.devices, options.num_nodes)
    check_tensor_parallel(options, processes, config, manifest.block_size)
    samples_per_step = check_batch(options, processes, options.out_dir)
    weights = None if options.model_config or options.dry_run else read_weights(options.checkpoint_dir)
    names = ("r", "alpha", "dropout", "query", "key", "value", "projection", "mlp", "head")
    lora = LoRASettings(**{name: getattr(options, f"lora_{name}") for name in names}) if options.use_lora else None
    identity = RunIdentity(
        model=config_values(config),
        lora=lora and dataclasses.asdict(lora),
        base=weights and weights_fingerprint(weights),
        quantize=options.quantize,
        data=manifest.fingerprint(mixture.entries),
        mixture={entry.dataset: weight for entry, weight in zip(mixture.entries, mixture.weights, strict=True)},
        samples_per_step=samples_per_step,
        mask_documents=options.mask_documents,
        master_weights=uses_master_weights(options),
        seed=options.seed,
    )
    if not options.dry_run:
        check_out_dir(options, identity)
    schedule = make_schedule(options, mixture, samples_per_step)
    if profiled and profiled[0] > schedule.max_steps:
        raise UserError(f"--profile_steps {options.profile_steps}: the run has {schedule.max_steps} steps")
    validation = choose_validation(options, manifest)
    return Plan(manifest, mixture, validation, config, lora, weights, processes, schedule, identity)


def describe_needs(options: PretrainOptions, plan: Plan) -> str:
    """What the run would need, and what to change where it would not fit."""
    import numpy as np
    import torch

    from lit_gpt.model.flops import mean_context
    from utils.train.estimate import Workload, advice, describe, estimate

    manifest, entries = plan.manifest, plan.mixture.entries
    documents = sum(entry.documents for entry in entries) if options.mask_documents else 1
    length = min(manifest.block_size, sum(entry.tokens for entry in entries) / documents)
    needs = estimate(
        Workload(
            config=plan.config,
            lora=plan.lora,
            precision=options.precision,
            master_weights=options.master_weights,
            quantize=options.quantize,
            activation_checkpointing=options.activation_checkpointing,
            micro_batch_size=options.micro_batch_size,
            block_size=manifest.block_size,
            processes=plan.processes[0] * plan.processes[1],
            processes_per_node=plan.processes[0],
            tensor_parallel=options.tensor_parallel,
            samples_per_step=plan.samples_per_step,
            rows=plan.mixture.rows,
            targets_per_row=sum(entry.targets for entry in entries) / sum(entry.rows for entry in entries),
            context=mean_context(np.array([length])),
            window_context=mean_context(np.array([length]), plan.config.sliding_window_size),
            steps=plan.schedule.max_steps,
        )
    )
    memory, peak = options.gpu_memory, find_peak(options) or DEFAULT_PEAK
    if torch.cuda.is_available():
        memory = memory or torch.cuda.get_device_properties(0).total_memory / 2**30
    count = plan.schedule.max_steps / options.save_interval
    if options.interval_unit == "time":
        count = 3600 * needs.hours(peak, options.mfu) / options.save_interval
    checkpoints = min(math.floor(count) + 1, options.max_checkpoints or math.inf)
    lines = [describe(needs, memory, peak, options.mfu, checkpoints)]
    if not options.devices:
        lines.insert(0, "reckoned for one device a node: --devices is not given")
    if memory and not needs.fits(memory):
        lines += ["it would with", *(f"  {line}" for line in advice(needs, memory))]
    return "\n".join(lines)


def check_data_fits(manifest: Manifest, tokenizer: Any, config: Config, options: PretrainOptions) -> None:
    """Raises unless the shards were made with this tokenizer and fit this model's window and vocabulary."""
    if tokenizer.fingerprint != manifest.tokenizer:
        raise DataError(
            f"the shards in {options.data_dir} were made with another tokenizer than the one in "
            f"{options.checkpoint_dir}; prepare the data with --checkpoint_dir {options.checkpoint_dir}"
        )
    if manifest.block_size > config.block_size:
        raise UserError(
            f"the shards hold {manifest.block_size} positions a row, the model has {config.block_size}; "
            f"prepare the data with --max_length {config.block_size} or less"
        )
    if manifest.vocab_size > config.padded_vocab_size:
        raise UserError(
            f"the tokenizer has {manifest.vocab_size} entries, the model's vocabulary {config.padded_vocab_size}"
        )


def check_batch(options: PretrainOptions, processes: tuple[int, int], out_dir: Path) -> int:
    """Samples per optimiser step over all processes.

    Raises:
        UserError: if micro-batches do not divide the batch, or a run begun with another number of samples per step
            would go on.
    """
    from utils.run.record import RUN, RunRecord

    batch, micro = options.batch_size, options.micro_batch_size
    if batch % micro:
        divisors = [size for size in range(1, micro) if batch % size == 0]
        raise UserError(
            f"--batch_size {batch} is not a multiple of --micro_batch_size {micro}; "
            f"take --micro_batch_size {max(divisors)}, or --batch_size {-(-batch // micro) * micro}"
        )
    parts = processes[0] * processes[1] // options.tensor_parallel
    if not options.dry_run and (out_dir / RUN).is_file():
        begun = RunRecord.load(out_dir).identity.samples_per_step
        if begun != batch * parts:
            advice = f"take --batch_size {begun // parts}" if begun % parts == 0 else "take as many as it divides by"
            groups = f" in groups of {options.tensor_parallel}" if options.tensor_parallel > 1 else ""
            raise UserError(
                f"{out_dir} was begun with {begun} samples per step, --batch_size {batch} on "
                f"{processes[0] * processes[1]} processes{groups} makes {batch * parts}; {advice}"
            )
    return batch * parts


def check_tensor_parallel(options: PretrainOptions, processes: tuple[int, int], config: Config, positions: int) -> None:
    """Raises unless --tensor_parallel divides the processes of a node, and the model and its micro-batches."""
    from lit_gpt.model.tensor_parallel import obstacles

    share = options.tensor_parallel
    if share == 1:
        return
    if processes[0] % share:
        raise UserError(f"--tensor_parallel {share} does not divide the {processes[0]} process(es) of a node")
    if found := obstacles(config, share, options.micro_batch_size * positions):
        raise UserError(f"--tensor_parallel {share} does not divide the model '{config.name}': {', '.join(found)}")


def check_out_dir(options: PretrainOptions, identity: RunIdentity) -> None:
    """Raises unless --out_dir is new, or holds this very run and may be continued."""
    from utils.run.csv_log import METRIC_COLUMNS, METRICS, check_columns
    from utils.run.record import RUN, RunRecord

    if options.out_dir.exists() and not options.out_dir.is_dir():
        raise UserError(f"--out_dir {options.out_dir} is a file")
    if (options.out_dir / RUN).is_file():
        if options.resume == "never":
            raise UserError(f"{options.out_dir} holds a run and --resume is never; give another --out_dir")
        RunRecord.load(options.out_dir).check_same_run(identity, options.out_dir)
        check_columns(options.out_dir / METRICS, METRIC_COLUMNS)


def make_schedule(options: PretrainOptions, mixture: Mixture, samples_per_step: int) -> Schedule:
    from utils.train.training import Schedule

    steps = options.max_steps or max(1, round(options.num_epochs * mixture.rows / samples_per_step))
    return Schedule(options.lr_schedule, options.learning_rate, options.min_learning_rate, options.warmup_steps, steps)


def choose_validation(options: PretrainOptions, manifest: Manifest) -> list[DatasetSplit]:
    """The test rows to validate on; none when validation is off, or not asked for and there are none."""
    from utils.data.manifest import TEST

    if options.enable_validation is False:
        return []
    try:
        return manifest.select(TEST, options.language)
    except UserError:
        if options.enable_validation or options.early_stopping:
            raise
        return []


@contextmanager
def owned(out_dir: Path) -> Iterator[FolderLock | None]:
    """Makes the run folder and takes it for this run, against any other; the lock is process 0's.

    Raises:
        UserError: on every process, if another run is writing there.
    """
    from utils.cluster.collectives import on_rank_zero
    from utils.files.folder_lock import FolderLock

    taken: list[FolderLock] = []

    def take() -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        taken.append(FolderLock.acquire(out_dir))

    on_rank_zero(take)
    try:
        yield taken[0] if taken else None
    finally:
        for lock in taken:
            lock.release()


def set_up(
    fabric: Fabric,
    options: PretrainOptions,
    plan: Plan,
    lock: FolderLock | None,
    stop: StopRequest,
    watchdog: Watchdog,
) -> tuple[Run, TrainingProgress]:
    """Builds the model on every process, loads the checkpoint to go on from and opens the run's files."""
    from utils.cluster.collectives import on_rank_zero
    from utils.run.checkpoint_reader import load_checkpoint
    from utils.run.log import LOG, RunLog
    from utils.run.progress import TrainingProgress
    from utils.train.profiler import StepProfiler, parse_profile_steps

    model, optimizer = build(fabric, options, plan)
    on_rank_zero(lambda: check_out_dir(options, plan.identity))  # again: now nobody else can begin a run there
    log = RunLog(options.out_dir / LOG if fabric.is_global_zero else None)
    checkpoint = find_checkpoint(options.out_dir, log) if options.resume == "auto" else None
    progress = TrainingProgress()
    if checkpoint:
        progress = load_checkpoint(checkpoint, model.module, optimizer.optimizer)
        progress = dataclasses.replace(progress, skipped_in_a_row=0)  # a restart is meant to be another try
    last_step = progress.step if checkpoint else -1
    metrics = open_metrics(options, plan, fabric.world_size, progress, checkpoint, log)
    steps = parse_profile_steps(options.profile_steps) if options.profile_steps and fabric.is_global_zero else None
    run = Run(
        options=options,
        plan=plan,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        writer=make_writer(options, lock),
        stop=stop,
        watchdog=watchdog,
        log=log,
        metrics=metrics,
        curves=open_curves(options, last_step, log),
        meter=make_meter(options, plan, fabric),
        profiler=StepProfiler(steps, options.out_dir),
    )
    return run, progress


def open_curves(options: PretrainOptions, last_step: int, log: RunLog) -> ScalarLogger | None:
    """Where --logger sends curves, on process 0; a problem of its is known on every process."""
    from utils.cluster.collectives import on_rank_zero
    from utils.train.loggers import open_logger

    opened: list[ScalarLogger | None] = []
    values = cli.public_values(options)
    on_rank_zero(lambda: opened.append(open_logger(options.logger, options.out_dir, last_step, values, log.line)))
    return opened[0] if opened else None


def build(fabric: Fabric, options: PretrainOptions, plan: Plan) -> tuple[nn.Module, Optimizer]:
    """The model on the run's devices and its optimiser."""
    import torch

    from lit_gpt.model.building import empty_model
    from utils.cluster.launch import place_model
    from utils.train.training import make_optimizer

    # of gradients that processes share torch cannot tell whether they hold a NaN
    torch.autograd.set_detect_anomaly(options.debug, check_nan=options.tensor_parallel == 1)
    dtype = torch.bfloat16 if options.precision == "bf16-true" else torch.float32
    frozen_dtype = torch.float32 if options.precision == "32-true" else torch.bfloat16
    empty = empty_model(plan.config, plan.lora, dtype, frozen_dtype, options.quantize)
    prepare_blocks(empty, options)
    model = place_model(fabric, empty, plan.weights, options.seed, options.precision)
    betas, masters = (options.beta1, options.beta2), uses_master_weights(options)
    return model, fabric.setup_optimizers(make_optimizer(model, options.weight_decay, betas, masters))


def open_metrics(
    options: PretrainOptions,
    plan: Plan,
    world_size: int,
    progress: TrainingProgress,
    checkpoint: Path | None,
    log: RunLog,
) -> CsvLog | None:
    """metrics.csv up to the checkpoint, and this start in run.yaml and the log; None on every process but one."""
    from utils.cluster.collectives import rank
    from utils.run.csv_log import METRIC_COLUMNS, METRICS, CsvLog, drop_metrics_after

    if rank() != 0:
        return None
    last_step = progress.step if checkpoint else -1
    drop_metrics_after(options.out_dir, last_step, keep_validation=not progress.validation_pending)
    metrics = CsvLog(options.out_dir / METRICS, METRIC_COLUMNS)
    for change in record_start(options, plan, world_size, progress):
        log.line(f"changed since the last start: {change}")
    log.line(describe(options, plan, world_size))
    for warning in gguf_warnings(options, plan):
        log.line(warning)
    record_mixture(options, plan, log)
    if checkpoint:
        log.line(f"going on from {checkpoint}")
    return metrics


def uses_master_weights(options: PretrainOptions) -> bool:
    return options.master_weights and options.precision == "bf16-true"


def prepare_blocks(model: nn.Module, options: PretrainOptions) -> None:
    """Sets what the blocks compute again, and compiles them; the names of their parameters stay."""
    import torch

    if options.compile:
        # A block has variants: training or not, with a window or not, the first batch's number of documents or any.
        torch._dynamo.config.recompile_limit = 32
    for block in model.transformer.h:
        block.recompute = options.activation_checkpointing
        if options.compile:
            block.forward = torch.compile(block.forward)


def make_meter(options: PretrainOptions, plan: Plan, fabric: Fabric) -> Meter:
    from lit_gpt.model.flops import flops_per_token, mean_context
    from utils.train.meter import Meter

    def flops(lengths: np.ndarray) -> float:
        windowed = mean_context(lengths, plan.config.sliding_window_size)
        return flops_per_token(plan.config, plan.lora, mean_context(lengths), windowed)

    return Meter(fabric.device, fabric.world_size, find_peak(options), flops)


def find_peak(options: PretrainOptions) -> float | None:
    """Operations per second of one device at most: as stated, else its data sheet's; None where neither is known."""
    import torch

    from lit_gpt.model.flops import peak_flops

    if options.peak_tflops:
        return options.peak_tflops * 1e12
    return peak_flops(torch.cuda.get_device_name(), options.precision) if torch.cuda.is_available() else None


def make_writer(options: PretrainOptions, lock: FolderLock | None) -> CheckpointWriter:
    """The writer of the run's checkpoints, each of which gets what it needs to be used alone."""
    from lit_gpt.formats.litgpt_directory import CONFIG
    from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES
    from utils.run.checkpoint_writer import CheckpointWriter
    from utils.run.record import RUN

    tokenizer_files = filter(Path.is_file, (options.checkpoint_dir / name for name in TOKENIZER_FILES))
    companions = [options.out_dir / RUN, options.out_dir / CONFIG, *tokenizer_files]
    return CheckpointWriter(options.out_dir, companions, lock)


def find_checkpoint(out_dir: Path, log: RunLog) -> Path | None:
    """The newest valid checkpoint; None for a new run.

    Raises:
        DataError: on every process, if there are checkpoints and none verifies.
    """
    from utils.run.checkpoint_reader import newest_valid_checkpoint

    checkpoint, problems = newest_valid_checkpoint(out_dir)
    for problem in problems:
        log.line(f"checkpoint passed over: {problem}")
    if problems and checkpoint is None:
        raise DataError(f"no checkpoint of {out_dir} is valid ({problems[0]}); restore one, or give another --out_dir")
    return checkpoint


def record_start(options: PretrainOptions, plan: Plan, world_size: int, progress: TrainingProgress) -> list[str]:
    """Writes run.yaml and model_config.yaml; says which options changed since the start before, as the history does."""
    import platform

    import yaml

    from lit_gpt.formats.litgpt_directory import CONFIG
    from utils.files.atomic import write_atomically
    from utils.run.record import RUN, RunRecord, software_versions, source_commit

    before = RunRecord.load(options.out_dir) if (options.out_dir / RUN).is_file() else None
    now = cli.public_values(options)
    changed = {key: value for key, value in (before.options if before else now).items() if now.get(key) != value}
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


def normalised_datasets(plan: Plan) -> dict[str, str]:
    """Of the mixture's datasets those whose conversations were normalised, and in which language."""
    languages = plan.manifest.made_by.get("normalised", {})
    return {entry.dataset: languages[entry.dataset] for entry in plan.mixture.entries if entry.dataset in languages}


def describe(options: PretrainOptions, plan: Plan, world_size: int) -> str:
    import torch

    from lit_gpt.model.building import empty_model

    model = empty_model(plan.config, plan.lora, torch.float32)  # not the real one, whose parts may be quantised
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kind = f"LoRA{f' ({options.quantize} base)' if options.quantize else ''}" if plan.lora else "full"
    return (
        f"{kind} training of {trained:,} of {total:,} parameters, {options.precision}, on {world_size} process(es): "
        f"{plan.schedule.max_steps:,} steps of {plan.samples_per_step} samples from {len(plan.mixture.entries)} "
        f"dataset(s), {plan.mixture.rows:,} rows an epoch; validation on {len(plan.validation)} dataset(s)"
    )


def gguf_warnings(options: PretrainOptions, plan: Plan) -> list[str]:
    """A line if the trained model could not be exported to GGUF; its tokenizer cannot be changed any more then."""
    from lit_gpt.formats.hf_config import config_to_hf, read_hf_config
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.export.gguf import obstacles

    try:
        if options.model_config is None and (options.checkpoint_dir / "config.json").is_file():
            hf = read_hf_config(options.checkpoint_dir)
        else:
            hf = config_to_hf(plan.config, None, None, "float32")
        found = obstacles(hf, Tokenizer(options.checkpoint_dir))
    except (UserError, DataError) as e:
        found = [str(e)]
    return [f"warning: this model could not be exported to GGUF: {'; '.join(found)}"] if found else []


def record_mixture(options: PretrainOptions, plan: Plan, log: RunLog, counts: tuple[int, ...] | None = None) -> None:
    """Logs the mixture's table and writes it to mixture.csv: as planned, or with the samples made per dataset."""
    from utils.data.mixture import MIXTURE, mixture_table, table_csv, table_text
    from utils.files.atomic import write_atomically

    table = mixture_table(plan.mixture, plan.schedule.max_steps * plan.samples_per_step, counts)
    write_atomically(options.out_dir / MIXTURE, table_csv(table))
    log.line(f"mixture, {'samples made' if counts else 'planned'}:\n{table_text(table)}")
    if plan.mixture.left_out and not counts:
        log.line(f"left out by {options.mixture}: {', '.join(plan.mixture.left_out)}")


def fit(run: Run, progress: TrainingProgress) -> None:
    """The training loop: fetch, step, log, validate, save, stop. It waits for the device only where it logs."""
    from utils.cluster.launch import data_place
    from utils.data.batches import TrainingData
    from utils.train.training import Agenda, StepHistory

    options, plan, fabric = run.options, run.plan, run.fabric
    window, samples = plan.manifest.window, plan.samples_per_step
    data = TrainingData(options.data_dir, plan.mixture, options.seed, samples, window, options.mask_documents)
    steps = data.steps(progress.step, *data_place(fabric), options.micro_batch_size)
    progress = catch_up(run, progress)
    eval_interval = options.eval_interval if plan.validation else None
    log_interval = options.log_interval or (10 if fabric.device.type == "cuda" else 1)
    agenda = Agenda(options.interval_unit, eval_interval, options.save_interval, log_interval)
    history = StepHistory(len(plan.mixture.entries))
    phase = run.meter.timer.phase

    while (reason := stop_reason(run, progress)) is None:
        run.watchdog.mark(f"reading the samples of step {progress.step + 1}")
        run.profiler.step(progress.step + 1)
        began = time.monotonic()
        with phase("data"):
            step_data = next(steps)
        run.watchdog.mark(f"step {progress.step + 1}")
        result = train_step(run, progress, step_data, data)
        with phase("communication"):
            due = agenda.due(progress.step + 1, run.stop.received, run.writer.failed())
        progress = advance(run, progress, step_data, time.monotonic() - began)
        history.add(result, step_data, place(progress) | {"learning_rate": run.optimizer.param_groups[0]["lr"]})
        last = is_last_step(run, progress, due)
        if last or any(due):
            progress = log_steps(run, progress, history)
        if last or due.validate or due.save or due.interrupted:
            log_datasets(run, progress, history)

        if due.failed:
            run.writer.raise_failure()
        log_saved(run, run.writer.poll())
        pending = bool(plan.validation) and (due.validate or last)
        progress = dataclasses.replace(progress, validation_pending=pending)
        if pending and not due.interrupted:
            progress = validate_now(run, progress)
        interrupted = due.interrupted or progress.validation_pending
        if due.save or interrupted or stop_reason(run, progress):
            progress = save_now(run, progress, scheduled=due.save)
        agenda.done(due)
        if interrupted:
            finish_saving(run)
            raise Interrupted(
                f"stopped by a signal after step {progress.step}, all of it saved; run the same command again"
            )

    finish_saving(run)
    run.watchdog.mark(None)
    if fabric.is_global_zero:
        record_mixture(options, plan, run.log, data.order.counts(progress.samples))
    run.log.line(f"done: {reason}; loss and checkpoints in {options.out_dir}")


def catch_up(run: Run, progress: TrainingProgress) -> TrainingProgress:
    """Makes the validation at a run's start, or the one that a signal cut short."""
    if not run.plan.validation or (progress.step > 0 and not progress.validation_pending):
        return progress
    progress = validate_now(run, progress)
    if progress.validation_pending:
        raise Interrupted(
            f"stopped by a signal during the validation at step {progress.step}; run the same command again"
        )
    return progress


def stop_reason(run: Run, progress: TrainingProgress) -> str | None:
    """Why the training is over, None while it is not. A function of the counters alone, so a restart agrees with it."""
    options = run.options
    if progress.skipped_in_a_row >= options.max_nonfinite_steps:
        error = UserError(
            f"the loss was not finite in {progress.skipped_in_a_row} steps in a row, up to step {progress.step}; "
            f"the samples are in training_log.out. Lower --learning_rate (now {options.learning_rate})"
        )
        error.on_every_process = True
        finish_saving(run)
        raise error
    if progress.step >= run.plan.schedule.max_steps:
        return f"all {progress.step:,} steps are made"
    if options.max_checkpoints and progress.checkpoints >= options.max_checkpoints:
        return f"{progress.checkpoints} checkpoints are written (--max_checkpoints)"
    if options.early_stopping and progress.validations_without_improvement >= options.early_stopping:
        return f"{progress.validations_without_improvement} validations without improvement (--early_stopping)"
    return None


def is_last_step(run: Run, progress: TrainingProgress, due: Due) -> bool:
    """Whether the training ends here for certain, so that its last validation comes before its last checkpoint."""
    last_checkpoint = due.save and progress.checkpoints + 1 == run.options.max_checkpoints
    return last_checkpoint or progress.step >= run.plan.schedule.max_steps


def train_step(run: Run, progress: TrainingProgress, step_data: StepData, data: TrainingData) -> StepResult:
    """One optimiser step at its learning rate."""
    from utils.cluster.launch import data_place
    from utils.train.training import optimiser_step

    options = run.options
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.schedule.learning_rate(progress.step)
    samples = data.samples(progress.step, *data_place(run.fabric))
    # any two samples of any two seeds below 2^20 get different generators
    seeds = [options.seed * (1 << 43) + sample & (1 << 63) - 1 for sample in samples[:: options.micro_batch_size]]
    return optimiser_step(run.fabric, run.model, run.optimizer, step_data, options.grad_clip, seeds, run.meter.timer)


def advance(run: Run, progress: TrainingProgress, step_data: StepData, seconds: float) -> TrainingProgress:
    run.meter.add(step_data, seconds)
    progress = dataclasses.replace(
        progress,
        step=progress.step + 1,
        samples=progress.samples + run.plan.samples_per_step,
        tokens=progress.tokens + step_data.targets,
    )
    return spend(run, progress, seconds)


def spend(run: Run, progress: TrainingProgress, seconds: float) -> TrainingProgress:
    return dataclasses.replace(
        progress,
        seconds=progress.seconds + seconds,
        device_seconds=progress.device_seconds + seconds * run.fabric.world_size,
    )


def log_steps(run: Run, progress: TrainingProgress, history: StepHistory) -> TrainingProgress:
    """Waits for the steps since the last look and writes down how they went; a step that was skipped by its samples."""
    began = time.monotonic()
    records = history.read()
    waited = time.monotonic() - began
    columns = run.meter.read(waited)
    progress = spend(run, progress, waited)
    skipped = progress.skipped_in_a_row
    for record in records:
        if skipped < run.options.max_nonfinite_steps:  # which ends the training, whatever came after
            skipped = skipped + 1 if record.skipped else 0
        if record.skipped:
            end = record.columns["samples"]
            run.log.line(
                f"step {record.columns['step']} skipped: loss {record.loss}, gradient norm {record.grad_norm}, "
                f"samples {end - run.plan.samples_per_step} to {end - 1}"
            )
    write_metrics(run, records, columns)
    last, steps = records[-1], run.plan.schedule.max_steps
    left = (steps - progress.step) * progress.seconds / progress.step
    run.log.progress(
        f"step {progress.step:,}/{steps:,}  loss {last.loss:.4f}  lr {last.columns['learning_rate']:.2e}  "
        f"norm {last.grad_norm:.2f}  {float(columns['tokens_per_second']):,.0f} tokens/s"
        + (f"  MFU {float(columns['mfu']):.1%}" if "mfu" in columns else "")
        + f"  {left / 60:,.0f} min left"
    )
    return dataclasses.replace(progress, skipped_in_a_row=skipped)


def write_metrics(run: Run, records: list[StepRecord], columns: dict[str, Any]) -> None:
    """A line per step, the last one with what was measured since the last look."""
    if run.metrics is None:
        return
    rows = [
        record.columns
        | {"split": "train", "loss": record.loss, "targets": record.targets, "grad_norm": record.grad_norm}
        for record in records
    ]
    rows[-1] |= columns
    run.metrics.write(rows)
    if run.curves:
        names = ("loss", "learning_rate", "grad_norm", *columns)
        run.curves.log(rows[-1]["step"], {f"train/{name}": float(rows[-1][name]) for name in names})


def log_datasets(run: Run, progress: TrainingProgress, history: StepHistory) -> None:
    """A line for each dataset that was trained on since the last time."""
    if run.metrics is None:
        return
    names = [entry.dataset for entry in run.plan.mixture.entries]
    losses = {name: loss for name, loss in zip(names, history.take_dataset_losses(), strict=True) if loss.targets}
    run.metrics.write(
        place(progress) | {"split": "train", "dataset": name, "loss": loss.mean, "targets": loss.targets}
        for name, loss in losses.items()
    )
    if run.curves:
        scalars = {f"train/{name}": loss.mean for name, loss in losses.items()}
        run.curves.log(progress.step, scalars, always=True)


def place(progress: TrainingProgress) -> dict[str, Any]:
    """The columns that say where in the run a line was taken."""
    times = {"seconds": f"{progress.seconds:.3f}", "device_seconds": f"{progress.device_seconds:.3f}"}
    return {"step": progress.step, "samples": progress.samples, "tokens": progress.tokens, **times}


def validate_now(run: Run, progress: TrainingProgress) -> TrainingProgress:
    """Validates on every dataset, writes the losses down and counts validations without improvement.

    A signal cuts it short: nothing is written, and `validation_pending` is set.
    """
    from utils.cluster.collectives import any_process
    from utils.run.csv_log import ALL
    from utils.train.training import validate

    options, began = run.options, time.monotonic()

    def asked_to_stop() -> bool:
        run.watchdog.mark(f"validation at step {progress.step}")  # each batch is a piece of work of its own
        return any_process(run.stop.received)

    losses = validate(
        run.fabric,
        run.model,
        options.data_dir,
        run.plan.validation,
        run.plan.manifest.window,
        options.micro_batch_size,
        options.eval_samples,
        options.mask_documents,
        asked_to_stop,
    )
    if losses is None:
        return dataclasses.replace(progress, validation_pending=True)
    seconds = time.monotonic() - began
    best = progress.best_loss
    better = best is None or not math.isfinite(best) or losses[ALL].mean < progress.best_loss
    progress = dataclasses.replace(
        spend(run, progress, seconds),
        best_loss=losses[ALL].mean if better else best,
        validations_without_improvement=0 if better else progress.validations_without_improvement + 1,
        validation_pending=False,
    )
    if run.metrics is not None:
        run.metrics.write(
            place(progress) | {"split": "valid", "dataset": name, "loss": loss.mean, "targets": loss.targets}
            for name, loss in losses.items()
        )
    if run.curves:
        run.curves.log(progress.step, {f"valid/{name}": loss.mean for name, loss in losses.items()}, always=True)
    each = "  ".join(f"{name} {loss.mean:.4f}" for name, loss in losses.items() if name != ALL)
    run.log.line(f"validation at step {progress.step:,}: {losses[ALL].mean:.4f}  ({each})")
    return progress


def save_now(run: Run, progress: TrainingProgress, scheduled: bool) -> TrainingProgress:
    """Begins a checkpoint; --max_checkpoints counts the scheduled ones, not those that an interruption makes."""
    began = time.monotonic()
    finish_saving(run)  # of the one before
    run.watchdog.mark(f"copying the checkpoint of step {progress.step}")
    if run.metrics is not None:
        run.metrics.sync()
    progress = dataclasses.replace(progress, checkpoints=progress.checkpoints + scheduled)
    run.writer.save(run.model.module, run.optimizer.optimizer, progress)
    if not run.options.async_checkpoints:
        finish_saving(run)
    run.log.line(f"checkpoint at step {progress.step:,}: training waited {time.monotonic() - began:.3f} s")
    return progress


def finish_saving(run: Run) -> None:
    """Waits for the checkpoint that is being written, if one is."""
    run.watchdog.mark("writing a checkpoint")
    log_saved(run, run.writer.wait())


def log_saved(run: Run, saved: Saved | None) -> None:
    if saved:
        run.log.line(f"checkpoint: {saved.path}, written in {saved.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(PretrainOptions)))
