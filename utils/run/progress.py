"""How far a training has come: the counters that each checkpoint holds as state.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lit_gpt.errors import DataError
from utils.files.atomic import write_atomically

STATE = "state.json"


@dataclass(frozen=True)
class TrainingProgress:
    """The counters of a run: all that resuming needs besides the tensors.

    Random numbers are a pure function of the seed and these, so no generator's state is kept.
    """

    step: int = 0
    """Optimiser steps made."""
    samples: int = 0
    """Samples trained on."""
    tokens: int = 0
    """Prediction targets trained on."""
    seconds: float = 0.0
    """Wall-clock time of training and validation, all starts together."""
    device_seconds: float = 0.0
    """`seconds` times the number of processes at that time."""
    checkpoints: int = 0
    """Scheduled checkpoints, which --max_checkpoints counts; those at an interruption are not scheduled."""
    best_loss: float | None = None
    """Lowest validation loss over all datasets; None before the first validation."""
    validations_without_improvement: int = 0
    """Validations since the one of `best_loss`, for --early_stopping."""
    skipped_in_a_row: int = 0
    """Steps skipped for a gradient that was not finite since the last good one."""
    losses_in_a_row: int = 0
    """Those of them whose loss was not finite either."""
    skipped: int = 0
    """Steps skipped, all together."""
    finite_validation: int | None = None
    """The step of the newest validation whose loss was finite."""
    train_loss: float | None = None
    """Training loss of the steps that were not skipped, smoothed over some ten of them."""
    validation_pending: bool = False
    """A signal came before the validation that was due at this step was over: it is made after the restart."""

    @classmethod
    def load(cls, checkpoint: Path) -> TrainingProgress:
        """Reads state.json; a `DataError` if it is missing, damaged or of another version."""
        try:
            return cls(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise DataError(f"{checkpoint / STATE} is not a checkpoint's state ({e})") from None

    @property
    def last_good_step(self) -> int:
        """The last step that was not skipped."""
        return self.step - self.skipped_in_a_row

    def as_another_try(self) -> TrainingProgress:
        """The counters to begin with after a restart, which may skip as many steps again."""
        return replace(self, skipped_in_a_row=0, losses_in_a_row=0)

    def with_step(self, step: int, loss: float, skipped: bool) -> TrainingProgress:
        """The counters after `step`, whose loss and gradient were looked at."""
        if skipped:
            return replace(
                self,
                step=step,
                skipped=self.skipped + 1,
                skipped_in_a_row=self.skipped_in_a_row + 1,
                losses_in_a_row=self.losses_in_a_row + (not math.isfinite(loss)),
            )
        if math.isnan(loss):  # a step without targets, which says nothing
            return replace(self, step=step)
        smoothed = loss if self.train_loss is None else 0.9 * self.train_loss + 0.1 * loss
        return replace(self, step=step, skipped_in_a_row=0, losses_in_a_row=0, train_loss=smoothed)

    def save(self, checkpoint: Path) -> None:
        write_atomically(checkpoint / STATE, json.dumps(asdict(self), indent=1) + "\n")
