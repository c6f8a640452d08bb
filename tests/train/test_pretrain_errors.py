"""A user's mistake is one line, an exit code, and nothing under a final name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import SAMPLE, TINY_MODEL, assert_error, run


@pytest.fixture
def arguments(pretrain_arguments: list[object], tmp_path: Path) -> list[object]:
    return [*pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", tmp_path / "run"]


def expect(tmp_path: Path, arguments: list[object], exit_code: int, *words: str) -> None:
    assert_error(run("pretrain.py", *arguments, check=False), exit_code, *words)
    assert not (tmp_path / "run").exists(), "something was written"


@pytest.fixture
def copied_data(data_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data_dir, tmp_path / "data")


def test_a_flipped_bit_in_a_shard(copied_data: Path, arguments: list[object], tmp_path: Path) -> None:
    shard = sorted(copied_data.glob("*train-00003*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-20] ^= 4
    shard.write_bytes(content)
    expect(tmp_path, [*arguments, "--data_dir", copied_data], 65, shard.name, "SHA-256", "prepare_data.py")


def test_a_missing_and_a_truncated_shard(copied_data: Path, arguments: list[object], tmp_path: Path) -> None:
    shard = sorted(copied_data.glob("*train-00003*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    expect(tmp_path, [*arguments, "--data_dir", copied_data], 65, shard.name, "bytes")
    shard.unlink()
    expect(tmp_path, [*arguments, "--data_dir", copied_data], 65, shard.name, "missing")


def test_a_wrong_tokenizer(arguments: list[object], tmp_path: Path) -> None:
    import sentencepiece

    other = tmp_path / "tokenizer"
    other.mkdir()
    text = SAMPLE / "english" / "EN" / "Office" / "train.txt"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(other / "tokenizer"), vocab_size=500, byte_fallback=True, minloglevel=2
    )
    expect(tmp_path, [*arguments, "--checkpoint_dir", other], 65, "another tokenizer", "--checkpoint_dir")


def test_a_manifest_that_is_missing_broken_or_of_another_version(
    copied_data: Path, arguments: list[object], tmp_path: Path
) -> None:
    arguments = [*arguments, "--data_dir", copied_data]
    manifest = copied_data / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "format_version": 99}))
    expect(tmp_path, arguments, 65, "format version 99")
    manifest.write_text("{")
    expect(tmp_path, arguments, 65, "no manifest of this program")
    manifest.unlink()
    expect(tmp_path, arguments, 2, "manifest.json is missing")


def test_batches_that_do_not_divide(arguments: list[object], tmp_path: Path) -> None:
    words = ("--batch_size 16 is not a multiple of --micro_batch_size 12", "--micro_batch_size 8", "--batch_size 24")
    expect(tmp_path, [*arguments, "--batch_size", 16, "--micro_batch_size", 12], 2, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nonsense", "1"], ["unknown option --nonsense"]),
        (["--precision", "fp8"], ["--precision must be one of"]),
        (["--batch_size", "many"], ["--batch_size"]),
        (["--batch_size", "0", "--lora_dropout", "1"], ["--batch_size must be above 0", "--lora_dropout"]),
        (["--language", "de"], ["no 'train' rows of language 'de'", "FR/"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
        (["--use_lora", "true", "--lora_query", "false", "--lora_value", "false"], ["--use_lora"]),
        (["--data_dir", "absent"], ["absent/manifest.json is missing"]),
        (["--checkpoint_dir", "absent"], ["absent"]),
        (["--mixture", "absent.yaml"], ["absent.yaml"]),
    ],
)
def test_wrong_options(options: list[str], words: list[str], arguments: list[object], tmp_path: Path) -> None:
    expect(tmp_path, [*arguments, *options], 2, *words)


def test_a_model_that_the_data_does_not_fit(arguments: list[object], tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(TINY_MODEL.replace("block_size: 64", "block_size: 32"))
    expect(tmp_path, [*arguments, "--model_config", small], 2, "64 positions", "--max_length 32")
    small.write_text(TINY_MODEL + "vocab_size: 50\npadded_vocab_size: 50\n")
    expect(tmp_path, [*arguments, "--model_config", small], 2, "vocabulary 50")
    small.write_text("n_layers: 3\n")
    expect(tmp_path, [*arguments, "--model_config", small], 2, "no model config", "n_layers")


def test_a_foundation_model_with_other_weights(arguments: list[object], foundation: Path, tmp_path: Path) -> None:
    place = arguments.index("--model_config")
    arguments = arguments[:place] + arguments[place + 2 :]
    broken = shutil.copytree(foundation, tmp_path / "broken")
    weights = torch.load(broken / "lit_model.pth", weights_only=True)
    removed = weights.pop("transformer.h.1.attn.qkv.weight")
    torch.save(weights, broken / "lit_model.pth")
    assert_error(
        run("pretrain.py", *arguments, "--checkpoint_dir", broken, check=False), 65, "h.1.attn.qkv.weight is missing"
    )
    torch.save({**weights, "transformer.h.1.attn.qkv.weight": removed[:-1]}, broken / "lit_model.pth")
    assert_error(run("pretrain.py", *arguments, "--checkpoint_dir", broken, check=False), 65, "not of the model")
    (broken / "lit_model.pth").write_bytes((foundation / "lit_model.pth").read_bytes()[:5000])
    assert_error(run("pretrain.py", *arguments, "--checkpoint_dir", broken, check=False), 65, "cannot be read")
    (broken / "lit_model.pth").unlink()
    assert_error(run("pretrain.py", *arguments, "--checkpoint_dir", broken, check=False), 2, "lit_model.pth is missing")


def test_nothing_to_validate_on(copied_data: Path, arguments: list[object], tmp_path: Path) -> None:
    manifest = copied_data / "manifest.json"
    values = json.loads(manifest.read_text())
    values["splits"] = [entry for entry in values["splits"] if entry["split"] == "train"]
    manifest.write_text(json.dumps(values))
    arguments = [*arguments, "--data_dir", copied_data, "--max_steps", 1]
    expect(tmp_path, [*arguments, "--enable_validation", "true"], 2, "no 'test' rows")
    run("pretrain.py", *arguments)
    assert ",valid," not in (tmp_path / "run" / "metrics.csv").read_text()


def test_debug_shows_the_traceback(arguments: list[object], tmp_path: Path) -> None:
    done = run("pretrain.py", *arguments, "--data_dir", "absent", "--debug", "true", check=False)
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_options_of_the_engine_that_cannot_be(arguments: list[object], tmp_path: Path) -> None:
    expect(tmp_path, [*arguments, "--quantize", "bnb.nf4"], 2, "--quantize needs --use_lora")
    expect(tmp_path, [*arguments, "--profile_steps", "5-3"], 2, "--profile_steps 5-3")
    expect(tmp_path, [*arguments, "--logger", "wandb"], 2, "pip install wandb")


def test_options_that_contradict_each_other(arguments: list[object], tmp_path: Path) -> None:
    expect(tmp_path, [*arguments, "--min_learning_rate", 1, "--mfu", 40], 2, "--min_learning_rate", "--mfu")
    expect(tmp_path, [*arguments, "--profile_steps", "13-14"], 2, "--profile_steps 13-14", "12 steps")
