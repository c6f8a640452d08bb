"""The README's commands run as they stand there, one after the other; trainings over 10 steps."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# These are covered elsewhere: the two commands by themselves, sbatch in tests/slurm, the download against a local
# server, and litgpt's own command in test_trained.py.
ELSEWHERE = ("make ", "sbatch ", "python lit_gpt/scripts/download.py", "litgpt ")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_command_runs(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", "checkpoints")
    shutil.copytree(ROOT, copy, ignore=ignored)
    ran = []
    for command in commands():
        if command.startswith(ELSEWHERE):
            continue
        words = shlex.split(command)
        assert words[0] == "python", command
        small = ["--max_steps", "10", "--eval_samples", "8"] if words[1] == "pretrain.py" else []
        done = subprocess.run(
            [sys.executable, *words[1:], *small], cwd=copy, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(words[1])
    assert len(set(ran)) >= 7, ran
    assert (copy / "out/readme/convergence.png").stat().st_size > 10_000


def test_the_picture_names_files_that_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
