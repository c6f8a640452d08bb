"""What a process learns from Slurm's environment, and how two tasks meet; the real Slurm is in tests/slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gpt.errors import UserError
from tests.warm_start import ROOT
from utils.cluster.slurm import Tasks, join_tasks, slurm_step, slurm_tasks

STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NUM_NODES": "2"}
MEET = """
import sys
from pathlib import Path
from utils.cluster.slurm import join_tasks
tasks = join_tasks(Path(sys.argv[1]))
from utils.cluster.collectives import together
from utils.cluster.ranks import end_process
print(together(lambda: tasks.rank, tasks.group), tasks.count)
end_process(0)
"""


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("SLURM") or name == "TORCHELASTIC_RUN_ID":
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # so that what is set in the test is undone
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    for name, value in {**STEP, **values}.items():
        monkeypatch.setenv(name, value)


def test_a_step_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_tasks() is None and slurm_step() is None
    set_environment(monkeypatch)
    assert slurm_tasks() == 8 and slurm_step() == (4, 2)
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert slurm_tasks() is None and slurm_step() is None


def test_an_interactive_shell_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM_STEP_NUM_TASKS="1", SLURM_JOB_NAME="bash")
    assert slurm_tasks() is None


def test_different_numbers_of_tasks_on_the_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM_STEP_TASKS_PER_NODE="2,1")
    with pytest.raises(UserError, match="different numbers of tasks on the nodes \\(2,1\\)"):
        slurm_step()


def test_a_single_task_has_no_group_and_imports_no_torch(tmp_path: Path) -> None:
    assert join_tasks(tmp_path) == Tasks(0, 1, None)
    program = "import sys; from pathlib import Path; from utils.cluster.slurm import join_tasks; "
    program += "join_tasks(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT).returncode == 0


def test_two_tasks_meet_and_leave_no_file(tmp_path: Path) -> None:
    environment = os.environ | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEET, tmp_path],
            env=environment | {"SLURM_PROCID": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=600)[0] for process in started] == ["[0, 1] 2\n"] * 2
    assert not list(tmp_path.iterdir())
