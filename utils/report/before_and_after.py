"""A model before and after its training: what was measured of it, and what it went on with."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from utils.report.markdown import fenced
from utils.run.csv_log import ALL, ENDING_COLUMNS, METRICS, VALIDATION, read_csv
from utils.run.samples_file import read_samples

_FIGURES = (
    ("Validation loss", "loss", "{:.4f}"),
    ("Probability of an end where answers end", "end_at_ends", "{:.2%}"),
    ("Probability of an end inside answers", "end_inside", "{:.3%}"),
    ("Sampled continuations that ended by themselves", "samples_ended", "{:.0%}"),
)


def validations(run_dir: Path, step: int) -> pd.DataFrame:
    """The lines of the validations in metrics.csv, or where it has none at this step, of those in validation.csv."""
    metrics = _read(run_dir / METRICS)
    rows = metrics[metrics["split"] == "valid"]
    return rows if (rows["step"] == step).any() else _read(run_dir / VALIDATION)


def _read(path: Path) -> pd.DataFrame:
    """For a dataset measured twice at a step, the later line counts."""
    columns = ["split", "step", "dataset", "loss", "targets", *ENDING_COLUMNS]
    rows = pd.DataFrame(read_csv(path), columns=columns)
    rows["step"] = rows["step"].astype(int)
    return rows.drop_duplicates(["split", "step", "dataset"], keep="last")


def validated_steps(run_dir: Path) -> list[int]:
    """The steps at which the training made a validation."""
    return sorted({int(row["step"]) for row in read_csv(run_dir / METRICS) if row["split"] == "valid"})


def endings(run_dir: Path, first: int, last: int) -> list[tuple[str, str, str]]:
    """Figures over all datasets at two steps, each with what it is; none for a run that has none about ends."""
    rows = validations(run_dir, last)
    found = [_of_all(rows, step) for step in (first, last)]
    if not any(name in figures for figures in found for name in ENDING_COLUMNS):
        return []
    lines = []
    for label, name, form in _FIGURES:
        before, after = (form.format(figures[name]) if name in figures else "" for figures in found)
        if before or after:
            lines.append((label, before, after))
    return lines


def _of_all(rows: pd.DataFrame, step: int) -> dict[str, float]:
    """The figures over all datasets that were measured at a step."""
    figures = {}
    for row in rows[(rows["step"] == step) & (rows["dataset"] == ALL)].to_dict("records"):
        for _, name, _ in _FIGURES:
            value = float(row[name] or "nan")  # an older version did not measure it, or there was nothing to measure
            if math.isfinite(value):
                figures[name] = value
    return figures


def sample_before_and_after(run_dir: Path, step: int) -> str | None:
    """The first prompt of --sample_prompts, and how it was gone on with before the training and at `step`."""
    samples = [sample for sample in read_samples(run_dir) if sample["number"] == 1]
    by_step = {sample["step"]: sample for sample in samples}
    if step == 0 or not {0, step} <= by_step.keys():
        return None
    asked = by_step[0]["asked"]
    if not isinstance(asked, str):
        asked = "\n".join(f"[{message['role']}] {message['content']}" for message in asked)
    blocks = ["A prompt:", fenced(asked)]
    for when, sample in (("Before training", by_step[0]), (f"At step {step:,}", by_step[step])):
        blocks += [f"{when} ({_how(sample)}):", fenced(sample["text"])]
    return "\n\n".join(blocks)


def _how(sample: dict[str, Any]) -> str:
    tokens = f"{sample['tokens']:,} token{'s' * (sample['tokens'] != 1)}"
    return f"ended by itself after {tokens}" if sample["ended"] else f"cut after {tokens}"
