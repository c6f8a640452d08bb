"""QLoRA on several processes: the base shared by them, as it is, beside the base whole on each, as it was.

    python benchmarks/shared_base.py [--device cuda] [--processes 2] [--shapes 24x768] [--kinds bnb.nf4 bnb.int8]

1. Each way has fresh processes, which train as pretrain.py does on a random base that is made a matrix at a time.
2. Memory is that of process 0: on a GPU the peak of torch's allocations, on the CPU the peak of resident memory less
   what was resident before the model was made (see memory.py). `quantised` are the bytes of the base's matrices that it
   keeps, the two gathered blocks included.
3. For the speed, processes have both models and train them step by step in turns, so that other work on the machine
   hits both; the ratio is the median of the turns' own.
4. Prints them beside what utils/train/estimate.py foresees, and appends them to benchmarks/results.csv unless
   --no_record is given.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.fabric import Fabric
    from litgpt.config import Config
    from torch import Tensor, nn

    from utils.train.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
# layers × width: vocabulary, positions of a row, rows of a micro-batch
SHAPES = {"4x256": (128, 32, 1), "24x768": (1024, 128, 1), "32x4096": (32000, 2048, 4)}
WAYS = ("whole", "shared")
SPEED = "speed"


def main() -> None:
    from benchmarks.results import Figure, record
    from utils.train.estimate import estimate

    arguments = parse_arguments()
    if arguments.measure:
        measure(arguments)
        return
    figures = []
    print(f"{'MiB':36} {'foreseen':>9} {'measured':>9} {'quantised':>10} {'steps/s':>8} {'ratio':>6}")
    for shape in arguments.shapes:
        for kind in arguments.kinds:
            foreseen = estimate(workload(shape, kind, arguments.processes)).memory
            speeds = run_way(SPEED, shape, kind, arguments)
            for way in WAYS:
                found = run_way(way, shape, kind, arguments)
                label = f"{shape} {kind}, {arguments.processes} processes, {way}"
                taken, quantised, speed = found["taken"] / MIB, found["quantised"] / MIB, speeds[way]
                planned, ratio = (f"{foreseen / MIB:.0f}", f"{speeds['ratio']:.2f}") if way == "shared" else ("", "")
                sizes = f"{planned:>9} {taken:9.0f} {quantised:10.1f}"
                print(f"{label:36} {sizes} {speed:8.3f} {ratio:>6}", flush=True)
                figures.append(Figure(way, label, f"{taken:.0f}", "MiB", f"{taken / 1024:.3f}"))
                figures.append(Figure(way, label, f"{quantised:.1f}", "MiB, quantised"))
                figures.append(Figure(way, label, f"{speed:.3f}", "steps/s"))
    if not arguments.no_record:
        record("shared_base", figures)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["24x768"])
    parser.add_argument("--kinds", nargs="+", choices=("bnb.nf4", "bnb.int8"), default=["bnb.nf4", "bnb.int8"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--no_record", action="store_true")
    parser.add_argument("--measure", choices=(*WAYS, SPEED), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_way(way: str, shape: str, kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, "--shapes", shape, "--kinds", kind]
    command += ["--device", arguments.device, "--processes", str(arguments.processes), "--steps", str(arguments.steps)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"error: {way} {shape} {kind} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def workload(shape: str, kind: str, processes: int) -> Workload:
    from benchmarks import memory
    from lit_gpt.model.lora import LoRASettings

    layers, width = map(int, shape.split("x"))
    vocabulary, positions, rows = SHAPES[shape]
    own = memory.Shape(layers, width, vocabulary, positions, rows, 1, "none")
    plain = argparse.Namespace(processes=processes, tensor_parallel=1)
    lora = LoRASettings(8, 16, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=False)
    return dataclasses.replace(memory.make_workload(own, "bf16-true", plain), lora=lora, base_format=kind)


def measure(arguments: argparse.Namespace) -> None:
    """Prints what process 0 takes, or how many steps it makes in a second each way."""
    import torch

    from benchmarks.step import resident_memory
    from utils.cluster.launch import launch
    from utils.cluster.ranks import end_process

    on_gpu = arguments.device == "cuda"
    fabric = launch(arguments.processes, 1, "bf16-true")
    work = workload(arguments.shapes[0], arguments.kinds[0], arguments.processes)
    small = workload("4x256", arguments.kinds[0], arguments.processes)
    Trainer(fabric, small, "shared").step()  # loads libraries and kernels
    if arguments.measure == SPEED:
        found = compare_speeds([Trainer(fabric, work, way) for way in WAYS], arguments.steps)
    else:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = resident_memory("VmRSS")
        trainer = Trainer(fabric, work, arguments.measure)
        for _ in range(2):
            trainer.step()
        taken = (torch.cuda.max_memory_allocated() if on_gpu else resident_memory("VmHWM")) - before
        found = {"taken": taken, "quantised": quantised_bytes(trainer.model)}
    if fabric.is_global_zero:
        print(json.dumps(found))
    end_process(0)


class Trainer:
    """A model that is trained as pretrain.py does it, its base shared or whole."""

    def __init__(self, fabric: Fabric, work: Workload, way: str) -> None:
        import utils.train.placement
        from benchmarks import memory
        from lit_gpt.model.building import empty_model
        from utils.train.optimizer import make_optimizer

        empty = empty_model(work.config, work.lora, *work.dtypes, work.base_format)
        share_base = utils.train.placement.share_base
        if way == "whole":
            utils.train.placement.share_base = lambda _model, _group: None
        self._fabric = fabric
        self.model = utils.train.placement.place_model(fabric, empty, random_base(work.config), 1, "bf16-true")
        utils.train.placement.share_base = share_base
        self._optimizer = fabric.setup_optimizers(make_optimizer(self.model, 0.1, (0.9, 0.95)))
        rows = memory.Shape(0, 0, work.config.vocab_size, work.block_size, work.micro_batch_size, 1, "none")
        self._data = memory.make_data(rows)

    def step(self) -> float:
        """The seconds of a step."""
        from utils.train.profiler import StepTimer
        from utils.train.step import optimiser_step

        start, timer = time.perf_counter(), StepTimer(self._fabric.device)
        result = optimiser_step(self._fabric, self.model, self._optimizer, self._data, 1.0, [1], timer)
        float(result.grad_norm)  # waits for the device
        return time.perf_counter() - start


def compare_speeds(trainers: list[Trainer], steps: int) -> dict[str, float]:
    for trainer in trainers:
        trainer.step()
    turns = [[trainer.step() for trainer in trainers] for _ in range(steps)]
    found = {way: 1 / statistics.median(column) for way, column in zip(WAYS, zip(*turns, strict=True), strict=True)}
    return found | {"ratio": statistics.median(whole / shared for whole, shared in turns)}


def random_base(config: Config) -> Mapping[str, Tensor]:
    """The base's weights, each made when it is asked for."""
    import torch

    from lit_gpt.model.building import empty_model
    from lit_gpt.model.lazy_tensors import LazyTensors

    state = empty_model(config, None, torch.bfloat16).state_dict()

    def read(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return torch.empty(state[name].shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)

    return LazyTensors(dict(state), read)


def quantised_bytes(model: nn.Module) -> int:
    """Bytes of the storages of what this process keeps of the base's matrices, gathered blocks included."""
    tensors = [tensor for tensor in model.buffers() if not tensor.is_floating_point()]
    for block in model.module.transformer.h:
        if hasattr(block, "frozen_part"):
            tensors.append(block.frozen_part.gather())
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
