"""Figures of convergence: of one or several runs for plot_convergence_curves.py, and a small one for a model card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import XAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.report.curves import AXES, RunCurves, read_losses, smooth, split_metrics
from utils.report.options import PlotOptions
from utils.run.csv_log import ALL, METRICS

# Okabe and Ito's (2008), told apart with any colour vision, without yellow, and a grey and a brown; black is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B")
LINES = ("-", "--", "-.", ":")
LOSS_LABEL = "loss (nats per token)"
_MARK = {"markeredgecolor": "white", "linewidth": 1.2, "markersize": 8}
LOOKS: dict[str, dict[str, Any]] = {
    "training, smoothed": {"linewidth": 1.8, "alpha": 0.8},
    "validation while training": {"linestyle": "--", "marker": "o", **_MARK},
    "validate_pretrain.py": {"linestyle": ":", "marker": "D", **_MARK},
    "best checkpoint": {"linestyle": "none", "marker": "*", "markersize": 22, "markeredgecolor": "black"},
}
FAINT = {"alpha": 0.2, "linewidth": 0.8}
STYLE = {
    "font.size": 12,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.framealpha": 0.9,
    "text.parse_math": False,  # a `$` in a name is a dollar
    "svg.hashsalt": "convergence",  # otherwise an SVG's ids are random
}


def draw(runs: Sequence[RunCurves], options: PlotOptions) -> Figure:
    """Draws one or several runs, 15 inches wide (1500 pixels as PNG)."""
    several = len(runs) > 1
    names = sorted({name for run in runs for name in run.datasets}) if options.datasets else []
    second_panel = bool(names) and (several or len(names) > 8)  # more curves would hide the training loss
    with rc_context(STYLE):
        figure = Figure(figsize=(15, 14 if second_panel else 9), dpi=100, layout="constrained")
        panels = figure.subplots(2 if second_panel else 1, 1, sharex=True, squeeze=False)[:, 0]
        for run, colour in zip(runs, run_colours(len(runs)), strict=True):
            draw_run(panels[0], run, colour, options)
        for panel in panels:
            panel.set_ylabel(LOSS_LABEL)
            format_counts(panel.xaxis, options.x_axis)
        if names:
            draw_datasets(panels[-1], runs, names, options)
        panels[0].set_ylim(options.min_loss, options.max_loss)
        panels[-1].set_xlabel(AXES[options.x_axis].label)
        draw_legend(panels[0], runs)
        if not several:
            name_best(panels[0], runs[0], options.x_axis)
            draw_other_units(panels[0], runs[0], options.x_axis)
            figure.suptitle(runs[0].label)
    return figure


def draw_for_card(run_dir: Path, step: int | None) -> Figure | None:
    """Draws a run's losses over training tokens, and where `step` is; None if there are too few to draw."""
    train, validations = split_metrics(read_losses(run_dir / METRICS, "split"))
    valid = validations.get(ALL, train[:0])
    if max(len(train), len(valid)) < 2:
        return None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    panel = figure.subplots()
    if len(train) > 1:
        width = max(1, len(train) // 50)
        smoothed = train.loss.rolling(width).mean()[width - 1 :]
        panel.plot(train.tokens, train.loss, color=COLOURS[0], **FAINT)
        label = f"training, mean over {width} step(s)"
        panel.plot(train.tokens[width - 1 :], smoothed, color=COLOURS[0], label=label)
    if len(valid):
        panel.plot(valid.tokens, valid.loss, color=COLOURS[1], marker="o", linestyle="--", label="validation")
    both = pd.concat([train, valid])
    for tokens in both.tokens[both.batches == step].unique():
        panel.axvline(tokens, color="dimgray", linestyle=":", label="this model")
    panel.set(xlabel=AXES["tokens"].label, ylabel=LOSS_LABEL)
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def save(figure: Figure, output: Path) -> None:
    """Writes the figure without a date: the same curves give the same bytes."""
    metadata = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with rc_context(STYLE):
        figure.savefig(output, metadata=metadata[output.suffix.lower()])


def run_colours(count: int) -> list[Any]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return list(colormaps["turbo"](np.linspace(0, 1, count)))


def draw_run(panel: Axes, run: RunCurves, colour: Any, options: PlotOptions) -> None:
    """Draws the training loss, faint and smoothed, the validation losses over all datasets, and the best checkpoint."""
    train, axis = run.train, options.x_axis
    width = options.smoothing or max(1, len(train) // 50)
    panel.plot(train[axis], train.loss, color=colour, **FAINT)
    smoothed = smooth(train.loss, train.targets, width)
    panel.plot(train[axis], smoothed, color=colour, **LOOKS["training, smoothed"])
    for curves, look in ((run.valid, "validation while training"), (run.offline, "validate_pretrain.py")):
        if ALL in curves:
            panel.plot(curves[ALL][axis], curves[ALL].loss, color=colour, zorder=4, **LOOKS[look])
    if run.best:
        panel.plot(run.best.reached[axis], run.best.loss, color=colour, zorder=6, **LOOKS["best checkpoint"])


def draw_legend(panel: Axes, runs: Sequence[RunCurves]) -> None:
    """Names the kinds of lines, and for several runs each one's colour and best checkpoint."""
    shown = {
        "training, smoothed": any(len(run.train) for run in runs),
        "validation while training": any(run.valid for run in runs),
        "validate_pretrain.py": any(run.offline for run in runs),
        "best checkpoint": any(run.best for run in runs),
    }
    several = len(runs) > 1
    colours = run_colours(len(runs))
    any_colour = "dimgray" if several else colours[0]
    handles = [Line2D([], [], color=any_colour, label=look, **LOOKS[look]) for look in shown if shown[look]]
    for run, colour in zip(runs, colours, strict=True) if several else ():
        best = f", best {run.best.loss:.4g} at step {run.best.step:,}" if run.best else ""
        handles.append(Line2D([], [], color=colour, linewidth=6, label=run.label + best))
    panel.legend(handles=handles, loc="upper right")


def name_best(panel: Axes, run: RunCurves, axis: str) -> None:
    if run.best:
        below = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center", "va": "top", "zorder": 7}
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "lightgray", "alpha": 0.9}
        text = f"step {run.best.step:,}, loss {run.best.loss:.4g}"
        panel.annotate(text, (run.best.reached[axis], run.best.loss), bbox=box, **below)


def draw_datasets(panel: Axes, runs: Sequence[RunCurves], names: Sequence[str], options: PlotOptions) -> None:
    """Draws thin validation curves, named at their ends: a colour per dataset, or one per run if there are several."""
    several = len(runs) > 1
    ends: dict[str, tuple[float, float, Any]] = {}
    for run, run_colour in zip(runs, run_colours(len(runs)), strict=True):
        for index, name in enumerate(names):
            colour, line = run_colour, LINES[index % len(LINES)]
            if not several:
                # the run's colour, the first, is not used again: 7 colours × 4 lines
                repeated, number = divmod(index, len(COLOURS) - 1)
                colour, line = COLOURS[1 + number], LINES[repeated % len(LINES)]
            look = {"color": colour, "linewidth": 1.1, "alpha": 0.8, "markersize": 4}
            for curves, style, marker in ((run.valid, line, ""), (run.offline, "none", "D")):
                curve = curves.get(name)
                if curve is None or curve.empty:
                    continue
                panel.plot(curve[options.x_axis], curve.loss, linestyle=style, marker=marker, **look)
                end = (curve[options.x_axis].iloc[-1], curve.loss.iloc[-1], "black" if several else colour)
                ends[name] = max(ends.get(name, end), end)
    panel.set_ylim(options.min_loss, options.max_loss)
    name_ends(panel, ends)


def name_ends(panel: Axes, ends: dict[str, tuple[float, float, Any]]) -> None:
    """Writes each name to the right of the panel, beside its curve's end (x, y, colour), none over another."""
    low, high = panel.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][1])
    gap = min(0.027, 1 / max(1, len(names)))
    heights = spread([(ends[name][1] - low) / (high - low) for name in names], gap)
    for name, height in zip(names, heights, strict=True):
        x, y, colour = ends[name]
        arrow = {"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        beside = {"xytext": (1.015, height), "textcoords": "axes fraction", "va": "center", "fontsize": 10}
        panel.annotate(name, (x, y), color=colour, arrowprops=arrow, **beside)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` in [0, 1], moved as little as it takes for neighbours to be `gap` apart where that fits."""
    moved: list[float] = []
    floor = 0.0
    for height in heights:
        moved.append(max(height, floor))
        floor = moved[-1] + gap
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def draw_other_units(panel: Axes, run: RunCurves, x_axis: str) -> None:
    """Draws an axis above the panel for each other unit that grows with the drawn one, as far as the training went."""
    low, high = panel.get_xlim()
    for index, axis in enumerate(axis for axis in AXES if axis != x_axis):
        functions = conversion(run.train[x_axis], run.train[axis])
        if functions is None:
            continue
        height = 1.0 + 0.055 * index
        above = panel.secondary_xaxis(height, functions=functions)
        above.set_ticks(tick_values(run.train[axis].iloc[-1], functions[1], 0.04 * (high - low)))
        above.tick_params(labelsize=10, pad=1)
        format_counts(above.xaxis, axis)
        left = {"xytext": (-6, 10), "textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 10}
        panel.annotate(AXES[axis].label, (0, height), xycoords="axes fraction", **left)


def tick_values(last: float, to_panel: Callable[[float], float], gap: float) -> list[float]:
    """Round values from 0 to `last` that are at least `gap` apart in the panel."""
    kept: list[float] = []
    for value in MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(0, last):
        if value <= last and (not kept or to_panel(value) - to_panel(kept[-1]) >= gap):
            kept.append(float(value))
    return kept


def conversion(x: Sequence[float], y: Sequence[float]) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """x → y and y → x, linear from (0, 0) through the points and beyond them; None unless both grow."""
    x, y = np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
    x_steps, y_steps = np.diff(x), np.diff(y)
    if np.any(x_steps < 0) or np.any(y_steps < 0) or x[-1] == 0 or y[-1] == 0:
        return None
    grows = np.concatenate([[True], (x_steps > 0) & (y_steps > 0)])
    # The panel is wider than the curve: beyond it, as much again on both sides.
    x = np.concatenate([[-x[-1]], x[grows], [2 * x[-1]]])
    y = np.concatenate([[-y[-1]], y[grows], [2 * y[-1]]])
    return (lambda values: np.interp(values, x, y)), (lambda values: np.interp(values, y, x))


def format_counts(axis: XAxis, unit: str) -> None:
    if "hours" not in unit:
        axis.set_major_formatter(lambda value, _: short_count(value))


def short_count(value: float) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}"
