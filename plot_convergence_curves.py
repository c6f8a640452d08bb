#!/usr/bin/env python
"""Draws how one or several runs converged: training and validation losses, each dataset's, and the best checkpoint.

1. `read_run` turns a run's metrics.csv and validation.csv into curves; a run that goes on can be drawn at any time.
2. `draw` makes the figure: losses above; the datasets' curves in the same panel, or in a second one if they are many.
3. `save` writes it, `summary` says the same in numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lit_gpt.errors import DataError, UserError, raise_problems
from utils import cli
from utils.run.checkpoint_choice import best_checkpoint
from utils.run.csv_log import ALL, METRICS, PLACE_COLUMNS, VALIDATION, read_csv
from utils.run.record import RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "batches": ("step", 1, "optimiser steps"),
    "sequences": ("samples", 1, "sequences"),
    "tokens": ("tokens", 1, "training tokens"),
    "hours": ("seconds", 3600, "hours"),
    "device_hours": ("device_seconds", 3600, "device-hours"),
}
"""Of each axis: the column, its units per unit of the axis, the label."""

# Okabe and Ito's (2008), told apart with any colour vision, without yellow, and a grey and a brown; black is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B")
MAX_DATASETS_BESIDE = 8  # more curves than this in the panel of the training loss hide it
LINES = ("-", "--", "-.", ":")
_MARK = {"markeredgecolor": "white", "linewidth": 1.2, "markersize": 8}
LOOKS: dict[str, dict[str, Any]] = {
    "training, smoothed": {"linewidth": 1.8, "alpha": 0.8},
    "validation while training": {"linestyle": "--", "marker": "o", **_MARK},
    "validate_pretrain.py": {"linestyle": ":", "marker": "D", **_MARK},
    "best checkpoint": {"linestyle": "none", "marker": "*", "markersize": 22, "markeredgecolor": "black"},
}
STYLE = {
    "font.size": 12,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.framealpha": 0.9,
    "svg.hashsalt": "convergence",  # otherwise an SVG's ids are random
}


@dataclass(frozen=True)
class PlotOptions:
    """Draw the convergence curves of one or several training runs (folders that pretrain.py wrote)."""

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


def main(options: PlotOptions) -> None:
    runs = [read_run(folder) for folder in options.folders]
    figure = draw(runs, options)
    output = options.output or options.folders[0] / "convergence.png"
    save(figure, output)
    print(summary(runs))
    print(f"wrote {output}")


# Reading


class Curve(NamedTuple):
    """Losses in the order of training. `places` has the values of each of `AXES`; all arrays are [points] float64."""

    places: dict[str, np.ndarray]
    loss: np.ndarray
    targets: np.ndarray


class Best(NamedTuple):
    """The best checkpoint: its place on each axis and its validation loss over all datasets."""

    checkpoint: Path
    places: dict[str, float]
    loss: float

    @property
    def step(self) -> int:
        return int(self.places["batches"])


@dataclass(frozen=True)
class Run:
    """What one run folder says. `valid` and `offline` map dataset names (and `ALL`) to curves."""

    label: str
    train: Curve
    valid: dict[str, Curve]
    offline: dict[str, Curve]
    best: Best | None

    @property
    def datasets(self) -> list[str]:
        """The validated datasets, in name order; none where there is but one, whose curve is that of all."""
        names = sorted((self.valid.keys() | self.offline.keys()) - {ALL})
        return names if len(names) > 1 else []


def read_run(folder: Path) -> Run:
    """Reads the curves of a run folder.

    Raises:
        UserError: if it is none, or its metrics have no complete line yet.
        DataError: if its CSV files lack columns or hold no numbers.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder} has no {METRICS}: not a run's folder")
    rows = _read_rows(folder / METRICS, "split")
    if not rows:
        raise UserError(f"{folder / METRICS} has no line yet: nothing to draw")
    train = make_curves([row for row in rows if row["split"] == "train"]).get("", make_curve([]))
    valid = make_curves([row for row in rows if row["split"] == "valid"])
    later = _read_rows(folder / VALIDATION, "max_samples", "data")
    # Losses on other rows do not belong to the same curve: of several such validations the newest is drawn.
    offline = make_curves([row for row in later if all(row[key] == later[-1][key] for key in ("max_samples", "data"))])
    return Run(_label(folder), train, valid, offline, find_best(folder, valid, offline))


def _read_rows(path: Path, *further: str) -> list[dict[str, Any]]:
    """The complete lines of a CSV file, its loss, targets and places as numbers (nan where empty).

    Raises:
        DataError: if it has no such numbers, or lacks one of these columns, of `dataset` or of `further`.
    """
    numbers = (*PLACE_COLUMNS, "loss", "targets")
    try:
        rows: list[dict[str, Any]] = read_csv(path)
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not a CSV file of this program ({e})") from None
    missing = [column for column in (*numbers, "dataset", *further) if rows and column not in rows[0]]
    if missing:
        raise DataError(f"{path} is not a CSV file of this program: it lacks the columns {', '.join(missing)}")
    for line, row in enumerate(rows, start=2):
        try:
            row.update({column: float(row[column] or "nan") for column in numbers})
        except ValueError as e:
            raise DataError(f"{path}, line {line}: {e}") from None
    return rows


def _label(folder: Path) -> str:
    """The folder's name, and what the run continued if its run.yaml says so."""
    import yaml

    name = folder.resolve().name
    try:
        options = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))["options"]
        base = Path(options["checkpoint_dir"]).name
        if options.get("model_config"):
            return f"{name} (from scratch)"
        return f"{name} (LoRA on {base})" if options["use_lora"] else f"{name} (from {base})"
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return name  # run.yaml only adds to the legend


def make_curves(rows: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """One curve per dataset."""
    of_dataset: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_dataset.setdefault(row["dataset"], []).append(row)
    return {dataset: make_curve(members) for dataset, members in of_dataset.items()}


def make_curve(rows: Sequence[dict[str, Any]]) -> Curve:
    """The finite losses by step; where a step comes twice (a run was resumed), the later line counts."""
    of_step = {row["step"]: row for row in rows}
    kept = [of_step[step] for step in sorted(of_step) if np.isfinite(of_step[step]["loss"])]

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in kept], dtype=np.float64)

    places = {axis: column(name) / units for axis, (name, units, _) in AXES.items()}
    return Curve(places, column("loss"), column("targets"))


def find_best(folder: Path, valid: dict[str, Curve], offline: dict[str, Curve]) -> Best | None:
    """The checkpoint that every command takes when given the run folder; None if none was validated."""
    from utils.run.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    checkpoint = best_checkpoint(folder, checkpoints)
    for curves in (valid, offline):
        curve = curves.get(ALL, make_curve([]))
        for index in np.flatnonzero(curve.places["batches"] == int(checkpoint.name.removeprefix("step-"))):
            return Best(checkpoint, {axis: float(curve.places[axis][index]) for axis in AXES}, float(curve.loss[index]))
    return None


def smooth(loss: np.ndarray, targets: np.ndarray, width: int) -> np.ndarray:
    """The mean loss per target over `width` points centred on each point, fewer at the two ends."""
    sums, counts = (np.concatenate([[0.0], np.cumsum(values)]) for values in (loss * targets, targets))
    index = np.arange(len(loss))
    first, end = np.maximum(index - (width - 1) // 2, 0), np.minimum(index + width // 2 + 1, len(loss))
    return (sums[end] - sums[first]) / (counts[end] - counts[first])


# Drawing


def draw(runs: Sequence[Run], options: PlotOptions) -> Figure:
    """The figure, 15 inches wide (1500 pixels as PNG)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    several = len(runs) > 1
    names = sorted({name for run in runs for name in run.datasets}) if options.datasets else []
    second_panel = bool(names) and (several or len(names) > MAX_DATASETS_BESIDE)
    with rc_context(STYLE):
        figure = Figure(figsize=(15, 14 if second_panel else 9), dpi=100, layout="constrained")
        panels = figure.subplots(2 if second_panel else 1, 1, sharex=True, squeeze=False)[:, 0]
        for run, colour in zip(runs, run_colours(len(runs)), strict=True):
            draw_run(panels[0], run, colour, options)
        for panel in panels:
            panel.set_ylabel("loss (nats per token)")
            format_places(panel.xaxis, options.x_axis)
        if names:
            draw_datasets(panels[-1], runs, names, options)
        panels[0].set_ylim(options.min_loss, options.max_loss)
        panels[-1].set_xlabel(AXES[options.x_axis][2])
        draw_legend(panels[0], runs)
        if not several:
            name_best(panels[0], runs[0], options.x_axis)
            draw_other_units(panels[0], runs[0], options.x_axis)
            figure.suptitle(runs[0].label)
    return figure


def run_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return list(COLOURS[:count]) if count <= len(COLOURS) else list(colormaps["turbo"](np.linspace(0, 1, count)))


def draw_run(panel: Axes, run: Run, colour: Any, options: PlotOptions) -> None:
    """The training loss, faint and smoothed, the validation losses over all datasets, and the best checkpoint."""
    train, axis = run.train, options.x_axis
    width = options.smoothing or max(1, len(train.loss) // 50)
    panel.plot(train.places[axis], train.loss, color=colour, alpha=0.2, linewidth=0.8)
    smoothed = smooth(train.loss, train.targets, width)
    panel.plot(train.places[axis], smoothed, color=colour, **LOOKS["training, smoothed"])
    for curves, look in ((run.valid, "validation while training"), (run.offline, "validate_pretrain.py")):
        if ALL in curves:
            panel.plot(curves[ALL].places[axis], curves[ALL].loss, color=colour, zorder=4, **LOOKS[look])
    if run.best:
        panel.plot(run.best.places[axis], run.best.loss, color=colour, zorder=6, **LOOKS["best checkpoint"])


def draw_legend(panel: Axes, runs: Sequence[Run]) -> None:
    """What the lines are, and of several runs the colour and the best checkpoint."""
    from matplotlib.lines import Line2D

    shown = {
        "training, smoothed": any(len(run.train.loss) for run in runs),
        "validation while training": any(run.valid for run in runs),
        "validate_pretrain.py": any(run.offline for run in runs),
        "best checkpoint": any(run.best for run in runs),
    }
    colours = run_colours(len(runs))
    of_all = colours[0] if len(runs) == 1 else "dimgray"
    handles = [Line2D([], [], color=of_all, label=look, **LOOKS[look]) for look in shown if shown[look]]
    for run, colour in zip(runs, colours, strict=True) if len(runs) > 1 else ():
        best = f", best {run.best.loss:.4g} at step {run.best.step:,}" if run.best else ""
        handles.append(Line2D([], [], color=colour, linewidth=6, label=run.label + best))
    panel.legend(handles=handles, loc="upper right")


def name_best(panel: Axes, run: Run, axis: str) -> None:
    if run.best:
        place = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center", "va": "top", "zorder": 7}
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "lightgray", "alpha": 0.9}
        text = f"step {run.best.step:,}, loss {run.best.loss:.4g}"
        panel.annotate(text, (run.best.places[axis], run.best.loss), bbox=box, **place)


def draw_datasets(panel: Axes, runs: Sequence[Run], names: Sequence[str], options: PlotOptions) -> None:
    """Thin validation curves, named at their ends: a colour per dataset, or one per run where there are several."""
    several, ends = len(runs) > 1, {}
    for run, run_colour in zip(runs, run_colours(len(runs)), strict=True):
        for index, name in enumerate(names):
            # With one run its colour, the first, is not used again: 7 colours × 4 lines.
            color = run_colour if several else COLOURS[1 + index % (len(COLOURS) - 1)]
            line = LINES[(index if several else index // (len(COLOURS) - 1)) % len(LINES)]
            look = {"color": color, "linewidth": 1.1, "alpha": 0.8, "markersize": 4}
            for curves, style, marker in ((run.valid, line, ""), (run.offline, "none", "D")):
                if name in curves and len(curves[name].loss):
                    x, y = curves[name].places[options.x_axis], curves[name].loss
                    panel.plot(x, y, linestyle=style, marker=marker, **look)
                    ends[name] = max(ends.get(name, (-1.0,)), (x[-1], y[-1], "black" if several else color))
    panel.set_ylim(options.min_loss, options.max_loss)
    name_ends(panel, ends)


def name_ends(panel: Axes, ends: dict[str, tuple[float, float, Any]]) -> None:
    """Writes each name to the right of the panel, beside its curve's end (x, y, colour), none over another."""
    low, high = panel.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = spread([(ends[name][1] - low) / (high - low) for name in names], gap=min(0.027, 1 / max(1, len(names))))
    for name, height in zip(names, heights, strict=True):
        x, y, color = ends[name]
        arrow = {"arrowstyle": "-", "color": color, "alpha": 0.4, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        place = {"xytext": (1.015, height), "textcoords": "axes fraction", "va": "center", "fontsize": 10}
        panel.annotate(name, (x, y), color=color, arrowprops=arrow, **place)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` in [0, 1], moved as little as it takes for neighbours to be `gap` apart where that fits."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else max(0.0, height))
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def draw_other_units(panel: Axes, run: Run, x_axis: str) -> None:
    """One axis above the panel for each other unit that grows with the drawn one, as far as the training went."""
    places = run.train.places
    low, high = panel.get_xlim()
    for index, axis in enumerate(axis for axis in AXES if axis != x_axis):
        functions = conversion(places[x_axis], places[axis])
        if functions is None:
            continue
        height = 1.0 + 0.055 * index
        above = panel.secondary_xaxis(height, functions=functions)
        above.set_ticks(tick_values(places[axis][-1], functions[1], 0.04 * (high - low)))
        above.tick_params(labelsize=10, pad=1)
        format_places(above.xaxis, axis)
        place = {"xytext": (-6, 10), "textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 10}
        panel.annotate(AXES[axis][2], (0, height), xycoords="axes fraction", **place)


def tick_values(last: float, to_panel: Callable[[float], float], gap: float) -> list[float]:
    """Round values from 0 to `last` that lie at least `gap` apart in the panel."""
    from matplotlib.ticker import MaxNLocator

    kept: list[float] = []
    for value in MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(0, last):
        if value <= last and (not kept or to_panel(value) - to_panel(kept[-1]) >= gap):
            kept.append(float(value))
    return kept


def conversion(x: np.ndarray, y: np.ndarray) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """x → y and y → x, linear from (0, 0) through the points and beyond them; None unless both grow."""
    x, y = np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
    if np.any(np.diff(x) < 0) or np.any(np.diff(y) < 0) or x[-1] == 0 or y[-1] == 0:
        return None
    grows = np.concatenate([[True], (np.diff(x) > 0) & (np.diff(y) > 0)])
    # The panel is wider than the curve: beyond it, as much again on both sides.
    x, y = (np.concatenate([[-values[-1]], values[grows], [2 * values[-1]]]) for values in (x, y))
    return (lambda values: np.interp(values, x, y)), (lambda values: np.interp(values, y, x))


def format_places(axis: Any, unit: str) -> None:
    """Ticks such as 500k, 2M and 1.5B for counts; hours stay as they are."""
    if "hours" not in unit:
        axis.set_major_formatter(lambda value, _: short_count(value))


def short_count(value: float) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}"


# Results


def save(figure: Figure, output: Path) -> None:
    """Writes the figure; the same curves give the same bytes, as no date goes into them."""
    from matplotlib import rc_context

    dates = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with rc_context(STYLE):
        figure.savefig(output, metadata=dates[output.suffix.lower()])


def summary(runs: Sequence[Run]) -> str:
    """A table with a line per run."""
    header = ("run", "steps", "tokens", "first", "last", "best", "best checkpoint")
    lines = [header]
    for run in runs:
        curves = [curve for curve in (run.train, *run.valid.values(), *run.offline.values()) if len(curve.loss)]
        steps, tokens = (max((curve.places[axis][-1] for curve in curves), default=0) for axis in ("batches", "tokens"))
        online = run.valid.get(ALL) or run.offline.get(ALL)
        losses = [f"{online.loss[i]:.4f}" for i in (0, -1)] if online and len(online.loss) else ["-", "-"]
        best = (f"{run.best.loss:.4f}", str(run.best.checkpoint)) if run.best else ("-", "none validated")
        lines.append((run.label, f"{steps:,.0f}", f"{tokens:,.0f}", *losses, *best))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:6], widths[1:6]), line[6]] for line in lines]
    return "\n".join("  ".join(cells) for cells in aligned)


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(PlotOptions)))
