"""Who may write a folder: one owner at a time, however the earlier ones ended.

`FOLDER/.lock/000007.json` says who took the folder as the seventh; the newest number owns it. A number is taken by
creating its file, which only one process can; the owner then touches it every BEAT seconds. Whoever takes over from a
dead owner makes the next number. Should that one be alive after all (a node cut off from Slurm), it finds the newer
number before it publishes anything, and what it was writing has its own number in its name. No clocks are compared and
no file locks needed, which parallel file systems may lack.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lit_gpt.errors import UserError
from utils.files.atomic import write_atomically

LOCK = ".lock"
BEAT = 5.0
DEAD_AFTER = 60.0
"""Seconds without a touch until an owner on another machine counts as dead: a busy file system may stall."""
GONE = (None, 0)
"""What `_read` finds where there is no file."""


@dataclass(frozen=True)
class Owner:
    """A process that writes a folder."""

    host: str
    pid: int
    machine: str
    """The boot of a machine and its namespace of process ids: `pid` means something only there."""
    pid_started: str
    """When the process began, by its kernel's clock: ids are used again."""
    slurm_job_id: str | None
    slurm_restart_count: int
    since: str
    released: bool = False

    @classmethod
    def this_process(cls) -> Owner:
        return cls(
            platform.node(),
            os.getpid(),
            _machine(),
            _process_start(os.getpid()),
            os.environ.get("SLURM_JOB_ID"),
            int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    def __str__(self) -> str:
        job = f"Slurm job {self.slurm_job_id}, " if self.slurm_job_id else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"

    def is_known_dead(self) -> bool:
        """Whether it gave the lock back, its process is gone, or Slurm restarted its job."""
        here = Owner.this_process()
        restarted = self.slurm_job_id and self.slurm_job_id == here.slurm_job_id
        if self.released or (restarted and self.slurm_restart_count < here.slurm_restart_count):
            return True
        return self.machine == here.machine and _process_start(self.pid) != self.pid_started


class FolderLock:
    """This process's ownership of a folder, see `acquire`."""

    def __init__(self, folder: Path, number: int, owner: Owner) -> None:
        self.number = number
        """Larger than that of any owner before."""
        self.lost = False
        """Whether another process has taken the folder; found out within BEAT seconds."""
        self._folder = folder
        self._owner = owner
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="folder-lock", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock:
        """Takes `folder`; a `UserError` if its last owner is alive, for which it waits up to DEAD_AFTER seconds."""
        while True:
            (folder / LOCK).mkdir(exist_ok=True)
            newest = _newest(folder)
            if newest and _is_alive(folder, newest):
                owner = _owner_text(folder, newest)
                raise UserError(f"{folder} is being written by {owner}; give another folder, or wait")
            owner = Owner.this_process()
            try:
                with _path(folder, newest + 1).open("x", encoding="utf-8") as file:
                    file.write(_to_json(owner))
            except (FileExistsError, FileNotFoundError):
                continue  # another process was faster, or has just removed its lock
            if _newest(folder) > newest + 1:  # others came and went since `newest` was read
                _path(folder, newest + 1).unlink()
                continue
            for path in (folder / LOCK).glob("[0-9]*.json"):
                if int(path.stem) <= newest:
                    path.unlink(missing_ok=True)
            return cls(folder, newest + 1, owner)

    def check(self) -> None:
        """Raises a UserError if another process has taken the folder."""
        self.lost = not self._is_ours()
        if self.lost:
            newest = _newest(self._folder)
            taken = f"taken over by {_owner_text(self._folder, newest)}" if newest > self.number else "taken over"
            raise UserError(f"{self._folder} was {taken}; this process, which was cut off from it, stops")

    def release(self, leave: bool = True) -> None:
        """Gives the folder back: the next owner need not wait. Unless `leave`, no trace of the lock stays."""
        self._released.set()
        self._thread.join()
        if not leave:
            _path(self._folder, self.number).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: the next owner is there already
                (self._folder / LOCK).rmdir()
        elif self._is_ours():
            write_atomically(_path(self._folder, self.number), _to_json(replace(self._owner, released=True)))

    def _is_ours(self) -> bool:
        # An NFS client may show an old listing of the folder, but asks again for a file that it opens.
        return _newest(self._folder) == self.number and _read(self._folder, self.number) != GONE

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(_path(self._folder, self.number))
                self.lost = not self._is_ours()
            except FileNotFoundError:
                self.lost = True
            except OSError:
                continue  # a file system's bad moment; check() finds out for certain
            if self.lost:
                return


@contextmanager
def locked(
    folder: Path, on_first_process: Callable[[Callable[[], None]], object], leave: bool = True
) -> Iterator[FolderLock | None]:
    """Makes `folder` and takes it, on the first of the processes that write it; the others have None.

    `on_first_process` performs an action there, and raises its error on every process. `leave` is `release`'s.
    """
    taken: list[FolderLock] = []

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        taken.append(FolderLock.acquire(folder))

    on_first_process(take)
    try:
        yield taken[0] if taken else None
    finally:
        for lock in taken:
            lock.release(leave)


def _path(folder: Path, number: int) -> Path:
    return folder / LOCK / f"{number:06d}.json"


def _newest(folder: Path) -> int:
    """The newest owner's number; 0 without one."""
    return max((int(path.stem) for path in (folder / LOCK).glob("[0-9]*.json")), default=0)


def _to_json(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1) + "\n"


def _read(folder: Path, number: int) -> tuple[Owner | None, int]:
    """An owner, None while it has not said who it is, and when it last touched its file."""
    try:
        # opened for the time too: NFS shows what other machines did from the next opening on
        with _path(folder, number).open(encoding="utf-8") as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            return Owner(**json.load(file)), touched
    except FileNotFoundError:
        return GONE
    except (ValueError, TypeError):
        return None, touched


def _owner_text(folder: Path, number: int) -> str:
    return str(_read(folder, number)[0] or "another process")


def _is_alive(folder: Path, number: int) -> bool:
    owner, touched = _read(folder, number)
    if owner and owner.is_known_dead():
        return False
    print(f"{folder} was last written by {owner or 'another process'}: waiting for a sign of life", flush=True)
    deadline = time.monotonic() + DEAD_AFTER
    while time.monotonic() < deadline:
        time.sleep(min(1.0, DEAD_AFTER / 10))
        owner, now_touched = _read(folder, number)
        if owner and owner.is_known_dead():
            return False
        newest = _newest(folder)
        if newest < number:
            return False  # it removed its lock
        if now_touched != touched or newest > number:
            return True
    return False


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()  # no Linux


def _process_start(pid: int) -> str:
    """The kernel's start time of a process, in ticks since boot; empty if there is none (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    after_name = stat.rpartition(")")[2].split()
    return "" if after_name[0] == "Z" else after_name[19]
