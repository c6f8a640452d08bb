"""The tables of a model card in Markdown: the data, the hyper-parameters and the validation losses of a run."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from utils.run.csv_log import ALL, METRICS, VALIDATION, read_csv

HYPERPARAMETERS = (
    ("Optimiser steps", "{step:,} of {steps:,} planned"),
    ("Tokens predicted", "{tokens:,}"),
    ("Samples per step", "{samples_per_step:,} of {window:,} tokens"),
    ("Learning rate", "{learning_rate} at most, {lr_schedule} schedule, {warmup_steps} steps of warm-up"),
    ("Optimiser", "AdamW, betas {beta1} and {beta2}, weight decay {weight_decay} on matrices"),
    ("Largest gradient norm", "{grad_clip} (0: not clipped)"),
    ("Precision", "{precision}"),
    ("LoRA", "rank {r}, alpha {alpha}, dropout {dropout}; on {adapted}"),
    ("Base quantised in training", "{quantize}"),
    ("Documents masked from each other", "{mask_documents}"),
    ("Seed", "{seed}"),
    ("Software", "torch {torch}, litgpt {litgpt}"),
)
"""The lines of the table: a name, and fields of run.yaml and of the checkpoint's counters as they are written."""


def data_table(rows: Sequence[dict[str, str]]) -> str | None:
    """The datasets in mixture.csv and their sum; shares and passes as made if the run has ended, else as planned."""
    if not rows:
        return None
    mixture = pd.DataFrame(rows)
    counts = mixture[["documents", "words", "tokens", "rows"]].astype(int)
    shares = made_or_planned(mixture, "achieved_share", "share").astype(float)
    passes = made_or_planned(mixture, "passes", "planned_passes").astype(float)
    shown = pd.DataFrame({"Dataset": mixture["dataset"], "Language": mixture["language"]})
    for name in ("documents", "words", "tokens"):
        shown[name.capitalize()] = counts[name].map("{:,}".format)
    shown["Share of samples"] = shares.map("{:.2%}".format)
    shown["Passes"] = passes.map("{:.2f}".format)
    lines = shown.to_numpy().tolist()
    if len(rows) > 1:
        sums = counts.sum()
        samples = made_or_planned(mixture, "samples", "planned_samples").astype(int).sum()
        words = [f"{sums[name]:,}" for name in ("documents", "words", "tokens")]
        lines.append(["all", "", *words, "100.00%", f"{samples / sums['rows']:.2f}"])
    return table(list(shown), lines)


def made_or_planned(mixture: pd.DataFrame, made: str, planned: str) -> pd.Series:
    """The column `made`, and `planned` where a run that still trains has left it empty."""
    return mixture[made].where(mixture[made] != "", mixture[planned])


def hyperparameters(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """What makes the training what it is, with units, as far as it is known; the provenance has all of the options."""
    lora = provenance.get("lora") or {}
    values = dict(provenance)
    for name in ("options", "schedule", "versions"):
        values |= provenance.get(name) or {}
    values |= lora
    values = {name: value for name, value in values.items() if value is not None}
    if lora:
        values["adapted"] = ", ".join(name for name, value in lora.items() if value is True)
    rows = []
    for name, form in HYPERPARAMETERS:
        fields = re.findall(r"\{(\w+)", form)
        if all(field in values for field in fields):
            rows.append((name, form.format_map(values)))
    return rows


def evaluation_table(run_dir: Path, step: int) -> str | None:
    """The validation losses of `step` per dataset, beside those before the training where they were measured.

    They are those of metrics.csv; where it has none at this step, the newest of validation.csv.
    """
    metrics = read_validations(run_dir / METRICS)
    rows = metrics[metrics["split"] == "valid"]
    if not (rows["step"] == step).any():
        rows = read_validations(run_dir / VALIDATION)
    before = rows[rows["step"] == 0].set_index("dataset")["loss"].astype(float)
    after = rows[rows["step"] == step].set_index("dataset")
    names = sorted(after.index, key=lambda name: (name == ALL, name))
    if len(names) == 2:  # one dataset and, of the same loss, all
        names.remove(ALL)
    lines = []
    for name in names:
        loss, targets = float(after["loss"][name]), int(after["targets"][name])
        first = f"{before[name]:.4f}" if step and name in before else ""
        perplexity = math.exp(min(loss, 700))  # beyond, it is no float64 any more
        lines.append((name, first, f"{loss:.4f}", f"{perplexity:,.2f}", f"{targets:,}"))
    return table(("Dataset", "Loss before training", "Loss", "Perplexity", "Tokens predicted"), lines)


def read_validations(path: Path) -> pd.DataFrame:
    """The lines of metrics.csv or validation.csv; for a dataset measured twice at a step, the later line counts."""
    rows = pd.DataFrame(read_csv(path), columns=["split", "step", "dataset", "loss", "targets"])
    rows["step"] = rows["step"].astype(int)
    return rows.drop_duplicates(["split", "step", "dataset"], keep="last")


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str | None:
    """A Markdown table; None without rows. Columns in which every cell is empty are left out."""
    cells = pd.DataFrame([[cell(value) for value in row] for row in rows], columns=list(titles))
    cells = cells.loc[:, (cells != "").any()]
    if cells.empty:
        return None
    lines = [list(cells), ["---"] * cells.shape[1], *cells.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value as text of one line that neither ends a table's cell nor is HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
