"""QLoRA trainings as a user starts them, killed and gone on with by other numbers of processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import warm_start
from tests.conftest import ROOT, run
from tests.run.paused_training import paused_training, steps_made
from tests.train.test_training import rows_of

QLORA = ("--quantize", "bnb.nf4", "--lora_dropout", 0, "--micro_batch_size", 2)


def test_a_killed_run_goes_on_with_any_number_of_processes(lora_arguments: list[object], tmp_path: Path) -> None:
    """Its base is in no checkpoint: every start quantises it anew, and shares it by as many as there are."""
    arguments = [*lora_arguments, *QLORA]
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    run("pretrain.py", *arguments, "--batch_size", 8, "--out_dir", whole)
    command = [ROOT / "pretrain.py", *map(str, [*arguments, "--batch_size", 4, "--out_dir", run_dir])]
    started = warm_start.start(paused_training, [4, run_dir, tmp_path / "signalled", *command], 2)
    while steps_made(run_dir) < 4 and all(process.exitcode is None for process in started):
        time.sleep(0.01)
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert 4 <= steps_made(run_dir) < 12, "it was killed in between"
    out = run("pretrain.py", *arguments, "--batch_size", 2, "--max_checkpoints", 2, "--out_dir", run_dir, processes=4)
    assert "going on from" in out.stdout
    assert "on 4 process(es)" in out.stdout and 6 <= steps_made(run_dir) < 12
    out = run("pretrain.py", *arguments, "--batch_size", 8, "--out_dir", run_dir)
    assert "going on from" in out.stdout
    for split in ("train", "valid"):
        expected = {(row["step"], row["dataset"]): row for row in rows_of(whole, split)}
        found = {(row["step"], row["dataset"]): row for row in rows_of(run_dir, split)}
        assert found.keys() >= expected.keys()
        for key, row in expected.items():
            assert found[key]["targets"] == row["targets"]
            assert float(found[key]["loss"]) == pytest.approx(float(row["loss"]), rel=1e-5), (split, key)
