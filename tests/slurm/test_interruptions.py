"""What befalls a training on a cluster: it goes on by itself, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SAMPLE, TOKENIZER, run
from tests.slurm.cluster import Cluster, JobEnd
from utils.checkpoint import list_checkpoints
from utils.run_folder import METRICS, RunRecord, read_csv

pytestmark = pytest.mark.slurm

SAVE_INTERVAL, EVAL_INTERVAL, STEPS = 10, 25, 70
# Large enough for a save (of 50 MB) and a validation to take a moment in which a signal can be sent.
MODEL = {"name": "wide", "block_size": 64, "n_layer": 2, "n_embd": 512, "n_head": 8, "n_query_groups": 2}
MODEL |= {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_class_name": "RMSNorm"}
MODEL |= {"mlp_class_name": "LLaMAMLP", "intermediate_size": 1024}
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
UNSAVED = ("--save_interval", 10_000)
ONE_NODE = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A training of STEPS steps in fp32, without --out_dir and what depends on the number of processes."""
    folder = tmp_path_factory.mktemp("interrupted")
    source = ("--source_path", SAMPLE / "french", "--checkpoint_dir", TOKENIZER, "--max_length", 64)
    run("prepare_data.py", *source, "--destination_path", folder / "data")
    (folder / "model.yaml").write_text(yaml.safe_dump(MODEL))
    return [
        *("--data_dir", folder / "data", "--model_config", folder / "model.yaml", "--max_steps", STEPS),
        *("--save_interval", SAVE_INTERVAL, "--eval_interval", EVAL_INTERVAL, "--micro_batch_size", 4),
        *("--warmup_steps", 2, "--hang_timeout", 20, "--batch_size", 4),
    ]


@pytest.fixture(scope="module")
def whole(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes that nothing befell."""
    return train_here(arguments, tmp_path_factory.mktemp("whole") / "run", processes=2)


@pytest.fixture(scope="module")
def long_arguments(arguments: list[object]) -> list[object]:
    """A training of about a minute, and more time between checkpoints."""
    steps = ("--max_steps", 330, "--eval_interval", 150, "--save_interval", 50, "--batch_size", 8)
    return [*arguments, *steps, "--eval_samples", 64]


@pytest.fixture(scope="module")
def limited(
    cluster: Cluster, clone: Path, long_arguments: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """A job whose limit is shorter than its training: it takes minutes, and one core, while other tests go on."""
    sbatch = (*ONE_NODE, "--time=1", "--signal=USR1@30")
    return Job(cluster, clone, tmp_path_factory.mktemp("limited") / "run", sbatch, *long_arguments, *UNSAVED)


@pytest.fixture(scope="module")
def long_whole(long_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of its single process that nothing befell."""
    return train_here(long_arguments, tmp_path_factory.mktemp("whole") / "long")


def train_here(arguments: list[object], out_dir: Path, processes: int = 1) -> Path:
    config = ("--config", "configs/sample_pretrain.yaml")
    run("pretrain.py", *config, *arguments, "--out_dir", out_dir, processes=processes)
    return out_dir


class Job:
    """A training that was submitted."""

    def __init__(
        self, cluster: Cluster, clone: Path, out_dir: Path, sbatch: tuple[str, ...], *arguments: object
    ) -> None:
        self.cluster, self.clone, self.run_dir = cluster, clone, out_dir
        words = (*sbatch, "slurm/pretrain.slurm", *arguments, "--out_dir", out_dir)
        self.id = cluster.submit(*words, cwd=clone)

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.id)["Restarts"])

    @property
    def steps(self) -> int:
        """The newest step in metrics.csv."""
        return max((int(row["step"]) for row in read_csv(self.run_dir / METRICS) if row["split"] == "train"), default=0)

    @property
    def history(self) -> list[dict[str, Any]]:
        return RunRecord.load(self.run_dir).history

    @property
    def output(self) -> str:
        own = (self.clone / "slurm" / "logs" / f"pretrain-{self.id}.out").read_text(encoding="utf-8")
        log = self.run_dir / "training_log.out"
        return own + (log.read_text(encoding="utf-8") if log.is_file() else "")

    def wait_for(self, condition: Callable[[], object], pause: float = 0.05, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain\n{self.output}"
            time.sleep(pause)

    def signal_tasks(self, number: int, *ranks: int) -> None:
        tasks = self.cluster.task_processes(self.id)
        for rank in ranks:
            os.kill(tasks[rank], number)

    def finish(self) -> None:
        end = self.cluster.wait(self.id, timeout=600)
        assert end == JobEnd("COMPLETED", 0, 0), self.output


def losses(run_dir: Path) -> list[tuple[str, ...]]:
    columns = ("step", "samples", "tokens", "split", "dataset", "loss", "targets", "learning_rate", "grad_norm")
    rows = [row for row in read_csv(run_dir / METRICS) if row["split"] == "valid" or not row["dataset"]]
    return [tuple(row[column] for column in columns) for row in rows]


def test_four_processes_on_two_nodes_train_the_sample_as_one_does(
    cluster: Cluster, clone: Path, tmp_path: Path
) -> None:
    steps = ("--max_steps", 20, "--eval_interval", 10)
    four = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
    job = Job(cluster, clone, tmp_path / "run", four, *steps, "--batch_size", 4, "--micro_batch_size", 4)
    job.finish()
    assert "4 process(es)" in job.output
    data = ("--data_dir", clone / "out" / "slurm" / "data_fr")
    whole = train_here([*data, *steps, "--micro_batch_size", 4, "--batch_size", 16], tmp_path / "whole")
    found, expected = losses(job.run_dir), losses(whole)
    assert [row[:5] + row[6:8] for row in found] == [row[:5] + row[6:8] for row in expected]
    assert sum(row[3] == "train" for row in found) == 20
    assert [float(row[5]) for row in found] == pytest.approx([float(row[5]) for row in expected], rel=1e-6)


@dataclass(frozen=True)
class Story:
    """A job on two nodes that has come to its end, and the newest step when each of its misfortunes struck."""

    job: Job
    at: dict[str, int]


@pytest.fixture(scope="module")
def story(
    cluster: Cluster, clone: Path, limited: Job, arguments: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Story:
    """Signalled during a save and during a validation, requeued by hand, its step killed, a task of it stopped; and all
    that beside `limited`."""
    job = Job(cluster, clone, tmp_path_factory.mktemp("story") / "run", TWO_NODES, *arguments)
    at = {}
    job.wait_for(lambda: len(list_checkpoints(job.run_dir)) == 1)
    being_written = job.run_dir / "checkpoints"
    job.wait_for(lambda: any(being_written.glob(".step-*.partial")), pause=0.001)
    job.signal_tasks(signal.SIGUSR1, 0)
    assert any(being_written.glob(".step-*.partial")), "the save was over: the test is to no purpose"
    at["save"] = job.steps
    job.wait_for(lambda: job.steps == EVAL_INTERVAL, pause=0.001)
    job.signal_tasks(signal.SIGTERM, 1)
    at["validation"] = EVAL_INTERVAL
    checkpoint = job.run_dir / "checkpoints" / f"step-{EVAL_INTERVAL:08d}"
    job.wait_for(checkpoint.is_dir)
    assert json.loads((checkpoint / "state.json").read_text())["validation_pending"]
    job.wait_for(lambda: job.steps >= 33)
    at["requeue"] = job.steps
    cluster.run("scontrol", "requeue", job.id)
    job.wait_for(lambda: job.steps >= 43)
    at["kill"] = job.steps
    cluster.run("scancel", "--signal=KILL", f"{job.id}.0")
    job.wait_for(lambda: job.steps >= 53)
    at["hang"] = job.steps
    job.signal_tasks(signal.SIGSTOP, 1)
    job.finish()
    return Story(job, at)


def test_a_job_goes_on_by_itself_and_ends_as_if_nothing_had_happened(story: Story, whole: Path) -> None:
    job = story.job
    assert job.restarts == len(story.at) == 5, job.output
    assert losses(job.run_dir) == losses(whole)
    starts = [(start["slurm_job_id"], start["slurm_restart_count"]) for start in job.history]
    assert starts == [(str(job.id), count) for count in range(6)]


def test_a_signal_during_a_save_loses_nothing(story: Story) -> None:
    step = story.job.history[1]["from_step"]
    assert step >= story.at["save"], story.job.output
    assert f"stopped by a signal after step {step}, all of it saved" in story.job.output


def test_a_signal_cuts_a_validation_short_which_is_made_after_the_restart(story: Story, whole: Path) -> None:
    assert story.job.history[2]["from_step"] == EVAL_INTERVAL, story.job.output
    validated = [[row[0] for row in losses(folder) if row[3] == "valid"] for folder in (story.job.run_dir, whole)]
    assert validated[0] == validated[1] and str(EVAL_INTERVAL) in validated[0]


@pytest.mark.parametrize("misfortune", ["requeue", "kill", "hang"])
def test_at_most_one_interval_is_lost(story: Story, misfortune: str) -> None:
    start = story.job.history[[*story.at].index(misfortune) + 1]
    # a checkpoint is still being written when the next interval has begun
    assert start["from_step"] >= story.at[misfortune] - 2 * SAVE_INTERVAL, story.job.output


def assert_told_of_rank_1(job: Job) -> None:
    assert re.search(r"error: rank 1 \(node[12]\) gave no sign of life", job.output), job.output
    assert "stacks of rank 0 (node1)" in job.output, job.output


def test_a_task_that_hangs_is_named(story: Story) -> None:
    assert_told_of_rank_1(story.job)


def test_a_killed_task_is_named_and_costs_at_most_one_interval(
    cluster: Cluster, clone: Path, tmp_path: Path, arguments: list[object], whole: Path
) -> None:
    sbatch = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1")
    job = Job(cluster, clone, tmp_path / "run", sbatch, *arguments)
    job.wait_for(lambda: job.steps >= 23)
    at = job.steps
    job.signal_tasks(signal.SIGKILL, 1)
    job.finish()
    assert job.restarts == 1, job.output
    assert losses(job.run_dir) == losses(whole)
    first, second = job.history
    assert (first["slurm_job_id"], first["slurm_restart_count"]) == (str(job.id), 0)
    assert (second["slurm_job_id"], second["slurm_restart_count"]) == (str(job.id), 1)
    assert second["from_step"] >= at - 2 * SAVE_INTERVAL, job.output
    assert_told_of_rank_1(job)


def test_a_second_job_on_the_run_folder_is_refused_and_told_who_writes_it(
    cluster: Cluster, clone: Path, tmp_path: Path, arguments: list[object]
) -> None:
    first = Job(cluster, clone, tmp_path / "run", ONE_NODE, *arguments)
    first.wait_for(lambda: first.steps > 1)
    second = Job(cluster, clone, tmp_path / "run", ONE_NODE, *arguments)
    assert cluster.wait(second.id, timeout=120) == JobEnd("FAILED", 2, 0), second.output
    assert f"is being written by Slurm job {first.id}, process " in second.output and second.restarts == 0
    first.finish()


def test_errors_that_stay_do_not_requeue(
    cluster: Cluster, clone: Path, tmp_path: Path, arguments: list[object]
) -> None:
    wrong = Job(cluster, clone, tmp_path / "wrong", TWO_NODES, *arguments, "--devices", 3)
    assert cluster.wait(wrong.id, timeout=120) == JobEnd("FAILED", 2, 0) and wrong.restarts == 0, wrong.output
    errors = [line for line in wrong.output.splitlines() if line.startswith("error")]
    assert len(set(errors)) == 1 and "--devices 3" in errors[0], wrong.output
    data = Path(str(arguments[1]))
    copy = tmp_path / "data"
    copy.mkdir()
    for path in data.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    shard = sorted(copy.glob("*-train-*.safetensors"))[3]
    content = bytearray(shard.read_bytes())
    content[-100] ^= 4
    shard.write_bytes(content)
    corrupt = Job(cluster, clone, tmp_path / "run", TWO_NODES, *arguments, "--data_dir", copy)
    assert cluster.wait(corrupt.id, timeout=120) == JobEnd("FAILED", 65, 0) and corrupt.restarts == 0, corrupt.output
    assert f"error: {shard} does not have the SHA-256" in corrupt.output


def test_a_job_with_too_short_a_limit_requeues_itself_until_it_is_done(limited: Job, long_whole: Path) -> None:
    limited.finish()
    assert limited.restarts >= 2, limited.output  # how many depends on the machine
    assert losses(limited.run_dir) == losses(long_whole)
    log = (limited.run_dir / "training_log.out").read_text(encoding="utf-8")
    ends = [int(step) for step in re.findall(r"stopped by a signal (?:after|during the validation at) step (\d+)", log)]
    assert ends == [start["from_step"] for start in limited.history[1:]], "a signalled restart lost steps"
    assert [start["slurm_restart_count"] for start in limited.history] == list(range(limited.restarts + 1))


def test_a_node_is_given_up_while_its_processes_live_on(
    cluster: Cluster,
    clone: Path,
    tmp_path: Path,
    arguments: list[object],
    long_arguments: list[object],
    long_whole: Path,
) -> None:
    """Without its slurmd, Slurm cannot end what runs on the node, and starts the jobs on the other one. Of `running`,
    batch script and training go on beside the new; of `stopped`, the old process is woken up when the new one writes,
    and finds that the folder is another's."""
    running = Job(cluster, clone, tmp_path / "running", ONE_NODE, *long_arguments)
    stopped = Job(cluster, clone, tmp_path / "stopped", (*ONE_NODE, "--nodelist=node1"), *arguments)
    stopped.wait_for(lambda: stopped.steps > SAVE_INTERVAL)
    [survivor] = cluster.task_processes(stopped.id).values()
    os.kill(survivor, signal.SIGSTOP)
    running.wait_for(lambda: running.steps >= 70)
    assert cluster.job(running.id)["BatchHost"] == "node1", "Slurm fills the first node first"
    with cluster.node_lost("node1"):
        for job in (running, stopped):
            job.wait_for(lambda job=job: job.restarts == 1)
        cluster.run("scontrol", "update", f"JobId={stopped.id}", "ReqNodeList=node2")
        stopped.wait_for(lambda: len(stopped.history) == 2)
        os.kill(survivor, signal.SIGCONT)
        stopped.wait_for(lambda: not (Path("/proc") / str(survivor)).exists())
        for job in (running, stopped):
            job.finish()
    for job in (running, stopped):
        assert cluster.job(job.id)["BatchHost"] == "node2" and job.restarts == 1, job.output
        assert not list((job.run_dir / "checkpoints").glob(".*"))
    assert losses(running.run_dir) == losses(long_whole)
    rows = [row for row in read_csv(stopped.run_dir / METRICS) if row["split"] == "train" and not row["dataset"]]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1)), "lines of both writers"
