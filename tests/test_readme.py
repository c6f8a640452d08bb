"""The README's commands run as they stand there, one after the other; trainings over 10 steps."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.books.gutendex_server import Gutendex
from tests.conftest import LLAMA_CPP, ROOT, SHARED
from tests.formats.hf_models import make_hf, make_tokenizer
from tests.formats.hub_server import TOKEN, Hub
from tests.recipes.test_books import catalogue
from utils.install_llama_cpp import STAMP

# These are covered elsewhere: the two commands by themselves, sbatch in tests/slurm, litgpt's own in
# test_merged_model.py; what is installed is used where `make test` put it.
ELSEWHERE = ("make ", "sbatch ", "litgpt ", "python utils/install_llama_cpp.py")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine, with a small model under the name of a large one."""
    folder = tmp_path / "Mistral"
    make_hf(folder, "Mistral")
    make_tokenizer(folder)
    server = Hub()
    server.add("mistralai/Mistral-7B-v0.1", {path.name: path.read_bytes() for path in folder.iterdir()})
    yield server
    server.close()


@pytest.fixture
def books() -> Iterator[Gutendex]:
    server = catalogue()
    yield server
    server.close()


def test_every_command_runs(tmp_path: Path, hub: Hub, books: Gutendex) -> None:
    copy = tmp_path / "checkout"
    # the caches of tools are written by the tests that run beside this one
    caches = ("__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache")
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "checkpoints", ".llama.cpp*", *caches)
    shutil.copytree(ROOT, copy, ignore=ignored)
    ran = []
    for command in commands():
        if command.startswith(ELSEWHERE):
            continue
        words = shlex.split(command)
        assert words[0] == "python", command
        small = ["--max_steps", "10", "--eval_samples", "8"] if words[1] == "pretrain.py" else []
        if words[1] == "data/acquire_gutenberg.py":
            small = ["--server", books.address, "--delay", "0"]
        if words[1] == "utils/quantize_gguf.py":
            if not (LLAMA_CPP / STAMP).is_file():
                continue
            small = ["--llama_cpp_dir", str(LLAMA_CPP)]
        line = [sys.executable, *words[1:], *small]
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(line, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert TOKEN not in done.stdout + done.stderr, command
        ran.append(words[1])
    assert len(set(ran)) >= 7, ran
    assert (copy / "out/readme/convergence.png").stat().st_size > 10_000
    assert (copy / "checkpoints/mistralai/Mistral-7B-v0.1/lit_model.pth").is_file()
    assert {"README.md", "books.csv"} < hub.files("datasets/my-organisation/horror-books").keys()
    assert {"README.md", "handler.py", "model.safetensors"} < hub.files("my-organisation/my-model").keys()
    # every command had the token in its environment
    folders = (copy / "out", copy / "checkpoints", tmp_path / "home")
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert written and not [path for path in written if TOKEN.encode() in path.read_bytes()]


@pytest.mark.shared
def test_the_commands_of_the_original_for_books_have_their_counterparts() -> None:
    """Each program that its document calls, with each option, stands in the table."""
    (document,) = (SHARED / "reference").glob("003_*.txt")
    lines = re.findall(r"(?m)^`?((?:python|pip|ollama) [^`\n]*)", document.read_text(encoding="utf-8"))
    lines += re.findall(r"`((?:python|ollama) [^`\n]*)`", document.read_text(encoding="utf-8"))
    assert len(lines) >= 9
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| there | here |")[2].partition("\n\n")[0]
    theirs = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    for line in lines:
        words = re.findall(r"step\d-\w+|ollama \w+|pip install|--\w+", line.replace("-convert-and-quant", "-convert"))
        assert any(all(word in row for word in words) for row in theirs), line


def test_the_picture_names_files_that_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_the_page_about_the_house_names_files_that_exist() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    paths = [page.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    for entry in re.split(r"\n\n|\n- ", text):
        room = Path()
        for name in re.findall(r"`([\w.-][\w./-]*(?:/|\.\w+))`", entry):
            if name.endswith("/"):
                room = room if room.name else Path(name)  # the entry's first: its bare file names are there
            else:
                paths.append(ROOT / name if "/" in name else ROOT / room / name)
    assert len(paths) > 12, paths
    for path in paths:
        assert path.is_file(), path
