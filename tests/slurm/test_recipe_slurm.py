"""`sbatch slurm/recipe.slurm FILE`: a recipe's stages as dependent jobs, on a real Slurm cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, JobEnd

pytestmark = pytest.mark.slurm

COMPLETED = JobEnd("COMPLETED", 0, 0)
STEPS = {"max_steps": 4, "eval_samples": 8, "warmup_steps": 2, "batch_size": 8, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def recipe(clone: Path) -> Path:
    """A training on two tasks, whose data and validation are stages before and after it."""
    tokenizer = "data/sample/tokenizer"
    sections = {
        "prepare": {
            "source_path": "data/sample/french",
            "checkpoint_dir": tokenizer,
            "max_length": 64,
            "destination_path": "out/recipe/data",
            "slurm": {"ntasks": 2, "cpus-per-task": 1},
        },
        "pretrain": {
            "model_config": "configs/quickstart/model.yaml",
            "out_dir": "out/recipe/my run",
            "precision": "32-true",
            **STEPS,
            "slurm": {"ntasks-per-node": 2, "cpus-per-task": 1, "gres": "gpu:1", "time": "0:20:00"},
        },
        "validate": {"max_batches": 1, "slurm": {"cpus-per-task": 1}},
    }
    path = clone / "my recipe.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


def submit(cluster: Cluster, clone: Path, recipe: Path) -> tuple[JobEnd, str, dict[str, int]]:
    """How the job that submits the stages' jobs ended, what it said, and the job of each stage."""
    job_id = cluster.submit("--cpus-per-task=1", "slurm/recipe.slurm", recipe.name, cwd=clone)
    end = cluster.wait(job_id, timeout=300)
    output = (clone / "slurm" / "logs" / f"recipe-{job_id}.out").read_text(encoding="utf-8")
    return end, output, jobs_of(output)


def jobs_of(output: str) -> dict[str, int]:
    return {stage: int(job) for stage, job in re.findall(r"^(\w+): job (\d+)$", output, flags=re.MULTILINE)}


def output_of(clone: Path, stage: str, job_id: int) -> str:
    paths = [clone / "slurm" / "logs" / f"{stage}-{job_id}.{ending}" for ending in ("out", "log")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.exists())


@pytest.fixture(scope="module")
def finished(cluster: Cluster, clone: Path, recipe: Path) -> dict[str, int]:
    """The stages' jobs of a recipe that is done; the training was interrupted."""
    end, output, jobs = submit(cluster, clone, recipe)
    assert end == COMPLETED and list(jobs) == ["prepare", "pretrain", "validate"], output
    waiting = cluster.job(jobs["validate"])
    assert waiting["JobState"] == "PENDING" and waiting["Dependency"].startswith(f"afterok:{jobs['pretrain']}")
    assert cluster.wait(jobs["prepare"], 300) == COMPLETED, output_of(clone, "prepare", jobs["prepare"])
    begun = "the training has not begun"
    cluster.wait_until(lambda: len(cluster.task_processes(jobs["pretrain"])) == 2, begun, timeout=300)
    cluster.run("scancel", "--signal=USR1", jobs["pretrain"])
    for stage in ("pretrain", "validate"):
        assert cluster.wait(jobs[stage], 300) == COMPLETED, output_of(clone, stage, jobs[stage])
    return jobs


def test_a_recipes_stages_are_jobs_that_wait_for_each_other(
    finished: dict[str, int], cluster: Cluster, clone: Path
) -> None:
    """An interrupted training is requeued under its id, and the validation waits for its end."""
    training = cluster.job(finished["pretrain"])
    assert training["Restarts"] == "1" and training["JobName"] == "pretrain" and training["TimeLimit"] == "00:20:00"
    run_dir = clone / "out" / "recipe" / "my run"
    log = (run_dir / "training_log.out").read_text(encoding="utf-8")
    assert "2 process(es)" in log and "done: all 4 steps are made" in log
    assert (run_dir / "validation.csv").is_file()


def test_what_is_complete_gets_no_job_and_after_a_failure_there_is_no_next_stage(
    finished: dict[str, int], cluster: Cluster, clone: Path, recipe: Path
) -> None:
    sections = yaml.safe_load(recipe.read_text())
    sections["pretrain"] |= {"out_dir": "out/recipe/failing", "language": "xx"}
    changed = clone / "failing.yaml"
    changed.write_text(yaml.safe_dump(sections, sort_keys=False))
    output = cluster.run("bash", "slurm/recipe.slurm", changed.name, cwd=clone).stdout  # as on a login node
    jobs = jobs_of(output)
    assert list(jobs) == ["pretrain", "validate"], output
    end, said = cluster.wait(jobs["pretrain"], 300), output_of(clone, "pretrain", jobs["pretrain"])
    assert end == JobEnd("FAILED", 2, 0) and "error: " in said, said
    assert cluster.wait(jobs["validate"], 60).state == "CANCELLED"


def test_a_faulty_recipe_submits_nothing(cluster: Cluster, clone: Path, recipe: Path) -> None:
    sections = yaml.safe_load(recipe.read_text())
    sections["pretrain"]["slurm"] |= {"time": 14400, "tasks": 2}
    changed = clone / "faulty.yaml"
    changed.write_text(yaml.safe_dump(sections, sort_keys=False))
    end, output, jobs = submit(cluster, clone, changed)
    assert end == JobEnd("FAILED", 2, 0) and not jobs
    assert "pretrain: slurm: time must be a text in quotes" in output and "pretrain: slurm: tasks is none of" in output
