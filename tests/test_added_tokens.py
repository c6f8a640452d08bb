"""Tokens added to a tokenizer: from the data over the model's new rows to what other programs make of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.formats.hf_logits import largest_difference, litgpt_logits
from lit_gpt.formats.litgpt_directory import read_config, read_weights
from lit_gpt.model.lora import base_name
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import make_chat_tokenizer
from tests.conftest import run
from tests.formats.hf_models import make_hf, make_tokenizer
from utils.data.manifest import TOKENIZER, Manifest
from utils.run.checkpoint_folders import list_checkpoints
from utils.run.checkpoint_reader import CheckpointReader, read_model_tensors, without_warning
from utils.run.csv_log import ALL, METRICS, read_csv
from utils.run.merged_model import load_merged_model

ADDED = ("<|im_start|>", "<|im_end|>")
SMALL = ("--precision", "32-true", "--interval_unit", "steps", "--max_steps", 3, "--warmup_steps", 1, "--batch_size", 4)
KINDS = {"llama": ("Llama", {}), "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4})}
LOGITS = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, request = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = tokenizer.apply_chat_template(request, add_generation_prompt=True)["input_ids"]
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits[0]
special = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
torch.save({"ids": ids, "logits": logits, "special": special}, sys.argv[3])
"""
CHAT = [{"role": "user", "content": "Ça va ?"}]


class Place(NamedTuple):
    base: Path  # litgpt directory, and Hugging Face folder
    data: Path


def make_place(folder: Path, kind: str) -> Place:
    """A foundation model whose tokenizer has no token for chats, and data of chats that adds them."""
    architecture, config = KINDS[kind]
    base = folder / "base"
    base.mkdir()
    if kind == "llama":
        make_tokenizer(base)
    else:
        make_chat_tokenizer(base, names=("<|endoftext|>",))
    vocabulary = Tokenizer(base).vocab_size
    ends = {"bos_token_id": Tokenizer(base).bos_id, "eos_token_id": Tokenizer(base).eos_id}
    make_hf(base, architecture, {**config, **ends, "vocab_size": vocabulary})
    run("lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", base, "--verify", "none")
    rows = [json.dumps({"instruction": f"Reverse {number}", "output": str(number)[::-1]}) for number in range(60)]
    (folder / "chats.jsonl").write_text("\n".join(rows))
    source = ("--source_path", folder / "chats.jsonl", "--converter", "instruction", "--template", "chatml")
    words = (*source, "--checkpoint_dir", base, "--destination_path", folder / "data", "--add_tokens", *ADDED)
    run("prepare_data.py", *words, "--max_length", 64, "--num_workers", 1, "--validation_share", 0.2)
    return Place(base, folder / "data")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Callable[[str], Place]:
    return cache(lambda kind: make_place(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="module", params=list(KINDS))
def place(request, places) -> Place:
    return places(request.param)


@pytest.fixture(scope="module")
def full_run(place) -> Path:
    folder = place.data.parent / "full"
    run("pretrain.py", "--data_dir", place.data, "--checkpoint_dir", place.base, "--out_dir", folder, *SMALL)
    return folder


def ask_transformers(folder: Path, scratch: Path) -> dict:
    words = [sys.executable, "-c", LOGITS, str(folder), json.dumps(CHAT), str(scratch / "answer.pt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return torch.load(scratch / "answer.pt")


def test_tokens_are_the_next_ids_of_the_data_folder_s_tokenizer(place):
    before, after = Tokenizer(place.base), Tokenizer(place.data / TOKENIZER)
    first = before.vocab_size
    assert after.vocabulary == [*before.vocabulary, *ADDED] and after.control_tokens[-2:] == list(ADDED)
    manifest = Manifest.load(place.data)
    assert (manifest.added_tokens, manifest.vocab_size) == (list(ADDED), first + 2)
    assert manifest.tokenizer == after.fingerprint != before.fingerprint
    assert (after.bos_id, after.eos_id, after.adds_bos) == (before.bos_id, before.eos_id, before.adds_bos)
    # a text that holds the names stays text
    text = "[speaker001:] Bonjour <|im_end|> ça va ?"
    assert after.encode(text) == before.encode(text)
    theirs = HFTokenizer.from_file(str(place.data / TOKENIZER / "tokenizer.json"))
    assert theirs.encode("<|im_end|>", add_special_tokens=False).ids == [first + 1]
    assert not list((place.data / "parts").glob("tokenizer-*"))


def test_full_training_grows_both_ends_and_transformers_computes_the_same(place, full_run, tmp_path):
    config, weights = read_config(place.base), read_weights(place.base)
    trained = load_merged_model(full_run)
    entries = config.padded_vocab_size
    assert trained.config.padded_vocab_size == entries + 2
    for name in ("transformer.wte.weight", "lm_head.weight"):
        assert len(trained.state_dict[name]) == entries + 2
        mean = weights[name].double().mean(0)
        moved = trained.state_dict[name][entries:] - mean
        assert (moved.abs() < 0.01).all() and moved.any(1).all()  # from there, by three small steps
    out = tmp_path / "out"
    run("convert_litgpt_to_transformers.py", "--input_path", full_run, "--output_dir", out)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == entries + 2
    found = ask_transformers(out, tmp_path)
    assert found["special"] == [entries, entries + 1] and entries in found["ids"]
    ours = litgpt_logits(trained.config, trained.state_dict, [found["ids"]])
    assert largest_difference(ours, [found["logits"].numpy()])[1] < 1e-5
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert entries + 1 in ends


WHOLE = ("--use_lora", "true", "--lora_train", "embeddings,head", "--learning_rate", 0.01)
PEFT = """
import sys, json, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM, PeftModel
base, folder, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model.resize_token_embeddings(len(tokenizer))
found = {"resized": PeftModel.from_pretrained(model, folder)}
found["auto"] = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for name, model in found.items():
    with torch.inference_mode():
        found[name] = model.eval()(torch.tensor([ids])).logits[0]
torch.save(found, sys.argv[4])
"""


@pytest.fixture(scope="module")
def lora_run(place) -> Path:
    folder = place.data.parent / "lora"
    words = ("--data_dir", place.data, "--checkpoint_dir", place.base, "--out_dir", folder)
    run("pretrain.py", *words, *SMALL, *WHOLE)
    return folder


def test_under_lora_their_rows_change_and_go_out_to_peft(place, lora_run, tmp_path):
    base = read_weights(place.base)
    entries = len(base["lm_head.weight"])
    trained = load_merged_model(lora_run)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        start = base[name].double().mean(0)
        assert (trained.state_dict[name][entries:] != start).any(1).all()
        assert len(trained.state_dict[name]) == entries + 2
    # the blocks have adapters, all else is the base's
    assert not torch.equal(
        trained.state_dict["transformer.h.0.attn.qkv.weight"], base["transformer.h.0.attn.qkv.weight"]
    )
    assert torch.equal(trained.state_dict["transformer.h.0.attn.proj.weight"], base["transformer.h.0.attn.proj.weight"])
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    run("convert_litgpt_to_transformers.py", "--input_path", lora_run, "--output_dir", out)
    ids = ask_transformers(out, tmp_path)
    ours = litgpt_logits(trained.config, trained.state_dict, [ids["ids"]])
    assert largest_difference(ours, [ids["logits"].numpy()])[1] < 1e-5
    run("convert_litgpt_to_transformers.py", "--input_path", lora_run, "--output_dir", adapter, "--as_adapter", "true")
    described = json.loads((adapter / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(place.base)
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    words = [sys.executable, "-c", PEFT, str(place.base), str(adapter), json.dumps(ids["ids"]), str(tmp_path / "p.pt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for theirs in torch.load(tmp_path / "p.pt").values():
        assert largest_difference(ours, [theirs.numpy()])[1] < 1e-5


def losses(folder: Path) -> list[float]:
    return [
        float(row["loss"]) for row in read_csv(folder / METRICS) if row["split"] == "train" and row["dataset"] == ALL
    ]


@pytest.mark.parametrize("quantize", [(), ("--quantize", "bnb.nf4")])
def test_what_is_trained_whole_is_the_same_on_two_processes_and_after_a_break(places, quantize, tmp_path):
    place = places("llama")
    words = ("--data_dir", place.data, "--checkpoint_dir", place.base, *SMALL, *WHOLE, *quantize, "--lora_mlp", "true")
    once, broken, two = tmp_path / "once", tmp_path / "broken", tmp_path / "two"
    run("pretrain.py", *words, "--out_dir", once)
    for stop in (("--max_checkpoints", 1), ()):
        run("pretrain.py", *words, "--out_dir", broken, "--save_interval", 1, *stop)
    run("pretrain.py", *words, "--out_dir", two, "--devices", 2, "--batch_size", 2)
    whole, resumed, shared = (dict(load_merged_model(folder).state_dict) for folder in (once, broken, two))
    assert len(list_checkpoints(broken)) == 3
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
        # AdamW makes a step of its full size of a gradient that is rounding alone
        assert (tensor - shared[name]).norm() <= 1e-4 * tensor.norm(), name
    assert losses(two) == pytest.approx(losses(once), rel=1e-6)
    assert losses(broken) == losses(once)


def test_bf16_weights_have_fp32_copies_and_the_checkpoint_has_both(places, tmp_path):
    place = places("llama")
    words = ("--data_dir", place.data, "--checkpoint_dir", place.base, *SMALL, *WHOLE, "--learning_rate", 1e-5)
    run("pretrain.py", *words, "--precision", "bf16-true", "--out_dir", tmp_path / "run")
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    tensors = read_model_tensors(checkpoint)
    start = read_weights(place.base)
    entries = len(start["lm_head.weight"])
    for name in ("transformer.wte.weight", "lm_head.linear.weight"):
        assert tensors.specs[name].dtype == torch.bfloat16
        master = torch.empty(tensors.specs[name].shape)
        state = {"optimizer": {name: {"master": master}}}
        with without_warning():
            dcp.load(state, storage_reader=CheckpointReader(checkpoint), no_dist=True)
        assert torch.equal(master.bfloat16(), tensors[name])
        moved = master[entries:] - start[base_name(name)].double().mean(0).bfloat16()
        assert (moved.abs() < 4e-5).all() and moved.any(1).all()  # less than what bf16 can tell
