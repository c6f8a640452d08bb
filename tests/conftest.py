"""Small models and data made on the spot, by the real programs where one is under test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import warm_start
from tests.warm_start import ROOT
from tests.warm_transformers import PYTHON, warm_python
from utils import cli
from utils.export.llama_cpp import FOLDER as LLAMA_CPP
from utils.install_llama_cpp import STAMP

SHARED = ROOT.parent / "shared"
SAMPLE = ROOT / "data" / "sample"
TOKENIZER = SAMPLE / "tokenizer"
TINY_MODEL = """
name: tiny
block_size: 64
n_layer: 2
n_embd: 32
n_head: 4
n_query_groups: 2
rotary_percentage: 1.0
parallel_residual: false
bias: false
norm_class_name: RMSNorm
mlp_class_name: LLaMAMLP
intermediate_size: 64
"""

# Several torch processes on a small machine get in each other's way with more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What programs keep for the user, such as which characters gigatoken tokenises otherwise, is kept for all tests.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "user")


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores SIGINT in what it starts behind `&`, and every process of a test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI") and not SHARED.is_dir():
        pytest.exit("the tests that read ../shared cannot run: it is missing", returncode=1)
    if os.environ.get("CI") and not (LLAMA_CPP / STAMP).is_file():
        pytest.exit("the tests of GGUF files cannot run: utils/install_llama_cpp.py has not installed", returncode=1)
    for program, what in (("go", "of Ollama's templates"), ("tmux", "of the chat in a terminal")):
        if os.environ.get("CI") and shutil.which(program) is None:
            pytest.exit(f"the tests {what} cannot run: tests/install_debian.sh has failed", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {
        "shared": (SHARED.is_dir(), "needs the real data in ../shared"),
        "go": (shutil.which("go") is not None, "needs Go: make debian-packages"),
        "tmux": (shutil.which("tmux") is not None, "needs tmux: make debian-packages"),
        "llama_cpp": ((LLAMA_CPP / STAMP).is_file(), "needs llama.cpp: python utils/install_llama_cpp.py"),
    }
    for marker, (is_there, reason) in needs.items():
        for item in items:
            if not is_there and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def run(
    script: str, *arguments: object, processes: int = 1, timeout: float = 900, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs one of the programs as a user does; with `check` its exit code must be 0.

    Several `processes` are started as torchrun does it; --devices alone lets Lightning start them.
    """
    words = [ROOT / script, *map(str, arguments)]
    done = warm_start.run(warm_start.program, words, processes, timeout)
    assert not check or done.returncode == 0, f"{script} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@contextmanager
def as_users_start_it() -> Iterator[None]:
    """Within, what a command starts to compare with transformers imports it by itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", PYTHON)
        yield


def run_command(options_class: type[Any], main: Callable[[Any], None], argv: Sequence[str]) -> int:
    """What `python SCRIPT ARGV` exits with, of a script with these options and this `main`, in this process."""
    try:
        options = cli.parse_or_exit(options_class, argv)
    except SystemExit as e:
        return e.code
    return cli.run(main, options)


def command_line(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def assert_error(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """One line on stderr that begins with `error:` and holds `words`, no traceback, and the exit code."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == exit_code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], errors[0]


@pytest.fixture(scope="session", autouse=True)
def warm_transformers() -> Iterator[None]:
    """What commands start by `sys.executable` to compare with transformers finds it imported."""
    with warm_python() as script, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", str(script))
        yield


@pytest.fixture(scope="session")
def model_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY_MODEL)
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The French sample, prepared for windows of 65 tokens."""
    folder = tmp_path_factory.mktemp("data") / "french"
    source = ("--source_path", SAMPLE / "french", "--checkpoint_dir", TOKENIZER)
    run("prepare_data.py", *source, "--destination_path", folder, "--max_length", 64, "--num_workers", 1)
    return folder


@pytest.fixture(scope="session")
def other_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English sample, likewise."""
    folder = tmp_path_factory.mktemp("data") / "english"
    source = ("--source_path", SAMPLE / "english", "--checkpoint_dir", TOKENIZER)
    run("prepare_data.py", *source, "--destination_path", folder, "--max_length", 64, "--num_workers", 1)
    return folder


@pytest.fixture(scope="session")
def pretrain_arguments(data_dir: Path, model_config: Path) -> list[object]:
    """A small training from scratch in fp32, without --out_dir, --devices and --batch_size."""
    return [
        *("--data_dir", data_dir, "--checkpoint_dir", TOKENIZER, "--model_config", model_config),
        *("--precision", "32-true", "--interval_unit", "steps", "--warmup_steps", 2, "--learning_rate", 1e-2),
        *("--max_steps", 12, "--save_interval", 3, "--eval_interval", 4, "--eval_samples", 8),
    ]


@pytest.fixture(scope="session")
def trained_run(pretrain_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a full training; do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    run("pretrain.py", *pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", folder)
    return folder


@pytest.fixture(scope="session")
def foundation(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a litgpt checkpoint directory; do not change it."""
    from lit_gpt.formats.litgpt_directory import write_litgpt_directory
    from utils.run.merged_model import companion_files, load_merged_model

    trained = load_merged_model(trained_run)
    folder = tmp_path_factory.mktemp("foundation")
    write_litgpt_directory(folder, trained.config, trained.state_dict, companion_files(trained))
    return folder


@pytest.fixture(scope="session")
def lora_arguments(foundation: Path, other_data_dir: Path) -> list[object]:
    """A small LoRA training on the other corpus, with dropout, without --out_dir, --devices and --batch_size."""
    return [
        *("--data_dir", other_data_dir, "--checkpoint_dir", foundation, "--use_lora", "true", "--lora_mlp", "true"),
        *("--lora_head", "true", "--lora_dropout", 0.1, "--precision", "32-true", "--interval_unit", "steps"),
        *("--warmup_steps", 2, "--learning_rate", 1e-2, "--max_steps", 12, "--save_interval", 3),
        *("--eval_interval", 4, "--eval_samples", 8),
    ]


@pytest.fixture(scope="session")
def lora_run(lora_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a LoRA training; do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    run("pretrain.py", *lora_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", folder)
    return folder


def random_rows(count: int, window: int, vocabulary: int, seed: int = 0) -> list:
    """Rows of several random documents, some with padding, some with left context that is no target."""
    from utils.data.shards import Row

    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        cuts = np.sort(rng.choice(np.arange(4, window), size=rng.integers(1, 4), replace=False))
        lengths = np.diff([0, *cuts] if rng.random() < 0.5 else [0, *cuts, window])
        tokens = np.zeros(window, np.uint16)
        tokens[: lengths.sum()] = rng.integers(1, vocabulary, lengths.sum())
        overlaps = np.array([rng.integers(1, max(2, length // 2)) for length in lengths])
        rows.append(Row(tokens, lengths, overlaps))
    return rows
