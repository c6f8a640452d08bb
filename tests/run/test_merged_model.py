"""Paths to trained models, merging, offline validation."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import litgpt.lora
import pytest
import torch

from convert_litgpt_to_transformers import main as convert
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats import litgpt_directory
from lit_gpt.formats.hf_config import read_hf_config
from lit_gpt.formats.hf_weights import ForeignWeights, TensorFiles
from lit_gpt.formats.litgpt_directory import WEIGHTS, read_config, read_weights, write_litgpt_directory
from lit_gpt.formats.tensor_files import write_lit_model
from lit_gpt.model.building import build_model
from lit_gpt.model.lora import LoRASettings, check_merged, merge_adapter
from tests import warm_start
from tests.conftest import assert_error, run, run_command
from tests.run.resharding_worker import write_again
from utils import merge_lora
from utils.export.options import ConvertOptions, MergeOptions
from utils.run.checkpoint_folders import list_checkpoints
from utils.run.checkpoint_reader import read_model_tensors
from utils.run.merged_model import find_input, load_merged_model
from utils.run.record import RunRecord


def test_a_path_stands_for_the_best_checkpoint_else_the_newest(trained_run: Path, tmp_path: Path) -> None:
    checkpoints = list_checkpoints(trained_run)
    rows = list(csv.DictReader((trained_run / "metrics.csv").open()))
    validated = {int(row["step"]): float(row["loss"]) for row in rows if row["dataset"] == "all"}
    best = min(
        (path for path in checkpoints if int(path.name[5:]) in validated), key=lambda p: validated[int(p.name[5:])]
    )
    assert find_input(trained_run) == best
    assert find_input(checkpoints[0]) == checkpoints[0]
    copy = shutil.copytree(trained_run, tmp_path / "run")
    (copy / "metrics.csv").unlink()
    assert find_input(copy).name == checkpoints[-1].name
    with pytest.raises(UserError, match="neither"):
        find_input(tmp_path)


def test_a_base_without_weights_is_a_wrong_path(lora_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="; give the foundation model's place by --checkpoint_dir"):
        load_merged_model(lora_run, tmp_path)


def test_merged_equals_unmerged(lora_run: Path, foundation: Path) -> None:
    checkpoint = find_input(lora_run)
    trained = load_merged_model(checkpoint)
    settings = LoRASettings(**RunRecord.load(lora_run).identity.lora)
    unmerged = litgpt.lora.GPT(settings.extend(trained.config)).eval()
    unmerged.load_state_dict(read_weights(foundation), strict=False)
    result = unmerged.load_state_dict(read_model_tensors(checkpoint), strict=False)
    assert not result.unexpected_keys
    merged = build_model(trained.config, trained.state_dict, None, 0, torch.float32)
    ids = torch.randint(0, trained.config.vocab_size, (3, 60))
    torch.testing.assert_close(merged(ids), unmerged(ids), atol=1e-5, rtol=0)
    assert trained.provenance["step"] == int(checkpoint.name[5:]) and trained.provenance["validation_loss"] > 0


def test_merge_lora_makes_a_directory_that_litgpt_runs(lora_run: Path, tmp_path: Path) -> None:
    save_path = tmp_path / "merged" / WEIGHTS
    run("utils/merge_lora.py", "--lora_path", lora_run, "--save_path", save_path)
    merged, trained = read_weights(save_path.parent), load_merged_model(lora_run)
    assert all(torch.equal(merged[name], tensor) for name, tensor in trained.state_dict.items())
    litgpt_command = [str(Path(sysconfig.get_path("scripts"), "litgpt")), "generate", str(save_path.parent)]
    done = subprocess.run(
        [*litgpt_command, "--prompt", "[speaker001:] Good", "--max_new_tokens", "5", "--num_samples", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "[speaker001:] Good" in done.stdout, done.stdout + done.stderr
    again = run("utils/merge_lora.py", "--lora_path", lora_run, "--save_path", save_path, check=False)
    assert_error(again, 2, "exists already")


def test_a_lora_run_becomes_a_hugging_face_folder_of_the_same_model(lora_run: Path, tmp_path: Path) -> None:
    """Logits of transformers against those of litgpt's unmerged LoRA model."""
    from transformers import AutoModelForCausalLM

    run("convert_litgpt_to_transformers.py", "--input_path", lora_run, "--output_dir", tmp_path / "hf")
    settings = LoRASettings(**RunRecord.load(lora_run).identity.lora)
    trained = load_merged_model(lora_run)
    unmerged = litgpt.lora.GPT(settings.extend(trained.config)).eval()
    unmerged.load_state_dict(read_weights(trained.foundation_dir), strict=False)
    unmerged.load_state_dict(read_model_tensors(find_input(lora_run)), strict=False)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = torch.randint(0, trained.config.vocab_size, (3, 60))
    torch.testing.assert_close(exported(ids).logits, unmerged(ids), atol=1e-5, rtol=0)


def test_checkpoints_of_3_and_of_8_processes_give_the_same_bytes(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = find_input(trained_run)
    found = {}
    for processes in (3, 8):
        run_dir = tmp_path / str(processes)
        done = warm_start.run(write_again, [checkpoint, run_dir], processes)
        assert done.returncode == 0, done.stderr
        shutil.copyfile(trained_run / "metrics.csv", run_dir / "metrics.csv")
        source = run_dir / "checkpoints" / checkpoint.name
        assert len(list(source.glob("*.distcp"))) == processes
        convert(ConvertOptions(source, run_dir / "model", verify="tensors", max_shard_size="100KB"))
        found[processes] = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    assert found[3] == found[8] and len([name for name in found[3] if name.startswith("model-")]) > 2
    files = TensorFiles(tmp_path / "8" / "model")
    trained, hf = load_merged_model(checkpoint), read_hf_config(tmp_path / "8" / "model")
    for name, tensor in ForeignWeights(tmp_path / "8" / "model", trained.config, hf).tensors():
        assert torch.equal(tensor, trained.state_dict[name]), name
    assert files.keys() == json.loads(found[8]["model.safetensors.index.json"])["weight_map"].keys()


def test_a_merge_that_computes_something_else_leaves_nothing(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows of one matrix change places on their way to the file; and in 16 bits a tiny change gets lost."""
    import utils.run.merged_model

    merge = ["--lora_path", str(lora_run), "--save_path", str(tmp_path / "merged")]
    with monkeypatch.context() as patch:
        patch.setattr(
            litgpt_directory,
            "write_lit_model",
            lambda path, items: write_lit_model(path, spoilt(items)),
        )
        assert run_command(MergeOptions, merge_lora.main, merge) == 65
    assert "mlp.proj.weight is not what merging the adapter makes of it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    real = read_model_tensors(find_input(lora_run))
    tiny = {name: real[name] * (3e-4 if name.endswith("B") else 1) for name in real}
    with monkeypatch.context() as patch:
        patch.setattr(utils.run.merged_model, "read_model_tensors", lambda _: tiny)
        assert run_command(MergeOptions, merge_lora.main, [*merge, "--dtype", "bfloat16"]) == 65
        assert "give --dtype float32" in capsys.readouterr().err and not list(tmp_path.iterdir())
        assert run_command(MergeOptions, merge_lora.main, merge) == 0
    assert "verified: each matrix, and the logits of base + adapter" in capsys.readouterr().out
    assert {tensor.dtype for tensor in read_weights(tmp_path / "merged").values()} == {torch.float32}


def test_a_single_matrix_that_was_not_merged_is_found_in_16_bits(lora_run: Path) -> None:
    """Of one among many the logits need not tell."""
    trained = load_merged_model(lora_run, dtype=torch.bfloat16)
    merged = dict(trained.state_dict)
    check_merged(trained.base, trained.adapter, merged, trained.config, trained.lora)
    adapted = [name for name in merged if not torch.equal(merged[name], trained.base[name].bfloat16())]
    assert len(adapted) > 8
    for name in adapted:
        spoilt_one = {**merged, name: trained.base[name].bfloat16()}
        with pytest.raises(DataError, match=re.escape(name)):
            check_merged(trained.base, trained.adapter, spoilt_one, trained.config, trained.lora)


def spoilt(items: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in items:
        yield name, tensor[[1, 0, *range(2, len(tensor))]] if name == "transformer.h.1.mlp.proj.weight" else tensor


def test_an_adapter_with_a_matrix_of_zeros_is_an_error(lora_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import utils.run.merged_model

    real = read_model_tensors(find_input(lora_run))
    zero = {name: real[name] * (name != "transformer.h.0.attn.qkv.lora_B") for name in real}
    monkeypatch.setattr(utils.run.merged_model, "read_model_tensors", lambda _: zero)
    with pytest.raises(DataError, match=r"changes nothing: transformer\.h\.0\.attn\.qkv\.lora_B is zero"):
        load_merged_model(lora_run)


def test_a_merge_of_nothing_is_an_error(lora_run: Path, trained_run: Path, foundation: Path, tmp_path: Path) -> None:
    config, base = read_config(foundation), read_weights(foundation)
    settings = LoRASettings(**RunRecord.load(lora_run).identity.lora)
    adapter = read_model_tensors(find_input(lora_run))
    untrained = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in adapter.items()}
    with pytest.raises(DataError, match="changes none"):
        merge_adapter(base, untrained, config, settings)
    with pytest.raises(DataError, match="found no place"):
        merge_adapter(base, {**adapter, "transformer.h.9.attn.qkv.lora_A": adapter["lm_head.lora_A"]}, config, settings)
    with pytest.raises(DataError, match="lacks"):
        merge_adapter(base, {k: v for k, v in adapter.items() if k != "lm_head.lora_A"}, config, settings)
    with pytest.raises(DataError, match="shape"):
        merge_adapter(base, {**adapter, "lm_head.lora_A": adapter["lm_head.lora_A"][:1]}, config, settings)
    done = run("utils/merge_lora.py", "--lora_path", trained_run, "--save_path", tmp_path / "merged", check=False)
    assert_error(done, 2, "nothing to merge")
    assert not (tmp_path / "merged").exists()


def test_a_merge_into_another_model_is_an_error(lora_run: Path, foundation: Path, tmp_path: Path) -> None:
    other = build_model(read_config(foundation), None, None, 99, torch.float32)
    write_litgpt_directory(tmp_path / "other", read_config(foundation), other.state_dict(), [])
    merge = ("utils/merge_lora.py", "--lora_path", lora_run, "--save_path", tmp_path / "merged")
    done = run(*merge, "--checkpoint_dir", tmp_path / "other", check=False)
    assert_error(done, 65, "not the model")
    done = run(*merge, "--checkpoint_dir", tmp_path / "absent", check=False)
    assert_error(done, 2, "absent")
    assert not (tmp_path / "merged").exists()


def test_offline_validation_measures_each_checkpoint_once(
    trained_run: Path, other_data_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run")
    run("validate_pretrain.py", "--out_dir", copy, "--batch_size", 8, "--precision", "32-true", "--devices", 2)
    first = (copy / "validation.csv").read_text()
    rows = list(csv.DictReader(first.splitlines()))
    datasets = {row["dataset"] for row in rows}
    assert len(rows) == len(list_checkpoints(copy)) * len(datasets) and "all" in datasets
    done = run("validate_pretrain.py", "--out_dir", copy, "--batch_size", 8, "--precision", "32-true")
    assert done.stdout.count("done before") == len(list_checkpoints(copy))
    assert (copy / "validation.csv").read_text() == first
    shutil.rmtree(list_checkpoints(copy)[0])
    run("validate_pretrain.py", "--out_dir", copy, "--max", 1, "--batch_size", 8)
    assert (copy / "validation.csv").read_text().startswith(first)
    online = [row for row in csv.DictReader((copy / "metrics.csv").open()) if row["dataset"] == "all"]
    last = {row["dataset"]: float(row["loss"]) for row in csv.DictReader((copy / "validation.csv").open())}
    assert last["all"] == pytest.approx(float(online[-1]["loss"]), abs=0.1), "8 samples a dataset, on- and offline"


def test_offline_validation_keeps_what_an_older_version_measured(
    trained_run: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Its validation.csv had no column for the precision."""
    copy = shutil.copytree(trained_run, tmp_path / "run")
    validate = ("validate_pretrain.py", "--out_dir", copy, "--max", 1, "--batch_size", 8)
    run(*validate)
    measured = list(csv.DictReader((copy / "validation.csv").open()))
    last = measured[-1]["checkpoint"]
    columns = [column for column in measured[0] if column != "precision"]
    with (copy / "validation.csv").open("w") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in measured if row["checkpoint"] != last)
    done = run(*validate)
    assert done.stdout.count("done before") == len(list_checkpoints(copy)) - 1
    now = list(csv.DictReader((copy / "validation.csv").open()))
    old = [row for row in measured if row["checkpoint"] != last]
    assert now[: len(old)] == [row | {"precision": ""} for row in old]
    assert now[len(old) :] == measured[len(old) :], "the one that was missing, measured under the same settings"
    assert run(*validate).stdout.count("done before") == len(list_checkpoints(copy))


def test_offline_validation_is_exact(trained_run: Path, data_dir: Path, tmp_path: Path) -> None:
    """The same samples as in training give the same loss, from the checkpoint alone."""
    copy = shutil.copytree(trained_run, tmp_path / "run")
    run("validate_pretrain.py", "--out_dir", copy, "--max", 2, "--batch_size", 4)
    offline = {
        (row["step"], row["dataset"]): float(row["loss"]) for row in csv.DictReader((copy / "validation.csv").open())
    }
    online = [row for row in csv.DictReader((copy / "metrics.csv").open()) if row["split"] == "valid"]
    compared = [row for row in online if (row["step"], row["dataset"]) in offline]
    assert len(compared) >= 4
    for row in compared:
        assert offline[row["step"], row["dataset"]] == pytest.approx(float(row["loss"]), rel=1e-6)


def test_offline_validation_refuses_what_it_cannot_measure(trained_run: Path, data_dir: Path, tmp_path: Path) -> None:
    assert_error(run("validate_pretrain.py", "--out_dir", tmp_path, check=False), 2, "run.yaml is missing")
    copy = shutil.copytree(trained_run, tmp_path / "run")
    assert_error(run("validate_pretrain.py", "--out_dir", copy, "--language", "xx", check=False), 2, "'xx'")
    shard = next((list_checkpoints(copy)[0]).glob("*.distcp"))
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    done = run("validate_pretrain.py", "--out_dir", copy, check=False)
    assert_error(done, 65, "damaged", list_checkpoints(copy)[0].name)
    assert f"passed over, {shard}" in done.stdout and len(done.stdout.splitlines()) == len(list_checkpoints(copy))


def test_an_adapter_goes_out_to_peft_and_comes_back(lora_run: Path, foundation: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, base, merged = (tmp_path / name for name in ("adapter", "base", "merged"))
    done = run(
        "convert_litgpt_to_transformers.py", "--input_path", lora_run, "--output_dir", adapter, "--as_adapter", True
    )
    assert "merged again the same model" in done.stdout
    run(
        "convert_litgpt_to_transformers.py",
        "--input_path",
        foundation / WEIGHTS,
        "--output_dir",
        base,
        "--verify",
        "none",
    )
    trained = load_merged_model(lora_run)
    model = build_model(trained.config, trained.state_dict, None, 0, torch.float32)
    ids = torch.randint(0, trained.config.vocab_size, (2, 40))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
    run("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", base, "--verify", "none")
    arguments = ("--lora_path", adapter, "--save_path", merged)
    assert_error(run("utils/merge_lora.py", *arguments, check=False), 2, "--checkpoint_dir")
    run("utils/merge_lora.py", *arguments, "--checkpoint_dir", base)
    for name, tensor in read_weights(merged).items():
        torch.testing.assert_close(tensor, trained.state_dict[name], atol=1e-6, rtol=1e-5)


def test_all_weights_are_no_adapter(trained_run: Path, tmp_path: Path) -> None:
    arguments = ("--input_path", trained_run, "--output_dir", tmp_path / "out", "--as_adapter", True)
    assert_error(run("convert_litgpt_to_transformers.py", *arguments, check=False), 2, "--as_adapter")
    assert not (tmp_path / "out").exists()
