"""env.sh's run_unattended: what requeues a job, what must not, and when it gives up."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, JobEnd

pytestmark = pytest.mark.slurm

COMPLETED = JobEnd("COMPLETED", 0, 0)
INTERRUPTED = JobEnd("FAILED", 75, 0)

JOB = """\
#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source slurm/env.sh
echo $$ >"$FOLDER/script-${SLURM_RESTART_COUNT:-0}"
progress() { cat "$FOLDER/progress" 2>/dev/null; }
run_unattended "$FOLDER/run/log" bash -c '
    start=${SLURM_RESTART_COUNT:-0}
    up() { : >"$FOLDER/up-$start-$SLURM_PROCID"; }
    all_up() { up; until (($(ls "$FOLDER" | grep -c "^up-$start-") == SLURM_STEP_NUM_TASKS)); do sleep 0.1; done; }
    wait_for_end() { up; while :; do sleep 1 & wait; done; }
    trap "exit 75" USR1 TERM
    '"$TASK"
"""
"""A job whose tasks run $TASK, a line of bash that may use these functions; `wait_for_end` exits with 75 when told. It
is a loop, as Slurm signals one process after the other, and bash may hear of its child's end first."""


@dataclass(frozen=True)
class Job:
    """A submitted JOB and its places."""

    cluster: Cluster
    folder: Path
    id: int

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "run" / "log").read_text()

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.id)["Restarts"])

    def notes_left(self, clone: Path) -> list[Path]:
        """What env.sh keeps of a job while it is unfinished."""
        logs = clone / "slurm" / "logs"
        return [*logs.glob(f"{self.id}.*"), *logs.glob(f"{self.id}-*")]

    def wait_until_up(self, start: int = 0, tasks: int = 1) -> None:
        """Until that many tasks of that start of the job have called `up`."""
        self.cluster.wait_until(lambda: len([*self.folder.glob(f"up-{start}-*")]) == tasks, f"start {start} is not up")

    def assert_end(self, end: JobEnd, restarts: int, timeout: float = 300) -> None:
        assert self.cluster.wait(self.id, timeout) == end, self.output
        assert self.restarts == restarts, self.output


@dataclass(frozen=True)
class Submitter:
    """Submits JOBs from the clone, each with a folder of its own."""

    cluster: Cluster
    clone: Path
    folder: Path

    def __call__(self, task: str, *options: str, name: str = "job") -> Job:
        folder = self.folder / name
        folder.mkdir()
        (folder / "job.sh").write_text(JOB)
        job_id = self.cluster.submit(
            f"--output={folder}/output",
            *options,
            folder / "job.sh",
            cwd=self.clone,
            extra={"TASK": task, "FOLDER": str(folder)},
        )
        return Job(self.cluster, folder, job_id)


TWO_NODES = ("--nodes=2", "--ntasks-per-node=2")
# Jobs that nobody touches: what their tasks run, and sbatch's options. The longest come first.
UNTOUCHED: dict[str, tuple[str, tuple[str, ...]]] = {
    # Slurm's own restarts after a node's failure count as these do
    "by_hand": ('up; scontrol requeue "$SLURM_JOB_ID"; wait_for_end', ()),
    "fruitless": ("exit 75", ()),
    # the second start makes progress, after which there may be four
    "fruitful": ('((start != 1)) || echo step-1 >"$FOLDER/progress"; exit 75', ()),
    "short_of_time": ("((start)) || wait_for_end", ("--time=1", "--signal=USR1@20")),
    "two_nodes": (
        'echo "$start $SLURM_PROCID $SLURMD_NODENAME $TRAINING_LOG"; echo 2>&1 "warning"; all_up; ((start)) || exit 75',
        TWO_NODES,
    ),
    "errors": ('((start)) || { echo "error: at first"; exit 75; }; echo "unexpected"; exit 1', ()),
    "array": (
        ': >"$FOLDER/$SLURM_ARRAY_TASK_ID-$start"; [[ $SLURM_ARRAY_TASK_ID == 1 || $start == 1 ]] || exit 75',
        ("--array=1-2",),  # the last one has the array's own id
    ),
    "exit_1": ('mkdir -p "$FOLDER/run"; exit 1', ()),
    **{
        f"exit_{code}": (f'mkdir -p "$FOLDER/run"; echo "error: first"; echo "error: second"; exit {code}', ())
        for code in (0, 2, 65, 74)
    },
}


@pytest.fixture
def submit(cluster: Cluster, clone: Path, tmp_path: Path) -> Submitter:
    return Submitter(cluster, clone, tmp_path)


@pytest.fixture(scope="module")
def untouched(cluster: Cluster, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All of UNTOUCHED, side by side: a requeued job is held for 6 seconds, and these restart up to 5 times.

    The longest are waited for last, before the test of a lost node.
    """
    submit = Submitter(cluster, clone, tmp_path_factory.mktemp("untouched"))
    return {name: submit(task, *options, name=name) for name, (task, options) in UNTOUCHED.items()}


def test_75_requeues_and_the_log_has_all_tasks_of_all_starts(untouched: dict[str, Job]) -> None:
    job = untouched["two_nodes"]
    job.assert_end(COMPLETED, restarts=1)
    path = job.folder / "run" / "log"
    tasks = {f"{start} {rank} node{1 + rank // 2} {path}" for start in (0, 1) for rank in range(4)}
    assert tasks < set(job.log.splitlines()) and job.log.count("warning\n") == 8, job.log
    ends = [line for line in job.output.splitlines() if not line.startswith(("srun: ", "slurmstepd"))]
    assert ends == [f"exit code 75, log: {path}", "requeued", f"exit code 0, log: {path}"]


@pytest.mark.parametrize("code", [0, 1, 2, 65, 74])
def test_other_exit_codes_end_the_job(untouched: dict[str, Job], clone: Path, code: int) -> None:
    job = untouched[f"exit_{code}"]
    job.assert_end(JobEnd("FAILED" if code else "COMPLETED", code, 0), restarts=0)
    assert f"exit code {code}, log: {job.folder}/run/log\n" in job.output
    assert [line for line in job.output.splitlines() if line.startswith("error")] == (
        ["error: second"] if code not in (0, 1) else []
    )
    assert not job.notes_left(clone)


def test_only_errors_of_this_start_are_shown(untouched: dict[str, Job]) -> None:
    job = untouched["errors"]
    job.assert_end(JobEnd("FAILED", 1, 0), restarts=1)
    assert job.output.count("error: at first") == 1


def test_each_task_of_an_array_is_requeued_alone(untouched: dict[str, Job]) -> None:
    job = untouched["array"]
    job.cluster.wait_until((job.folder / "2-1").exists, "task 2 was not requeued")
    job.cluster.wait_until(lambda: job.output.count("exit code 0") == 2, "the array does not end")
    assert not (job.folder / "1-1").exists()


def test_a_log_that_cannot_be_written_is_an_io_error(submit: Submitter) -> None:
    job = submit("exit 0", "--hold")
    (job.folder / "run").touch()  # where the log's folder should be
    job.cluster.run("scontrol", "release", job.id)
    job.assert_end(JobEnd("FAILED", 74, 0), restarts=0)


def test_the_count_of_an_earlier_job_of_this_id_is_forgotten(submit: Submitter) -> None:
    job = submit("exit 0", "--hold")
    (submit.clone / "slurm" / "logs" / f"{job.id}.starts").write_text("nothing yet\n" * 4)
    job.cluster.run("scontrol", "release", job.id)
    job.assert_end(COMPLETED, restarts=0)


def test_a_cancelled_job_stays_cancelled(submit: Submitter) -> None:
    job = submit("wait_for_end")
    job.wait_until_up()
    job.cluster.run("scancel", job.id)
    job.assert_end(JobEnd("CANCELLED", 75, 0), restarts=0)
    assert "\nnot requeued: the job was cancelled" in job.output


def test_what_is_requeued_by_hand_or_killed_restarts_once(submit: Submitter) -> None:
    by_hand = submit("((start)) || wait_for_end", name="by_hand")
    step = submit("((start)) || wait_for_end", *TWO_NODES, name="step")
    task = submit("((start)) || wait_for_end", *TWO_NODES, name="task")  # has room when the others are held
    by_hand.wait_until_up()
    by_hand.cluster.run("scontrol", "requeue", by_hand.id)
    step.wait_until_up(tasks=4)
    step.cluster.run("scancel", "--signal=KILL", f"{step.id}.0")
    task.wait_until_up(tasks=4)
    processes = task.cluster.task_processes(task.id)
    assert sorted(processes) == [0, 1, 2, 3]
    os.kill(processes[2], signal.SIGKILL)
    for job in (by_hand, step, task):
        job.assert_end(COMPLETED, restarts=1)
    assert "\nnot requeued: the job was cancelled or restarted" in by_hand.output
    assert "task 2 on node2 was killed by SIGKILL\n" in task.log


def test_before_its_time_limit_a_job_requeues(untouched: dict[str, Job]) -> None:
    untouched["short_of_time"].assert_end(COMPLETED, restarts=1)


def test_four_starts_without_progress_are_enough(untouched: dict[str, Job], clone: Path) -> None:
    idle, late, by_hand = (untouched[name] for name in ("fruitless", "fruitful", "by_hand"))
    idle.assert_end(INTERRUPTED, restarts=3)
    by_hand.assert_end(INTERRUPTED, restarts=4)
    late.assert_end(INTERRUPTED, restarts=5)
    for job, progress in ((idle, "nothing yet"), (by_hand, "nothing yet"), (late, "step-1")):
        messages = [line for line in job.output.splitlines() if line.startswith("error: stopped: 4 starts")]
        assert len(messages) == 1 and f"({progress})" in messages[0] and f"{job.folder}/run/log" in messages[0]
        assert not job.notes_left(clone)
    assert len([*by_hand.folder.glob("up-*")]) == 4  # the fifth start ended before its tasks began


def test_jobs_whose_node_is_lost_restart_once_elsewhere(submit: Submitter) -> None:
    """The first start's script lives on. Its srun ends with 0, which is no success, while the job waits for its second
    start; or, of the `late` job, the script learns of it when the second start runs."""
    task = "((start)) || wait_for_end; up; until [[ -e $FOLDER/go ]]; do sleep 0.1; done"
    early, late = (submit(task, "--nodelist=node1", name=name) for name in ("early", "late"))
    early.wait_until_up()
    late.wait_until_up()
    cluster = late.cluster
    script = int((late.folder / "script-0").read_text())
    os.kill(script, signal.SIGSTOP)
    with cluster.node_lost("node1"):
        for job in (early, late):
            cluster.wait_until(lambda job=job: job.restarts == 1, "the node is not given up")
            cluster.run("scontrol", "update", f"JobId={job.id}", "ReqNodeList=node2")
            job.wait_until_up(start=1)
            assert cluster.job(job.id)["BatchHost"] == "node2"
        os.kill(script, signal.SIGCONT)
        for job in (early, late):
            cluster.wait_until(lambda job=job: "\nnot requeued" in job.output, "the first start's script has not ended")
            (job.folder / "go").touch()
            job.assert_end(COMPLETED, restarts=1)
    for job in (early, late):
        assert job.output.count("exit code 75") == job.output.count("exit code 0") == 1


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((), "default value"),
        (("--out_dir", "a b"), "a b"),
        (("--out_dir=a=b",), "a=b"),
        (("--out", "a"), "a"),
        (("--o=a",), "a"),
        (("--out_dir", "a", "--max_steps", "1", "--out_dir=b"), "b"),
        (("--out_dirs", "a", "--max_steps", "out_dir", "--", "-o", "b"), "default value"),
        (("--max_steps", "3", "--out_dir"), "default value"),
    ],
)
def test_an_option_in_the_arguments_is_found(arguments: tuple[str, ...], value: str) -> None:
    script = 'source slurm/env.sh; option out_dir "default value" "$@"'
    environment = {"PATH": os.environ["PATH"], "VENV": "", "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script, "job", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == value + "\n"
