"""Started by test_trained.py: the same training checkpoint, written again by 3 and by 8 processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import torch

from lit_gpt.foundation import CONFIG, read_config
from tests.loading_worker import free_port, sharded, start_fabric
from utils.checkpoint import STATE, SUMS, CheckpointWriter, load_checkpoint
from utils.training import make_optimizer


def work(rank: int, processes: int, port: int, checkpoint: Path, target: Path) -> None:
    torch.set_num_threads(1)
    fabric = start_fabric(rank, processes, port)
    model = sharded(fabric, read_config(checkpoint / CONFIG), None, None, torch.float32)
    optimizer = make_optimizer(model, 0.1, (0.9, 0.95))
    progress = load_checkpoint(checkpoint, model, optimizer)
    companions = [
        path for path in checkpoint.iterdir() if not path.name.endswith((".distcp", STATE, SUMS, ".metadata"))
    ]
    writer = CheckpointWriter(target / str(processes), companions, None)
    writer.save(model, optimizer, progress)
    writer.wait()
    torch.distributed.barrier()
    os._exit(0)  # a fork must not run its parent's exit handlers


def main(checkpoint: Path, target: Path) -> None:
    """Makes the run folders `3` and `8` in `target`, each with the checkpoint."""
    context = multiprocessing.get_context("fork")
    for processes in (3, 8):
        port = free_port()
        arguments = [(rank, processes, port, checkpoint, target) for rank in range(processes)]
        started = [context.Process(target=work, args=own) for own in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            sys.exit(f"exit codes {[process.exitcode for process in started]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
