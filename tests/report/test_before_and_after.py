"""What a card and a report say of a model's ends: figures of the run's files, written down by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plot_convergence_curves import told_endings
from utils.report.before_and_after import endings, sample_before_and_after
from utils.report.curves import read_curves
from utils.run.samples_file import SAMPLES
from utils.train.metrics import METRIC_COLUMNS


def write_metrics(run_dir: Path, *rows: dict[str, object], columns: tuple[str, ...] = METRIC_COLUMNS) -> None:
    lines = [",".join(columns), *(",".join(str(row.get(column, "")) for column in columns) for row in rows)]
    (run_dir / "metrics.csv").write_text("\n".join(lines) + "\n")


def valid(step: int, dataset: str = "all", **more: object) -> dict[str, object]:
    where = {"step": step, "samples": step, "tokens": step, "seconds": step, "device_seconds": step}
    return {**where, "split": "valid", "dataset": dataset, "loss": 5 - step / 4, "targets": 7} | more


def test_figures_of_ends_stand_beside_each_other(tmp_path: Path) -> None:
    before = {"end_at_ends": 0.00123, "end_inside": 0.002, "samples_ended": 0.0}
    after = {"end_at_ends": 0.987, "end_inside": 0.00001, "samples_ended": 0.75}
    write_metrics(tmp_path, valid(0, **before), valid(4, "A", end_at_ends=0.5), valid(4, **after))
    assert endings(tmp_path, 0, 4) == [
        ("Validation loss", "5.0000", "4.0000"),
        ("Probability of an end where answers end", "0.12%", "98.70%"),
        ("Probability of an end inside answers", "0.200%", "0.001%"),
        ("Sampled continuations that ended by themselves", "0%", "75%"),
    ]


def test_text_without_ends_and_runs_of_older_versions_have_no_such_figures(tmp_path: Path) -> None:
    write_metrics(tmp_path, valid(0), valid(4))
    assert endings(tmp_path, 0, 4) == []
    write_metrics(tmp_path, valid(0), valid(4), columns=METRIC_COLUMNS[:10])
    assert endings(tmp_path, 0, 4) == []
    # without rows to validate on, there is the share alone
    nothing = {"loss": "nan", "targets": 0}
    write_metrics(tmp_path, valid(0, **nothing, samples_ended=0.5), valid(4, **nothing, samples_ended=1.0))
    assert endings(tmp_path, 0, 4) == [("Sampled continuations that ended by themselves", "50%", "100%")]


def test_the_command_that_draws_curves_tells_them(tmp_path: Path) -> None:
    figures = {"end_at_ends": 0.25, "end_inside": 0.5}
    write_metrics(tmp_path, valid(0, **figures), valid(2), valid(4, **figures | {"end_at_ends": 0.75}))
    run = read_curves(tmp_path)
    assert told_endings(tmp_path, run)[1] == f"{run.label}: Probability of an end where answers end: 25.00% → 75.00%"

    # without rows to validate on there are continuations all the same
    nothing = {"loss": "nan", "targets": 0}
    write_metrics(tmp_path, valid(0, **nothing, samples_ended=0.5), valid(4, **nothing, samples_ended=1.0))
    run = read_curves(tmp_path)
    told = told_endings(tmp_path, run)
    assert told == [f"{run.label}: Sampled continuations that ended by themselves: 50% → 100%"]
    write_metrics(tmp_path, {**valid(4), "split": "train", "dataset": ""})
    assert told_endings(tmp_path, read_curves(tmp_path)) == []


def write_samples(run_dir: Path, *records: dict[str, object]) -> None:
    (run_dir / SAMPLES).write_text("".join(json.dumps(record) + "\n" for record in records))


def sample(step: int, text: str, ended: bool, number: int = 1, asked: object = "Bonjour") -> dict[str, object]:
    return {"step": step, "number": number, "asked": asked, "text": text, "tokens": len(text), "ended": ended}


def test_the_first_prompt_is_shown_with_what_came_before_and_after(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "Repeat 12"}]
    others = [sample(step, "other", True, number=2) for step in (0, 4)]
    first, last = sample(0, "```\n# no", False, asked=asked), sample(4, "1", True, asked=asked)
    write_samples(tmp_path, first, others[0], sample(2, "no", True, asked=asked), last, others[1])
    assert sample_before_and_after(tmp_path, 4) == (
        "A prompt:\n\n```text\n[system] S\n[user] Repeat 12\n```\n\n"
        "Before training (cut after 8 tokens):\n\n````text\n```\n# no\n````\n\n"
        "At step 4 (ended by itself after 1 token):\n\n```text\n1\n```"
    )


@pytest.mark.parametrize("steps", [[], [0], [4], [0, 8]])
def test_without_both_there_is_no_sample(tmp_path: Path, steps: list[int]) -> None:
    write_samples(tmp_path, *(sample(step, "a", True) for step in steps))
    assert sample_before_and_after(tmp_path, 4) is None and sample_before_and_after(tmp_path, 0) is None
