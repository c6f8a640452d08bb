"""`sbatch slurm/pretrain.slurm` on a real Slurm cluster."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import run
from tests.slurm.cluster import Cluster, JobEnd

pytestmark = pytest.mark.slurm

STEPS = ("--max_steps", 4, "--eval_samples", 8, "--warmup_steps", 2)


def train(cluster: Cluster, clone: Path, tasks: int, *arguments: object) -> tuple[JobEnd, str]:
    """Submits a training on one node; how it ended, and what it printed."""
    options = (f"--ntasks-per-node={tasks}", "--cpus-per-task=1")
    job_id = cluster.submit(*options, "slurm/pretrain.slurm", *arguments, cwd=clone)
    end = cluster.wait(job_id, timeout=200)
    return end, (clone / "slurm" / "logs" / f"pretrain-{job_id}.out").read_text(encoding="utf-8")


def read_losses(run_dir: Path) -> list[tuple[str, str, str, float]]:
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        return [(row["step"], row["split"], row["dataset"], float(row["loss"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(cluster: Cluster, clone: Path) -> Path:
    """The run folder of a training on two tasks, of data that the job prepared itself."""
    end, output = train(cluster, clone, 2, *STEPS, "--batch_size", 8, "--micro_batch_size", 4)
    assert end == JobEnd("COMPLETED", 0, 0), output
    assert "2 process(es)" in output, output
    return clone / "out" / "slurm" / "sample"


def test_two_tasks_train_as_one_process_does(finished: Path, clone: Path, tmp_path: Path) -> None:
    data_dir = clone / "out" / "slurm" / "data_fr"
    recipe = ("--config", "configs/sample_pretrain.yaml", "--data_dir", data_dir, "--out_dir", tmp_path / "run")
    run("pretrain.py", *recipe, *STEPS, "--batch_size", 16, "--micro_batch_size", 4, "--devices", 1)
    expected, found = read_losses(tmp_path / "run"), read_losses(finished)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert sum(row[1] == "train" for row in found) == 4
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected], rel=1e-6)


@pytest.mark.parametrize(
    ("tasks", "arguments", "words"),
    [
        (2, ("--batch_size", 3, "--micro_batch_size", 2), ("--batch_size 3", "--micro_batch_size 2")),
        (1, ("--devices", 3), ("--devices 3", "1 task(s)", "--ntasks-per-node")),
    ],
)
def test_an_option_error_is_the_jobs_exit_code_and_one_clear_line(
    finished: Path, cluster: Cluster, clone: Path, tasks: int, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    end, output = train(cluster, clone, tasks, *arguments, "--out_dir", "out/slurm/wrong")
    assert end == JobEnd("FAILED", 2, 0), output
    # each task finds the error, and the first may be gone before the second can say so
    errors = [line for line in output.splitlines() if line.startswith(("error: ", "error (rank 1): "))]
    assert len({error.partition(": ")[2] for error in errors}) == 1 and "Traceback" not in output, output
    assert all(word in errors[0] for word in words), output
    assert not (clone / "out" / "slurm" / "wrong").exists()
