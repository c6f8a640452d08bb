from __future__ import annotations

import csv
import random
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plot_convergence_curves import main, summary
from tests.conftest import run_command
from utils import cli
from utils.report import figures
from utils.report.curves import read_curves, smooth
from utils.report.options import PlotOptions

METRICS = (
    "step,samples,tokens,seconds,device_seconds,split,dataset,loss,targets,learning_rate,grad_norm,tokens_per_second"
)
VALIDATION = "checkpoint,step,samples,tokens,seconds,device_seconds,dataset,loss,targets,max_samples,data"
UNITS = {"batches": 1, "sequences": 4, "tokens": 2000, "hours": 1.5 / 3600, "device_hours": 3 / 3600}


def place(step: int) -> dict[str, float]:
    return {
        "step": step,
        "samples": 4 * step,
        "tokens": 2000 * step,
        "seconds": 1.5 * step,
        "device_seconds": 3.0 * step,
    }


def write_csv(path: Path, header: str, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header.split(","), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_run(
    folder: Path,
    datasets: tuple[str, ...] = ("FR/Théâtre", "EN/Plays"),
    steps: int = 30,
    every: int = 10,
    offline: bool = False,
    seed: int = 0,
) -> Path:
    """A run of `steps` steps that validated, and saved, every `every` steps."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    rows, later = [], []
    for step in range(steps + 1):
        if step:
            loss = 3 - step / max(1, steps) + draw.gauss(0, 0.2)
            rows.append({**place(step), "split": "train", "loss": loss, "targets": 500, "learning_rate": 1e-4})
        if step % every:
            continue
        for name in (*datasets, "all"):
            loss = 3 - step / max(1, steps) + draw.gauss(0, 0.2)
            rows.append({**place(step), "split": "valid", "dataset": name, "loss": loss, "targets": 100})
            later.append(
                {**place(step), "checkpoint": f"step-{step:08d}", "dataset": name, "targets": 1000, "data": "f"}
            )
            later[-1]["loss"] = loss + draw.gauss(0.1, 0.2)
        if step:
            checkpoint = folder / "checkpoints" / f"step-{step:08d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "SHA256SUMS").write_text("0  state.json\n")
    write_csv(folder / "metrics.csv", METRICS, rows)
    if offline:
        write_csv(folder / "validation.csv", VALIDATION, [row for row in later if row["step"]])
    return folder


def leave_validation_out(run: Path) -> None:
    lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(line for line in lines if ",valid," not in line))


def run_main(*argv: object) -> int:
    return run_command(PlotOptions, main, [str(word) for word in argv])


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


# Figures


def test_one_run_is_drawn_into_its_folder(tmp_path, capsys):
    run = make_run(tmp_path / "run", offline=True)
    assert run_main(run) == cli.OK
    assert png_size(run / "convergence.png")[0] == 1500
    assert f"wrote {run / 'convergence.png'}" in capsys.readouterr().out


def test_several_runs_are_drawn_into_one_figure(tmp_path):
    runs = [make_run(tmp_path / f"run{seed}", seed=seed, offline=seed == 1, steps=20 * seed + 20) for seed in range(3)]
    assert run_main(*runs, "--output", tmp_path / "all.png") == cli.OK
    width, height = png_size(tmp_path / "all.png")
    assert width == 1500 and height > 1000


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_runs_give_the_same_bytes(tmp_path, suffix):
    run = make_run(tmp_path / "run", offline=True)
    for name in ("a", "b"):
        assert run_main(run, "--output", tmp_path / f"{name}.{suffix}") == cli.OK
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("x_axis", figures.AXES)
def test_every_axis(tmp_path, x_axis):
    run = read_curves(make_run(tmp_path / "run", offline=True))
    figure = figures.draw([run], PlotOptions([tmp_path / "run"], x_axis=x_axis))
    panel = figure.axes[0]
    assert panel.get_xlabel() == figures.AXES[x_axis][2]
    smoothed = panel.lines[1]
    np.testing.assert_allclose(smoothed.get_xdata(), np.arange(1, 31) * UNITS[x_axis])
    shown_above = {text.get_text() for text in panel.texts} & {label for _, _, label in figures.AXES.values()}
    assert shown_above == {label for axis, (_, _, label) in figures.AXES.items() if axis != x_axis}


def test_a_dollar_in_a_name_is_drawn_as_written(tmp_path):
    """Between two of them matplotlib would read mathematics: `$\\q$` ended the drawing."""
    run = make_run(tmp_path / "US$ and $x_1$", datasets=("$\\q$", "5$ plays"))
    assert run_main(run, "--datasets", "true", "--output", tmp_path / "one.svg") == cli.OK
    assert run_main(run, make_run(tmp_path / "$a$"), "--output", tmp_path / "two.png") == cli.OK
    drawn = figures.draw([read_curves(run)], PlotOptions([run], datasets=True))
    texts = [text for panel in drawn.axes for text in panel.texts] + [drawn._suptitle]
    names = {text.get_text(): text.get_parse_math() for text in texts}
    assert names["US$ and $x_1$"] is False and names["$\\q$"] is False


def test_many_datasets_get_a_panel_of_their_own(tmp_path):
    few = read_curves(make_run(tmp_path / "few", datasets=tuple("abcdefgh")))
    many = read_curves(make_run(tmp_path / "many", datasets=tuple("abcdefghi")))
    options = PlotOptions([tmp_path])
    assert len(figures.draw([few], options).axes) == 1
    figure = figures.draw([many], options)
    assert len(figure.axes) == 2
    assert {text.get_text() for text in figure.axes[1].texts} == set("abcdefghi")
    assert len(figures.draw([few, many], options).axes) == 2
    assert len(figures.draw([few, many], PlotOptions([tmp_path], datasets=False)).axes) == 1


def test_one_dataset_is_not_drawn_twice(tmp_path):
    run = read_curves(make_run(tmp_path / "run", datasets=("only",)))
    assert run.datasets == []


def test_the_loss_axis_can_be_limited(tmp_path):
    run = read_curves(make_run(tmp_path / "run"))
    figure = figures.draw([run], PlotOptions([tmp_path], min_loss=1.5, max_loss=2.75))
    assert figure.axes[0].get_ylim() == (1.5, 2.75)


def test_the_legend_names_what_the_run_continued(tmp_path):
    for index, (options, label) in enumerate(
        [
            ({"checkpoint_dir": "/models/tiiuae/falcon-7b", "use_lora": True}, "run (LoRA on falcon-7b)"),
            ({"checkpoint_dir": "/models/tiiuae/falcon-7b", "use_lora": False}, "run (from falcon-7b)"),
            ({"checkpoint_dir": None, "use_lora": False}, "run"),
            (None, "run"),
        ]
    ):
        run = make_run(tmp_path / str(index) / "run")
        (run / "run.yaml").write_text(yaml.safe_dump({"options": options}))
        assert read_curves(run).label == label


# Runs that are not whole


@pytest.mark.parametrize("torn", [b"31,124,62000,46.5", b"31,124,62000,46.5,93.0,valid,FR/Th\xc3"])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    run = make_run(tmp_path / "run")
    whole = read_curves(run).train
    with (run / "metrics.csv").open("ab") as file:
        file.write(torn)
    assert run_main(run) == cli.OK
    np.testing.assert_array_equal(read_curves(run).train.loss, whole.loss)


def test_a_run_without_validation_is_drawn(tmp_path, capsys):
    run = make_run(tmp_path / "run", every=100)
    leave_validation_out(run)
    assert run_main(run) == cli.OK
    assert "none validated" in capsys.readouterr().out


def test_a_run_that_only_validated_its_start_is_drawn(tmp_path):
    run = make_run(tmp_path / "run", steps=0)
    assert run_main(run) == cli.OK
    assert read_curves(run).best is None


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.csv").open("a") as file:
        file.write("31,124,62000,46.5,93.0,train,,nan,500,,,\n32,128,64000,48.0,96.0,train,,,500,,,\n")
        file.write("33,132,66000,49.5,99.0,train,,2.25,500,,,\n")
    assert run_main(run) == cli.OK
    train = read_curves(run).train
    assert train["batches"][-2:].tolist() == [30, 33] and train.loss.iloc[-1] == 2.25


def test_of_a_step_that_comes_twice_the_later_line_counts(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.csv").open("a") as file:
        file.write("29,116,58000,43.5,87.0,train,,9.5,500,,,\n")
    train = read_curves(run).train
    assert len(train.loss) == 30 and train.loss[28] == 9.5


def test_of_offline_validations_on_different_rows_the_newest_is_drawn(tmp_path):
    run = make_run(tmp_path / "run", offline=True)
    with (run / "validation.csv").open("a") as file:
        file.write("step-00000010,10,40,20000,15.0,30.0,all,1.25,1000,5,f\n")
    assert read_curves(run).offline["all"].loss.tolist() == [1.25]


# Mistakes


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder"),
        (["{tmp}/missing"], "missing is not a folder"),
        (["{tmp}"], "has no metrics.csv"),
        (["{tmp}/empty"], "no line yet"),
        (["{tmp}/header"], "no line yet"),
        (["{tmp}/run", "--output", "x.gif"], "--output"),
        (["{tmp}/run", "--smoothing", "0"], "--smoothing"),
        (["{tmp}/run", "--min_loss", "3", "--max_loss", "2"], "--min_loss"),
        (["{tmp}/run", "--x_axis", "years"], "--x_axis must be one of"),
        (["{tmp}/run", "{tmp}/missing"], "missing is not a folder"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, capsys, words, message):
    make_run(tmp_path / "run")
    for name, content in (("empty", ""), ("header", METRICS + "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(content)
    assert run_main(*(word.format(tmp=tmp_path) for word in words)) == cli.USAGE
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"time,value\n1,2\n", "lacks the columns step, samples"),
        (METRICS.encode() + b"\n1,4,2000,1.5,3.0,train,,many,500,,,\n", "line 2"),
        (b"\xff\xfe\x00\n\x80\n", "not a CSV file"),
    ],
)
def test_foreign_metrics_are_one_line(tmp_path, capsys, content, message):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert run_main(tmp_path) == cli.DATA
    assert message in error_of(capsys)


def test_a_foreign_validation_file_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "validation.csv").write_text("step,loss\n1,2\n")
    assert run_main(run) == cli.DATA
    assert "validation.csv" in error_of(capsys)


def test_an_output_folder_that_does_not_exist_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert run_main(run, "--output", tmp_path / "no" / "x.png") == cli.IO
    assert "x.png" in error_of(capsys)


# Numbers


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 10**6)), min_size=1, max_size=60), st.integers(1, 70))
def test_smoothing_against_brute_force(points, width):
    loss, targets = (np.array(values, float) for values in zip(*points, strict=True))
    expected = []
    for index in range(len(points)):
        window = [k for k in range(len(points)) if -((width - 1) // 2) <= k - index <= width // 2]
        expected.append(sum(loss[k] * targets[k] for k in window) / sum(targets[k] for k in window))
    np.testing.assert_allclose(smooth(loss, targets, width), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("online", "offline"), [(True, False), (True, True), (False, True)])
def test_the_best_checkpoint_against_brute_force(tmp_path, capsys, seed, online, offline):
    run = make_run(tmp_path / "run", steps=60, offline=offline, seed=seed)
    (run / "checkpoints" / "step-00000060" / "SHA256SUMS").unlink()  # its saving did not end
    if not online:
        leave_validation_out(run)
    losses = {}
    with (run / ("metrics.csv" if online else "validation.csv")).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dataset"] == "all" and row["step"] not in ("0", "60"):
                losses[int(row["step"])] = float(row["loss"])
    step = min(losses, key=losses.__getitem__)
    best = read_curves(run).best
    assert best.checkpoint == run / "checkpoints" / f"step-{step:08d}" and best.loss == losses[step]
    assert best.reached == pytest.approx({axis: step * UNITS[axis] for axis in UNITS})
    assert run_main(run) == cli.OK
    line = capsys.readouterr().out.splitlines()[1]
    assert f"{losses[step]:.4f}" in line and line.endswith(f"step-{step:08d}")


def test_the_summary_counts_steps_and_tokens(tmp_path):
    lines = summary([read_curves(make_run(tmp_path / "run", steps=1200, every=400))]).splitlines()
    assert lines[1].split()[:3] == ["run", "1,200", "2,400,000"]
    assert len({line.index(word) for line, word in zip(lines, ("best checkpoint", str(tmp_path)), strict=True)}) == 1


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=30))
def test_names_are_spread_in_order_and_within_the_panel(heights):
    gap = 1 / 30
    moved = figures.spread(sorted(heights), gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    assert moved[0] >= -1e-9 and moved[-1] <= 1 + 1e-9


def test_names_with_room_stay_where_they_are():
    assert figures.spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=40))
def test_conversion_goes_through_the_points_and_back(growth):
    x, y = (np.cumsum(values).astype(float) for values in zip(*growth, strict=True))
    functions = figures.conversion(x, y)
    if x[-1] == 0 or y[-1] == 0:
        assert functions is None
        return
    there, back = functions
    values = np.linspace(-0.1 * x[-1], 1.1 * x[-1], 50)
    np.testing.assert_allclose(back(there(values)), values, atol=1e-6 * x[-1])
    both_grow = np.concatenate([[x[0] > 0 and y[0] > 0], (np.diff(x) > 0) & (np.diff(y) > 0)])
    np.testing.assert_allclose(there(x[both_grow]), y[both_grow])


def test_what_does_not_grow_has_no_axis():
    assert figures.conversion(np.array([1.0, 2.0, 1.5]), np.array([1.0, 2.0, 3.0])) is None
    assert figures.conversion(np.array([]), np.array([])) is None


def test_ticks_stay_within_the_training_and_apart():
    ticks = figures.tick_values(1234.0, lambda value: value / 2, 100.0)
    assert ticks[0] == 0 and ticks[-1] <= 1234
    assert all(b - a >= 200 for a, b in pairwise(ticks))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1250, "1.25k"), (2_500_000, "2.5M"), (3e9, "3B"), (1.2e12, "1.2T")],
)
def test_short_counts(value, text):
    assert figures.short_count(value) == text


def test_help_imports_nothing_heavy():
    root = Path(__file__).parents[2]
    words = [sys.executable, "-X", "importtime", "plot_convergence_curves.py", "--help"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    assert "--x_axis" in done.stdout
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "utils.report.options" in names and not names & {"matplotlib", "pandas", "numpy", "torch"}
