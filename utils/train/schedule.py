"""The learning rate at each step of a run.

A new schedule is a branch of `Schedule.learning_rate` here, and its name in `PretrainOptions.lr_schedule`.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup_steps` to `peak`, then down to `minimum` at `max_steps`.

    `cosine`: half a period of a cosine.
    `linear`: a straight line.
    `constant`: `peak` to the end.
    `wsd`: warm-up, stable, decay: `peak` until the last `decay_steps`, then a straight line. A run may be prolonged as
    long as the stable phase lasts, which does not depend on `max_steps`. From https://arxiv.org/abs/2404.06395; the
    straight line and its usual length, a fifth of the steps, from https://arxiv.org/abs/2405.18392.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"]
    peak: float
    minimum: float
    warmup_steps: int
    max_steps: int
    decay_steps: int = 0

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`, counting from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        falls_from = self.warmup_steps
        if self.kind == "wsd":
            falls_from = self.max_steps - self.decay_steps
            if step <= falls_from:
                return self.peak
        done = min(1.0, (step - falls_from) / max(1, self.max_steps - falls_from))
        left = 1 - done
        if self.kind == "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        return self.minimum + (self.peak - self.minimum) * left
