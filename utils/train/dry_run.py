"""--dry_run: what a run would need, in words, and which options would make it fit the GPUs."""

import dataclasses
import math
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from litgpt.config import Config

from lit_gpt.model.flops import mean_context
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.tensor_parallel import sharing_problems
from utils.train.estimate import GIB, RESERVE, Estimate, estimate
from utils.train.metrics import device_peak
from utils.train.options import PretrainOptions
from utils.train.plan import TrainingPlan, lora_settings
from utils.train.workload import Workload

# the adapters that are proposed where all weights do not fit: those of --use_lora without other options
SMALL_LORA = LoRASettings(
    r=8, alpha=16, dropout=0.05, query=True, key=False, value=True, projection=False, mlp=False, head=False
)


def dry_run_report(options: PretrainOptions, plan: TrainingPlan) -> str:
    """What the run would need, and what to change where it would not fit."""
    needs = estimate(make_workload(options, plan))
    peak = device_peak(options.peak_tflops, options.precision) or 312e12  # an A100's, in bf16
    memory = options.gpu_memory
    if memory is None and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
    intervals = plan.schedule.max_steps / options.save_interval
    if options.interval_unit == "time":
        intervals = 3600 * needs.hours(peak, options.mfu) / options.save_interval
    checkpoints = min(math.floor(intervals) + 1, options.max_checkpoints or math.inf)
    lines = [needs_text(needs, memory, peak, options.mfu, checkpoints)]
    if not options.devices:
        lines.insert(0, "reckoned for one device a node: --devices is not given")
    if memory and not needs.fits(memory):
        lines.append("it would with")
        lines += [f"  {line}" for line in advice(needs, memory)]
    return "\n".join(lines)


def make_workload(options: PretrainOptions, plan: TrainingPlan) -> Workload:
    manifest, entries = plan.manifest, plan.mixture.entries
    documents = sum(entry.documents for entry in entries) if options.mask_documents else 1
    length = min(manifest.block_size, sum(entry.tokens for entry in entries) / documents)
    return dataclasses.replace(
        workload_without_data(options, plan.config, manifest.block_size),
        samples_per_step=plan.samples_per_step,
        rows=plan.mixture.rows,
        targets_per_row=sum(entry.targets for entry in entries) / sum(entry.rows for entry in entries),
        context=mean_context(np.array([length])),
        window_context=mean_context(np.array([length]), plan.config.sliding_window_size),
        steps=plan.schedule.max_steps,
    )


def workload_without_data(options: PretrainOptions, config: Config, block_size: int) -> Workload:
    """A step over rows of `block_size` positions: all that the memory depends on, before there are data."""
    devices, nodes = options.devices or 1, options.num_nodes or 1
    return Workload(
        config=config,
        lora=lora_settings(options) if options.use_lora else None,
        precision=options.precision,
        master_weights=options.master_weights,
        optimizer=options.optimizer,
        base_format=options.quantize,
        activation_checkpointing=options.activation_checkpointing,
        micro_batch_size=options.micro_batch_size,
        block_size=block_size,
        processes=devices * nodes,
        processes_per_node=devices,
        tensor_parallel=options.tensor_parallel,
        samples_per_step=options.batch_size * devices * nodes // options.tensor_parallel,
        rows=1,
        targets_per_row=block_size,
        context=mean_context(np.array([block_size])),
        window_context=mean_context(np.array([block_size]), config.sliding_window_size),
        steps=1,
    )


def needs_text(needs: Estimate, gpu_memory: float | None, peak_flops: float, mfu: float, checkpoints: int) -> str:
    """What the run needs, for a person.

    A GPU has `gpu_memory` GiB (None where it is not known) and reaches the share `mfu` of `peak_flops` per second.
    """
    work = needs.workload
    kind = f"LoRA trains {needs.trained:,}" if work.lora else "all are trained"
    hours = needs.hours(peak_flops, mfu)
    lines = [
        f"model       {needs.parameters:,} parameters, {kind}; {work.precision}, base {work.base_format or 'as it is'}",
        f"processes   {work.processes} on {work.processes // work.processes_per_node} node(s); each "
        f"{work.micro_batches} × {work.micro_batch_size} rows of {work.block_size:,} positions per step",
        f"step        {work.samples_per_step:,} rows, {needs.positions_per_step:,} positions, "
        f"{needs.targets_per_step:,.0f} targets",
        f"run         {work.steps:,} steps, {work.steps / needs.steps_per_pass:.2f} passes of "
        f"{needs.steps_per_pass:,.0f} steps",
        f"time        {hours:,.1f} h at {mfu:.0%} of {peak_flops / 1e12:,.0f} TFLOP/s per GPU "
        f"({needs.flops_per_position:.3g} FLOPs per position)",
        f"disk        {needs.checkpoint / 1e9:,.2f} GB per checkpoint, {checkpoints} of them "
        f"{checkpoints * needs.checkpoint / 1e9:,.1f} GB",
        "",
        *_memory_table(needs, gpu_memory),
    ]
    return "\n".join(lines)


def _memory_table(needs: Estimate, gpu_memory: float | None) -> list[str]:
    moments = needs.moments
    lines = [f"{'GiB per process, at the':24}" + "".join(f"{moment:>10}" for moment in moments)]
    for part in next(iter(moments.values())):
        lines.append(f"  {part:22}" + "".join(f"{parts[part] / GIB:10.2f}" for parts in moments.values()))
    lines.append(f"{'together':24}" + "".join(f"{sum(parts.values()) / GIB:10.2f}" for parts in moments.values()))
    needed = needs.memory / GIB
    if gpu_memory is None:
        verdict = f"a GPU needs {needed / (1 - RESERVE):.1f} GiB: these {needed:.1f} and {RESERVE:.0%} for the rest"
    else:
        fits = "fits" if needs.fits(gpu_memory) else "does NOT fit"
        verdict = f"{needed:.1f} GiB {fits} a GPU of {gpu_memory:g} GiB, of which {RESERVE:.0%} are left for the rest"
    return [*lines, verdict]


def advice(needs: Estimate, gpu_memory: float) -> list[str]:
    """Changes of the command that make the run fit GPUs of `gpu_memory` GiB, each with what it then needs.

    Single changes first; if none is enough, the same on top of the smallest micro-batch and full recomputation.
    """
    base = needs.workload
    if found := _fitting(_changes(base), gpu_memory):
        return found
    saving = dataclasses.replace(base, micro_batch_size=1, activation_checkpointing="full")
    prefix = "--micro_batch_size 1 --activation_checkpointing full"
    groups = [[(prefix, saving)]]
    for group in _changes(saving):
        groups.append([(f"{prefix} {options}", changed) for options, changed in group])
    return _fitting(groups, gpu_memory)


def _fitting(groups: Iterable[list[tuple[str, Workload]]], gpu_memory: float) -> list[str]:
    """The first change of each group that fits, with what it needs."""
    found = []
    for group in groups:
        for options, workload in group:
            needs = estimate(workload)
            if needs.fits(gpu_memory):
                found.append(f"{options}: {needs.memory / GIB:.1f} GiB")
                break
    return found


def _changes(base: Workload) -> list[list[tuple[str, Workload]]]:
    """Groups of options that lower the memory, mildest first in each."""
    replace = partial(dataclasses.replace, base)
    sizes = [size for size in range(base.micro_batch_size - 1, 0, -1) if base.micro_batch_size % size == 0]
    kinds = ("none", "selective", "full")
    stronger = kinds[kinds.index(base.activation_checkpointing) + 1 :]
    groups = [
        [(f"--micro_batch_size {size}", replace(micro_batch_size=size)) for size in sizes],
        [(f"--activation_checkpointing {kind}", replace(activation_checkpointing=kind)) for kind in stronger],
        _more_gpus(base),
        _more_sharing(base),
    ]
    if base.precision != "bf16-true":
        groups.append([("--precision bf16-true", replace(precision="bf16-true"))])
    if base.tensor_parallel > 1:  # which trains all weights, with AdamW
        return groups
    if base.optimizer == "adamw":
        groups.append([("--optimizer adamw_8bit", replace(optimizer="adamw_8bit"))])
    lora = base.lora or SMALL_LORA
    adapters = "" if base.lora else "--use_lora true "
    if not base.lora:
        groups.append([(adapters.strip(), replace(lora=lora))])
    if not base.base_format:
        groups.append([(f"{adapters}--quantize bnb.nf4", replace(lora=lora, base_format="bnb.nf4"))])
    return groups


def _more_gpus(base: Workload) -> list[tuple[str, Workload]]:
    """Two to 64 times as many processes that share the samples of a step."""
    per_process = base.samples_per_step // base.data_parallel
    changes = []
    for factor in (2, 4, 8, 16, 32, 64):
        if per_process % (factor * base.micro_batch_size) == 0:
            gpus = base.processes * factor
            options = f"{gpus} GPUs, --batch_size {per_process // factor}"
            changes.append((options, dataclasses.replace(base, processes=gpus, processes_per_node=1)))
    return changes


def _more_sharing(base: Workload) -> list[tuple[str, Workload]]:
    positions = base.micro_batch_size * base.block_size
    changes = []
    for size in (2, 4, 8):
        is_possible = size > base.tensor_parallel and base.processes_per_node % size == 0 and not base.lora
        if is_possible and not sharing_problems(base.config, size, positions):
            options = f"--tensor_parallel {size} --batch_size {base.samples_per_step * size // base.processes}"
            changes.append((options, dataclasses.replace(base, tensor_parallel=size)))
    return changes
