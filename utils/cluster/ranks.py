"""Which of a run's processes this one is, and how one of several ends. Imports nothing heavy."""

import os
import sys
from typing import NoReturn


def process_rank() -> int:
    """This process's rank in the run, from what torchrun, Lightning or Slurm set; 0 when started alone."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_ID") and "LOCAL_RANK" not in os.environ:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("NODE_RANK", 0)) * 1_000_000 + int(os.environ.get("LOCAL_RANK", 0))


def end_process(exit_code: int) -> NoReturn:
    """Ends one of several processes at once, all it printed written out."""
    # When the interpreter takes torch's process groups apart, their threads now and then abort it ("terminate called
    # without an active exception", seen with gloo on torch 2.13): a finished run would report a failure.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def own_exit_code(exit_code: int) -> int:
    """What this process exits with when `exit_code` is that of the whole run."""
    # Slurm and torchrun wait for each process. Fabric, where it started the others itself, kills process 0 when it
    # sees one of them fail.
    started_alike = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" in os.environ
    return exit_code if started_alike or process_rank() == 0 else 0


def is_distributed() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
