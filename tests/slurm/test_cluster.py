"""What the tests and the batch scripts stand on: a cluster that comes and goes, the tasks' exit codes and signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm import cluster as cluster_module
from tests.slurm.cluster import Cluster, JobEnd, marked_processes, what_is_missing

pytestmark = pytest.mark.slurm


@pytest.fixture
def second_cluster(cluster: Cluster) -> Iterator[tuple[subprocess.Popen[str], Cluster]]:
    """`python -m tests.slurm.cluster`, as `make slurm-dev` starts it, beside the one that is there."""
    command = [sys.executable, "-m", "tests.slurm.cluster"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a shell lets what it starts in the background ignore Ctrl-C, and so these tests where they are started thus
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = process.stdout.readline()
    assert line.startswith("export SLURM_CONF="), line
    second = Cluster(Path(line.strip().partition("=")[2]).parent)
    yield process, second
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_cluster_and_its_jobs_end_with_the_session(
    second_cluster: tuple[subprocess.Popen[str], Cluster], tmp_path: Path, number: signal.Signals
) -> None:
    process, cluster = second_cluster
    stubborn = "trap : TERM; echo $$ >pid; while :; do sleep 0.1; done"
    cluster.submit("--output=/dev/null", f"--wrap={stubborn}", cwd=tmp_path)
    cluster.wait_until(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the job has not started"
    )
    job_process = int((tmp_path / "pid").read_text())
    assert job_process in marked_processes(cluster.folder)
    process.send_signal(number)
    assert process.wait(timeout=120) == (-number if number == signal.SIGKILL else 0)
    cluster.wait_until(lambda: not cluster.folder.exists(), "the cluster's folder is still there")
    assert not marked_processes(cluster.folder)


def test_without_slurm_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert what_is_missing() is None
    monkeypatch.setattr(cluster_module.os, "geteuid", lambda: 1000)
    assert "root" in what_is_missing()
    monkeypatch.setattr(cluster_module, "_search_path", lambda: "/nowhere")
    assert "slurmctld" in what_is_missing() and "\n" not in what_is_missing()


def run_on_two_tasks(cluster: Cluster, clone: Path, folder: Path, command: str, *options: str) -> int:
    """Submits a batch script that runs `command` in bash on two tasks by env.sh's run_tasks; they write to `log`."""
    script = folder / "job.sh"
    run = f"run_tasks {folder}/log bash -c '{command}'"
    script.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\nsource slurm/env.sh\n{run}\n")
    return cluster.submit("--ntasks-per-node=2", f"--output={folder}/output", *options, script, cwd=clone)


ENDS = {
    # srun kills task 0 for it and would itself exit with 143 …
    "if ((SLURM_PROCID)); then exit 75; else sleep 60; fi": JobEnd("FAILED", 75, 0),
    # … or, when it does not end by SIGTERM, with 137
    'if ((SLURM_PROCID)); then exit 74; else trap "" TERM; sleep 60; fi': JobEnd("FAILED", 74, 0),
    # killed from outside, as by the kernel where memory runs out: not the command's fault
    "kill -KILL $$": JobEnd("FAILED", 75, 0),
    "kill -KILL $PPID": JobEnd("FAILED", 75, 0),
    # the others end by themselves when srun tells them to
    'if ((SLURM_PROCID)); then exit 65; else trap "exit 75" TERM; while :; do sleep 1 & wait; done; fi': JobEnd(
        "FAILED", 65, 0
    ),
    "exit 255": JobEnd("FAILED", 255, 0),  # an exit code, no signal
    "exit 2": JobEnd("FAILED", 2, 0),
    "true": JobEnd("COMPLETED", 0, 0),
}


@pytest.fixture(scope="module")
def ended(cluster: Cluster, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """The job of each command of ENDS, and its output; side by side, as srun waits 15 s for a task to end."""
    folders = {command: tmp_path_factory.mktemp("ended") for command in ENDS}
    jobs = {command: run_on_two_tasks(cluster, clone, folder, command) for command, folder in folders.items()}
    return {command: (job_id, folders[command] / "output") for command, job_id in jobs.items()}


@pytest.mark.parametrize("command", ENDS)
def test_the_first_failure_is_the_jobs_exit_code(
    cluster: Cluster, clone: Path, ended: dict[str, tuple[int, Path]], command: str
) -> None:
    job_id, output = ended[command]
    assert cluster.wait(job_id, timeout=300) == ENDS[command], output.read_text()
    assert not list((clone / "slurm" / "logs").glob(f"{job_id}-*.exit_code"))


@pytest.mark.parametrize(
    ("options", "state"), [(["--signal=USR1"], "FAILED"), (["--signal=TERM"], "FAILED"), ([], "CANCELLED")]
)
def test_a_signalled_job_lets_its_tasks_finish(
    cluster: Cluster, clone: Path, tmp_path: Path, options: list[str], state: str
) -> None:
    trap = "trap ': >stopped-$SLURM_PROCID; exit 75' TERM USR1"
    # in a loop: Slurm signals one process after the other, and bash may hear of its child's end first
    (tmp_path / "task.sh").write_text(f"{trap}; : >up-$SLURM_PROCID; while :; do sleep 1 & wait; done")
    job_id = run_on_two_tasks(cluster, clone, tmp_path, f"cd {tmp_path} && . ./task.sh")
    cluster.wait_until(lambda: len(list(tmp_path.glob("up-*"))) == 2, "the tasks are not up")
    cluster.run("scancel", *options, job_id)
    assert cluster.wait(job_id, timeout=300) == JobEnd(state, 75, 0), (tmp_path / "output").read_text()
    assert len(list(tmp_path.glob("stopped-*"))) == 2


def test_each_job_has_its_own_place_to_meet(cluster: Cluster, clone: Path, tmp_path: Path) -> None:
    command = "echo $MASTER_ADDR $MASTER_PORT $SLURM_STEP_NUM_TASKS $SLURM_STEP_NUM_NODES $OMP_NUM_THREADS"
    jobs = []
    for number, nodes in enumerate((1, 2)):
        (tmp_path / str(number)).mkdir()
        options = (f"--nodes={nodes}", "--cpus-per-task=2", "--export=ALL,OMP_NUM_THREADS=")
        jobs.append(run_on_two_tasks(cluster, clone, tmp_path / str(number), command, *options))
    assert all(cluster.wait(job_id, timeout=300).state == "COMPLETED" for job_id in jobs)
    one, two = (set((tmp_path / str(number) / "log").read_text().splitlines()) for number in (0, 1))
    # the nodes' names do not resolve here: the address is the one that Slurm itself uses
    assert one == {f"127.0.0.1 {10240 + jobs[0]} 2 1 2"} and two == {f"127.0.0.1 {10240 + jobs[1]} 4 2 2"}


@pytest.mark.parametrize(
    ("options", "name", "found"),
    [
        (("--nodes=2", "--ntasks-per-node=2"), "pretrain", "(2, 2) True"),
        (("--nodes=1", "--ntasks=2"), "pretrain", "(2, 1) True"),  # Slurm sets no SLURM_NTASKS_PER_NODE
        (("--nodes=2", "--ntasks=4"), "pretrain", "UserError: Slurm started different numbers of tasks"),  # 3 and 1
        (("--nodes=1", "--ntasks=1"), "bash", "None False"),
    ],
)
def test_the_step_says_how_many_processes_there_are(
    cluster: Cluster, options: tuple[str, ...], name: str, found: str
) -> None:
    program = "import os; from utils.cluster.slurm import slurm_step; "
    program += "print(slurm_step(), 'SLURM_NTASKS_PER_NODE' in os.environ)"
    command = ("srun", *options, f"--job-name={name}", sys.executable, "-c", program)
    done = cluster.run(*command, cwd=ROOT, check=False)
    assert found in done.stdout + done.stderr, done.stderr
