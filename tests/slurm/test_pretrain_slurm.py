"""`sbatch slurm/pretrain.slurm`, then validate.slurm and export.slurm, on a real Slurm cluster."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest

from tests.conftest import run
from tests.slurm.cluster import Cluster, JobEnd

pytestmark = pytest.mark.slurm

COMPLETED = JobEnd("COMPLETED", 0, 0)
STEPS = ("--max_steps", 4, "--eval_samples", 8, "--warmup_steps", 2)
BATCH = ("--batch_size", 8, "--micro_batch_size", 4)


def submit(cluster: Cluster, clone: Path, script: str, *arguments: object, tasks: int = 1, **variables: object) -> int:
    """Submits one of the batch scripts, on one node, with these environment variables."""
    options = (f"--ntasks-per-node={tasks}", "--cpus-per-task=1")
    extra = {name: str(value) for name, value in variables.items()}
    return cluster.submit(*options, f"slurm/{script}.slurm", *arguments, cwd=clone, extra=extra)


def end_of(cluster: Cluster, clone: Path, job_id: int) -> tuple[JobEnd, str]:
    """How the job ended, and its own output."""
    end = cluster.wait(job_id, timeout=600)
    (output,) = (clone / "slurm" / "logs").glob(f"*-{job_id}.out")
    return end, output.read_text(encoding="utf-8")


def read_losses(run_dir: Path) -> list[tuple[str, str, str, float]]:
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        return [
            (row["step"], row["split"], row["dataset"], float(row["loss"]))
            for row in csv.DictReader(file)
            if row["split"] == "valid" or not row["dataset"]
        ]


def await_signals(cluster: Cluster, job_id: int) -> bool:
    """Whether both tasks have begun, so that SIGUSR1 does not end them; their few steps are still to come."""
    states = [(Path("/proc") / str(task) / "status") for task in cluster.task_processes(job_id).values()]
    caught = [int(re.search(r"SigCgt:\s+(\w+)", state.read_text())[1], 16) for state in states]
    return len(caught) == 2 and all(mask >> signal.SIGUSR1 - 1 & 1 for mask in caught)


@pytest.fixture(scope="module")
def finished(cluster: Cluster, clone: Path) -> Path:
    """The run folder of a training on two tasks, of data that the job prepared itself."""
    end, output = end_of(cluster, clone, submit(cluster, clone, "pretrain", *STEPS, *BATCH, tasks=2))
    run_dir = clone / "out" / "slurm" / "sample"
    log = (run_dir / "training_log.out").read_text(encoding="utf-8")
    assert end == COMPLETED, output + log
    assert log.count("2 process(es)") == 1 and "2 process(es)" not in output
    assert output.splitlines()[-1] == "exit code 0, log: out/slurm/sample/training_log.out"
    return run_dir


def test_a_signal_before_the_time_limit_makes_no_difference_to_the_run(
    finished: Path, cluster: Cluster, clone: Path, tmp_path: Path
) -> None:
    job_id = submit(cluster, clone, "pretrain", *STEPS, *BATCH, tasks=2, OUT_DIR=tmp_path / "run")
    cluster.wait_until(lambda: await_signals(cluster, job_id), "the training has not begun", timeout=300)
    cluster.run("scancel", "--signal=USR1", job_id)
    end, output = end_of(cluster, clone, job_id)
    log = (tmp_path / "run" / "training_log.out").read_text(encoding="utf-8")
    assert end == COMPLETED, output + log
    assert cluster.job(job_id)["Restarts"] == "1" and log.count("2 process(es)") == 2
    assert read_losses(tmp_path / "run") == read_losses(finished)


def test_a_run_folder_is_no_pattern_whatever_its_name(
    finished: Path, cluster: Cluster, clone: Path, tmp_path: Path
) -> None:
    """srun would replace %j and %t, and take a backslash for a sign that nothing is to be replaced."""
    folder = tmp_path / "50%j %t%% \\%x [a-b]* $HOME"
    end, output = end_of(cluster, clone, submit(cluster, clone, "pretrain", *STEPS, *BATCH, tasks=2, OUT_DIR=folder))
    assert end == COMPLETED, output
    log = (folder / "training_log.out").read_text(encoding="utf-8")
    assert "done: all 4 steps are made" in log and output.splitlines()[-1].endswith(f"log: {folder}/training_log.out")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not [*(clone / "slurm" / "logs").glob("*.log")]
    assert read_losses(folder) == read_losses(finished)


def test_an_option_error_is_the_jobs_exit_code_and_one_clear_line(
    finished: Path, cluster: Cluster, clone: Path
) -> None:
    wrong = Path("out", "slurm", "wrong")
    batch = ("--batch_size", 3, "--micro_batch_size", 2)
    end, output = end_of(cluster, clone, submit(cluster, clone, "pretrain", *batch, f"--out={wrong}", tasks=2))
    assert end == JobEnd("FAILED", 2, 0), output
    assert [path.name for path in (clone / wrong).iterdir()] == ["training_log.out"]
    log = (clone / wrong / "training_log.out").read_text(encoding="utf-8")
    # the second task says it too where Slurm takes longer than 5 s to end it
    errors = [line for line in log.splitlines() if line.startswith("error")]
    assert len({line.partition(": ")[2] for line in errors}) == 1, log
    assert "--batch_size 3 is not a multiple of --micro_batch_size 2" in errors[0] and "Traceback" not in log, log
    assert output.endswith(f"exit code 2, log: {wrong}/training_log.out\n{errors[-1]}\n")


def test_a_run_is_validated(finished: Path, cluster: Cluster, clone: Path) -> None:
    end, output = end_of(cluster, clone, submit(cluster, clone, "validate", "--max_batches", 1, tasks=2))
    log = (finished / "validation_log.out").read_text(encoding="utf-8")
    assert end == COMPLETED and "step-00000004: " in log, output + log
    assert (finished / "validation.csv").is_file()


def test_a_run_is_exported_and_goes_on_with_lora(finished: Path, cluster: Cluster, clone: Path, tmp_path: Path) -> None:
    foundation, run_dir = tmp_path / "foundation", tmp_path / "run"
    end, output = end_of(cluster, clone, submit(cluster, clone, "export", OUT_DIR=finished, HF_DIR=foundation))
    log = (finished / "export_log.out").read_text(encoding="utf-8")
    assert end == COMPLETED and (foundation / "config.json").is_file(), output + log
    run("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", foundation, "--verify", "none")
    options = (*STEPS, "--data_dir", "out/slurm/data_fr", "--checkpoint_dir", foundation, "--out_dir", run_dir)
    end, output = end_of(
        cluster, clone, submit(cluster, clone, "pretrain", *options, CONFIG="configs/quickstart/lora.yaml")
    )
    log = (run_dir / "training_log.out").read_text(encoding="utf-8")
    assert end == COMPLETED and "step-00000004" in {path.name for path in run_dir.glob("checkpoints/*")}, output + log


@pytest.mark.parametrize("script", ["validate", "export"])
def test_a_mistyped_run_is_not_made(cluster: Cluster, clone: Path, script: str) -> None:
    end, output = end_of(cluster, clone, submit(cluster, clone, script, OUT_DIR="out/slurm/nothing"))
    assert end == JobEnd("FAILED", 2, 0) and "out/slurm/nothing/run.yaml is missing" in output
    assert not (clone / "out" / "slurm" / "nothing").exists()
