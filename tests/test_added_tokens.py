"""Tokens added to a tokenizer: from the data over the model's new rows to what other programs make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import UserError
from lit_gpt.formats.hf_logits import largest_difference, litgpt_logits
from lit_gpt.formats.hf_weights import TensorFiles
from lit_gpt.formats.litgpt_directory import read_config, read_weights, write_litgpt_directory
from lit_gpt.model.lora import base_name
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import make_chat_tokenizer
from tests.conftest import LLAMA_CPP, ROOT, TINY_MODEL, assert_error, run
from tests.formats.hf_models import make_hf, make_tokenizer
from utils.data.manifest import TOKENIZER, Manifest
from utils.export.hf_folder import write_adapter
from utils.export.llama_cpp import LlamaCpp
from utils.run.checkpoint_folders import list_checkpoints
from utils.run.checkpoint_reader import CheckpointReader, read_model_tensors, without_warning
from utils.run.csv_log import ALL, METRICS, VALIDATION, read_csv
from utils.run.merged_model import load_merged_model
from utils.run.record import RunRecord

ADDED = ("<|im_start|>", "<|im_end|>")
SMALL = ("--precision", "32-true", "--interval_unit", "steps", "--max_steps", 3, "--warmup_steps", 1, "--batch_size", 4)
KINDS = {"llama": ("Llama", {}), "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4})}
WHOLE = ("--use_lora", "true", "--lora_train", "embeddings,head", "--learning_rate", 0.01)
# what transformers makes of a folder, and of an adapter on its base, in a process of its own
ASK = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from utils.export.hf_probabilities_process import measure
folder, chat, scratch, *adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
models = {"folder": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)}
ids = tokenizer.apply_chat_template(json.loads(chat), add_generation_prompt=True)["input_ids"]
new = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
rows = torch.randint(3, min(new), (6, 64), generator=torch.Generator().manual_seed(0))
rows[:, 5::7], rows[:, 6::7] = new[0], new[1]
if tokenizer.bos_token_id is not None:
    rows[:, 0] = tokenizer.bos_token_id
with torch.inference_mode():
    measure(models["folder"], rows, Path(scratch) / "reference")
if adapter:
    from peft import AutoPeftModelForCausalLM, PeftModel
    base, peft = adapter
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(peft)))
    models["peft"] = PeftModel.from_pretrained(model, peft)
    models["auto"] = AutoPeftModelForCausalLM.from_pretrained(peft, dtype=torch.float32)
with torch.inference_mode():
    logits = {name: model.eval()(torch.tensor([ids])).logits[0] for name, model in models.items()}
torch.save({"ids": ids, "new": new, "logits": logits}, Path(scratch) / "answer.pt")
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


class Trained(NamedTuple):
    place: Path
    base: Path
    run: Path
    hf: Path  # its Hugging Face folder
    adapter: Path | None  # its folder for peft


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, place) -> Trained:
    """A run that begins at the mean of the foundation's rows, and what is exported of it."""
    folder = place.data.parent / request.param
    words = ("--data_dir", place.data, "--checkpoint_dir", place.base, "--out_dir", folder / "run", *SMALL)
    run("pretrain.py", *words, *(WHOLE if request.param == "lora" else ()))
    convert = ("convert_litgpt_to_transformers.py", "--input_path", folder / "run", "--output_dir")
    run(*convert, folder / "hf", "--verify", "tensors")
    if request.param == "full":
        return Trained(folder, place.base, folder / "run", folder / "hf", None)
    adapter = folder / "adapter"
    run(*convert, adapter, "--as_adapter", "true")
    return Trained(folder, place.base, folder / "run", folder / "hf", adapter)


@pytest.fixture(scope="module")
def asked(trained) -> dict[str, Any]:
    adapter = [trained.base, trained.adapter] if trained.adapter else []
    words = [sys.executable, "-c", ASK, trained.hf, json.dumps(CHAT), trained.place, *adapter]
    # the adapter's base is named `base`, which is a folder there, else the Hub would be asked
    where = {"cwd": trained.base.parent, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600, **where)
    assert done.returncode == 0, done.stderr
    return torch.load(trained.place / "answer.pt")


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


def test_both_ends_grow_by_the_mean_of_their_rows_and_are_trained(trained):
    config, weights = read_config(trained.base), read_weights(trained.base)
    model = load_merged_model(trained.run)
    entries = config.padded_vocab_size
    assert model.config.padded_vocab_size == model.config.vocab_size == entries + 2
    for name in ("transformer.wte.weight", "lm_head.weight"):
        found = model.state_dict[name]
        moved = found[entries:] - weights[name].double().mean(0)
        assert len(found) == entries + 2 and (moved.abs() < 0.05).all() and moved.any(1).all()
    if trained.adapter:  # on queries and values alone
        kept = [name for name in weights if name not in ("transformer.wte.weight", "lm_head.weight")]
        changed = [name for name in kept if not torch.equal(model.state_dict[name], weights[name])]
        assert changed == [f"transformer.h.{layer}.attn.qkv.weight" for layer in range(2)]


def test_transformers_and_peft_compute_our_logits(trained, asked):
    model = load_merged_model(trained.run)
    entries = read_config(trained.base).padded_vocab_size
    assert asked["new"] == [entries, entries + 1] and entries in asked["ids"]
    assert Tokenizer(trained.hf).end_ids >= {entries + 1}
    ours = litgpt_logits(model.config, model.state_dict, [asked["ids"]])
    assert asked["logits"].keys() == ({"folder", "peft", "auto"} if trained.adapter else {"folder"})
    for name, theirs in asked["logits"].items():
        assert largest_difference(ours, [theirs.numpy()])[1] < 1e-5, name


@pytest.mark.llama_cpp
def test_llama_cpp_computes_their_logits(request, trained, asked, tmp_path):
    if request.node.callspec.id not in ("full-gpt2", "lora-llama"):
        pytest.skip("llama.cpp reads the same of the other two")
    run("utils/quantize_gguf.py", "--model_dir", trained.hf, "--output_dir", tmp_path / "gguf", "--methods", "f32")
    file = next((tmp_path / "gguf").glob("*.gguf"))
    llama = LlamaCpp.find(LLAMA_CPP)
    # windows of 64 tokens, two in seven of them new ones, which predict and are predicted
    _, divergence, same_top = llama.compare(file, trained.place / "reference", 64)
    assert divergence < 1e-4 and same_top > 0.98  # two tokens may be equal but for rounding


def test_an_adapter_of_peft_with_new_rows_is_read_back(trained, tmp_path):
    if not trained.adapter:
        pytest.skip("there is none")
    card = (trained.adapter / "README.md").read_text()
    assert f"model.resize_token_embeddings({read_config(trained.base).padded_vocab_size + 2})" in card
    assert (
        'AutoTokenizer.from_pretrained("adapter")' in card and "leaves the adapted embeddings and output layer" in card
    )
    assert "| Trained whole beside LoRA's adapters | embeddings and head |" in card
    model, again = load_merged_model(trained.run), load_merged_model(trained.adapter, trained.base)
    assert Tokenizer(again.tokenizer_dir).fingerprint == Tokenizer(trained.hf).fingerprint
    for name, tensor in model.state_dict.items():
        assert torch.allclose(again.state_dict[name], tensor, atol=1e-6), name
    words = ("--lora_path", trained.adapter, "--checkpoint_dir", trained.base, "--save_path", tmp_path / "merged")
    assert "verified: each matrix, and the logits of peft's base + adapter" in run("utils/merge_lora.py", *words).stdout
    # a litgpt directory of its own, from which a folder can be made again
    words = ("--input_path", tmp_path / "merged", "--output_dir", tmp_path / "hf", "--verify", "tensors")
    run("convert_litgpt_to_transformers.py", *words)
    before, after = TensorFiles(trained.hf), TensorFiles(tmp_path / "hf")
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
    bare = shutil.copytree(trained.adapter, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer.model", "SHA256SUMS"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"is for 2 tokens more than .* has, and has no tokenizer to say which"):
        load_merged_model(bare, trained.base)


@pytest.mark.parametrize("spare", [0, 8])
def test_an_adapted_head_goes_to_peft_whole(places, spare, tmp_path):
    """What the base has, or peft puts, in the rows of added tokens is not what the adapter was trained on."""
    place = places("llama")
    base = tmp_path / "base"
    config, weights = read_config(place.base), read_weights(place.base)
    config.vocab_size = config.padded_vocab_size = config.vocab_size + spare
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.randn(spare, config.n_embd)])
    write_litgpt_directory(base, config, weights, [place.base / "tokenizer.model"])
    hf = json.loads((place.base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**hf, "vocab_size": config.vocab_size}))
    words = ("--data_dir", place.data, "--checkpoint_dir", base, "--out_dir", tmp_path / "run", *SMALL)
    adapted = ("--use_lora", "true", "--lora_train", "embeddings", "--lora_head", "true", "--learning_rate", 0.01)
    run("pretrain.py", *words, *adapted, "--max_steps", 2, "--enable_validation", "false")
    model = load_merged_model(tmp_path / "run")
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model, "org/base", {})
    again = load_merged_model(tmp_path / "adapter", base)
    assert len(again.state_dict["lm_head.weight"]) == max(config.vocab_size, Manifest.load(place.data).vocab_size)
    for name, tensor in model.state_dict.items():
        assert torch.allclose(again.state_dict[name], tensor, atol=1e-6), name


def test_adapters_alone_are_refused_and_a_model_from_scratch_has_them_as_it_is(places, tmp_path):
    place = places("gpt2")
    words = ("pretrain.py", "--data_dir", place.data, "--checkpoint_dir", place.base, "--out_dir", tmp_path / "run")
    lora = ("--use_lora", "true", "--dry_run", "true", "--devices", 1)
    said = ("lacks (<|im_start|>, <|im_end|>)", "give --lora_train embeddings,head")
    for others in ((), ("--lora_train", "embeddings"), ("--lora_train", "head")):
        assert_error(run(*words, *lora, *others, check=False), 2, *said)
    assert "GiB" in run(*words, *lora, "--lora_train", "embeddings", "--lora_head", "true").stdout
    assert not (tmp_path / "run").exists()
    (tmp_path / "tiny.yaml").write_text(TINY_MODEL)
    run(*words, "--model_config", tmp_path / "tiny.yaml", *SMALL, "--max_steps", 1)
    model = load_merged_model(tmp_path / "run")
    entries = Tokenizer(place.base).vocab_size + 2
    assert len(model.state_dict["lm_head.weight"]) == entries == Tokenizer(model.tokenizer_dir).vocab_size
    assert RunRecord.load(tmp_path / "run").identity.added_tokens is None


def test_our_own_programs_use_what_was_trained(places, tmp_path):
    """Generation and offline validation of an adapter whose base has fewer rows."""
    place = places("llama")
    words = ("--data_dir", place.data, "--checkpoint_dir", place.base, "--out_dir", tmp_path / "run", *SMALL, *WHOLE)
    run("pretrain.py", *words)
    run("validate_pretrain.py", "--out_dir", tmp_path / "run")
    last = [row for row in read_csv(tmp_path / "run" / VALIDATION) if row["dataset"] == ALL][-1]
    inside = [row for row in read_csv(tmp_path / "run" / METRICS) if row["split"] == "valid" and row["dataset"] == ALL]
    assert float(last["loss"]) == pytest.approx(float(inside[-1]["loss"]), rel=1e-5)
    asked = ("--prompt", "<|im_start|>user", "--special_tokens_in_text", "true", "--max_new_tokens", 3)
    run("lit_gpt/generate/base.py", "--lora_path", tmp_path / "run", *asked)


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
