"""Writes training checkpoints such that a killed process never leaves a partial one under a final name.

A checkpoint's folder holds the tensors (torch.distributed.checkpoint, one file per process), `state.json` (the
counters), and copies of run.yaml, the model config and the tokenizer, so that it can be used alone.

1. The tensors are copied to the host, which is all that the training waits for; a thread does the rest.
2. All files are written into a staging folder (checkpoint_folders.py) and synced.
3. The list of checksums is written last: a flipped bit loads without an error in most files.
4. The folder is renamed.
"""

import shutil
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import Optimizer

from lit_gpt.checksums import Check, file_sha256, write_sums
from lit_gpt.errors import as_os_error
from utils.cluster.collectives import on_rank_zero, rank, together
from utils.files.atomic import sync
from utils.files.folder_lock import FolderLock
from utils.run.checkpoint_folders import abandoned_folders, checkpoint_folder, staging_folder
from utils.run.checkpoint_reader import trained_tensors, without_warning
from utils.run.progress import TrainingProgress


class Saved(NamedTuple):
    """A complete checkpoint and the seconds that writing it took."""

    path: Path
    seconds: float


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time. Every process has one and calls its methods alike.

    Each checkpoint gets a copy of the `companions`. `lock` is the run folder's on process 0, None on the others. No
    checkpoint is written before `check`, on process 0, has found the foundation model's files undamaged.
    """

    def __init__(
        self, run_dir: Path, companions: Iterable[Path], lock: FolderLock | None, check: Check | None = None
    ) -> None:
        self._run_dir = run_dir
        self._companions = list(companions)
        self._lock = lock
        self._check = check or Check()
        self._group = None
        if dist.is_initialized():
            # The thread's collectives must not meet the training's: a group of their own, over the host's network.
            # 2 hours are for the slowest process's part of a checkpoint; the watchdog finds a hanging one.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=2))
        self._lock_number = on_rank_zero(lambda: lock.number if lock else 0)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, progress: TrainingProgress) -> None:
        """Copies the tensors to the host and begins to write `checkpoints/step-…`; `wait` before the next one."""
        assert self._pending is None
        tensors = {"model": trained_tensors(model), "optimizer": get_optimizer_state_dict(model, optimizer)["state"]}
        self._pending = self._thread.submit(self._write, BlockingAsyncStager().stage(tensors), progress)

    def failed(self) -> bool:
        """Whether this process knows that the checkpoint under way has failed, that the folder is another's, or that
        the foundation model is damaged."""
        has_failed = self._is_done() and self._pending.exception() is not None
        return has_failed or self._check.has_failed() or (self._lock is not None and self._lock.lost)

    def raise_failure(self) -> None:
        """Raises on every process what made one of them say `failed`, see `wait`."""
        self.wait()
        on_rank_zero(self._require_lock)
        self.require_foundation()

    def require_foundation(self) -> None:
        """Waits for the check of the foundation model's files; its DataError is raised on every process."""
        on_rank_zero(self._check.finish)

    def poll(self) -> Saved | None:
        """The checkpoint under way, once, when it is complete."""
        if self._is_done() and self._pending.exception() is None:
            return self.wait()
        return None

    def _is_done(self) -> bool:
        return self._pending is not None and self._pending.done()

    def wait(self) -> Saved | None:
        """Waits for the checkpoint under way and returns it; None if there is none.

        Raises:
            OSError: on every process, if one of them could not write; nothing is left under the final name.
            UserError: on every process, if another program has taken the run folder.
            DataError: on every process, if the foundation model's files are damaged.
        """
        pending, self._pending = self._pending, None
        return pending and pending.result()

    def _write(self, tensors: dict[str, Any], progress: TrainingProgress) -> Saved:
        """Writes a whole checkpoint, in the thread of every process. It raises what `wait` raises.

        `tensors` has `model` and `optimizer`, each name → this process's part of a tensor, on the host.
        """
        began = time.monotonic()
        target = checkpoint_folder(self._run_dir, progress.step)
        staged = staging_folder(target, self._lock_number)
        on_rank_zero(lambda: self._begin(staged), self._group)
        # Without copying ahead: that would take this thread to GPU 0, on every process, for tensors on the host.
        writer = dcp.FileSystemWriter(staged, per_thread_copy_ahead=0)
        try:
            with without_warning():
                dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        except dcp.CheckpointException as e:
            found = (as_os_error(error, staged) for error, _ in e.failures.values())
            raise next(filter(None, found), e) from e
        everyones = together(lambda: _own_sums(staged), self._group)
        on_rank_zero(lambda: self._publish(staged, target, everyones, progress), self._group)
        return Saved(target, time.monotonic() - began)

    def _begin(self, staged: Path) -> None:
        self._check.finish()
        self._require_lock()
        # what killed or failed saves left is as large as a checkpoint
        for abandoned in abandoned_folders(self._run_dir, self._lock_number):
            shutil.rmtree(abandoned, ignore_errors=abandoned != staged)
        staged.mkdir(parents=True)

    def _publish(self, staged: Path, target: Path, everyones: list[dict[str, str]], progress: TrainingProgress) -> None:
        """Adds all but the tensors, whose checksums are `everyones`, and gives the folder its name."""
        for companion in self._companions:
            shutil.copyfile(companion, staged / companion.name)
        progress.save(staged)
        others = [path for path in staged.iterdir() if path.suffix != ".distcp"]
        sums = {path.name: file_sha256(path) for path in others}
        for of_process in everyones:
            sums |= of_process
        sync(others)
        write_sums(staged, sums)
        sync([staged])
        self._require_lock()
        shutil.rmtree(target, ignore_errors=True)  # only one that did not verify can be in the way
        staged.rename(target)
        sync([target.parent])

    def _require_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()


def _own_sums(staged: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in staged.glob(f"__{rank()}_*.distcp")}
