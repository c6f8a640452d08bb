"""What befalls a training on a cluster: it goes on by itself, and ends as if nothing had happened.

Most of it is waiting: for Slurm, which holds a requeued job and looks at time limits every 30 s, and for processes to
start. So the jobs go on beside each other, all but those whose node is lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SAMPLE, TOKENIZER, run
from tests.slurm.cluster import Cluster, JobEnd
from utils.run.checkpoint_folders import CHECKPOINTS, list_checkpoints
from utils.run.csv_log import METRICS, read_csv
from utils.run.progress import STATE
from utils.run.record import RUN, RunRecord

pytestmark = pytest.mark.slurm

SAVE_INTERVAL, EVAL_INTERVAL, STEPS, LONG_STEPS = 10, 8, 70, 150
# Large enough for a save (of 50 MB) and a validation to take a moment in which a signal can be sent.
MODEL = {"name": "wide", "block_size": 64, "n_layer": 2, "n_embd": 512, "n_head": 8, "n_query_groups": 2}
MODEL |= {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_class_name": "RMSNorm"}
MODEL |= {"mlp_class_name": "LLaMAMLP", "intermediate_size": 1024}
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
FOUR_TASKS = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
OF_FOUR = ("--max_steps", 20, "--eval_interval", 10, "--micro_batch_size", 4)


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
        *("--eval_samples", 32, "--warmup_steps", 2, "--hang_timeout", 20, "--batch_size", 4),
    ]


@pytest.fixture(scope="module")
def whole(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes that nothing befell."""
    return train_here(arguments, tmp_path_factory.mktemp("whole") / "run", processes=2)


@pytest.fixture(scope="module")
def long_arguments(arguments: list[object]) -> list[object]:
    """A longer training on a single process, without a checkpoint before its end."""
    return [*arguments, "--max_steps", LONG_STEPS, "--eval_interval", 60, "--save_interval", 10_000, "--batch_size", 8]


@pytest.fixture(scope="module")
def long_whole(long_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of its process that nothing befell."""
    return train_here(long_arguments, tmp_path_factory.mktemp("whole") / "long")


def train_here(arguments: list[object], out_dir: Path, processes: int = 1) -> Path:
    config = ("--config", "configs/quickstart/foundation.yaml")
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

    def steps(self, split: str = "train") -> int:
        """The newest step of metrics.csv, -1 if it has none."""
        return max((int(row["step"]) for row in read_csv(self.run_dir / METRICS) if row["split"] == split), default=-1)

    @property
    def history(self) -> list[dict[str, Any]]:
        return RunRecord.load(self.run_dir).history if (self.run_dir / RUN).is_file() else []

    @property
    def output(self) -> str:
        own = (self.clone / "slurm" / "logs" / f"pretrain-{self.id}.out").read_text(encoding="utf-8")
        log = self.run_dir / "training_log.out"
        return own + (log.read_text(encoding="utf-8") if log.is_file() else "")

    @property
    def is_saving(self) -> bool:
        return any((self.run_dir / CHECKPOINTS).glob(".step-*.partial"))

    @property
    def is_validating(self) -> bool:
        return self.steps("valid") < self.steps() and self.steps() % EVAL_INTERVAL == 0

    def is_training(self, start: int) -> bool:
        """Whether the job's start of that number (0: the first) has made a step."""
        newest = self.history[-1:]
        return bool(newest) and newest[0]["slurm_restart_count"] == start and self.steps() > newest[0]["from_step"]

    def wait_for(self, condition: Callable[[], object], pause: float = 0.05, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain\n{self.output}"
            time.sleep(pause)

    def signal_tasks(self, number: int, *ranks: int) -> None:
        tasks = self.cluster.task_processes(self.id)
        for rank in ranks:
            os.kill(tasks[rank], number)

    def strike(self, condition: Callable[[], bool], rank: int, number: int) -> int:
        """Sends a task a signal while `condition` holds: the task stands still before it is looked at for certain, and
        where it was too fast, the next time is waited for. Returns the newest step."""
        task = self.cluster.task_processes(self.id)[rank]
        while True:
            self.wait_for(condition, pause=0.01)
            stop_process(task)
            if is_in_time := condition():
                step = self.steps()
                os.kill(task, number)
            os.kill(task, signal.SIGCONT)
            if is_in_time:
                return step

    def finish(self) -> None:
        end = self.cluster.wait(self.id, timeout=600)
        assert end == JobEnd("COMPLETED", 0, 0), self.output


def stop_process(process: int) -> None:
    """Stops a process and waits until all its threads stand still."""
    os.kill(process, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while set(thread_states(process)) != {"T"}:
        assert time.monotonic() < deadline, f"process {process} does not stop"
        time.sleep(0.001)


def thread_states(process: int) -> Iterator[str]:
    for stat in (Path("/proc") / str(process) / "task").glob("*/stat"):
        with suppress(OSError):  # ended in the meantime
            yield stat.read_text().rpartition(") ")[2][0]


def losses(run_dir: Path) -> list[tuple[str, ...]]:
    columns = ("step", "samples", "tokens", "split", "dataset", "loss", "targets", "learning_rate", "grad_norm")
    rows = [row for row in read_csv(run_dir / METRICS) if row["split"] == "valid" or not row["dataset"]]
    return [tuple(row[column] for column in columns) for row in rows]


def train_steps(job: Job) -> list[int]:
    """The steps of metrics.csv, as they stand there."""
    return [int(row[0]) for row in losses(job.run_dir) if row[3] == "train"]


@dataclass(frozen=True)
class Story:
    """A job that has come to its end, and the newest step when each of its misfortunes struck."""

    job: Job
    at: dict[str, int]


def tell_story(job: Job) -> Story:
    """Signalled during a save and during a validation, requeued by hand, its step killed, a task of it stopped."""
    at = {}
    job.wait_for(lambda: list_checkpoints(job.run_dir))
    at["save"] = job.strike(lambda: job.is_saving, 0, signal.SIGUSR1)
    while not any(name.startswith("validation") for name in at) or not is_validation_pending(job):
        # the signal may have come behind the last batch: then it is tried again
        job.wait_for(lambda: job.is_training(len(at)))
        at[f"validation {len(at)}"] = job.strike(lambda: job.is_validating, 1, signal.SIGTERM)
        job.wait_for(lambda: len(job.history) > len(at))
    strikes = {
        "requeue": lambda: job.cluster.run("scontrol", "requeue", job.id),
        "kill": lambda: job.cluster.run("scancel", "--signal=KILL", f"{job.id}.0"),
        "hang": lambda: job.signal_tasks(signal.SIGSTOP, 1),
    }
    for name, strike in strikes.items():
        job.wait_for(lambda: job.is_training(len(at)))
        job.wait_for(lambda: job.steps() >= [*at.values()][-1] + 8)
        at[name] = job.steps()
        strike()
    job.finish()
    return Story(job, at)


def is_validation_pending(job: Job) -> bool:
    """Whether the checkpoint that the newest start goes on from was made in the midst of a validation."""
    state = job.run_dir / CHECKPOINTS / f"step-{job.history[-1]['from_step']:08d}" / STATE
    return json.loads(state.read_text())["validation_pending"]


def kill_a_task(job: Job) -> Story:
    job.wait_for(lambda: job.steps() >= 23)
    at = job.steps()
    job.signal_tasks(signal.SIGKILL, 1)
    job.finish()
    return Story(job, {"kill": at})


def reach_the_limit_twice(job: Job) -> Job:
    """The training comes to its limit twice, on a fast machine too: it stands still most of the time until it saves,
    which it does by Slurm's signal only. Then it has time enough."""
    while (start := job.restarts) < 2:
        job.wait_for(lambda start=start: job.restarts > start or job.is_training(start), pause=0.5)
        saves = {*(job.run_dir / CHECKPOINTS).glob("*step-*")}
        while job.restarts == start and {*(job.run_dir / CHECKPOINTS).glob("*step-*")} == saves:
            for process in job.cluster.task_processes(job.id).values():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
                    time.sleep(3)
                    os.kill(process, signal.SIGCONT)
            time.sleep(0.1)
        job.wait_for(lambda start=start: job.restarts > start, pause=0.5)
    job.cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")  # or a slow machine would never be done
    job.finish()
    return job


def meet_a_second(submit: Callable[[], Job]) -> Job:
    """A second job is given the folder of one that goes on for ever, and ends; then the first is cancelled."""
    first = submit()
    first.wait_for(lambda: first.steps() > 1)
    second = submit()
    assert first.cluster.wait(second.id, timeout=300) == JobEnd("FAILED", 2, 0), second.output
    assert f"is being written by Slurm job {first.id}, process " in second.output and second.restarts == 0
    at = first.steps()
    first.wait_for(lambda: first.steps() > at)
    first.cluster.run("scancel", first.id)
    assert first.cluster.wait(first.id, timeout=300).state == "CANCELLED", first.output
    return first


@pytest.fixture(scope="module")
def corrupt_data(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data with a bit flipped in a shard, and that shard."""
    copy = tmp_path_factory.mktemp("corrupt")
    for path in filter(Path.is_file, Path(str(arguments[1])).iterdir()):
        (copy / path.name).write_bytes(path.read_bytes())
    shard = sorted(copy.glob("*-train-*.safetensors"))[3]
    content = bytearray(shard.read_bytes())
    content[-100] ^= 4
    shard.write_bytes(content)
    return copy, shard


def let_fail(job: Job) -> tuple[Job, JobEnd]:
    return job, job.cluster.wait(job.id, timeout=600)


def let_finish(job: Job) -> Job:
    job.finish()
    return job


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    clone: Path,
    arguments: list[object],
    long_arguments: list[object],
    corrupt_data: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[Any]]:
    """What became of each job, three of them at a time; all are over."""
    folder = tmp_path_factory.mktemp("told")

    def submit(name: str, sbatch: tuple[str, ...], *own: object) -> Job:
        return Job(cluster, clone, folder / name, sbatch, *own)

    # Slurm looks every 30 s: 5 s before its end means that a job of a minute is signalled after 25 to 55.
    a_minute = (*ONE_NODE, "--nodelist=node2", "--time=1", "--signal=USR1@5")
    endless = (*arguments, "--max_steps", 100_000, "--save_interval", 10_000, "--eval_interval", 10_000)
    stories = {
        "limit": lambda: reach_the_limit_twice(submit("limit", a_minute, *long_arguments)),
        "story": lambda: tell_story(submit("story", TWO_NODES, *arguments)),
        "killed": lambda: kill_a_task(submit("killed", (*TWO_TASKS, "--nodelist=node1"), *arguments)),
        "second": lambda: meet_a_second(lambda: submit("second", ONE_NODE, *endless)),
        "wrong": lambda: let_fail(submit("wrong", TWO_NODES, *arguments, "--devices", 3)),
        "corrupt": lambda: let_fail(submit("corrupt", TWO_NODES, *arguments, "--data_dir", corrupt_data[0])),
        "four": lambda: let_finish(submit("four", FOUR_TASKS, *OF_FOUR, "--batch_size", 4)),
    }
    with ThreadPoolExecutor(max_workers=3) as pool:
        futures = {name: pool.submit(story) for name, story in stories.items()}
        for name in ("whole", "long_whole"):  # beside them, since they mostly wait
            request.getfixturevalue(name)
    return futures


def test_four_processes_on_two_nodes_train_the_sample_as_one_does(
    told: dict[str, Future[Any]], clone: Path, tmp_path: Path
) -> None:
    job = told["four"].result()
    assert "4 process(es)" in job.output
    data = ("--data_dir", clone / "out" / "slurm" / "data_fr")
    whole = train_here([*data, *OF_FOUR, "--batch_size", 16], tmp_path / "whole")
    found, expected = losses(job.run_dir), losses(whole)
    assert [row[:5] + row[6:8] for row in found] == [row[:5] + row[6:8] for row in expected]
    assert sum(row[3] == "train" for row in found) == 20
    assert [float(row[5]) for row in found] == pytest.approx([float(row[5]) for row in expected], rel=1e-6)


@pytest.fixture(scope="module")
def story(told: dict[str, Future[Any]]) -> Story:
    return told["story"].result()


def test_a_job_goes_on_by_itself_and_ends_as_if_nothing_had_happened(story: Story, whole: Path) -> None:
    job = story.job
    assert job.restarts == len(story.at) >= 5, job.output
    assert losses(job.run_dir) == losses(whole)
    starts = [(start["slurm_job_id"], start["slurm_restart_count"]) for start in job.history]
    assert starts == [(str(job.id), count) for count in range(len(story.at) + 1)]


def from_step(story: Story, misfortune: str) -> int:
    """The step that the start after that misfortune went on from."""
    return story.job.history[[*story.at].index(misfortune) + 1]["from_step"]


def test_a_signal_during_a_save_loses_nothing(story: Story) -> None:
    step = from_step(story, "save")
    assert step >= story.at["save"], story.job.output
    assert f"stopped by a signal after step {step}, all of it saved" in story.job.output


def test_a_signal_cuts_a_validation_short_which_is_made_after_the_restart(story: Story, whole: Path) -> None:
    last = [name for name in story.at if name.startswith("validation")][-1]
    assert from_step(story, last) == story.at[last] and story.at[last] % EVAL_INTERVAL == 0, story.job.output
    validated = [[row[0] for row in losses(folder) if row[3] == "valid"] for folder in (story.job.run_dir, whole)]
    assert validated[0] == validated[1] and str(story.at[last]) in validated[0]


@pytest.mark.parametrize("misfortune", ["requeue", "kill", "hang"])
def test_at_most_one_interval_is_lost(story: Story, misfortune: str) -> None:
    # a checkpoint is still being written when the next interval has begun
    assert from_step(story, misfortune) >= story.at[misfortune] - 2 * SAVE_INTERVAL, story.job.output


def assert_told_of_rank_1(job: Job) -> None:
    assert re.search(r"error: rank 1 \(node[12]\) gave no sign of life", job.output), job.output
    assert "stacks of rank 0 (node1)" in job.output, job.output


def test_a_task_that_hangs_is_named(story: Story) -> None:
    assert_told_of_rank_1(story.job)


def test_a_killed_task_is_named_and_costs_at_most_one_interval(told: dict[str, Future[Any]], whole: Path) -> None:
    killed = told["killed"].result()
    job = killed.job
    assert job.restarts == 1, job.output
    assert losses(job.run_dir) == losses(whole)
    first, second = job.history
    assert (first["slurm_job_id"], first["slurm_restart_count"]) == (str(job.id), 0)
    assert (second["slurm_job_id"], second["slurm_restart_count"]) == (str(job.id), 1)
    assert second["from_step"] >= killed.at["kill"] - 2 * SAVE_INTERVAL, job.output
    assert_told_of_rank_1(job)


def test_a_second_job_on_the_run_folder_is_refused_and_told_who_writes_it(told: dict[str, Future[Any]]) -> None:
    job = told["second"].result()
    assert job.restarts == 0 and len(job.history) == 1, job.output
    assert train_steps(job) == list(range(1, len(train_steps(job)) + 1)), "lines of both writers"


def test_errors_that_stay_do_not_requeue(told: dict[str, Future[Any]], corrupt_data: tuple[Path, Path]) -> None:
    wrong, end = told["wrong"].result()
    assert end == JobEnd("FAILED", 2, 0) and wrong.restarts == 0, wrong.output
    # the second task says it too where Slurm takes longer than 5 s to end it
    errors = {line.partition(": ")[2] for line in wrong.output.splitlines() if line.startswith("error")}
    assert len(errors) == 1 and "--devices 3" in errors.pop(), wrong.output
    corrupt, end = told["corrupt"].result()
    assert end == JobEnd("FAILED", 65, 0) and corrupt.restarts == 0, corrupt.output
    assert f"error: {corrupt_data[1]} does not have the SHA-256" in corrupt.output


def test_a_job_with_too_short_a_limit_requeues_itself_until_it_is_done(
    told: dict[str, Future[Any]], long_whole: Path
) -> None:
    job = told["limit"].result()
    assert job.restarts >= 2, job.output  # how many depends on the machine
    assert losses(job.run_dir) == losses(long_whole)
    log = (job.run_dir / "training_log.out").read_text(encoding="utf-8")
    ends = [int(step) for step in re.findall(r"stopped by a signal (?:after|during the validation at) step (\d+)", log)]
    # A start that stood still when its signal came may be killed at the limit before it could save.
    went_on_from = [start["from_step"] for start in job.history[1:]]
    assert ends and set(ends) <= set(went_on_from), "a signalled restart lost steps"
    assert [start["slurm_restart_count"] for start in job.history] == list(range(job.restarts + 1))


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
    stopped.wait_for(lambda: stopped.steps() > SAVE_INTERVAL)
    [survivor] = cluster.task_processes(stopped.id).values()
    stop_process(survivor)
    running.wait_for(lambda: running.steps() >= 5)
    [trainer] = cluster.task_processes(running.id).values()
    stop_process(trainer)  # or it would be done before the node is given up
    assert cluster.job(running.id)["BatchHost"] == "node1", "Slurm fills the first node first"
    with cluster.node_lost("node1"):
        for job in (running, stopped):
            job.wait_for(lambda job=job: job.restarts == 1)
        os.kill(trainer, signal.SIGCONT)
        cluster.run("scontrol", "update", f"JobId={stopped.id}", "ReqNodeList=node2")
        stopped.wait_for(lambda: len(stopped.history) == 2)
        os.kill(survivor, signal.SIGCONT)
        stopped.wait_for(lambda: not (Path("/proc") / str(survivor)).exists())
        for job in (running, stopped):
            job.finish()
    for job in (running, stopped):
        assert cluster.job(job.id)["BatchHost"] == "node2" and job.restarts == 1, job.output
        assert not list((job.run_dir / CHECKPOINTS).glob(".*"))
    assert losses(running.run_dir) == losses(long_whole)
    assert train_steps(stopped) == list(range(1, STEPS + 1)), "lines of both writers"
