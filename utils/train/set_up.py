"""Everything the training loop works with: the run folder taken, the model built, the run's files opened."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from lit_gpt.errors import DataError
from lit_gpt.formats.litgpt_directory import CONFIG
from lit_gpt.model.building import empty_model
from lit_gpt.model.flops import flops_per_token, mean_context
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES
from utils import cli
from utils.cluster.collectives import on_rank_zero
from utils.cluster.stop_request import StopRequest
from utils.cluster.watchdog import Watchdog
from utils.files.folder_lock import FolderLock
from utils.run.checkpoint_reader import load_checkpoint, newest_valid_checkpoint
from utils.run.checkpoint_writer import CheckpointWriter
from utils.run.csv_log import CsvLog
from utils.run.log import LOG, RunLog
from utils.run.progress import TrainingProgress
from utils.run.record import RUN
from utils.train.loggers import ScalarLogger, open_logger
from utils.train.meter import Meter, device_peak
from utils.train.metrics import Metrics
from utils.train.optimizer import make_optimizer
from utils.train.options import PretrainOptions
from utils.train.placement import place_model
from utils.train.plan import TrainingPlan, check_out_dir
from utils.train.profiler import StepProfiler, parse_profile_steps
from utils.train.start import record_start


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


@contextmanager
def locked_run_folder(out_dir: Path) -> Iterator[FolderLock | None]:
    """Makes the run folder and takes it for this run, against any other; the lock is process 0's.

    Raises:
        UserError: on every process, if another run is writing there.
    """
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
    plan: TrainingPlan,
    lock: FolderLock | None,
    stop: StopRequest,
    watchdog: Watchdog,
    warnings: list[str],
) -> tuple[Training, TrainingProgress]:
    """Builds the model on every process, loads the checkpoint to go on from and opens the run's files.

    Args:
        fabric: launched.
        options: of the command.
        plan: made from them.
        lock: the run folder's, on process 0.
        stop: whether a signal has come.
        watchdog: ends a run that hangs.
        warnings: lines for the run's log.
    """
    model, optimizer = build(fabric, options, plan)
    on_rank_zero(lambda: check_out_dir(options, plan.identity))  # again: now nobody else can begin a run there
    log = RunLog(options.out_dir / LOG if fabric.is_global_zero else None)
    checkpoint = find_checkpoint(options.out_dir, log) if options.resume == "auto" else None
    progress = TrainingProgress()
    if checkpoint:
        progress = load_checkpoint(checkpoint, model.module, optimizer.optimizer)
        progress = dataclasses.replace(progress, skipped_in_a_row=0)  # a restart is meant to be another try
    opened: list[CsvLog] = []
    record = partial(record_start, options, plan, fabric.world_size, progress, checkpoint, warnings, log)
    on_rank_zero(lambda: opened.append(record()))  # its errors are known on every process
    profiled = None
    if fabric.is_global_zero and options.profile_steps:
        profiled = parse_profile_steps(options.profile_steps)
    writer = make_writer(options, lock)
    curves = open_curves(options, progress.step if checkpoint else -1, log)
    training = Training(
        options=options,
        plan=plan,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        writer=writer,
        stop=stop,
        watchdog=watchdog,
        log=log,
        metrics=Metrics(opened[0], curves) if opened else None,
        meter=make_meter(options, plan, fabric),
        profiler=StepProfiler(profiled, options.out_dir),
    )
    return training, progress


def build(fabric: Fabric, options: PretrainOptions, plan: TrainingPlan) -> tuple[nn.Module, Optimizer]:
    """The model on the run's devices and its optimiser."""
    # of gradients that processes share torch cannot tell whether they hold a NaN
    torch.autograd.set_detect_anomaly(options.debug, check_nan=options.tensor_parallel == 1)
    dtype = torch.bfloat16 if options.precision == "bf16-true" else torch.float32
    frozen_dtype = torch.float32 if options.precision == "32-true" else torch.bfloat16
    empty = empty_model(plan.config, plan.lora, dtype, frozen_dtype, options.quantize)
    prepare_blocks(empty, options)
    model = place_model(fabric, empty, plan.weights, options.seed, options.precision)
    betas = (options.beta1, options.beta2)
    optimizer = make_optimizer(model, options.weight_decay, betas, options.keeps_master_weights)
    return model, fabric.setup_optimizers(optimizer)


def prepare_blocks(model: nn.Module, options: PretrainOptions) -> None:
    """Sets what the blocks compute again, and compiles them; the names of their parameters stay."""
    if options.compile:
        # A block has variants: training or not, with a window or not, the first batch's number of documents or any.
        torch._dynamo.config.recompile_limit = 32
    for block in model.transformer.h:
        block.recompute = options.activation_checkpointing
        if options.compile:
            block.forward = torch.compile(block.forward)


def find_checkpoint(out_dir: Path, log: RunLog) -> Path | None:
    """The newest valid checkpoint; None for a new run.

    Raises:
        DataError: on every process, if there are checkpoints and none verifies.
    """
    checkpoint, problems = newest_valid_checkpoint(out_dir)
    for problem in problems:
        log.line(f"checkpoint passed over: {problem}")
    if problems and checkpoint is None:
        raise DataError(f"no checkpoint of {out_dir} is valid ({problems[0]}); restore one, or give another --out_dir")
    return checkpoint


def make_writer(options: PretrainOptions, lock: FolderLock | None) -> CheckpointWriter:
    """The writer of the run's checkpoints, each of which gets what it needs to be used alone."""
    tokenizer_files = [options.checkpoint_dir / name for name in TOKENIZER_FILES]
    companions = [options.out_dir / RUN, options.out_dir / CONFIG]
    companions += [path for path in tokenizer_files if path.is_file()]
    return CheckpointWriter(options.out_dir, companions, lock)


def open_curves(options: PretrainOptions, last_step: int, log: RunLog) -> ScalarLogger | None:
    """Where --logger sends curves, on process 0; if it cannot be opened, every process knows."""
    opened: list[ScalarLogger | None] = []
    values = cli.public_values(options)
    on_rank_zero(lambda: opened.append(open_logger(options.logger, options.out_dir, last_step, values, log.line)))
    return opened[0] if opened else None


def make_meter(options: PretrainOptions, plan: TrainingPlan, fabric: Fabric) -> Meter:
    """The meter of the run's speed, which knows what the model costs per token."""

    def flops(lengths: np.ndarray) -> float:
        windowed = mean_context(lengths, plan.config.sliding_window_size)
        return flops_per_token(plan.config, plan.lora, mean_context(lengths), windowed)

    peak = device_peak(options.peak_tflops, options.precision)
    return Meter(fabric.device, fabric.world_size, peak, flops)
