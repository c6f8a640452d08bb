"""An hour of bad luck: a run that is interrupted in every way must end as one that was left alone.

    python benchmarks/soak.py [--restarts 21] [--kills 100] [--seed 0]

1. Restarts: one job of two nodes on a real Slurm cluster (tests/slurm/cluster.py) is interrupted at random moments:
   requeued by hand, signalled, its tasks killed or stopped, a node's slurmd killed. Nothing but what happens is done
   to it. Measured: seconds from the interruption to the first step that is trained anew (Slurm's own waits included:
   it holds a requeued job 6 s here, 2 minutes by default), and the share of the job's time that went into the final
   model.
2. Kill points: local runs, of one process and of two, are killed by SIGKILL, half of the times while a checkpoint is
   being written, with TMPDIR on another file system than the run folder, and started again.

Both compare with an uninterrupted run: losses in metrics.csv as text, and the last checkpoint's tensors bit by bit.
Prints what happens and appends a line per figure to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0
"""Seconds until a run that does not go on has failed the soak."""


def main() -> None:
    from benchmarks.results import Figure, record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=21)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    figures: dict[str, tuple[float, str]] = {}
    with clone_of_this_commit() as clone:
        if arguments.restarts:
            figures |= soak_restarts(clone, arguments.restarts, rng)
        if arguments.kills:
            figures |= soak_kills(clone, arguments.kills, rng)
    for name, (value, unit) in figures.items():
        print(f"{name:40} {value:10.3f} {unit}")
    record("soak", [Figure(name, "sample-1M", f"{value:.3f}", unit) for name, (value, unit) in figures.items()])


@contextmanager
def clone_of_this_commit() -> Iterator[Path]:
    """A clean clone, which edits of the working tree do not reach, with this environment and the sample prepared."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        (clone / ".venv").symlink_to(sys.prefix)
        command = [
            "prepare_data.py",
            "--source_path",
            "data/sample/french",
            "--checkpoint_dir",
            "data/sample/tokenizer",
        ]
        options = ["--max_length", "256", "--destination_path", "data_fr"]
        subprocess.run([sys.executable, *command, *options], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        yield clone


# --- 1. Restarts on a cluster -----------------------------------------------------------------------------------------


def soak_restarts(clone: Path, restarts: int, rng: random.Random) -> dict[str, tuple[float, str]]:
    from tests.slurm.cluster import Cluster, running_cluster

    steps = 36 * (restarts + 2)
    options = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "slurm/pretrain.slurm", "--data_dir", "data_fr")
    options += ("--max_steps", steps, "--save_interval", 20, "--eval_interval", 200, "--batch_size", 8)
    options += ("--micro_batch_size", 8, "--hang_timeout", 20)

    def submit(cluster: Cluster, name: str) -> int:
        return cluster.submit(*options, "--out_dir", name, cwd=clone)

    with running_cluster() as cluster:
        print(f"{steps} steps on 2 nodes, uninterrupted", flush=True)
        end = cluster.wait(submit(cluster, "whole"), timeout=3600)
        assert end.exit_code == 0, end
        job_id = submit(cluster, "interrupted")
        began = time.time()
        recoveries, lost = interrupt_again_and_again(cluster, job_id, clone / "interrupted", restarts, rng)
        end = cluster.wait(job_id, timeout=3600)
        assert end.exit_code == 0, end
        wall = time.time() - began
        assert int(cluster.job(job_id)["Restarts"]) == restarts, "a restart more, or less, than there were reasons for"
    require_equal(clone / "whole", clone / "interrupted")
    productive = float(rows_of(clone / "interrupted")[-1]["seconds"])
    return {
        "restarts, all by themselves": (len(recoveries), "restarts"),
        "recovery, median": (float(np.median(recoveries)), "s"),
        "recovery, p95": (float(np.percentile(recoveries, 95)), "s"),
        "steps made again, at most": (max(lost), "steps"),
        "effective training time": (productive / wall, "of the job's time"),
        "one interruption every": (wall / restarts, "s"),
    }


def interrupt_again_and_again(
    cluster: Any, job_id: int, run_dir: Path, restarts: int, rng: random.Random
) -> tuple[list[float], list[int]]:
    """Interrupts the job `restarts` times; the seconds that each recovery took, and the steps made again after it."""
    kinds = interruptions(cluster, job_id)
    order = [name for _ in range(-(-restarts // len(kinds))) for name in rng.sample(list(kinds), len(kinds))]
    recoveries, lost = [], []
    for number, name in enumerate(order[:restarts]):
        begun_at = history_of(run_dir)[-1]["from_step"] if number else 0
        until = begun_at + rng.randrange(24, 32)
        wait_for(lambda at=until: newest_step(run_dir) >= at, f"steps before {name}")
        step, starts = newest_step(run_dir), len(history_of(run_dir))
        print(f"{number + 1:3}/{restarts} {name:24} at step {step}", end="", flush=True)
        began = time.monotonic()
        kinds[name](rng)
        wait_for(lambda known=starts: len(history_of(run_dir)) > known, f"a restart after {name}")
        from_step = history_of(run_dir)[-1]["from_step"]
        wait_for(lambda at=from_step: newest_step(run_dir) > at, f"a step after {name}")
        recoveries.append(time.monotonic() - began)
        lost.append(max(0, step - from_step))
        print(f": went on from {from_step} after {recoveries[-1]:.1f} s", flush=True)
    return recoveries, lost


def interruptions(cluster: Any, job_id: int) -> dict[str, Callable[[random.Random], None]]:
    """What may befall a job, by name."""

    def signal_task(number: int) -> Callable[[random.Random], None]:
        def send(rng: random.Random) -> None:
            tasks = cluster.task_processes(job_id)
            os.kill(tasks[rng.choice(sorted(tasks))], number)

        return send

    def lose_a_node(rng: random.Random) -> None:
        restarts = int(cluster.job(job_id)["Restarts"])
        with cluster.node_lost(rng.choice(("node1", "node2"))):
            wait_for(lambda: int(cluster.job(job_id)["Restarts"]) > restarts, "Slurm's requeue of a lost node's job")

    return {
        "scontrol requeue": lambda rng: cluster.run("scontrol", "requeue", job_id),
        "scancel --signal=USR1": lambda rng: cluster.run("scancel", "--signal=USR1", job_id),
        "scancel --signal=TERM": lambda rng: cluster.run("scancel", "--signal=TERM", job_id),
        "scancel --signal=KILL": lambda rng: cluster.run("scancel", "--signal=KILL", f"{job_id}.0"),
        "kill -9 of a task": signal_task(signal.SIGKILL),
        "kill -STOP of a task": signal_task(signal.SIGSTOP),
        "kill -9 of a slurmd": lose_a_node,
    }


# --- 2. Kill points ---------------------------------------------------------------------------------------------------


def soak_kills(clone: Path, kills: int, rng: random.Random) -> dict[str, tuple[float, str]]:
    figures = {}
    inside_saves = 0
    for devices in (1, 2):
        share = kills // 2 + (kills % 2 if devices == 1 else 0)
        steps = 8 * share + 40
        command = [
            sys.executable,
            "pretrain.py",
            "--config",
            "configs/quickstart/foundation.yaml",
            "--data_dir",
            "data_fr",
        ]
        command += ["--max_steps", steps, "--save_interval", 3, "--eval_interval", 50, "--eval_samples", 8]
        command += ["--batch_size", 4 // devices, "--micro_batch_size", 2, "--devices", devices, "--out_dir"]
        print(f"{steps} steps on {devices} process(es), uninterrupted", flush=True)
        subprocess.run([*map(str, command), f"whole-{devices}"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        run_dir = clone / f"killed-{devices}"
        started = [*map(str, command), run_dir.name]
        for number in range(share):
            inside_saves += kill_once(started, clone, run_dir, number % 2 == 0, rng)
            print(f"\rkilled {number + 1} of {share}", end="", flush=True)
        print()
        subprocess.run(started, cwd=clone, check=True, stdout=subprocess.DEVNULL)
        require_equal(clone / f"whole-{devices}", run_dir)
        figures[f"kills survived, {devices} process(es)"] = (share, "kills")
    return {**figures, "of them inside saves": (inside_saves, "kills")}


def kill_once(command: list[str], clone: Path, run_dir: Path, inside_save: bool, rng: random.Random) -> bool:
    """Starts the run, kills all its processes once it has made progress; whether a checkpoint was being written."""
    from utils.run.checkpoint_folders import list_checkpoints, verify_checkpoint

    known = list_checkpoints(run_dir)
    expected = next((path for path in reversed(known) if verify_checkpoint(path) is None), None)
    assert expected == (known[-1] if known else None), "a checkpoint under its final name is not whole"
    environment = {**os.environ, "TMPDIR": "/dev/shm"}
    with (clone / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        wait_for(
            lambda: len(list_checkpoints(run_dir)) > len(known) or process.poll() is not None, "a checkpoint", 0.002
        )
        if inside_save:
            wait_for(lambda: being_written(run_dir) or process.poll() is not None, "a checkpoint's beginning", 0.0)
            time.sleep(rng.uniform(0, 0.05))
        else:
            time.sleep(rng.uniform(0, 1))
        assert process.poll() is None, (clone / "output").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    started_from = f"going on from {run_dir.name}/checkpoints/{expected.name}" if expected else "validation at step 0"
    assert started_from in (clone / "output").read_text(), (
        "it went on from another checkpoint than the newest whole one"
    )
    return bool(being_written(run_dir))


def being_written(run_dir: Path) -> list[Path]:
    return list((run_dir / "checkpoints").glob(".step-*.partial"))


# --- What both need ---------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], what: str, pause: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain for {what}"
        time.sleep(pause)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    from utils.run.csv_log import METRICS, read_csv

    return read_csv(run_dir / METRICS)


def newest_step(run_dir: Path) -> int:
    return max((int(row["step"]) for row in rows_of(run_dir) if row["split"] == "train"), default=0)


def history_of(run_dir: Path) -> list[dict[str, Any]]:
    from utils.run.record import RUN, RunRecord

    return RunRecord.load(run_dir).history if (run_dir / RUN).is_file() else []


def require_equal(whole: Path, interrupted: Path) -> None:
    """Losses equal as text, and the last checkpoint's tensors, the optimiser's too, bit by bit."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    from utils.run.checkpoint_folders import list_checkpoints

    columns = ("step", "samples", "tokens", "split", "dataset", "loss", "targets", "learning_rate", "grad_norm")
    one, other = (
        [
            [row[column] for column in columns]
            for row in rows_of(folder)
            if row["split"] == "valid" or not row["dataset"]
        ]
        for folder in (whole, interrupted)
    )
    assert one == other, next((a, b) for a, b in zip(one, other, strict=False) if a != b)
    states = []
    for folder in (whole, interrupted):
        path = folder / "last.pt"
        dcp_to_torch_save(list_checkpoints(folder)[-1], path)
        states.append(torch.load(path, weights_only=True))
        path.unlink()
    tensors, others = (dict(flat(state)) for state in states)
    assert tensors.keys() == others.keys() and tensors
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items()), "another model"
    print(f"{interrupted.name}: {len(one)} losses and {len(tensors)} tensors equal {whole.name}'s", flush=True)


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries, by their paths."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}/{key}")
    else:
        yield prefix, tree


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
