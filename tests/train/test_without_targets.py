"""Documents of one token: nothing in them can be predicted, and nothing ends because of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import TOKENIZER, assert_error, run

PLAIN = ("--add_bos", "false", "--add_eos", "false", "--max_length", 64, "--num_workers", 1)


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def prepare(corpus: Path, folder: Path) -> str:
    words = ("--source_path", corpus, "--checkpoint_dir", TOKENIZER, "--destination_path", folder, *PLAIN)
    return run("prepare_data.py", *words).stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of single tokens, and one of whole sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    for split in ("train", "test"):
        write(folder / "FR" / "Lettres" / f"{split}.jsonl", ["a"] * 260)
    write(folder / "FR" / "Phrases" / "train.jsonl", ["le chat dort sur la table de la cuisine " * 5] * 4)
    return folder


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("data") / "data"
    return folder, prepare(corpus, folder)


def test_the_preparation_counts_and_names_them(data: tuple[Path, str]) -> None:
    for split in ("train", "test"):
        assert f"warning: FR/Lettres {split}: 260 of 260 documents have one token" in data[1]
    assert "FR/Phrases train: 4 of" not in data[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_micro_batches_and_validations_without_targets_count_nothing(
    data: tuple[Path, str], model_config: Path, tmp_path: Path, processes: int
) -> None:
    words = ["--data_dir", data[0], "--checkpoint_dir", TOKENIZER, "--model_config", model_config]
    words += ["--precision", "32-true", "--interval_unit", "steps", "--warmup_steps", 1, "--learning_rate", 1e-2]
    words += ["--batch_size", 1, "--max_steps", 10, "--save_interval", 1, "--eval_interval", 4, "--early_stopping", 1]
    done = run("pretrain.py", *words, "--out_dir", tmp_path / "run", processes=processes)
    assert "done: all 10 steps" in done.stdout
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["split"] == "train" and not row["dataset"]]
    empty = [row for row in steps if row["targets"] == "0"]
    assert len(steps) == 10 and 0 < len(empty) < 10
    for row in steps:
        assert math.isnan(float(row["loss"])) == (row["targets"] == "0")
        assert math.isfinite(float(row["grad_norm"]))
    valid = [row for row in rows if row["split"] == "valid"]
    assert {row["dataset"]: row["targets"] for row in valid} == {"FR/Lettres": "0", "all": "0"}
    assert all(math.isnan(float(row["loss"])) for row in valid)
    assert f"step {empty[0]['step']} had no target" in done.stdout and "skipped" not in done.stdout


def test_a_step_without_targets_leaves_the_weights_as_they_are(
    data: tuple[Path, str], model_config: Path, tmp_path: Path
) -> None:
    from utils.run.checkpoint_reader import read_model_tensors

    words = ["--data_dir", data[0], "--checkpoint_dir", TOKENIZER, "--model_config", model_config]
    words += ["--precision", "32-true", "--interval_unit", "steps", "--warmup_steps", 0, "--learning_rate", 1e-2]
    words += ["--batch_size", 1, "--max_steps", 10, "--save_interval", 1, "--enable_validation", "false"]
    run("pretrain.py", *words, "--out_dir", tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        targets = [row["targets"] for row in csv.DictReader(file) if row["split"] == "train" and not row["dataset"]]
    name = "lm_head.weight"
    weights = [read_model_tensors(tmp_path / "run" / "checkpoints" / f"step-{n:08d}")[name] for n in range(1, 11)]
    for index in range(1, 10):
        assert torch.equal(weights[index], weights[index - 1]) == (targets[index] == "0")


def test_data_without_any_target_is_one_line(tmp_path: Path, model_config: Path) -> None:
    write(tmp_path / "corpus" / "FR" / "Lettres" / "train.jsonl", ["a"] * 300)
    prepare(tmp_path / "corpus", tmp_path / "data")
    words = ["--data_dir", tmp_path / "data", "--checkpoint_dir", TOKENIZER, "--model_config", model_config]
    done = run("pretrain.py", *words, "--out_dir", tmp_path / "run", check=False)
    assert_error(done, 65, "no document", "second token")
