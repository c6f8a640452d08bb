#!/usr/bin/env python
"""Draws how one or several runs converged: training and validation losses, each dataset's, and the best checkpoint.
A run that still trains can be drawn at any time."""

import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli
from utils.report.options import PlotOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(PlotOptions)  # --help and mistakes are answered before the imports below

from utils.report.before_and_after import endings, validated_steps
from utils.report.curves import RunCurves, read_curves
from utils.report.figures import draw, save
from utils.run.csv_log import ALL

HEADER = ("run", "steps", "tokens", "first", "last", "best", "best checkpoint")


def main(options: PlotOptions) -> None:
    runs = [read_curves(folder) for folder in options.folders]
    figure = draw(runs, options)
    output = options.output or options.folders[0] / "convergence.png"
    save(figure, output)
    print(summary(runs))
    for folder, run in zip(options.folders, runs, strict=True):
        for line in told_endings(folder, run):
            print(line)
    print(f"wrote {output}")


def summary(runs: Sequence[RunCurves]) -> str:
    lines = [HEADER, *map(summary_line, runs)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = []
    for name, *numbers, checkpoint in lines:
        cells = map(str.rjust, numbers, widths[1:-1])
        aligned.append("  ".join([name.ljust(widths[0]), *cells, checkpoint]))
    return "\n".join(aligned)


def told_endings(folder: Path, run: RunCurves) -> list[str]:
    """Whether the model has learned to end its answers, from the first validation to the last; none without chats."""
    steps = validated_steps(folder)
    if not steps:
        return []
    found = endings(folder, steps[0], steps[-1])
    return [f"{run.label}: {label}: {before} → {after}" for label, before, after in found]


def summary_line(run: RunCurves) -> tuple[str, ...]:
    curves = [curve for curve in (run.train, *run.valid.values(), *run.offline.values()) if len(curve)]
    steps = max((curve["batches"].iloc[-1] for curve in curves), default=0)
    tokens = max((curve["tokens"].iloc[-1] for curve in curves), default=0)
    validated = run.valid.get(ALL, run.offline.get(ALL))
    first, last = "-", "-"
    if validated is not None and len(validated):
        first, last = f"{validated.loss.iloc[0]:.4f}", f"{validated.loss.iloc[-1]:.4f}"
    best, checkpoint = "-", "none validated"
    if run.best:
        best, checkpoint = f"{run.best.loss:.4f}", str(run.best.checkpoint)
    return (run.label, f"{steps:,.0f}", f"{tokens:,.0f}", first, last, best, checkpoint)


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
