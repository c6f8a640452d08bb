"""Continual pretraining: a data folder and a foundation model (or a model config) in, a run folder out.

`main` checks everything that can be checked before a process is started, then launches; `fit` is the loop, and
`finished` says when it ends. Options, plan, set-up, step and schedule are in utils/train/.
"""

import sys

from utils import cli
from utils.cluster.stop_request import StopRequest
from utils.train.options import PretrainOptions

if __name__ == "__main__":
    STOP = StopRequest()  # from here on a signal no longer kills the process: the imports below take seconds
    OPTIONS = cli.parse_or_exit(PretrainOptions)  # --help and mistakes are answered before them

import dataclasses
import math
import time
from contextlib import closing
from functools import partial
from typing import NamedTuple

from lit_gpt.errors import Interrupted, UserError
from utils.cluster.collectives import any_process, on_rank_zero
from utils.cluster.launch import data_parallel_part, launch
from utils.cluster.watchdog import Watchdog
from utils.data.batches import StepData, TrainingData, verify_data
from utils.export.llama_cpp_support import export_problems
from utils.files.folder_lock import locked
from utils.run.checkpoint_writer import Saved
from utils.run.csv_log import ALL, SAMPLES_COLUMN
from utils.run.going_back import advice
from utils.run.progress import TrainingProgress
from utils.run.record import RunRecord
from utils.train.agenda import Agenda, Due
from utils.train.dry_run import dry_run_report
from utils.train.metrics import progress_columns
from utils.train.optimizer import rate_warnings, trained_of
from utils.train.plan import TrainingPlan, make_plan
from utils.train.samples import Sample, continue_prompts, told_samples
from utils.train.set_up import Training, record_mixture, set_up
from utils.train.step import StepHistory, StepResult, all_finite, optimiser_step
from utils.train.token_rows import template_warnings
from utils.train.validation import Validation, told, validate


def main(options: PretrainOptions, stop: StopRequest) -> None:
    if options.try_small:
        options = options.as_small_try()
    plan = make_plan(options)
    warnings = rate_warnings(options.optimizer, options.learning_rate)
    if plan.template:
        warnings += template_warnings(options, plan.template, len(plan.identity.added_tokens or []), plan.lora)
    if options.dry_run:
        print("\n".join([dry_run_report(options, plan), *warnings, *gguf_warnings(options, plan)]))
        return
    fabric = launch(*plan.processes, options.precision, options.tensor_parallel)
    with Watchdog(options.hang_timeout) as watchdog:
        if options.verify_data:
            verify_data(options.data_dir, [*plan.mixture.entries, *plan.validation])
        with locked(options.out_dir, on_rank_zero) as lock:
            warnings += gguf_warnings(options, plan) if fabric.is_global_zero else []  # the log is process 0's
            training, progress = set_up(fabric, options, plan, lock, stop, watchdog, warnings)
            with closing(training):
                fit(training, progress)


def gguf_warnings(options: PretrainOptions, plan: TrainingPlan) -> list[str]:
    """Warns if the trained model could not be exported to GGUF: now, as its tokenizer cannot be changed afterwards."""
    foundation = None if options.model_config else options.checkpoint_dir
    found = export_problems(foundation, plan.config, plan.tokenizer_dir)
    return [f"warning: this model could not be exported to GGUF: {'; '.join(found)}"] if found else []


class Ending(NamedTuple):
    """Why a training is over. A failure is an error, and makes no last checkpoint."""

    reason: str
    is_failure: bool = False


def finished(progress: TrainingProgress, options: PretrainOptions, max_steps: int) -> Ending | None:
    """Why the training is over, None while it is not. Counters and options alone decide, so that a restart agrees."""
    worse = progress.validations_without_improvement
    if progress.skipped_in_a_row >= options.max_nonfinite_steps:
        return Ending(skipped_steps(progress), is_failure=True)
    reason = None
    if progress.step >= max_steps:
        reason = f"all {progress.step:,} steps are made"
    elif options.max_checkpoints and progress.checkpoints >= options.max_checkpoints:
        reason = f"{progress.checkpoints} checkpoints are written (--max_checkpoints)"
    elif options.early_stopping and worse >= options.early_stopping:
        reason = f"{worse} validations without improvement (--early_stopping)"
    if reason and progress.skipped_in_a_row:
        if progress.validation_pending:  # only a validation can say that the weights are sound
            return None
        is_sound = progress.finite_validation == progress.step and progress.skipped < progress.step
        return Ending(f"{reason}; {skipped_steps(progress)}", is_failure=not is_sound)
    return Ending(reason) if reason else None


def skipped_steps(progress: TrainingProgress) -> str:
    """Says how many steps in a row were skipped, up to the last one, and whether the loss or the gradient is why."""
    steps, losses = progress.skipped_in_a_row, progress.losses_in_a_row
    what = "the loss was" if losses == steps else "the gradient was"
    which = f" (the loss in {losses} of them)" if 0 < losses < steps else ""
    return f"{what} not finite in {steps} step{'s' * (steps > 1)} in a row{which}, up to step {progress.step}"


def fit(training: Training, progress: TrainingProgress) -> None:
    """The training loop: fetch, step, log, validate, save, stop. It waits for the device only where it logs."""
    options, max_steps, phase = training.options, training.plan.schedule.max_steps, training.meter.timer.phase
    data = open_data(training)
    batches = data.steps(progress.step, *data_parallel_part(training.fabric), options.micro_batch_size)
    progress = catch_up(training, progress)
    agenda, history = make_agenda(training), StepHistory(len(training.plan.mixture.entries))
    ending = finished(progress, options, max_steps)  # a finished run that is started again makes no step
    while ending is None:
        training.watchdog.mark(f"reading the samples of step {progress.step + 1}")
        training.profiler.step(progress.step + 1)
        began = time.monotonic()
        with phase("data"):
            step_data = next(batches)

        result = train_step(training, progress, step_data, data)
        with phase("communication"):
            due = agenda.due(progress.step + 1, training.stop.received, training.writer.failed(), progress.checkpoints)
        progress = advance(training, progress, due, step_data, time.monotonic() - began)
        learning_rate = {"learning_rate": training.optimizer.param_groups[0]["lr"]}
        history.add(result, step_data, progress_columns(progress) | learning_rate)

        if due.log:
            progress = log_steps(training, progress, history)
        if due.log_datasets:
            log_datasets(training, progress, history)
        if due.failed:
            training.writer.raise_failure()
        log_saved(training, training.writer.poll())

        if due.validate and not due.interrupted and progress.skipped_in_a_row < options.max_nonfinite_steps:
            progress = validate_now(training, progress)

        saves = due.save and not progress.skipped_in_a_row  # whose weights may be why
        progress = dataclasses.replace(progress, checkpoints=progress.checkpoints + saves)
        ending = finished(progress, options, max_steps)
        interrupted = due.interrupted or progress.validation_pending
        if saves or (interrupted and not progress.skipped_in_a_row) or (ending and not ending.is_failure):
            ending = save_now(training, progress) or ending
        agenda.done(due, saves)
        if interrupted and not (ending and ending.is_failure):
            stop_after_signal(training, progress)
    finish(training, progress, data, ending)


def open_data(training: Training) -> TrainingData:
    options, plan = training.options, training.plan
    rows, window = plan.samples_per_step, plan.manifest.window
    return TrainingData(options.data_dir, plan.mixture, options.seed, rows, window, options.mask_documents)


def make_agenda(training: Training) -> Agenda:
    options, plan = training.options, training.plan
    eval_interval = options.eval_interval if plan.validates else None
    # on a GPU a look at the losses waits for the device
    log_interval = options.log_interval or (10 if training.fabric.device.type == "cuda" else 1)
    return Agenda(
        unit=options.interval_unit,
        eval_interval=eval_interval,
        save_interval=options.save_interval,
        log_interval=log_interval,
        max_steps=plan.schedule.max_steps,
        max_checkpoints=options.max_checkpoints,
    )


def catch_up(training: Training, progress: TrainingProgress) -> TrainingProgress:
    """Makes the validation at a run's start, or the one that a signal cut short."""
    if not training.plan.validates or (progress.step > 0 and not progress.validation_pending):
        return progress
    progress = validate_now(training, progress)
    if progress.validation_pending:
        raise Interrupted(
            f"stopped by a signal during the validation at step {progress.step}; run the same command again"
        )
    return progress


def train_step(training: Training, progress: TrainingProgress, step_data: StepData, data: TrainingData) -> StepResult:
    """Makes one optimiser step at its learning rate."""
    options, optimizer = training.options, training.optimizer
    training.watchdog.mark(f"step {progress.step + 1}")
    for group in optimizer.param_groups:
        group["lr"] = training.plan.schedule.learning_rate(progress.step)
    samples = data.samples(progress.step, *data_parallel_part(training.fabric))
    first_samples = samples[:: options.micro_batch_size]
    # any two samples of any two seeds below 2^20 get different generators
    seeds = [(options.seed * (1 << 43) + sample) & ((1 << 63) - 1) for sample in first_samples]
    timer = training.meter.timer
    return optimiser_step(training.fabric, training.model, optimizer, step_data, options.grad_clip, seeds, timer)


def advance(
    training: Training, progress: TrainingProgress, due: Due, step_data: StepData, seconds: float
) -> TrainingProgress:
    """Counts a step that took `seconds`, and the validation that is now due."""
    training.meter.add(step_data, seconds)
    progress = dataclasses.replace(
        progress,
        step=progress.step + 1,
        samples=progress.samples + training.plan.samples_per_step,
        tokens=progress.tokens + step_data.targets,
        validation_pending=due.validate,
    )
    return spend(training, progress, seconds)


def spend(training: Training, progress: TrainingProgress, seconds: float) -> TrainingProgress:
    return dataclasses.replace(
        progress,
        seconds=progress.seconds + seconds,
        device_seconds=progress.device_seconds + seconds * training.fabric.world_size,
    )


def log_steps(training: Training, progress: TrainingProgress, history: StepHistory) -> TrainingProgress:
    """Waits for the steps since the last look and writes down how they went, with the samples of a skipped one."""
    began = time.monotonic()
    records = history.read()
    waited = time.monotonic() - began
    columns = training.meter.read(waited)
    progress = spend(training, progress, waited)
    for record in records:
        if progress.skipped_in_a_row < training.options.max_nonfinite_steps:  # which ends it, whatever came after
            progress = progress.with_step(record.columns["step"], record.loss, record.skipped)
        if not record.targets:
            training.log.line(f"step {record.columns['step']} had no target: the weights stay as they are")
        if record.skipped:
            end = record.columns["samples"]
            training.log.line(
                f"step {record.columns['step']} skipped: loss {record.loss}, gradient norm {record.grad_norm}, "
                f"samples {end - training.plan.samples_per_step} to {end - 1}"
            )
    if training.metrics:
        training.metrics.write_steps(records, columns)
    last, steps, step = records[-1], training.plan.schedule.max_steps, records[-1].columns["step"]
    left = (steps - step) * progress.seconds / step
    mfu = f"  MFU {float(columns['mfu']):.1%}" if "mfu" in columns else ""
    training.log.progress(
        f"step {step:,}/{steps:,}  loss {last.loss:.4f}  lr {last.columns['learning_rate']:.2e}  "
        f"norm {last.grad_norm:.2f}  {float(columns['tokens_per_second']):,.0f} tokens/s{mfu}"
        f"  {left / 60:,.0f} min left"
    )
    return progress


def log_datasets(training: Training, progress: TrainingProgress, history: StepHistory) -> None:
    """Writes a line for each dataset that was trained on since the last time."""
    if training.metrics is None:  # on all processes but one
        return
    names = [entry.dataset for entry in training.plan.mixture.entries]
    losses = {name: loss for name, loss in zip(names, history.take_dataset_losses(), strict=True) if loss.targets}
    training.metrics.write_losses(progress, "train", losses)


def validate_now(training: Training, progress: TrainingProgress) -> TrainingProgress:
    """Validates on every dataset, writes the losses down and counts validations without improvement.

    A signal cuts it short: nothing is written, and `validation_pending` is set.
    """
    options, began = training.options, time.monotonic()

    def asked_to_stop() -> bool:
        training.watchdog.mark(f"validation at step {progress.step}")  # each batch is a piece of work of its own
        return any_process(training.stop.received)

    plan, samples = training.plan, None
    losses = validate(
        training.fabric,
        training.model,
        options.data_dir,
        plan.validation,
        plan.manifest.window,
        options.micro_batch_size,
        options.eval_samples,
        options.mask_documents,
        plan.end_ids,
        asked_to_stop,
    )
    if losses is not None and plan.samples:
        samples = continue_prompts(training.fabric, training.model, plan.samples, asked_to_stop)
    if losses is None or (plan.samples and samples is None):
        return dataclasses.replace(progress, validation_pending=True)
    loss, best = losses[ALL].mean, progress.best_loss
    is_better = bool(losses[ALL].targets) and (best is None or not math.isfinite(best) or loss < best)
    is_worse = bool(losses[ALL].targets) and not is_better
    without_improvement = progress.validations_without_improvement + is_worse
    progress = dataclasses.replace(
        spend(training, progress, time.monotonic() - began),
        best_loss=loss if is_better else best,
        validations_without_improvement=0 if is_better else without_improvement,
        finite_validation=progress.step if math.isfinite(loss) else progress.finite_validation,
        validation_pending=False,
    )
    write_validation(training, progress, losses, samples)
    return progress


def write_validation(
    training: Training, progress: TrainingProgress, losses: dict[str, Validation], samples: list[Sample] | None
) -> None:
    """Writes down and logs what was measured, and what the prompts were gone on with."""
    share = {SAMPLES_COLUMN: sum(sample.ended for sample in samples) / len(samples)} if samples else {}
    if training.metrics:
        if samples:
            training.metrics.samples.write(training.plan.samples.records(progress.step, samples))
        training.metrics.write_losses(progress, "valid", losses, share)
    if training.plan.validation:
        training.log.line(f"validation at step {progress.step:,}: {told(losses)}")
    for line in told_samples(samples) if samples else ():
        training.log.line(f"step {progress.step:,}: {line}")


def save_now(training: Training, progress: TrainingProgress) -> Ending | None:
    """Begins a checkpoint, and with --async_checkpoints false ends it too.

    Weights that are not finite are not saved: nothing goes on from them, and that is how the training ends.
    """
    began = time.monotonic()
    finish_saving(training)  # the previous checkpoint
    if not all_finite(trained_of(training.model.parameters())):
        return Ending(f"weights are not finite after step {progress.step}", is_failure=True)
    training.watchdog.mark(f"copying the checkpoint of step {progress.step}")
    if training.metrics:
        training.metrics.sync()
    training.writer.save(training.model.module, training.optimizer.optimizer, progress)
    if not training.options.async_checkpoints:
        finish_saving(training)
    training.log.line(f"checkpoint at step {progress.step:,}: training waited {time.monotonic() - began:.3f} s")
    return None


def finish_saving(training: Training) -> None:
    training.watchdog.mark("writing a checkpoint")
    log_saved(training, training.writer.wait())


def log_saved(training: Training, saved: Saved | None) -> None:
    if saved:
        training.log.line(f"checkpoint: {saved.path}, written in {saved.seconds:.1f} s")


def stop_after_signal(training: Training, progress: TrainingProgress) -> None:
    """Waits for the last checkpoint and ends the program; the same command continues from there."""
    finish_saving(training)
    saved = "all of it saved"
    if progress.skipped_in_a_row:
        saved = f"{skipped_steps(progress)}, so that the newest checkpoint is an earlier one"
    raise Interrupted(f"stopped by a signal after step {progress.step}, {saved}; run the same command again")


def finish(training: Training, progress: TrainingProgress, data: TrainingData, ending: Ending) -> None:
    """Waits for the last checkpoint and says why the training is over; raises if it failed, with what to do."""
    finish_saving(training)
    training.writer.require_foundation()  # the reason behind any other failure, if it is damaged
    if ending.is_failure:
        what_to_do = on_rank_zero(lambda: note_failure(training, progress, data))
        error = UserError(f"{ending.reason}; {what_to_do}")
        error.on_every_process = True
        raise error
    training.watchdog.mark(None)
    if training.fabric.is_global_zero:
        record_mixture(training.options, training.plan, training.log, data.order.counts(progress.samples))
    training.log.line(f"done: {ending.reason}; loss and checkpoints in {training.options.out_dir}")


def note_failure(training: Training, progress: TrainingProgress, data: TrainingData) -> str:
    """Writes into run.yaml that the run diverged, and what it was trained on; returns what to do about it."""
    run_dir = training.options.out_dir
    record_mixture(training.options, training.plan, training.log, data.order.counts(progress.samples))
    RunRecord.load(run_dir).note_divergence(run_dir, progress.last_good_step)
    return advice(run_dir, progress, training.options.learning_rate)


if __name__ == "__main__":
    sys.exit(cli.run(partial(main, stop=STOP), OPTIONS))
