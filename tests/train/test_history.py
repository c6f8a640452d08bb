"""Losses of steps between two looks at them."""

from __future__ import annotations

import math

import numpy as np
import torch

from utils.data.batches import StepData
from utils.train.step import StepHistory, StepResult


def test_a_skipped_step_leaves_the_others_dataset_losses_alone() -> None:
    history = StepHistory(2)
    for loss, norm, targets in ((6.0, 1.0, 3), (math.nan, math.nan, 5)):
        losses = torch.tensor([loss, 0.0], dtype=torch.float64)
        data = StepData([], [], targets, np.array([targets, 0]), targets)
        history.add(StepResult(losses.sum(), losses, torch.tensor(norm)), data, {})
    assert [record.skipped for record in history.read()] == [False, True]
    assert history.take_dataset_losses()[0] == (2.0, 3)
