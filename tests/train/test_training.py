"""The optimiser step against a brute-force twin, schedules, intervals, and the ways a training ends."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import litgpt.lora
import litgpt.model
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lit_gpt.model.gpt
from lit_gpt.model.lora import merge_adapter
from tests import warm_start
from tests.conftest import TOKENIZER, assert_error, random_rows, run
from tests.model import gradient_worker
from tests.model.gradient_worker import CONFIG, LORA, SAMPLES, VOCABULARY, WINDOW, make_model
from utils import cli
from utils.data.batches import StepData
from utils.train.agenda import Agenda
from utils.train.history import StepHistory
from utils.train.optimizer import make_optimizer
from utils.train.options import PretrainOptions, ValidateOptions
from utils.train.step import StepResult, clip_gradients

# Processes, how many of them share each matrix, precision → (kind, micro-batch sizes, variant): see gradient_worker.
WAYS: dict[tuple[int, int, str], list[tuple[str, list[int], str]]] = {
    (1, 1, "32-true"): [
        ("full", [12, 4, 1], "plain"),
        ("lora", [4], "plain"),
        ("full", [4], "chunks"),
        ("full", [4], "compile"),
        ("full", [4], "selective"),
        ("full", [4], "full"),
        ("gpt2", [4], "plain"),
        ("gemma", [4], "plain"),
    ],
    (2, 1, "32-true"): [
        ("full", [6, 1], "plain"),
        ("lora", [3], "plain"),
        ("full", [3], "chunks"),
        ("lora", [3], "compile"),
        ("full", [3], "selective"),
        ("lora", [3], "full"),
        ("gpt2", [3], "selective"),
        ("gemma", [3], "compile"),
    ],
    (3, 1, "32-true"): [("full", [2], "plain")],
    (4, 1, "32-true"): [("full", [3], "plain")],
    (1, 1, "bf16-mixed"): [("full", [4], "plain"), ("lora", [4], "plain")],
    (2, 1, "bf16-mixed"): [(kind, [3], "plain") for kind in ("full", "neox", "gpt2")],
    (1, 1, "bf16-true"): [("full", [12, 1], "plain")],
    (4, 1, "bf16-true"): [("full", [3], "plain")],
    (2, 2, "32-true"): [
        ("full", [12, 4], "plain"),
        ("full", [4], "compile"),
        ("full", [4], "selective"),
        ("neox", [4], "plain"),
    ],
    (4, 2, "32-true"): [("full", [6, 2], "chunks")],
    (4, 2, "bf16-mixed"): [("full", [3], "plain")],
}
# Of the loss and the norm relative to themselves, of a gradient to the largest of its matrix: bf16 has three digits.
TOLERANCES = {"bf16-mixed": (2e-3, 3e-2, 0.1), "bf16-true": (5e-3, 5e-2, 0.2)}


@cache
def brute_force(kind: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient in float64 with litgpt's own model: each document alone, one after the other.

    It does not know GPT-2's positions, for which tests/formats/test_families.py has transformers.
    """
    ours = make_model(kind)
    made = lit_gpt.model.gpt.GPT if kind == "gpt2" else litgpt.model.GPT
    twin = (litgpt.lora.GPT(LORA.extend(CONFIG)) if kind == "lora" else made(ours.config)).double()
    twin.load_state_dict(ours.state_dict())
    losses, targets = [], 0
    for row in random_rows(SAMPLES, WINDOW, VOCABULARY):
        place = 0
        for length, overlap in zip(row.segment_lengths, row.segment_overlaps, strict=True):
            ids = torch.from_numpy(row.tokens[place : place + length].astype("int64"))
            place += length
            if length > overlap:
                logits = twin(ids[None, :-1])[0, overlap - 1 :]
                losses.append(F.cross_entropy(logits, ids[overlap:], reduction="sum"))
                targets += length - overlap
    loss = torch.stack(losses).sum() / targets
    names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [dict(twin.named_parameters())[name] for name in names])
    return loss.item(), dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize(("devices", "tensor_parallel", "precision"), WAYS)
def test_gradient_is_that_of_the_whole_step(devices: int, tensor_parallel: int, precision: str, tmp_path: Path) -> None:
    ways = WAYS[devices, tensor_parallel, precision]
    launch = {"devices": devices, "num_nodes": 1, "precision": precision, "tensor_parallel": tensor_parallel}
    output = tmp_path / "gradients.pt"
    done = warm_start.run(gradient_worker.main, [launch, ways, output], devices, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    loss_tolerance, norm_tolerance, tolerance = TOLERANCES.get(precision, (1e-6, 1e-5, 1e-5))
    for result in torch.load(output, weights_only=True):
        loss, gradients = brute_force(result["kind"])
        norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients.values()))
        assert result["loss"] == pytest.approx(loss, rel=loss_tolerance), result["way"]
        assert result["norm"] == pytest.approx(norm, rel=norm_tolerance), result["way"]
        assert result["gradient"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            difference = float((result["gradient"][name] - gradient).abs().max())
            assert difference <= tolerance * float(gradient.abs().max()), (result["way"], name)


def test_masters_add_up_gradients_in_fp32() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    make_optimizer(torch.nn.ParameterList([weight]), 0.0, (0.9, 0.95), master_weights=True).add_up_in_fp32()
    for _ in range(300):  # in bf16 the sum stops at 256
        weight.sum().backward()
    assert weight.grad.dtype == torch.float32 and torch.equal(weight.grad, torch.full((2, 2), 300.0))


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.linspace(1, 40, 1000).bfloat16()
    expected = parameter.grad.double().norm().item()
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert parameter.grad.double().norm().item() == pytest.approx(1, rel=1e-3)


def test_a_skipped_step_leaves_the_others_dataset_losses_alone() -> None:
    history = StepHistory(2)
    for loss, norm, targets in ((6.0, 1.0, 3), (math.nan, math.nan, 5)):
        losses = torch.tensor([loss, 0.0], dtype=torch.float64)
        data = StepData([], [], targets, np.array([targets, 0]))
        history.add(StepResult(losses.sum(), losses, torch.tensor(norm)), data, {})
    assert [record.skipped for record in history.read()] == [False, True]
    assert history.take_dataset_losses()[0] == (2.0, 3)


def test_merged_adapter_gives_the_unmerged_models_logits() -> None:
    ours = make_model("lora")
    state = ours.state_dict()
    base = {name.replace(".linear.", "."): tensor for name, tensor in state.items() if "lora_" not in name}
    adapter = {name: tensor for name, tensor in state.items() if "lora_" in name}
    merged = litgpt.model.GPT(CONFIG)
    merged.load_state_dict(merge_adapter(base, adapter, CONFIG, LORA))
    ids = torch.randint(0, VOCABULARY, (2, 40))
    torch.testing.assert_close(merged(ids), ours(ids), atol=1e-5, rtol=0)


def test_agenda_counts_steps_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    agenda = Agenda("steps", 2, 3)
    assert [(due.validate, due.save) for due in (agenda.due(step, False, False) for step in range(1, 7))] == [
        (False, False),
        (True, False),
        (False, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    clock = [0.0]
    monkeypatch.setattr("utils.train.agenda.time.monotonic", lambda: clock[0])

    def wait_and_do(agenda: Agenda, step: int) -> bool:
        clock[0] += 5
        due = agenda.due(step, False, False)
        clock[0] += 100 if due.save else 0  # saving takes longer than the interval
        agenda.done(due)
        return due.save

    agenda = Agenda("time", None, 12)
    assert [wait_and_do(agenda, step) for step in range(1, 7)] == [False, False, True, False, False, True]


def rows_of(run_dir: Path, split: str) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [
            row for row in csv.DictReader(file) if row["split"] == split and (split == "valid" or not row["dataset"])
        ]


def test_the_loss_falls_and_every_dataset_is_validated(trained_run: Path) -> None:
    valid = rows_of(trained_run, "valid")
    datasets = {row["dataset"] for row in valid}
    assert len(datasets) >= 4 and "all" in datasets
    assert {int(row["step"]) for row in valid} == {0, 4, 8, 12}
    for step in (0, 12):
        at = {row["dataset"]: row for row in valid if int(row["step"]) == step}
        whole = sum(float(row["loss"]) * int(row["targets"]) for name, row in at.items() if name != "all")
        assert float(at["all"]["loss"]) == pytest.approx(whole / int(at["all"]["targets"]))
    losses = [float(row["loss"]) for row in valid if row["dataset"] == "all"]
    assert losses[-1] < losses[0] - 1


def test_processes_agree_on_intervals_of_time(pretrain_arguments: list[object], tmp_path: Path) -> None:
    timed = ["--interval_unit", "time", "--save_interval", 1, "--eval_interval", 2, "--max_steps", 40]
    run("pretrain.py", *pretrain_arguments, *timed, "--batch_size", 4, "--out_dir", tmp_path, processes=2)
    steps = [int(row["step"]) for row in rows_of(tmp_path, "train")]
    assert steps == list(range(1, 41))
    assert max(int(row["step"]) for row in rows_of(tmp_path, "valid")) == 40
    assert (tmp_path / "checkpoints" / "step-00000040").is_dir()


def test_training_ends_by_checkpoints_or_by_early_stopping(pretrain_arguments: list[object], tmp_path: Path) -> None:
    arguments = [*pretrain_arguments, "--batch_size", 4, "--micro_batch_size", 4]
    for devices in (1, 2):  # one of several processes ends at once, with whatever it has not yet written
        folder = tmp_path / f"{devices}"  # here Lightning starts the second one
        run("pretrain.py", *arguments, "--devices", devices, "--out_dir", folder, "--max_checkpoints", 2)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
        assert len(rows_of(folder, "train")) == 6
    # a learning rate of almost nothing cannot improve the validation loss by more than rounding
    still = [*arguments, "--learning_rate", 1e-30, "--eval_interval", 2, "--out_dir", tmp_path / "b"]
    run("pretrain.py", *still, "--early_stopping", 2)
    assert len(rows_of(tmp_path / "b", "train")) == 4
    again = run("pretrain.py", *still, "--early_stopping", 2)
    assert "validations without improvement" in again.stdout
    assert len(rows_of(tmp_path / "b", "train")) == 4


def test_a_loss_that_is_not_finite_is_skipped_logged_and_stops(
    pretrain_arguments: list[object], foundation: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in foundation.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = torch.load(broken / "lit_model.pth", weights_only=True)
    weights["transformer.ln_f.weight"][0] = float("nan")
    torch.save(weights, broken / "lit_model.pth")
    arguments = dict(zip(pretrain_arguments[::2], pretrain_arguments[1::2], strict=True))
    del arguments["--model_config"]
    arguments |= {
        "--checkpoint_dir": broken,
        "--enable_validation": "false",
        "--max_nonfinite_steps": 3,
        "--save_interval": 99,
    }
    flat = [word for pair in arguments.items() for word in pair]
    done = run("pretrain.py", *flat, "--out_dir", tmp_path / "run", check=False)
    assert_error(done, 2, "not finite in 3 steps", "--learning_rate")
    log = (tmp_path / "run" / "training_log.out").read_text()
    assert "step 1 skipped: loss nan" in log and "samples 0 to 15" in log and "samples 32 to 47" in log
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_try_small_is_a_quick_check(pretrain_arguments: list[object], tmp_path: Path) -> None:
    run("pretrain.py", *pretrain_arguments, "--out_dir", tmp_path / "run", "--try_small", "true", "--batch_size", 2)
    assert len(rows_of(tmp_path / "run-small", "train")) == 10
    assert not (tmp_path / "run").exists()


def test_the_original_command_lines_parse() -> None:
    """The README's of the scripts this program succeeds, a backslash at the end included."""
    line = """--data_dir $DATA_DIR --checkpoint_dir $FOUNDATION_MODEL_DIR --out_dir $TRAINING_DIR --devices 8
    --language fr --precision bf16-true --micro_batch_size 12 --batch_size 16 --num_epochs 1000 --max_checkpoints 20
    --save_interval 1800 --eval_interval 1800 --enable_validation true --early_stopping 2"""
    options = cli.parse(PretrainOptions, line.split())
    assert (options.devices, options.precision, options.interval_unit) == (8, "bf16-true", "time")
    assert (options.enable_validation, options.early_stopping, options.save_interval) == (True, 2, 1800)
    line = "--out_dir $TRAINING_DIR --language fr --max 40 --batch_size 8"
    assert cli.parse(ValidateOptions, line.split()).max_batches == 40
    with_lora = "--use_lora true --lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --lora_query true --lora_key false"
    with_lora += " --lora_value true --lora_projection false --lora_mlp false --lora_head false --seed 1 --debug true"
    with_lora += " --num_nodes 2 --weight_decay 0.01 --grad_clip 1 --warmup_steps 10 --interval_unit time"
    with_lora += f" --data_dir a --checkpoint_dir {TOKENIZER} --out_dir b --learning_rate 1e-4 --try_small false"
    assert cli.parse(PretrainOptions, with_lora.split()).use_lora
