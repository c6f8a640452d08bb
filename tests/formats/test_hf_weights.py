"""hf_weights.py and hf_files.py: a folder is read as transformers reads it, or refused with what is wrong named."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.checksums import SUMS
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats import hf_logits, litgpt_directory
from lit_gpt.formats.hf_config import config_from_hf
from lit_gpt.formats.hf_logits import TOLERANCE, largest_difference, litgpt_logits
from lit_gpt.formats.hub import files_to_send, holds_model
from lit_gpt.formats.litgpt_directory import convert_hf_checkpoint, lazy_weights, read_config
from lit_gpt.scripts.convert_hf_checkpoint import ConvertHFOptions, main
from tests.conftest import run_command
from tests.formats.hf_models import make_hf

INDEX = "model.safetensors.index.json"
GPT2 = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
IDS = [[5, 0, 419, 17, 300, 2, 2, 88]]


def compare_with_transformers(folder):
    """Converts `folder` and compares the logits; returns what the conversion said."""
    from transformers import AutoModelForCausalLM

    lines = "\n".join(convert_hf_checkpoint(folder))
    ours = litgpt_logits(read_config(folder), lazy_weights(folder), IDS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        theirs = [model(torch.tensor(IDS)).logits[0].numpy()]
    assert abs(theirs[0]).max() > 1, "flat logits would compare nothing"
    assert largest_difference(ours, theirs)[1] <= TOLERANCE
    return lines


def change(path, edit, file="model.safetensors"):
    tensors = load_file(path / file)
    save_file(edit(tensors) or tensors, path / file, {"format": "pt"})
    (path / SUMS).unlink(missing_ok=True)  # of an earlier conversion


def refused(folder, capsys, code=65, verify="none"):
    """The one line with which the conversion refuses `folder`, and nothing is left there."""
    capsys.readouterr()
    assert run_command(ConvertHFOptions, main, ["--checkpoint_dir", str(folder), "--verify", verify]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not list(folder.glob("lit_model*")) and not list(folder.glob(".*.tmp"))
    return said


def another(folder, name):
    return make_hf(folder / name, "Llama", {"initializer_range": 0.5}, max_shard_size="20KB")


# ------------------------------------------------------------------------------------------------------ tied embeddings


@pytest.mark.parametrize(("family", "head"), [("Llama", "lm_head.weight"), ("GPTNeoX", "embed_out.weight")])
def test_an_output_layer_stored_beside_tied_embeddings_is_kept(family, head, tmp_path):
    make_hf(tmp_path, family, {"tie_word_embeddings": True})
    change(tmp_path, lambda tensors: {**tensors, head: torch.randn(420, 32)})
    said = compare_with_transformers(tmp_path)
    assert f"config.json ties the output layer to the embeddings, but the files hold another {head}" in said
    assert "is tied to the embeddings" not in said


def test_an_equal_output_layer_is_tied_and_a_lone_one_serves_as_embeddings(tmp_path):
    make_hf(tmp_path, "Llama", {"tie_word_embeddings": True})
    sizes = "here each has its own 420 × 32, 13,440 parameters more than in the files"
    assert sizes in compare_with_transformers(tmp_path)
    change(tmp_path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert sizes in compare_with_transformers(tmp_path)
    change(tmp_path, lambda t: {name: t[name] for name in t if name != "model.embed_tokens.weight"})
    assert sizes in compare_with_transformers(tmp_path)


def test_the_sizes_of_an_untied_model_are_not_spoken_of(tmp_path):
    make_hf(tmp_path)
    assert "parts them" not in compare_with_transformers(tmp_path)


# ------------------------------------------------------------------------------------------------------------- layouts


def shards_beside_one_file(folder):
    another(folder, "old")
    for path in [*(folder / "old").glob("model-*"), folder / "old" / INDEX]:
        shutil.copy(path, folder)
    return "model.safetensors, which transformers reads, and model-00001-of-"


def shards_without_an_index(folder):
    shards_beside_one_file(folder)
    (folder / INDEX).unlink()
    return "model-00001-of-"


def pickle_beside_safetensors(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    return "model.safetensors, which transformers reads, and pytorch_model.bin"


def shards_of_another_count(folder):
    (folder / "model.safetensors").unlink()
    another(folder, "new")
    for path in (folder / "new").glob("model*"):
        shutil.move(path, folder)
    shutil.copy(next(folder.glob("model-00001-*")), folder / "model-00001-of-00099.safetensors")
    return f"{INDEX}, which transformers reads, and model-00001-of-00099.safetensors"


@pytest.mark.parametrize(
    "add", [shards_beside_one_file, shards_without_an_index, pickle_beside_safetensors, shards_of_another_count]
)
def test_two_layouts_in_one_folder_are_refused_by_conversion_and_upload(add, tmp_path, capsys):
    make_hf(tmp_path)
    named = add(tmp_path)
    for path in tmp_path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    assert named in refused(tmp_path, capsys)
    with pytest.raises(DataError, match="two layouts"):
        holds_model(tmp_path, files_to_send(tmp_path))


def test_an_index_of_an_only_file_is_no_second_layout(tmp_path):
    make_hf(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))
    compare_with_transformers(tmp_path)
    assert holds_model(tmp_path, files_to_send(tmp_path))


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    make_hf(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\) beside a model"):
        convert_hf_checkpoint(tmp_path)


# -------------------------------------------------------------------------------------------------------------- index


@pytest.fixture
def sharded(tmp_path):
    make_hf(tmp_path, max_shard_size="20KB")
    return tmp_path


def edit_index(folder, edit):
    path = folder / INDEX
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model-00098-of-00099.safetensors", "names files that are not there: model-00098-of-00099.safetensors"),
        ("../model-00001-of-00002.safetensors", "names files outside its folder"),
        ("/etc/hostname", "names files outside its folder: /etc/hostname"),
        ("..", "names files outside its folder"),
        ("sub\\model.safetensors", "names files outside its folder"),
        (7, "names files outside its folder: 7"),
        (None, "names files outside its folder: None"),
        (["model.safetensors"], "names files outside its folder"),
        ("config.json", "names files that do not end in .safetensors: config.json"),
    ],
)
def test_an_index_that_names_other_files(file, message, sharded, capsys):
    edit_index(sharded, lambda where: where.update({"model.norm.weight": file}))
    assert message in refused(sharded, capsys)


def test_a_tensor_in_two_files_has_to_be_the_same(sharded, capsys):
    where = edit_index(sharded, lambda where: None)
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = load_file(sharded / where[name])[name]
    last = max(where.values())
    change(sharded, lambda tensors: {**tensors, name: tensor}, last)
    assert "1 tensors are stored in two files, equal" in compare_with_transformers(sharded)
    (sharded / "lit_model.pth").unlink()
    change(sharded, lambda tensors: {**tensors, name: tensor + 1}, last)
    assert f"{last} holds another {name} than" in refused(sharded, capsys)


def test_a_tensor_that_the_index_does_not_name(tmp_path, capsys):
    """transformers reads the whole of each file: here, it would not tie the two any more."""
    make_hf(tmp_path, max_shard_size="90KB")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    edit_index(tmp_path, lambda where: where.pop("lm_head.weight"))
    assert "1 tensors are in the weight files, but not in their index: lm_head.weight" in refused(tmp_path, capsys)


# ------------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_the_names_of_a_wrapped_model_are_said(prefix, tmp_path, capsys):
    make_hf(tmp_path)
    change(tmp_path, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    said = refused(tmp_path, capsys)
    assert f"such as {prefix}lm_head.weight" in said and "save model._orig_mod or model.module" in said


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_tensors_of_other_types_are_named(dtype, tmp_path, capsys):
    make_hf(tmp_path)
    change(tmp_path, lambda t: {**t, "model.norm.weight": t["model.norm.weight"].to(dtype)})
    assert "no floating-point number's (the model is quantised?): model.norm.weight" in refused(tmp_path, capsys)


def test_pictures_are_left_out_of_their_own_class_only(tmp_path, capsys):
    make_hf(tmp_path)
    change(tmp_path, lambda tensors: {**tensors, "model.vision_tower.weight": torch.zeros(2)})
    assert "not in this architecture: model.vision_tower.weight" in refused(tmp_path, capsys)


def test_a_tensor_under_both_of_its_names(tmp_path, capsys):
    make_hf(tmp_path, "GPT2LMHeadModel", GPT2)
    change(tmp_path, lambda t: {**t, "ln_f.weight": t["transformer.ln_f.weight"] + 1})
    said = refused(tmp_path, capsys)
    assert "hold one tensor twice" in said and "transformer.ln_f.weight" in said


def test_stored_masks_and_frequencies_have_to_be_those_that_are_computed(tmp_path, capsys):
    make_hf(tmp_path / "gpt2", "GPT2LMHeadModel", GPT2)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
    masked = torch.tensor(-1e4, dtype=torch.bfloat16)  # is -9984
    old = {"transformer.h.0.attn.bias": mask, "transformer.h.1.attn.masked_bias": masked}
    change(tmp_path / "gpt2", lambda tensors: {**tensors, **old})
    said = compare_with_transformers(tmp_path / "gpt2")
    assert "2 stored masks and frequencies are left out, being what is computed" in said
    (tmp_path / "gpt2" / "lit_model.pth").unlink()
    change(tmp_path / "gpt2", lambda tensors: {**tensors, "transformer.h.0.attn.bias": torch.ones_like(mask)})
    assert "transformer.h.0.attn.bias in the weight files is not what config.json gives" in refused(
        tmp_path / "gpt2", capsys
    )
    make_hf(tmp_path / "llama")
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    exact = 1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)
    change(tmp_path / "llama", lambda tensors: {**tensors, name: exact.half()})
    assert "1 stored masks and frequencies" in compare_with_transformers(tmp_path / "llama")
    (tmp_path / "llama" / "lit_model.pth").unlink()
    change(tmp_path / "llama", lambda tensors: {**tensors, name: 1.0 / 500000 ** (torch.arange(0, 8, 2) / 8)})
    assert name in refused(tmp_path / "llama", capsys)


def test_weights_are_compared_with_what_the_hubs_client_noted(tmp_path, capsys):
    make_hf(tmp_path)
    record = tmp_path / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"a commit\n{'0' * 64}\n1.0\n")
    assert f"on purpose, remove {record}" in refused(tmp_path, capsys)


def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path, capsys):
    make_hf(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "model.safetensors is Git LFS's pointer to the weights" in refused(tmp_path, capsys)


# -------------------------------------------------------------------------------------------------------- verification


def test_a_conversion_is_compared_with_transformers(tmp_path):
    """Rounded to another type, with what older files carry, and an output layer of its own beside tied embeddings."""
    make_hf(tmp_path, "GPT2LMHeadModel", GPT2)
    old = {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": torch.randn(420, 32)}
    change(tmp_path, lambda tensors: {**tensors, **old})
    said = convert_hf_checkpoint(tmp_path, torch.bfloat16, verify=True)
    assert any(re.match(r"verified: largest difference of logits \S+, relative .* on 73 tokens", line) for line in said)
    assert {spec.dtype for spec in lazy_weights(tmp_path).specs.values()} == {torch.bfloat16}


def test_a_conversion_that_differs_is_refused(tmp_path, capsys, monkeypatch):
    make_hf(tmp_path)
    monkeypatch.setattr(litgpt_directory, "config_from_hf", lambda hf: config_from_hf({**hf, "rms_norm_eps": 1e-3}))
    said = refused(tmp_path, capsys, verify="logits")
    assert f"transformers computes another model from {tmp_path}: largest difference of logits" in said
    assert not (tmp_path / "model_config.yaml").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path, capsys):
    make_hf(tmp_path)
    change(tmp_path, lambda tensors: {**tensors, "model.norm.weight": torch.full([32], float("nan"))})
    assert "largest difference of logits nan" in refused(tmp_path, capsys, verify="logits")


def test_a_comparison_for_which_there_is_no_memory_is_left_out_and_said(tmp_path, monkeypatch):
    make_hf(tmp_path)
    monkeypatch.setattr(hf_logits, "free_memory", lambda: 10**9)
    said = "\n".join(convert_hf_checkpoint(tmp_path, verify=True))
    assert "not verified: transformers needs about 1.0 GB of memory, 1.0 GB are free" in said
    assert (tmp_path / "lit_model.pth").is_file()


def test_a_comparison_that_runs_out_of_memory_is_said(tmp_path, monkeypatch):
    make_hf(tmp_path)
    kills_itself = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{kills_itself}'\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    said = "\n".join(convert_hf_checkpoint(tmp_path, verify=True))
    assert "not verified: transformers was killed by signal 9, probably out of memory" in said


def test_memory_that_is_free():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 10**6 < hf_logits.free_memory() <= machine
