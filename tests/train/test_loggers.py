"""Curves as TensorBoard itself reads them back, and what W&B's client is asked to do."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gpt.errors import UserError
from tests.conftest import command_line
from tests.run.paused_training import steps_made
from utils.train import loggers
from utils.train.loggers import check_logger, open_logger

# The client's calls, written down as lines of JSON. FAKE_WANDB says what goes wrong.
WANDB = """
import json, os, time, types

def write(**call):
    with open(os.environ["FAKE_WANDB_CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

def fails(where):
    if os.environ.get("FAKE_WANDB") == where:
        raise OSError("the service\\nis gone")

class Error(Exception): pass
class UsageError(Error): pass
errors = types.SimpleNamespace(Error=Error, UsageError=UsageError)

class Settings:
    def __init__(self, *, silent, console):
        assert silent and console == "off"

class Run:
    url = "https://wandb.test/my-run"
    starting_step = int(os.environ.get("FAKE_WANDB_STARTING_STEP", 0))
    def log(self, data, *, step):
        fails("log")
        write(log=data, step=step)
    def finish(self):
        fails("finish")
        if os.environ.get("FAKE_WANDB") == "hang":
            time.sleep(60)
        write(finish=True)

def setup(settings):
    return types.SimpleNamespace(settings=types.SimpleNamespace(base_url=os.environ["WANDB_BASE_URL"]))

def init(*, project, name, dir, id, resume, mode, config, settings):
    if os.environ.get("FAKE_WANDB") == "nobody":
        raise UsageError("No API key configured. Use `wandb login` to log in.")
    fails("init")
    write(project=project, name=name, dir=dir, id=id, resume=resume, mode=mode, config=config)
    return Run()
"""


class Wandb:
    """A stand-in for the client, and what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "wandb.py").write_text(WANDB)
        self._calls = folder / "calls"
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        for name in ("WANDB_MODE", "WANDB_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        self.set(FAKE_WANDB_CALLS=str(self._calls), WANDB_BASE_URL="http://127.0.0.1:9")  # nobody listens there

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wandb]:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    yield Wandb(folder, monkeypatch)
    sys.modules.pop("wandb", None)


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    return folder


@pytest.fixture
def server() -> Iterator[str]:
    """Answers, if only that there is no such page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def no_lines(line: str) -> None:
    pytest.fail(line)


def start_only(line: str) -> None:
    assert line in ("Weights & Biases: https://wandb.test/my-run", "Weights & Biases: disabled")


def test_none_is_no_logger(tmp_path: Path) -> None:
    check_logger("none")
    assert open_logger("none", tmp_path, -1, {}, no_lines) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_at_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"pip install {name}"):
        check_logger(name)


def test_a_folder_of_runs_is_not_taken_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="pip install wandb"):
        check_logger("wandb")


# TensorBoard


def tensorboard_scalars(out_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(out_dir / "tensorboard")).Reload()
    return {
        name: [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_back_what_was_logged(out_dir: Path) -> None:
    logger = open_logger("tensorboard", out_dir, -1, {}, no_lines)
    logger.log(0, {"valid/all/loss": 9.5}, always=True)
    for step in (1, 2):
        logger.log(step, {"train/loss": 5.0 - step, "train/grad_norm": 0.25}, always=True)
    logger.close()
    assert tensorboard_scalars(out_dir) == {
        "valid/all/loss": [(0, 9.5)],
        "train/loss": [(1, 4.0), (2, 3.0)],
        "train/grad_norm": [(1, 0.25), (2, 0.25)],
    }


def test_tensorboard_shows_each_step_once_after_a_resume(out_dir: Path) -> None:
    """Killed at step 5, gone on with from the checkpoint of step 3; and once more from the same one."""
    for start, (last_step, end) in enumerate([(-1, 5), (3, 5), (3, 4)]):
        logger = open_logger("tensorboard", out_dir, last_step, {}, no_lines)
        for step in range(last_step + 1, end + 1):
            logger.log(step, {"train/loss": 10 * start + step}, always=True)
        logger.close()
    assert tensorboard_scalars(out_dir) == {"train/loss": [(0, 0), (1, 1), (2, 2), (3, 3), (4, 24)]}


def test_training_scalars_are_throttled_and_validations_are_not(out_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(loggers, "time", types.SimpleNamespace(monotonic=lambda: clock))
    logger = open_logger("tensorboard", out_dir, -1, {}, no_lines)
    for step in range(1, 31):  # ten steps a second
        logger.log(step, {"train/loss": 1.0})
        if step == 5:
            logger.log(step, {"valid/all/loss": 1.0}, always=True)
        clock += 0.125
    logger.close()
    scalars = tensorboard_scalars(out_dir)
    assert [step for step, _ in scalars["valid/all/loss"]] == [5]
    assert [step for step, _ in scalars["train/loss"]] == [1, 13, 21, 29]


# Weights & Biases


def test_wandb_gets_the_run_and_its_scalars(wandb: Wandb, server: str, out_dir: Path) -> None:
    wandb.set(WANDB_BASE_URL=server, WANDB_PROJECT="corpora")
    logger = open_logger("wandb", out_dir, -1, {"seed": 1}, start_only)
    logger.log(1, {"train/loss": 4.0})
    logger.log(1, {"valid/all/loss": 3.0}, always=True)
    logger.close()
    start, *rest = wandb.calls()
    run_id = (out_dir / "wandb" / "run_id").read_text().strip()
    assert start == {
        "project": "corpora",
        "name": "my-run",
        "dir": str(out_dir),
        "id": run_id,
        "resume": "allow",
        "mode": "online",
        "config": {"seed": 1},
    }
    assert rest == [
        {"log": {"train/loss": 4.0}, "step": 1},
        {"log": {"valid/all/loss": 3.0}, "step": 1},
        {"finish": True},
    ]


def test_wandb_goes_on_with_the_same_run_and_sends_no_step_twice(wandb: Wandb, server: str, out_dir: Path) -> None:
    wandb.set(WANDB_BASE_URL=server)
    open_logger("wandb", out_dir, -1, {}, start_only).close()
    sys.modules.pop("wandb")
    wandb.set(FAKE_WANDB_STARTING_STEP="5")  # the server has steps up to 4
    logger = open_logger("wandb", out_dir, 3, {}, start_only)
    for step in (4, 5):
        logger.log(step, {"train/loss": 1.0}, always=True)
    logger.close()
    first, second = (call for call in wandb.calls() if "id" in call)
    assert first["id"] == second["id"] and len(first["id"]) == 8
    assert [call["step"] for call in wandb.calls() if "log" in call] == [5]


def test_without_a_network_wandb_keeps_the_run_on_the_disk(wandb: Wandb, out_dir: Path) -> None:
    lines: list[str] = []
    logger = open_logger("wandb", out_dir, -1, {}, lines.append)
    logger.log(1, {"train/loss": 1.0})
    assert [call["mode"] for call in wandb.calls()[:1]] == ["offline"]
    assert len(lines) == 1 and f"wandb sync {out_dir}/wandb/offline-run-*" in lines[0]


def test_wandbs_own_mode_is_kept(wandb: Wandb, out_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_answers", lambda _: pytest.fail("the server is asked"))
    wandb.set(WANDB_MODE="disabled")
    open_logger("wandb", out_dir, -1, {}, start_only)
    assert wandb.calls()[0]["mode"] == "disabled"


def test_who_is_not_logged_in_learns_it_at_the_start(wandb: Wandb, server: str, out_dir: Path) -> None:
    wandb.set(WANDB_BASE_URL=server, FAKE_WANDB="nobody")
    with pytest.raises(UserError, match=r"wandb login.*WANDB_MODE=offline"):
        open_logger("wandb", out_dir, -1, {}, start_only)


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_wandb_is_said_once_and_the_training_goes_on(
    wandb: Wandb, server: str, out_dir: Path, where: str
) -> None:
    wandb.set(WANDB_BASE_URL=server, FAKE_WANDB=where)
    lines: list[str] = []
    logger = open_logger("wandb", out_dir, -1, {}, lines.append)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0}, always=True)
    logger.close()
    said = lines if where == "init" else lines[1:]  # the start's line first
    assert len(said) == 1 and "the service is gone" in said[0] and "metrics.csv" in said[0]


def test_a_wandb_that_cannot_finish_does_not_keep_the_run_from_ending(
    wandb: Wandb, server: str, out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.set(WANDB_BASE_URL=server, FAKE_WANDB="hang")
    monkeypatch.setattr(loggers, "_FINISH_SECONDS", 0.1)
    lines: list[str] = []
    open_logger("wandb", out_dir, -1, {}, lines.append).close()
    assert len(lines) == 2 and "metrics.csv" in lines[1]


def test_only_this_processs_wandb_service_is_ended(wandb: Wandb, tmp_path: Path) -> None:
    """A child of the service's name is; one of another name, and another process's child, are not."""
    service, bystander = tmp_path / "wandb-core", tmp_path / "wandb-other"
    for program in (service, bystander):
        program.symlink_to(shutil.which("sleep"))
    own, other = (subprocess.Popen([program, "60"]) for program in (service, bystander))
    foreign = subprocess.Popen(["sh", "-c", f"{service} 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    grandchild = int(foreign.stdout.readline())
    try:
        loggers._end_service()
        assert own.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        os.kill(grandchild, 0)
    finally:
        for process in (own, other):
            process.kill()
            process.wait()
        os.kill(grandchild, signal.SIGKILL)
        foreign.wait()


# As W&B does it, offline: a file per start, written in blocks, of which a killed process loses the last.
BLOCKS = """
import json, os, types

class UsageError(Exception): pass
errors = types.SimpleNamespace(UsageError=UsageError)
Settings = dict

class Run:
    starting_step = 0
    def __init__(self, folder, id):
        os.makedirs(folder, exist_ok=True)
        number = len([name for name in os.listdir(folder) if name.endswith(".wandb")])
        self.file = open(f"{folder}/{number}-{id}.wandb", "w", buffering=1 << 20)
    def log(self, data, *, step):
        self.file.write(json.dumps([step, data]) + "\\n")
    def finish(self):
        self.file.close()

def setup(settings):
    return types.SimpleNamespace(settings=types.SimpleNamespace(base_url="http://127.0.0.1:9"))

def init(*, dir, id, **_):
    return Run(f"{dir}/wandb", id)
"""


def test_an_offline_run_that_was_killed_has_every_step_after_the_next_start(
    pretrain_arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "wandb.py").write_text(BLOCKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site-packages"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    arguments = [*pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--logger", "wandb"]
    command = command_line("pretrain.py", *arguments, "--out_dir", run_dir)
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while steps_made(run_dir) < 7 and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    newest = sorted((run_dir / "wandb").glob("*.wandb"))[-1]
    curves: dict[str, dict[int, float]] = {}
    for line in newest.read_text().splitlines():
        step, scalars = json.loads(line)
        for name, value in scalars.items():
            curves.setdefault(name, {})[step] = value
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = {int(row["step"]): float(row["loss"]) for row in rows if row["split"] == "train" and not row["dataset"]}
    assert list(losses) == list(range(1, 13)) and curves["train/loss"] == losses
    valid = {
        int(row["step"]): float(row["loss"]) for row in rows if row["split"] == "valid" and row["dataset"] == "all"
    }
    assert curves["valid/all"] == valid
