"""How far a training has come: the counters that each checkpoint holds as state.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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
    """Steps skipped for a non-finite loss since the last good one."""
    validation_pending: bool = False
    """A signal came before the validation that was due at this step was over: it is made after the restart."""

    @classmethod
    def load(cls, checkpoint: Path) -> TrainingProgress:
        """Reads state.json; a `DataError` if it is missing, damaged or of another version."""
        try:
            return cls(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise DataError(f"{checkpoint / STATE} is not a checkpoint's state ({e})") from None

    def save(self, checkpoint: Path) -> None:
        write_atomically(checkpoint / STATE, json.dumps(asdict(self), indent=1) + "\n")
