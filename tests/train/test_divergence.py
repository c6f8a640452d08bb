"""A training whose gradients are not finite any more: what it leaves, what it says, and that its advice works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import assert_error, run
from tests.run.test_resume import losses
from utils.run.going_back import healthy_checkpoint, set_aside_after
from utils.run.progress import TrainingProgress

BATCH = ("--batch_size", 8, "--micro_batch_size", 4)
TOO_HIGH = ("--learning_rate", 1e20, "--max_nonfinite_steps", 3)


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*"))


@pytest.fixture
def begun(trained_run: Path, tmp_path: Path) -> Path:
    """A run whose newest checkpoint is that of step 6, and which goes on from there as `trained_run` did."""
    copy = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    for step in (9, 12):
        shutil.rmtree(copy / "checkpoints" / f"step-{step:08d}")
    return copy


@pytest.mark.parametrize("processes", [1, 2])
def test_a_diverged_run_follows_its_own_advice(
    pretrain_arguments: list[object], begun: Path, trained_run: Path, processes: int
) -> None:
    """The learning rate ruins the weights at step 7: they are finite, and no step from there on can be made."""
    batch = ("--batch_size", 8 // processes, "--micro_batch_size", 4)
    arguments = [*pretrain_arguments, *batch, "--out_dir", begun]
    often = [*arguments, *TOO_HIGH, "--save_interval", 1, "--enable_validation", "false"]
    failed = run("pretrain.py", *often, processes=processes, check=False)
    assert_error(failed, 2, "not finite in 3 steps in a row, up to step 10", "--resume_from step-00000006")
    assert checkpoints(begun) == [3, 6, 7]
    assert yaml.safe_load((begun / "run.yaml").read_text())["history"][-1]["diverged"] == 7

    # what a restart does that does not heed the advice: it fails alike, and leaves nothing
    again = run("pretrain.py", *often, processes=processes, check=False)
    assert_error(again, 2, "not finite in 3 steps in a row, up to step 10", "--resume_from step-00000006")
    assert checkpoints(begun) == [3, 6, 7]

    [name] = re.findall(r"--resume_from (step-\d+)", again.stderr)
    advised = [*arguments, "--resume_from", name]
    done = run("pretrain.py", *advised, processes=processes)
    assert f"going back to {name}" in done.stdout and f"going on from {begun}/checkpoints/{name}" in done.stdout
    assert checkpoints(begun) == [3, 6, 9, 12]
    if processes == 1:
        assert losses(begun) == losses(trained_run)
    aside = begun / "set_aside" / "1"
    assert checkpoints(aside) == [7]
    assert [row[0] for row in losses(aside) if row[3] == "train"] == [str(step) for step in range(1, 11)]
    assert json.loads((begun / "checkpoints" / name / "state.json").read_text())["skipped_in_a_row"] == 0


def test_a_command_that_went_back_goes_on_when_it_comes_again(pretrain_arguments: list[object], begun: Path) -> None:
    """As Slurm's requeue has it; another learning rate is another wish to go back."""
    arguments = [*pretrain_arguments, *BATCH, "--out_dir", begun, "--resume_from", "step-00000003"]
    run("pretrain.py", *arguments)
    (made,) = (begun / "set_aside").iterdir()
    assert checkpoints(made) == [6] and checkpoints(begun) == [3, 6, 9, 12]
    again = run("pretrain.py", *arguments)
    assert "step-00000012" in again.stdout and "going back" not in again.stdout
    other = run("pretrain.py", *arguments, "--learning_rate", 5e-3)
    assert "going back to step-00000003" in other.stdout
    assert checkpoints(begun / "set_aside" / "2") == [6, 9, 12]


def test_a_checkpoint_to_go_back_to_must_be_one_of_the_run_and_whole(
    pretrain_arguments: list[object], begun: Path
) -> None:
    arguments = [*pretrain_arguments, *BATCH, "--out_dir", begun]
    before = (begun / "metrics.csv").read_bytes()
    absent = run("pretrain.py", *arguments, "--resume_from", "step-00000004", check=False)
    assert_error(absent, 2, "--resume_from step-00000004", "step-00000003, step-00000006")
    never = run("pretrain.py", *arguments, "--resume_from", "step-00000003", "--resume", "never", check=False)
    assert_error(never, 2, "--resume_from", "--resume never")
    shard = next((begun / "checkpoints" / "step-00000003").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    damaged = run("pretrain.py", *arguments, "--resume_from", "step-00000003", check=False)
    assert_error(damaged, 65, "step-00000003", "SHA-256")
    assert checkpoints(begun) == [3, 6] and (begun / "metrics.csv").read_bytes() == before


def test_a_run_whose_every_step_was_skipped_is_not_done(
    pretrain_arguments: list[object], foundation: Path, tmp_path: Path
) -> None:
    """The loss is finite: only the gradient is not."""
    poisoned = shutil.copytree(foundation, tmp_path / "poisoned")
    weights = torch.load(poisoned / "lit_model.pth", weights_only=True)
    # the logits stay what they are, and the gradient of the first of these is 1e30 times what it was
    weights["transformer.ln_f.weight"] *= 1e-30
    weights["lm_head.weight"] *= 1e30
    torch.save(weights, poisoned / "lit_model.pth")
    (poisoned / "SHA256SUMS").unlink(missing_ok=True)
    place = pretrain_arguments.index("--model_config")
    arguments = [*pretrain_arguments[:place], *pretrain_arguments[place + 2 :], "--checkpoint_dir", poisoned, *BATCH]
    arguments += ["--max_steps", 2, "--warmup_steps", 0, "--save_interval", 1, "--out_dir", tmp_path / "run"]
    done = run("pretrain.py", *arguments, check=False)
    assert_error(done, 2, "gradient was not finite in 2 steps in a row, up to step 2", "no step of this run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_saved(pretrain_arguments: list[object], begun: Path) -> None:
    """The last step's gradient was fine, and the update made of it was not."""
    arguments = [*pretrain_arguments, *BATCH, "--out_dir", begun, "--enable_validation", "false"]
    failed = run(
        "pretrain.py", *arguments, "--learning_rate", 3e38, "--lr_schedule", "constant", "--max_steps", 7, check=False
    )
    assert_error(failed, 2, "weights are not finite after step 7", "--resume_from step-00000006")
    assert checkpoints(begun) == [3, 6]


def test_the_newest_checkpoint_before_the_loss_rose_is_the_healthy_one(tmp_path: Path) -> None:
    states = [
        TrainingProgress(step=10, train_loss=3.0),
        TrainingProgress(step=20, train_loss=2.5),
        TrainingProgress(step=30, train_loss=2.9),
        TrainingProgress(step=40, train_loss=2.9, skipped_in_a_row=1),
        TrainingProgress(step=50, train_loss=3.2),
        TrainingProgress(step=60, train_loss=2.5),
    ]
    for state in states:
        folder = tmp_path / "checkpoints" / f"step-{state.step:08d}"
        folder.mkdir(parents=True)
        state.save(folder)
        (folder / "SHA256SUMS").touch()
    assert healthy_checkpoint(tmp_path, 60).name == "step-00000030"
    assert healthy_checkpoint(tmp_path, 61).name == "step-00000060"
    assert healthy_checkpoint(tmp_path, 10) is None


def test_what_was_validated_offline_is_set_aside_too(tmp_path: Path) -> None:
    """A new checkpoint of the same name would else count as measured."""
    header = "checkpoint,step,samples,tokens,seconds,device_seconds,dataset,loss,targets,max_samples,precision,data"
    header += ",end_at_ends,end_inside"
    lines = [f"step-{step:08d},{step},1,1,1,1,all,2.5,1,,32-true,x,," for step in (3, 6)]
    (tmp_path / "validation.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "checkpoints").mkdir()
    assert "0 newer checkpoint(s)" in set_aside_after(tmp_path, 3)
    assert (tmp_path / "validation.csv").read_text().splitlines() == [header, lines[0]]
    assert (tmp_path / "set_aside" / "1" / "validation.csv").read_text().splitlines() == [header, *lines]
    assert set_aside_after(tmp_path, 3) == "nothing came after it"
