"""Goes through the stages of a recipe, each a process of its own; what is complete and unchanged is skipped.

A killed stage goes on when the same command is given again, as its command does: a training from its newest checkpoint,
a preparation with the splits that are missing. What it writes has its name only when it is whole.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from lit_gpt.errors import Interrupted, UserError
from lit_gpt.formats.hf_files import WEIGHTS
from lit_gpt.formats.programs import failure_of_system
from lit_gpt.repository import REPOSITORY
from utils.data.table import aligned
from utils.recipe.sections import SECTIONS, Recipe
from utils.run.csv_log import ALL, METRICS, read_csv
from utils.stages.digests import result_digest
from utils.stages.records import (
    StageRecord,
    expected_record,
    is_own_result,
    read_record,
    record_path,
    write_record,
)


class StageFailed(UserError):
    """A stage has said what is wrong, and ended with an exit code which is then this program's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Row(NamedTuple):
    """A line of the table at the end."""

    stage: str
    result: str
    time: str


class Signals(AbstractContextManager["Signals"]):
    """Within, hands SIGTERM and SIGUSR1 to the stage that is running, and keeps that they came. Ctrl-C is its own: the
    terminal has sent it to the stage, too."""

    def __init__(self) -> None:
        self.received = False
        self.process: subprocess.Popen[bytes] | None = None
        handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._before = {number: signal.signal(number, self._on_signal) for number in handled}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self.process is not None and number != signal.SIGINT:
            self.process.send_signal(number)


def chosen_stages(recipe: Recipe, first: str | None, last: str | None) -> list[str]:
    """The stages up to `last`; a UserError if one of the two is none of the recipe's, or `last` comes before `first`.

    A chat is a stage where it has a file of prompts to answer.
    """
    names = [name for name in recipe.sections if name != "chat" or "once" in recipe.sections["chat"]]
    if not names:
        raise UserError(f"{recipe.path} has no stage to run: a chat is one with once, a file of questions")
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in names:
            raise UserError(f"{option} {stage}: the stages of {recipe.path} are {', '.join(names)}")
    chosen = names[: names.index(last) + 1] if last else names
    if first is not None and first not in chosen:
        raise UserError(f"--until {last} comes before --from {first}")
    return chosen


def stages_to_run(recipe: Recipe, names: Sequence[str], first: str | None) -> list[str]:
    """The stages from the first on that is not complete and unchanged, or from `first`."""
    for number, name in enumerate(names):
        if name == first or (first is None and why_run(recipe, name, expected_record(recipe, name)) is not None):
            return list(names[number:])
    return []


def run_stages(
    recipe: Recipe, names: Sequence[str], first: str | None, signals: Signals, launcher: Sequence[str] = ()
) -> None:
    """Runs the stages `names`, from `first` on all of them, and prints the table. `launcher` starts each command.

    Raises:
        StageFailed: with the exit code of a stage that has failed.
        Interrupted: for a stage that goes on when the same command is given again.
        OSError: for one that was killed, most often for want of memory.
    """
    rows = []
    forced = False
    for name in names:
        forced = forced or name == first
        if first is not None and not forced:
            rows.append(_taken(recipe, name))
            continue
        expected = expected_record(recipe, name)
        reason = "--from" if forced else why_run(recipe, name, expected)
        began = time.monotonic()
        if reason is not None:
            with _alone(recipe, name) as lock:
                _run_stage(recipe, name, expected, reason, signals, lock, launcher)
        elif (left := _lock_path(recipe, name)) and left.exists():
            with _alone(recipe, name):
                pass  # a start that was killed after its stage was complete has left it: it is removed
        seconds = f"{time.monotonic() - began:.1f} s"
        rows.append(Row(name, _shown_result(recipe, name), "skipped" if reason is None else seconds))
    print("", *aligned([("stage", "result", "time"), *rows], left=2), "", sep="\n")
    for line in _losses(recipe, names):
        print(line)
    if "chat" in recipe.sections and "once" not in recipe.sections["chat"]:
        print(f"to talk with it: {_shown_command(recipe, 'chat')}")


def why_run(recipe: Recipe, name: str, expected: StageRecord) -> str | None:
    """Why a stage is to be run; None if it is complete, and the same would be made again."""
    before = read_record(recipe, name)
    if record_path(recipe, name) is None:
        return "it makes nothing that stays"
    if before is None:
        return "it has not been run"
    if difference := expected.difference(before):
        return difference
    if before.result is None:
        return "it was not finished"
    digest = result_digest(recipe, name)
    if digest is None:
        return f"{recipe.result(name)} is gone"
    return None if digest == before.result else f"{recipe.result(name)} was changed"


def _taken(recipe: Recipe, name: str) -> Row:
    """The row of a stage before `--from`, whose result has to be there."""
    if record_path(recipe, name) is not None and result_digest(recipe, name) is None:
        raise UserError(f"--from: {recipe.result(name)}, which {name} makes, is not there, or not whole")
    if reason := why_run(recipe, name, expected_record(recipe, name)):
        print(f"{name}: taken as it is (--from), though it would be run: {reason}")
    return Row(name, _shown_result(recipe, name), "taken as it is")


def _run_stage(
    recipe: Recipe,
    name: str,
    expected: StageRecord,
    reason: str,
    signals: Signals,
    lock: int | None,
    launcher: Sequence[str],
) -> None:
    digest, before = result_digest(recipe, name), read_record(recipe, name)
    is_own = is_own_result(recipe, name)
    if name == "merge" and digest is not None and before is not None and is_own:
        if before.result is None and expected.difference(before) is None:
            write_record(recipe, replace(expected, result=digest))  # killed after the folder had got its name
            return
        remove_merged(recipe)
    write_record(recipe, replace(expected, found=not is_own))
    print(f"\n# {name}: {reason}\n$ {_shown_command(recipe, name)}", flush=True)
    if signals.received:
        raise Interrupted(f"stopped by a signal before the stage {name}; run the same command again")
    words = [str(REPOSITORY / SECTIONS[name].script), "--config", str(recipe.path)]
    locks = () if lock is None else (lock,)
    with subprocess.Popen([*launcher, sys.executable, *words], pass_fds=locks) as process:
        signals.process = process
        if signals.received:  # it came while the stage was being started
            process.send_signal(signal.SIGTERM)
        exit_code = process.wait()
        signals.process = None
    _require_success(name, exit_code)
    made = result_digest(recipe, name)
    if made is None and recipe.result(name) is not None:
        raise UserError(f"the stage {name} has ended, and {recipe.result(name)} is not there: see its options")
    write_record(recipe, replace(expected, result=made))


def remove_merged(recipe: Recipe) -> None:
    """Removes the weights that an earlier start of the stage has made: its command never replaces any."""
    path = recipe.result("merge")
    assert path is not None
    path = path if path.suffix == ".pth" else path / WEIGHTS
    print(f"removed {path}, which an earlier start of the stage merge made")
    path.unlink()


def _require_success(name: str, exit_code: int) -> None:
    if exit_code == 0:
        return
    by_signal = (-signal.SIGUSR1, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
    if exit_code in (Interrupted.exit_code, *by_signal):
        raise Interrupted(f"the stage {name} was interrupted; run the same command again")
    if exit_code < 0:
        raise failure_of_system(f"the stage {name}", exit_code, "", Path()) or StageFailed(
            f"the stage {name} was killed by signal {-exit_code}", 1
        )
    raise StageFailed(f"the stage {name} ended with exit code {exit_code}, see above", exit_code)


@contextmanager
def _alone(recipe: Recipe, name: str) -> Iterator[int | None]:
    """A lock that this process and the stage's have: a start whose parent was killed alone is not run beside.

    Where the file system knows no locks there is none.
    """
    path = _lock_path(recipe, name)
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path)
    if descriptor is None:
        raise UserError(f"the stage {name} of {recipe.path} is still being run by another process")
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)  # while it is locked: who waits for it sees that it is gone
        os.close(descriptor)


def _lock_path(recipe: Recipe, name: str) -> Path | None:
    record = record_path(recipe, name)
    return record and record.with_suffix(".lock")


def _take(path: Path) -> int | None:
    """Opens and locks a file, waiting some seconds for a process that is just being killed; None if it lives on."""
    for _ in range(50):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # its last owner has just removed it
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # no locks here
            return descriptor
        os.close(descriptor)
    return None


def _shown_command(recipe: Recipe, name: str) -> str:
    script = os.path.relpath(REPOSITORY / SECTIONS[name].script)
    return shlex.join(["python", script, "--config", str(recipe.path)])


def _shown_result(recipe: Recipe, name: str) -> str:
    return str(recipe.result(name) or "(above)")


def _losses(recipe: Recipe, names: Sequence[str]) -> Iterator[str]:
    """The validation loss of a training, before and after."""
    run_dir = recipe.result("pretrain") if "pretrain" in names else None
    rows = read_csv(run_dir / METRICS) if run_dir else []
    losses = [float(row["loss"]) for row in rows if row["split"] == "valid" and row["dataset"] == ALL]
    if losses:
        yield f"validation loss, {run_dir}: {losses[0]:.3f} before, {min(losses):.3f} after"
