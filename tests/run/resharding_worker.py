"""Run by test_merged_model.py in several processes at once: a training checkpoint, written again by as many."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lit_gpt.checksums import SUMS
from lit_gpt.formats.litgpt_directory import CONFIG, read_config
from lit_gpt.model.building import empty_model
from utils.cluster.launch import launch
from utils.run.checkpoint_reader import load_checkpoint
from utils.run.checkpoint_writer import CheckpointWriter
from utils.run.progress import STATE
from utils.train.optimizer import make_optimizer
from utils.train.placement import place_model


def write_again(checkpoint: Path, target: Path) -> None:
    """Makes the run folder `target` with the checkpoint; the processes have torchrun's environment."""
    torch.set_num_threads(1)
    fabric = launch(int(os.environ["WORLD_SIZE"]), 1, "32-true")
    model = place_model(fabric, empty_model(read_config(checkpoint / CONFIG), None, torch.float32), None, 0, "32-true")
    optimizer = make_optimizer(model.module, 0.1, (0.9, 0.95))
    progress = load_checkpoint(checkpoint, model.module, optimizer)
    own = (".distcp", ".metadata", STATE, SUMS)
    companions = [path for path in checkpoint.iterdir() if not path.name.endswith(own)]
    writer = CheckpointWriter(target, companions, None)
    writer.save(model.module, optimizer, progress)
    writer.wait()
