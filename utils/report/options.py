"""Options of the commands that draw and report. Nothing heavy is imported here, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.errors import raise_problems


@dataclass(frozen=True)
class PlotOptions:
    """Draw the convergence curves of one or several training runs (folders that pretrain.py wrote)."""

    SECTION = "plot"

    folders: list[Path]
    """Run folders."""
    output: Path | None = None
    """Figure to write, .png, .pdf or .svg. Default: convergence.png in the first folder."""
    x_axis: Literal["batches", "sequences", "tokens", "hours", "device_hours"] = "tokens"
    """What the losses are drawn over. With one run, the other units are shown above the figure."""
    datasets: bool = True
    """Also draw the validation loss of each dataset."""
    smoothing: int | None = None
    """Optimiser steps that a point of the smoothed training loss is the mean of. Default: a fiftieth of the run's."""
    min_loss: float | None = None
    """Lower end of the loss axis. Default: from the curves."""
    max_loss: float | None = None
    """Upper end of the loss axis. Default: from the curves."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = []
        if self.output is not None and self.output.suffix.lower() not in (".png", ".pdf", ".svg"):
            problems.append(f"--output must end in .png, .pdf or .svg, not as {self.output.name}")
        if self.smoothing is not None and self.smoothing < 1:
            problems.append(f"--smoothing must be at least 1 step, not {self.smoothing}")
        if None not in (self.min_loss, self.max_loss) and self.min_loss >= self.max_loss:
            problems.append(f"--min_loss {self.min_loss} must be below --max_loss {self.max_loss}")
        raise_problems(problems)
