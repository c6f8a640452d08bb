"""Runs that are killed and started again by the same command."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests import warm_start
from tests.conftest import ROOT, TINY_MODEL, assert_error, run
from tests.run.paused_training import paused_training, steps_made


def losses(run_dir: Path) -> list[tuple[str, ...]]:
    """What metrics.csv says of the losses, as it is written there."""
    columns = ("step", "samples", "tokens", "split", "dataset", "loss", "targets", "learning_rate", "grad_norm")
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "valid" or not row["dataset"]]
    return [tuple(row[column] for column in columns) for row in rows]  # a dataset's are since the last save


def start_and_signal(arguments: list[object], run_dir: Path, after: int, number: int, processes: int = 1) -> int:
    """Starts a training, sends a signal to all its processes once `after` steps are made; their exit code."""
    words = [ROOT / "pretrain.py", *map(str, arguments), "--out_dir", str(run_dir)]
    with tempfile.TemporaryDirectory() as folder:
        signalled = Path(folder, "signalled")
        started = warm_start.start(paused_training, [after, run_dir, signalled, *words], processes)
        deadline = time.monotonic() + 600
        while steps_made(run_dir) < after:
            assert started[0].is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        for process in started:
            os.kill(process.pid, number)
        signalled.touch()
        assert not warm_start.join(started, 600)
    [code] = {process.exitcode for process in started}
    return code


def batch(processes: int, samples: int = 12) -> list[object]:
    share = samples // processes
    return ["--batch_size", share, "--micro_batch_size", 3 if share % 3 == 0 else 2]


@pytest.fixture(scope="module")
def whole(pretrain_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a single process that nothing befell; do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run("pretrain.py", *pretrain_arguments, *batch(1), "--out_dir", folder)
    return folder


@pytest.mark.parametrize(("processes", "kind"), [(1, "full"), (2, "full"), (1, "lora"), (2, "lora")])
def test_a_killed_run_gives_the_losses_of_one_never_killed(
    processes: int, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    arguments = request.getfixturevalue("pretrain_arguments" if kind == "full" else "lora_arguments")
    arguments = [*arguments, *batch(processes)]
    run("pretrain.py", *arguments, "--out_dir", tmp_path / "whole", processes=processes)
    rng = random.Random(processes)
    for earliest in (1, 5):
        after = earliest + rng.randrange(4)
        killed = start_and_signal(arguments, tmp_path / "killed", after, signal.SIGKILL, processes)
        assert killed == -signal.SIGKILL
    run("pretrain.py", *arguments, "--out_dir", tmp_path / "killed", processes=processes)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len([row for row in losses(tmp_path / "whole") if row[3] == "train"]) == 12


def test_other_numbers_of_processes_go_on_with_the_same_samples(
    pretrain_arguments: list[object], whole: Path, tmp_path: Path
) -> None:
    for processes, after in ((4, 3), (2, 7)):
        arguments = [*pretrain_arguments, *batch(processes)]
        assert start_and_signal(arguments, tmp_path, after, signal.SIGTERM, processes) == 75
    run("pretrain.py", *pretrain_arguments, *batch(3), "--out_dir", tmp_path, processes=3)
    assert len(losses(tmp_path)) == len(losses(whole))
    for row, expected in zip(losses(tmp_path), losses(whole), strict=True):
        assert row[:5] == expected[:5] and row[6] == expected[6], "another step, sample, dataset or target count"
        assert float(row[5]) == pytest.approx(float(expected[5]), rel=1e-6)


def test_a_signal_saves_and_loses_no_step(pretrain_arguments: list[object], tmp_path: Path) -> None:
    arguments = [*pretrain_arguments, *batch(1), "--save_interval", 1000]
    assert start_and_signal(arguments, tmp_path, 2, signal.SIGTERM) == 75
    made = steps_made(tmp_path)
    assert (tmp_path / "checkpoints" / f"step-{made:08d}").is_dir()
    again = run("pretrain.py", *arguments, "--out_dir", tmp_path)
    assert f"going on from {tmp_path}/checkpoints/step-{made:08d}" in again.stdout
    assert steps_made(tmp_path) == 12


@pytest.mark.parametrize(
    ("header", "line", "words"),
    [("step,split,perplexity", "1,train,5", "perplexity"), (None, "1,2,3", "line 2 has 3 fields")],
)
def test_metrics_that_cannot_be_continued_are_one_error_of_all_processes(
    trained_run: Path, pretrain_arguments: list[object], tmp_path: Path, header: str | None, line: str, words: str
) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    ours = (copy / "metrics.csv").read_text().splitlines()[0]
    (copy / "metrics.csv").write_text(f"{header or ours}\n{line}\n")
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4, "--out_dir", copy]
    done = run("pretrain.py", *arguments, processes=2, check=False)
    assert_error(done, 65, "metrics.csv", words)
    assert (copy / "metrics.csv").read_text() == f"{header or ours}\n{line}\n"


def test_a_finished_run_is_left_as_it_is(trained_run: Path, pretrain_arguments: list[object]) -> None:
    before = losses(trained_run)
    done = run("pretrain.py", *pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", trained_run)
    assert "all 12 steps are made" in done.stdout
    assert losses(trained_run) == before


def test_a_damaged_newest_checkpoint_is_passed_over(
    pretrain_arguments: list[object], whole: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    arguments = [*pretrain_arguments, *batch(1), "--out_dir", damaged]
    folders = sorted((damaged / "checkpoints").iterdir())
    shard = next(folders[-1].glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    again = run("pretrain.py", *arguments)
    assert "checkpoint passed over" in again.stdout and f"going on from {folders[-2]}" in again.stdout
    assert losses(damaged) == losses(whole)
    for folder in folders:
        (folder / "state.json").write_text("{}")
    assert_error(run("pretrain.py", *arguments, check=False), 65, "no checkpoint", "valid")


def test_another_run_in_the_folder_is_refused(
    trained_run: Path, pretrain_arguments: list[object], tmp_path: Path
) -> None:
    batch_8 = ["--batch_size", 8, "--micro_batch_size", 4]
    same = [*pretrain_arguments, *batch_8, "--out_dir", trained_run]
    assert_error(run("pretrain.py", *same, "--seed", 7, check=False), 2, "seed was 1337, now 7")
    assert_error(run("pretrain.py", *same, "--resume", "never", check=False), 2, "--resume is never")
    other_batch = run("pretrain.py", *same, "--batch_size", 16, check=False)
    assert_error(other_batch, 2, "begun with 8 samples per step", "--batch_size 8")
    larger = tmp_path / "larger.yaml"
    larger.write_text(TINY_MODEL.replace("n_layer: 2", "n_layer: 3"))
    assert_error(run("pretrain.py", *same, "--model_config", larger, check=False), 65, "another model")
