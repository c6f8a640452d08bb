"""The learning rate at each step of a run.

A new schedule is a branch of `Schedule.learning_rate` here, and its name in `PretrainOptions.lr_schedule`.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup_steps` to `peak`, then down to `minimum` at `max_steps`.

    `cosine`: half a period of a cosine from the warm-up's end to `max_steps`.
    `linear`: a straight line over the same steps.
    `constant`: `peak` to the end.
    `wsd`: warm-up, stable, decay. `peak` until the last `decay_steps` steps, then a straight line. As the stable phase
    does not depend on `max_steps`, a run may be prolonged as long as it lasts. From MiniCPM
    (https://arxiv.org/abs/2404.06395); the straight line and its usual length, a fifth of the steps, are those of
    Hägele et al. 2024 (https://arxiv.org/abs/2405.18392).
    """

    kind: Literal["cosine", "linear", "constant", "wsd"]
    peak: float
    minimum: float
    warmup_steps: int
    max_steps: int
    decay_steps: int = 0
    """Steps of the decay of `wsd`."""

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
