"""Curves of a run under way, in TensorBoard or Weights & Biases. metrics.csv holds all of it in any case."""

import importlib.util
import os
import secrets
import signal
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lit_gpt.errors import UserError
from utils.files.atomic import write_atomically

LoggerName = Literal["none", "tensorboard", "wandb"]

_FINISH_SECONDS = 30  # for W&B's last lines; an interrupted run may have a minute left in all


class ScalarLogger(ABC):
    """Passes scalars on to a program that plots them."""

    # Lightning's loggers are not used: TensorBoard's expands `$` in the run folder's name; W&B's imports the Trainer,
    # and a failing client would end the training.

    begins_anew = False
    """Whether it knows nothing of the run's earlier steps, which metrics.csv holds."""

    _pause = 1.0  # seconds between scalars: a curve needs no more, and W&B's server slows faster writers
    _last = -1e9  # when scalars were passed on, in seconds

    def log(self, step: int, scalars: Mapping[str, float], always: bool = False) -> None:
        """Passes the scalars of a step on (`train/loss` → value), `always` or if the last ones are old enough."""
        now = time.monotonic()
        if always or now - self._last >= self._pause:
            self._last = now
            self._send(step, scalars)

    @abstractmethod
    def close(self) -> None:
        """Waits until what was passed on is written, or it is clear that it will not be."""

    @abstractmethod
    def _send(self, step: int, scalars: Mapping[str, float]) -> None: ...


def check_logger(name: LoggerName) -> None:
    """Raises a UserError if the package that `--logger name` needs is not installed."""
    if name == "none":
        return
    package = importlib.util.find_spec(name)
    if package is None or package.origin is None:  # without origin: W&B's folder of runs beside the script
        raise UserError(f"--logger {name} needs the package {name}: pip install {name}")


def open_logger(
    name: LoggerName, out_dir: Path, last_step: int, config: Mapping[str, Any], say: Callable[[str], None]
) -> ScalarLogger | None:
    """The logger of a run; for one process only. `config` holds the run's options, `say` takes a line for its log.

    Scalars of the steps after `last_step` are hidden: the checkpoint's that the run continues from; -1 for a new run.

    Raises:
        UserError: if W&B's server answers, but nobody is logged in.
    """
    if name == "tensorboard":
        return TensorBoardLogger(out_dir, last_step)
    return WandbLogger(out_dir, config, say) if name == "wandb" else None


class TensorBoardLogger(ScalarLogger):
    """Event files in OUT_DIR/tensorboard: `tensorboard --logdir OUT_DIR`, or the folder of several runs."""

    def __init__(self, out_dir: Path, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        # later steps in older files are hidden: they are made again
        self._writer = SummaryWriter(str(out_dir / "tensorboard"), purge_step=last_step + 1, flush_secs=30)

    def _send(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLogger(ScalarLogger):
    """A run in Weights & Biases, which later starts in the same folder continue (OUT_DIR/wandb/run_id).

    W&B's own settings decide who logs in, to which project, entity and server (`wandb login`, WANDB_PROJECT,
    WANDB_ENTITY, WANDB_BASE_URL, WANDB_MODE). Where its server cannot be reached, the run is kept in OUT_DIR/wandb for
    `wandb sync`; later failures are logged once, and the training continues. Steps that the server has are not sent
    again. Each offline start is a folder of its own with every step: it begins with those that metrics.csv holds, as
    W&B writes in blocks of 32 KiB, and a killed process's last one is lost.
    """

    def __init__(self, out_dir: Path, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        import wandb  # an optional package

        self._say = say
        folder = out_dir / "wandb"
        folder.mkdir(exist_ok=True)
        self._run: Any = None
        try:
            # silent: it asks nobody to log in, and the run's log says what there is to say
            settings = wandb.Settings(silent=True, console="off")
            server = wandb.setup(settings).settings.base_url
            # Whether the server answers is found out before: after an online start that timed out, an offline one
            # times out too (https://github.com/wandb/wandb/issues/9865).
            mode = os.environ.get("WANDB_MODE") or ("online" if _answers(server) else "offline")
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fabricant"),
                name=out_dir.name,
                dir=str(out_dir),
                id=_run_id(folder / "run_id"),
                resume="allow",
                mode=mode,
                config=dict(config),
                settings=settings,
            )
            where = mode
            if mode == "online":
                where = self._run.url
            elif mode == "offline":
                self._pause = 0.0
                where = f"not sent; later by `wandb sync {folder}/offline-run-*`"
            self.begins_anew = self._run.starting_step == 0
            say(f"Weights & Biases: {where}")
        except wandb.errors.UsageError as e:
            raise UserError(f"--logger wandb: {e} Or set WANDB_MODE=offline") from None
        except Exception as e:
            self._give_up(e)

    def _send(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._run is None or step < self._run.starting_step:
            return
        try:
            self._run.log(dict(scalars), step=step)
        except Exception as e:
            self._give_up(e)

    def close(self) -> None:
        if self._run is None:
            return
        # in a thread: without a network it tries for hours, and takes no time limit
        finishing = threading.Thread(target=self._finish, name="wandb-finish", daemon=True)
        finishing.start()
        finishing.join(_FINISH_SECONDS)
        if finishing.is_alive():
            self._run = None
            self._say("Weights & Biases did not take the last scalars in time; metrics.csv has them")
            _end_service()

    def _finish(self) -> None:
        try:
            self._run.finish()
        except Exception as e:
            if self._run is not None:  # else nobody waits for it any more
                self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._say(f"Weights & Biases is left out from here on ({reason}); metrics.csv has everything")


def _end_service() -> None:
    """Ends W&B's process beside this one, for which the interpreter would wait at its end, for hours if need be."""
    import wandb  # an optional package

    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is over by now
            name, _, rest = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")
            parent = int(rest.split()[1])
            if name.endswith("(wandb-core") and parent == os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
                with suppress(Exception):  # the client misses it, and will not look for it again
                    wandb.teardown()


def _answers(url: str) -> bool:
    """Whether a server answers at all, through a proxy if the environment names one."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _run_id(path: Path) -> str:
    """The id under which W&B knows the run; made at its first start."""
    if not path.is_file():
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
