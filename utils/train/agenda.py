"""What is to be done after a step: the one place where that is decided, for all processes alike."""

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

from utils.cluster.collectives import rank, sum_over_processes


class Due(NamedTuple):
    """What is to be done after a step; the same on every process."""

    log: bool
    """Read and write the losses of the steps since the last look; also before anything below is done."""
    log_datasets: bool
    """Write down the losses by dataset: with a validation, a checkpoint, and at the end."""
    validate: bool
    """Also at the last step in any case, before its checkpoint."""
    save: bool
    """Make a scheduled checkpoint, which --max_checkpoints counts."""
    interrupted: bool
    """A signal has come to one of the processes: save and end."""
    failed: bool
    """The checkpoint under way cannot be written, or the run folder is another program's: end."""


@dataclass
class Agenda:
    """When to log, validate and save. Process 0 decides, by its clock or by the step, and all others follow.

    `unit` is that of the intervals of validation (None for no validation) and saving. `log_interval` counts steps.
    The run ends with step `max_steps` or with checkpoint number `max_checkpoints`, if these are given.
    """

    unit: Literal["time", "steps"]
    eval_interval: int | None
    save_interval: int
    log_interval: int = 1
    max_steps: int | None = None
    max_checkpoints: int | None = None

    def __post_init__(self) -> None:
        self._logged = self._validated = self._saved = time.monotonic()
        self._owes_checkpoint = False

    def due(self, step: int, interrupted: bool, failed: bool, checkpoints: int = 0) -> Due:
        """What is due after step number `step`, counting from 1, with `checkpoints` scheduled ones so far.

        A signal (`interrupted`) or a failed checkpoint that one process knows of holds for all.
        """
        own = [False] * 3
        if rank() == 0:
            own = [
                step % self.log_interval == 0 or time.monotonic() - self._logged >= 10,  # seconds
                self._is_over(self.eval_interval, step, self._validated),
                self._is_over(self.save_interval, step, self._saved) or self._owes_checkpoint,
            ]
        sums = sum_over_processes([float(flag) for flag in (*own, interrupted, failed)])
        log, validate, save, interrupted, failed = (found > 0 for found in sums)
        is_last_checkpoint = save and checkpoints + 1 == self.max_checkpoints
        is_last = is_last_checkpoint or (self.max_steps is not None and step >= self.max_steps)
        anything = validate or save or is_last or interrupted
        return Due(
            log=log or anything or failed,
            log_datasets=anything,
            validate=validate or (is_last and self.eval_interval is not None),
            save=save,
            interrupted=interrupted,
            failed=failed,
        )

    def done(self, due: Due, saved: bool = True) -> None:
        """Begins the intervals of what was due anew, now that it is done: it may itself take longer than one.

        A checkpoint that was due, but not `saved`, is due again after the next step.
        """
        now = time.monotonic()
        if due.log:
            self._logged = now
        if due.validate:
            self._validated = now
        self._owes_checkpoint = due.save and not saved
        if due.save and saved:
            self._saved = now

    def _is_over(self, interval: int | None, step: int, since: float) -> bool:
        if interval is None:
            return False
        if self.unit == "steps":
            return step % interval == 0
        return time.monotonic() - since >= interval
