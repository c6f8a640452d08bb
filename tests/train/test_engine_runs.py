"""Trainings as a user starts them, with what the engine offers: QLoRA, recomputation, curves, traces, bf16."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import run


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_qlora_with_everything_that_watches_it(lora_arguments: list[object], tmp_path: Path) -> None:
    options = ["--quantize", "bnb.nf4", "--activation_checkpointing", "selective", "--precision", "bf16-mixed"]
    options += ["--optimizer", "adamw_8bit", "--logger", "tensorboard", "--profile_steps", "4-5"]
    options += ["--log_interval", 5, "--peak_tflops", 0.1]
    folder = tmp_path / "run"
    batch = ["--batch_size", 8, "--micro_batch_size", 4]
    out = run("pretrain.py", *lora_arguments, *options, *batch, "--out_dir", folder).stdout
    assert "LoRA (bnb.nf4 base) training of" in out
    rows = rows_of(folder)
    steps = [row for row in rows if row["split"] == "train" and not row["dataset"]]
    assert [int(row["step"]) for row in steps] == list(range(1, 13))
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])
    looked = [row for row in steps if row["tokens_per_second"]]
    # every third step is saved, every fourth validated, every fifth logged
    assert {int(row["step"]) for row in looked} >= {3, 4, 5, 6, 8, 9, 10, 12}
    for row in looked:
        phases = [float(row[f"{name}_seconds"]) for name in ("data", "forward", "backward", "optimiser")]
        assert min(phases) >= 0 and phases[1] > 0 and phases[2] > 0
        assert 0 < float(row["mfu"]) < 1 and float(row["memory_gib"]) > 0.1
    datasets = [row for row in rows if row["split"] == "train" and row["dataset"]]
    whole = sum(float(row["loss"]) * int(row["targets"]) for row in steps)
    assert sum(float(row["loss"]) * int(row["targets"]) for row in datasets) == pytest.approx(whole, rel=1e-6)
    assert sum(int(row["targets"]) for row in datasets) == int(steps[-1]["tokens"])
    trace = json.loads(gzip.decompress((folder / "profile" / "steps-4-5-rank0.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"ProfilerStep#4", "ProfilerStep#5"} <= names and "ProfilerStep#6" not in names
    assert list((folder / "tensorboard").glob("events.*"))
    merged = tmp_path / "merged"
    run("utils/merge_lora.py", "--lora_path", folder, "--save_path", merged / "lit_model.pth")


@pytest.mark.parametrize(("optimizer", "processes"), [("adamw", 1), ("adamw", 2), ("adamw_8bit", 1), ("adafactor", 2)])
def test_masters_are_saved_and_read_again(
    pretrain_arguments: list[object], tmp_path: Path, optimizer: str, processes: int
) -> None:
    """bf16-true from step 6 on again gives the losses of the run that was never stopped, as text."""
    batch = ["--batch_size", 8 // processes, "--micro_batch_size", 4, "--precision", "bf16-true"]
    arguments = [*pretrain_arguments, *batch, "--activation_checkpointing", "full", "--optimizer", optimizer]
    run("pretrain.py", *arguments, "--out_dir", tmp_path / "whole", processes=processes)
    again = shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for checkpoint in (again / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > 6:
            shutil.rmtree(checkpoint)
    out = run("pretrain.py", *arguments, "--out_dir", again, processes=processes).stdout
    assert "going on from" in out and "step-00000006" in out
    columns = ("step", "split", "dataset", "loss", "targets", "grad_norm")
    whole, found = (
        [[row[name] for name in columns] for row in rows_of(tmp_path / name)] for name in ("whole", "again")
    )
    assert found == whole


def test_other_arithmetic_for_the_optimiser_is_another_run(pretrain_arguments: list[object], tmp_path: Path) -> None:
    arguments = [*pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", tmp_path / "run"]
    arguments += ["--precision", "bf16-true", "--max_steps", 3, "--enable_validation", "false"]
    run("pretrain.py", *arguments)
    done = run("pretrain.py", *arguments, "--master_weights", "false", check=False)
    assert done.returncode == 2 and "master_weights was True" in done.stderr
