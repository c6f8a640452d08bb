"""The memory that utils/train/estimate.py foresees beside the memory that training takes.

    python benchmarks/memory.py [--device cuda] [--shapes 6x256 8x512 4x1024] [--precisions 32-true bf16-mixed]
    python benchmarks/memory.py --processes 2 [--tensor_parallel 2] --shapes 8x512

1. Each shape and precision has a fresh process, which makes three steps with the functions that pretrain.py calls; with
   --processes so many, of which process 0 is measured.
2. On a GPU its memory is the peak of torch's allocations. On the CPU it is the peak of resident memory (VmHWM) less
   what was resident just before the model was made, after a small model's step that loads libraries and kernels.
3. glibc's malloc keeps freed blocks of up to 32 MiB for later ones, which may not fit: `by default` has that too, 13 to
   25 % more. `measured` is with the threshold held at 64 KiB, so that what is resident is what tensors take.
4. Prints both and the ratio of estimated to measured, and appends them to benchmarks/results.csv unless --no_record is
   given.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from utils.data.batches import StepData
    from utils.train.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
STEPS = 3


class Shape(NamedTuple):
    """A model, and the micro-batches of a step."""

    layers: int
    width: int
    vocabulary: int
    positions: int
    micro_batch_size: int
    micro_batches: int
    recompute: str


SHAPES = {
    "6x256": Shape(6, 256, 32000, 512, 4, 1, "none"),
    "8x512": Shape(8, 512, 32000, 1024, 2, 2, "none"),
    "4x1024": Shape(4, 1024, 32000, 2048, 1, 1, "full"),
    "12x768": Shape(12, 768, 50304, 2048, 8, 1, "selective"),
}
WARM_UP = Shape(1, 512, 512, 64, 1, 1, "none")


def main() -> None:
    from benchmarks.results import Figure, record

    arguments = parse_arguments()
    if arguments.measure:
        measure(SHAPES[arguments.shapes[0]], arguments.precisions[0], arguments)
        return
    print(f"{'MiB':20} {'estimated':>10} {'measured':>10} {'ratio':>6} {'by default':>11}")
    figures = []
    for name in arguments.shapes:
        for precision in arguments.precisions:
            foreseen, *measured = compare(name, precision, arguments)
            ratio = f"{foreseen / measured[0]:.3f}"
            shape, sizes = (
                f"{name} {precision}{describe(arguments)}",
                [f"{size / 2**20:.0f}" for size in (foreseen, *measured)],
            )
            print(f"{shape:20} {sizes[0]:>10} {sizes[1]:>10} {ratio:>6} {sizes[-1]:>11}", flush=True)
            figures.append(Figure("estimated", shape, ratio, "of measured"))
            for who, size in zip(("measured", "by default"), measured, strict=False):
                figures.append(Figure(who, shape, f"{size / 2**20:.0f}", "MiB", f"{size / 2**30:.3f}"))
    if not arguments.no_record:
        record("memory", figures)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["6x256", "8x512", "4x1024"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["32-true", "bf16-mixed"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tensor_parallel", type=int, default=1)
    parser.add_argument("--no_record", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def describe(arguments: argparse.Namespace) -> str:
    """How many processes there are, where it is not one."""
    shared = f", {arguments.tensor_parallel} tensor-parallel" if arguments.tensor_parallel > 1 else ""
    return f", {arguments.processes} processes{shared}" if arguments.processes > 1 else ""


def compare(name: str, precision: str, arguments: argparse.Namespace) -> list[int]:
    """Bytes foreseen here, measured in a fresh process, and on the CPU measured with malloc's own threshold."""
    from utils.train.estimate import estimate

    device = arguments.device
    command = [sys.executable, __file__, "--measure", "--shapes", name, "--precisions", precision, "--device", device]
    command += ["--processes", str(arguments.processes), "--tensor_parallel", str(arguments.tensor_parallel)]
    sizes = [estimate(make_workload(SHAPES[name], precision, arguments)).memory]
    for threshold in [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {}][: 1 if device == "cuda" else 2]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threshold)
        if done.returncode:
            sys.exit(f"error: {name} in {precision} failed:\n{done.stderr[-2000:]}")
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
    return sizes


def make_workload(shape: Shape, precision: str, arguments: argparse.Namespace) -> Workload:
    from litgpt.config import Config

    from utils.train.workload import Workload

    config = Config(
        name="benchmark",
        block_size=shape.positions,
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.width // 64,
        n_query_groups=max(2, shape.width // 256),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.width * 8 // 3 // 32 * 32,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
    )
    rows = shape.micro_batch_size * shape.micro_batches * arguments.processes // arguments.tensor_parallel
    return Workload(
        config=config,
        lora=None,
        precision=precision,
        master_weights=False,
        optimizer="adamw",
        base_format=None,
        activation_checkpointing=shape.recompute,
        micro_batch_size=shape.micro_batch_size,
        block_size=shape.positions,
        processes=arguments.processes,
        processes_per_node=arguments.processes,
        tensor_parallel=arguments.tensor_parallel,
        samples_per_step=rows,
        rows=rows * STEPS,
        targets_per_row=shape.positions,
        context=shape.positions / 8,
        window_context=shape.positions / 8,
        steps=STEPS,
    )


def measure(shape: Shape, precision: str, arguments: argparse.Namespace) -> None:
    """Prints the bytes that training takes in process 0."""
    import torch

    from benchmarks.step import resident_memory
    from utils.cluster.launch import launch
    from utils.cluster.ranks import end_process

    fabric = launch(arguments.processes, 1, precision, arguments.tensor_parallel)
    train(fabric, WARM_UP, precision, arguments)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(fabric, shape, precision, arguments)
        taken = torch.cuda.max_memory_allocated() - before
    else:
        # what malloc keeps of that would not count as new
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident_memory("VmRSS")
        train(fabric, shape, precision, arguments)
        taken = resident_memory("VmHWM") - before
    if fabric.is_global_zero:
        print(json.dumps(taken))
    end_process(0)


def train(fabric: Fabric, shape: Shape, precision: str, arguments: argparse.Namespace) -> None:
    """Makes the steps, as pretrain.py does."""
    import torch

    from lit_gpt.model.building import empty_model
    from utils.train.optimizer import make_optimizer
    from utils.train.placement import place_model
    from utils.train.profiler import StepTimer
    from utils.train.step import optimiser_step

    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = empty_model(make_workload(shape, precision, arguments).config, None, dtype)
    for block in model.transformer.h:
        block.recompute = shape.recompute
    model = place_model(fabric, model, None, 1, precision)
    optimizer = fabric.setup_optimizers(make_optimizer(model, 0.1, (0.9, 0.95)))
    seeds = list(range(shape.micro_batches))
    for _ in range(STEPS):
        optimiser_step(fabric, model, optimizer, make_data(shape), 1.0, seeds, StepTimer(fabric.device))


def make_data(shape: Shape) -> StepData:
    """Rows of four documents each, of one dataset."""
    import numpy as np
    import torch

    from utils.data.batches import Batch, StepData

    end = shape.micro_batch_size * shape.positions
    bounds = torch.arange(0, end + 1, shape.positions // 4, dtype=torch.int32)
    batches = []
    for _ in range(shape.micro_batches):
        ids = torch.randint(0, shape.vocabulary, (shape.micro_batch_size, shape.positions + 1))
        batches.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), bounds))
    datasets = [torch.zeros(shape.micro_batch_size, dtype=torch.int64)] * shape.micro_batches
    targets = end * shape.micro_batches
    return StepData(batches, datasets, targets, np.array([targets]), targets)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
