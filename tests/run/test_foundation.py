"""One flipped bit in a foundation model, an adapter or an exported folder is noticed by whoever reads it."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_gpt.chat import base as chat
from lit_gpt.checksums import SUMS, file_sha256, listed_sums, write_sums
from lit_gpt.errors import DataError
from lit_gpt.formats.hub import files_to_send, holds_model
from lit_gpt.formats.litgpt_directory import WEIGHTS, convert_hf_checkpoint, read_weights, weights_fingerprint
from lit_gpt.formats.peft import ADAPTER_WEIGHTS
from lit_gpt.formats.tensor_files import content_digest, write_lit_model
from tests.conftest import assert_error, run, run_command
from utils.run.chat_options import ChatOptions
from utils.run.merged_model import load_merged_model
from utils.run.record import RunRecord

CONVERT, IN = "convert_litgpt_to_transformers.py", "lit_gpt/scripts/convert_hf_checkpoint.py"


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """`path` with one bit of it the other way round."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            (byte,) = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))

    flip()
    try:
        yield
    finally:
        flip()


@pytest.fixture(scope="module")
def folders(lora_run: Path, foundation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A foundation of its own, an adapter as peft has it, and an exported folder."""
    places = tmp_path_factory.mktemp("places")
    shutil.copytree(foundation, places / "base")
    run(CONVERT, "--input_path", lora_run, "--output_dir", places / "adapter", "--as_adapter", True)
    run(CONVERT, "--input_path", foundation / WEIGHTS, "--output_dir", places / "hf", "--verify", "none")
    run(IN, "--checkpoint_dir", places / "hf")
    return {name: places / name for name in ("base", "adapter", "hf")}


def read_base(folders: dict[str, Path]) -> None:
    load_merged_model(folders["base"] / WEIGHTS).check.finish()


def read_adapter(folders: dict[str, Path]) -> None:
    load_merged_model(folders["adapter"], folders["hf"]).check.finish()


def read_base_of_adapter(folders: dict[str, Path]) -> None:
    read_adapter(folders)


def convert_in(folders: dict[str, Path]) -> None:
    convert_hf_checkpoint(folders["hf"])


def send(folders: dict[str, Path]) -> None:
    holds_model(folders["hf"], files_to_send(folders["hf"]))


READERS: dict[str, tuple[Callable[[dict[str, Path]], None], str, tuple[str, ...]]] = {
    "lit_model.pth": (read_base, "base", (WEIGHTS,)),
    "lit_model.pth below an adapter": (read_base_of_adapter, "hf", (WEIGHTS,)),
    "adapter": (read_adapter, "adapter", (ADAPTER_WEIGHTS, "adapter_config.json")),
    "safetensors": (convert_in, "hf", ("model.safetensors",)),
    "exported folder": (send, "hf", ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")),
}


@pytest.mark.parametrize("what", READERS)
def test_of_100_flipped_bits_100_are_noticed(what: str, folders: dict[str, Path]) -> None:
    reader, folder, names = READERS[what]
    reader(folders)
    generator = random.Random(f"{what} 2026")
    noticed = 0
    for number in range(100):
        path = folders[folder] / names[number % len(names)]
        with flipped(path, generator.randrange(8 * path.stat().st_size)), pytest.raises(DataError) as raised:
            reader(folders)
        noticed += path.name in str(raised.value) or "is not the model" in str(raised.value)
    assert noticed == 100
    reader(folders)


def commands(folders: dict[str, Path], lora_run: Path, foundation: Path, tmp_path: Path) -> list[tuple[Path, list]]:
    """Each command, and the file whose damage it has to notice."""
    base, hf, adapter = folders["base"], folders["hf"], folders["adapter"]
    on_base = ("--lora_path", lora_run, "--checkpoint_dir", base)
    on_adapter = ("--lora_path", adapter, "--checkpoint_dir", hf)
    prompt = ("--prompt", "[speaker001:] Good", "--max_new_tokens", 3)
    return [
        (base / WEIGHTS, ["lit_gpt/generate/base.py", "--checkpoint_dir", base, *prompt]),
        (base / WEIGHTS, ["lit_gpt/generate/base.py", *on_base, *prompt]),
        (adapter / ADAPTER_WEIGHTS, ["lit_gpt/generate/base.py", *on_adapter, *prompt]),
        (base / WEIGHTS, ["utils/merge_lora.py", *on_base, "--save_path", tmp_path / "merged"]),
        (adapter / ADAPTER_WEIGHTS, ["utils/merge_lora.py", *on_adapter, "--save_path", tmp_path / "merged"]),
        (base / WEIGHTS, [CONVERT, "--input_path", base / WEIGHTS, "--output_dir", tmp_path / "out"]),
        (base / WEIGHTS, [CONVERT, "--input_path", lora_run, "--checkpoint_dir", base, "--output_dir", tmp_path / "o"]),
        (hf / "model.safetensors", [IN, "--checkpoint_dir", hf]),
        (hf / "model.safetensors", ["utils/hf_upload_model.py", "org/model", "--input_dir", hf, "--dry_run", True]),
    ]


def test_every_command_notices_a_flipped_bit(
    folders: dict[str, Path], lora_run: Path, foundation: Path, tmp_path: Path
) -> None:
    for path, (script, *arguments) in commands(folders, lora_run, foundation, tmp_path):
        with flipped(path, 8 * path.stat().st_size // 2 + 1):  # in a value's last place, or nearly
            done = run(script, *arguments, check=False)
        assert_error(done, 65, path.name)
        assert not any(tmp_path.iterdir()), f"{script} left something"


def test_chat_notices_a_flipped_bit(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders["base"] / WEIGHTS
    words = ["--checkpoint_dir", str(path.parent), "--max_new_tokens", "4"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Good morning?\nAnd then?\n"))
    with flipped(path, 4 * path.stat().st_size):
        assert run_command(ChatOptions, chat.main, words) == 65
    assert f"{path} does not have the SHA-256" in capsys.readouterr().err


def test_chat_whose_answers_were_broken_off_notices_a_flipped_bit(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_off(*_: object, **__: object) -> list[tuple[int, str]]:
        raise KeyboardInterrupt

    path = folders["base"] / WEIGHTS
    monkeypatch.setattr("sys.stdin", io.StringIO("Good morning?\n"))
    monkeypatch.setattr("lit_gpt.inference.generation.TextModel.stream", broken_off)
    with flipped(path, 4 * path.stat().st_size):
        assert run_command(ChatOptions, chat.main, ["--checkpoint_dir", str(path.parent)]) == 65
    assert f"{path} does not have the SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_and_its_resumption_notice_a_flipped_bit(
    processes: int, folders: dict[str, Path], lora_arguments: list[object], tmp_path: Path
) -> None:
    """It ends before its first checkpoint; a run that was begun before the damage makes none after it."""
    base, out = folders["base"], tmp_path / "run"
    batch = ("--batch_size", 8 // processes, "--micro_batch_size", 4, "--devices", processes)
    arguments = [*lora_arguments, "--checkpoint_dir", base, "--out_dir", out, *batch]
    path = base / WEIGHTS
    bit = 4 * path.stat().st_size
    if processes == 1:
        with flipped(path, bit):
            assert_error(run("pretrain.py", *arguments, check=False), 65, WEIGHTS, "SHA-256")
        assert not list(out.glob("checkpoints/step-*"))
    run("pretrain.py", *arguments, "--max_checkpoints", 1)
    begun = [path.name for path in out.glob("checkpoints/step-*")]
    with flipped(path, bit):
        assert_error(run("pretrain.py", *arguments, check=False), 65, WEIGHTS, "SHA-256")
        if processes == 1:
            (base / SUMS).rename(tmp_path / SUMS)  # without a list: by the CRC-32 in the file
            assert_error(run("pretrain.py", *arguments, check=False), 65, WEIGHTS, "CRC-32")
            (tmp_path / SUMS).rename(base / SUMS)
    assert [path.name for path in out.glob("checkpoints/step-*")] == begun != []


def test_a_validation_notices_a_flipped_bit(folders: dict[str, Path], lora_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lora_run, tmp_path / "run")
    (tmp_path / "run" / "validation.csv").unlink(missing_ok=True)
    path = folders["base"] / WEIGHTS
    with flipped(path, 4 * path.stat().st_size):
        words = ("--out_dir", tmp_path / "run", "--checkpoint_dir", folders["base"])
        assert_error(run("validate_pretrain.py", *words, check=False), 65, WEIGHTS)
    assert not (tmp_path / "run" / "validation.csv").exists()


def test_a_base_with_other_values_is_not_the_one_that_was_trained_on(
    folders: dict[str, Path], lora_run: Path, lora_arguments: list[object], tmp_path: Path
) -> None:
    """All values × 1.5 but for the 64 of each tensor that runs of earlier versions recorded."""
    weights = {name: tensor.clone() for name, tensor in read_weights(folders["base"]).items()}
    before = weights_fingerprint(weights)
    for tensor in weights.values():
        flat = tensor.view(-1)
        others = torch.ones(len(flat), dtype=torch.bool)
        others[:: max(1, len(flat) // 64)] = False
        flat[others] *= 1.5
    assert weights_fingerprint(weights) == before
    other = tmp_path / "other"
    shutil.copytree(folders["base"], other)
    write_lit_model(other / WEIGHTS, weights.items())
    (other / SUMS).unlink()
    merge = ("--lora_path", lora_run, "--checkpoint_dir", other, "--save_path", tmp_path / "merged")
    assert_error(run("utils/merge_lora.py", *merge, check=False), 65, "is not the model that")
    shutil.copytree(lora_run, tmp_path / "run")
    again = [*lora_arguments, "--checkpoint_dir", other, "--out_dir", tmp_path / "run", "--batch_size", 8]
    assert_error(run("pretrain.py", *again, check=False), 2, "another run (base was crc32:")


def test_runs_of_earlier_versions_go_on(folders: dict[str, Path], lora_run: Path, tmp_path: Path) -> None:
    """Their run.yaml has a fingerprint of a sample of the values."""
    run_dir = tmp_path / "run"
    shutil.copytree(lora_run, run_dir)
    fingerprint = weights_fingerprint(read_weights(folders["base"]))
    for folder in (run_dir, *run_dir.glob("checkpoints/step-*")):
        record = RunRecord.load(folder)
        replace(record, identity=replace(record.identity, base=fingerprint)).save(folder)
        if sums := listed_sums(folder):
            write_sums(folder, {**sums, "run.yaml": file_sha256(folder / "run.yaml")})
    load_merged_model(run_dir, folders["base"]).check.finish()
    path = folders["base"] / WEIGHTS
    with flipped(path, 4 * path.stat().st_size), pytest.raises(DataError, match="SHA-256"):
        load_merged_model(run_dir, folders["base"]).check.finish()


def test_the_same_tensors_in_another_order_are_the_same_base(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = read_weights(folders["base"])
    write_lit_model(tmp_path / "a.pth", reversed(weights.items()))
    torch.save(dict(weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digests = {content_digest(path) for path in (folders["base"] / WEIGHTS, tmp_path / "a.pth", tmp_path / "old.pth")}
    assert len(digests) == 1
