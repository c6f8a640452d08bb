"""convert_litgpt_to_transformers.py: what transformers loads is what was trained, and nothing else gets the name."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT

from convert_litgpt_to_transformers import main
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_logits import PROBE_TEXT, largest_difference, litgpt_logits, probe_sequences
from lit_gpt.formats.hf_weights import TensorFiles
from lit_gpt.formats.tensor_files import write_lit_model, write_safetensors
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer, tokenizer_json
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import run_command
from tests.formats.hf_models import SCRATCH_MODEL, VOCABULARY, make_litgpt, make_tokenizer
from tests.formats.hub_server import TOKEN, Hub
from utils.export import hf_folder
from utils.export.options import ConvertOptions, parse_size
from utils.run.merged_model import MergedModel, load_merged_model

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"

SCRATCH = {**SCRATCH_MODEL, "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY}


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints" / "org" / "Base-1"
    folder.mkdir(parents=True)
    make_litgpt(folder, "Llama", {"attention_bias": True, "tie_word_embeddings": True})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    return folder


def make_scratch(folder):
    """A litgpt directory that has nothing of Hugging Face."""
    config = Config(**SCRATCH)
    torch.manual_seed(0)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_f" in name else 0.0, std=0.3)
    folder.mkdir()
    write_lit_model(folder / "lit_model.pth", model.state_dict().items())
    (folder / "model_config.yaml").write_text(yaml.dump(SCRATCH))
    make_tokenizer(folder)
    return folder


def trained_from(foundation, **provenance):
    """A stand-in for a training run: the foundation's weights, some of them moved."""
    model = load_merged_model(foundation, None)
    state_dict = {name: tensor.clone() for name, tensor in model.state_dict.items()}
    for name in state_dict:
        if "attn" in name or "lm_head" in name:
            state_dict[name] += 0.01
    return MergedModel(model.config, state_dict, foundation, foundation, None, provenance)


def test_round_trip_in_a_real_process(foundation, tmp_path):
    words = ["--input_path", foundation, "--output_dir", tmp_path / "out", "--max_shard_size", "30KB"]
    command_line = [sys.executable, ROOT / "convert_litgpt_to_transformers.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in command_line], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "verified: largest difference of logits" in done.stdout and "token ids equal" in done.stdout
    before, after = TensorFiles(foundation), TensorFiles(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {path.name for path in shards}
    assert index["metadata"]["total_size"] == sum(after[name].nbytes for name in after)
    assert max(path.stat().st_size for path in shards) < 60_000  # the embeddings alone are larger than 30 KB
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_model_from_scratch_is_usable_by_transformers_and_the_endpoint(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_scratch(tmp_path / "scratch")
    main(ConvertOptions(input_path=source / "lit_model.pth", output_dir=tmp_path / "out", dtype="bfloat16"))
    assert "verified" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["torch_dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    ours = Tokenizer(source)
    prompt = "[speaker001:] Bonjour\n[speaker002:]"
    inputs = tokenizer(prompt, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == [ours.bos_id, *ours.encode(prompt)]
    assert Tokenizer(tmp_path / "out").fingerprint == ours.fingerprint

    spec = importlib.util.spec_from_file_location("handler", tmp_path / "out" / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    endpoint = handler.EndpointHandler(str(tmp_path / "out"))
    parameters = {"max_new_tokens": 7, "do_sample": False}
    answers = endpoint({"inputs": [prompt, "Il"], "parameters": parameters})
    expected = model.generate(**inputs, max_new_tokens=7, do_sample=False, pad_token_id=ours.eos_id)[0]
    assert answers[0]["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(answers) == 2 and answers[1]["generated_text"].startswith("Il")
    continued = endpoint({"inputs": prompt, "parameters": {**parameters, "return_full_text": False}})
    assert prompt + continued[0]["generated_text"] == answers[0]["generated_text"]


def test_provenance_and_licence_of_the_base(foundation, tmp_path, monkeypatch, capsys):
    (foundation / "NOTICE").write_text("made by others")
    provenance = {"options": {"data_dir": "/home/someone/data"}, "history": [{"host": "node17", "processes": 4}]}
    trained = trained_from(foundation, **provenance)
    monkeypatch.setattr("convert_litgpt_to_transformers.load_merged_model", lambda *_, **__: trained)
    main(ConvertOptions(Path("run"), tmp_path / "Claire", verify="tensors"))
    printed = capsys.readouterr().out
    assert "no longer tied" in printed and "equal bit for bit" in printed
    card = (tmp_path / "Claire" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "org/Base-1"
    recorded = json.loads((tmp_path / "Claire" / "training_provenance.json").read_text())
    assert recorded["options"]["data_dir"] == "data" and recorded["history"] == [{"processes": 4}]
    assert "/home" not in card and "node17" not in card
    assert (tmp_path / "Claire" / "NOTICE").read_text() == "made by others"
    assert not json.loads((tmp_path / "Claire" / "config.json").read_text())["tie_word_embeddings"]


def test_other_logits_leave_nothing(foundation, tmp_path, monkeypatch, capsys):
    """Queries and keys exchanged in what is written: every shape fits, and only the logits tell."""
    real = hf_folder.tensors_to_hf

    def exchanged(*arguments):
        for name, tensor in real(*arguments):
            yield name, tensor.flip(0) if "layers.1.self_attn.o_proj.weight" in name else tensor

    monkeypatch.setattr(hf_folder, "tensors_to_hf", exchanged)
    words = ["--input_path", str(foundation), "--output_dir", str(tmp_path / "out")]
    assert run_command(ConvertOptions, main, words) == 65
    assert "computes another model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flipped_bit_is_found_by_tensors(foundation, tmp_path, monkeypatch):
    def flipping(stage, *arguments):
        write_safetensors(stage, *arguments)
        content = bytearray((stage / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (stage / "model.safetensors").write_bytes(content)

    monkeypatch.setattr(hf_folder, "write_safetensors", flipping)
    with pytest.raises(DataError, match="was not written as it is"):
        main(ConvertOptions(foundation, tmp_path / "out", verify="tensors"))
    assert not list(tmp_path.iterdir())


def test_folder_that_transformers_cannot_load(foundation, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "generation_config", lambda *_: {"temperature": "warm", "do_sample": "no"})
    real = hf_folder.make_config
    monkeypatch.setattr(hf_folder, "make_config", lambda *a: {**real(*a), "model_type": "nothing"})
    with pytest.raises(DataError, match="transformers does not load"):
        main(ConvertOptions(foundation, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_missing_transformers_is_named_first(foundation, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else real(name))
    words = ["--input_path", "nowhere", "--output_dir", str(tmp_path / "out")]
    assert run_command(ConvertOptions, main, words) == 2
    error = capsys.readouterr().err
    assert "pip install transformers==5.3.0" in error and "--verify tensors" in error
    main(ConvertOptions(foundation, tmp_path / "out", verify="tensors"))  # without transformers


def test_other_folders_are_not_overwritten(foundation, tmp_path):
    def convert(folder):
        main(ConvertOptions(foundation, folder, verify="none"))

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        convert(tmp_path)
    with pytest.raises(UserError, match="holds something else"):  # a foundation's own safetensors
        convert(foundation)
    with pytest.raises(UserError, match="is a file"):
        convert(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is a mount point"):
        convert(Path("/proc"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_earlier_conversion_is_replaced_and_other_files_stay(foundation, tmp_path, capsys):
    folder = make_scratch(tmp_path / "merged")  # the merged lit_model.pth may lie where the conversion goes
    main(ConvertOptions(folder, folder, verify="none", max_shard_size="30KB"))
    assert (folder / "lit_model.pth").is_file() and len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "quantized").mkdir()
    (folder / "quantized" / "q4.gguf").write_text("made from it")
    capsys.readouterr()
    main(ConvertOptions(folder, folder, verify="tensors"))
    assert "replaced: README.md, config.json" in capsys.readouterr().out
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("model-*"))
    assert (folder / "quantized" / "q4.gguf").read_text() == "made from it"
    assert not list(tmp_path.glob(".*"))


def test_folder_replaced_by_a_killed_process_comes_back(foundation, tmp_path):
    folder = make_scratch(tmp_path / "merged")
    folder.rename(tmp_path / ".merged.old")  # killed between its two renames
    (tmp_path / ".merged.tmp").mkdir()
    main(ConvertOptions(folder, folder, verify="none"))
    assert (folder / "lit_model.pth").is_file() and (folder / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_upload_leaves_litgpt_files_out(tmp_path):
    folder = make_scratch(tmp_path / "merged")
    (folder / "q4.gguf").write_text("of an earlier conversion")
    hub = Hub()
    words = ["--input_path", folder, "--output_dir", folder, "--verify", "none", "--repo_id", "org/name"]
    command_line = [sys.executable, ROOT / "convert_litgpt_to_transformers.py", *words]
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run([str(word) for word in command_line], capture_output=True, text=True, env=environment)
    hub.close()
    assert done.returncode == 0, done.stderr
    files = hub.files("org/name")
    here = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {"lit_model.pth", "model_config.yaml", "q4.gguf"} == here.keys() - files.keys()
    assert all(files[name] == here[name] for name in here.keys() & files.keys()) and "handler.py" in files
    assert hub.repositories["org/name"]["private"]
    assert 'from_pretrained("org/name"' in files["README.md"].decode()
    assert hub.address in done.stdout and TOKEN not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "words",
    [
        ["--max_shard_size", "big"],
        ["--repo_id", "name"],
        ["--verify", "some"],
        ["--dtype", "int8"],
        ["--license", "My licence"],
    ],
)
def test_wrong_options(words, capsys):
    assert run_command(ConvertOptions, main, ["--input_path", "x", "--output_dir", "y", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_sizes():
    assert [parse_size(text) for text in ("5GB", "1.5 mb", "2GiB", "5", "GB")] == [5 * 10**9, 1500000, 2 * 2**30, 0, 0]


def test_probe_reaches_both_ends_of_the_vocabulary():
    sequences = probe_sequences(1000, 2048)
    assert sequences == probe_sequences(1000, 2048)
    assert [len(ids) for ids in sequences] == [1, 2, 7, 31, 64] and sequences[-1][0] == 0 and sequences[-1][-1] == 999
    assert max(len(ids) for ids in probe_sequences(10, 5)) == 5


def test_nan_is_no_agreement(foundation):
    trained = load_merged_model(foundation, None)
    logits = litgpt_logits(trained.config, trained.state_dict, [[1, 2]])
    assert largest_difference(logits, logits) == (0, 0)
    assert not largest_difference(logits, [logits[0] * float("nan")])[1] <= 1
    assert not largest_difference(logits, [logits[0][:1]])[1] <= 1


KINDS = {
    "bpe": {},
    "bpe with nfkc": {"normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": True},
    "bpe without bytes": {"byte_fallback": False},
    "bpe with symbols": {"user_defined_symbols": ["\n", "[speaker001:]"], "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram"},
    "unigram with nfkc": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"},
}
TEXTS = [
    PROBE_TEXT,
    "",
    " ",
    "  a",
    "a  \n  b ",
    "\n\nx\n",
    "\t",
    "▁▁ a",
    "aaaaaaaaaaaaaaaaa" + " " * 29 + "x",
    "ﬁn Ⅷ é e\u0301",
]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json_does_what_sentencepiece_does(kind, tmp_path):
    make_tokenizer(tmp_path, **KINDS[kind])
    tokenizer = Tokenizer(tmp_path)
    made = tokenizer_json(tokenizer)
    for text in TEXTS:
        assert made.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), repr(text)
    assert made.encode("a").ids == [tokenizer.bos_id, *tokenizer.encode("a")]


def test_tokenizer_model_that_is_none_of_sentencepiece(tmp_path):
    make_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xfe garbage")
    with pytest.raises(DataError, match="no SentencePiece model"):
        tokenizer_json(tokenizer)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "gpt2", "falcon"])
def test_real_tokenizers_on_real_text(name, tmp_path):
    from transformers import AutoTokenizer

    source = Tokenizer(SHARED / "tokenizers" / name)
    assert export_tokenizer(source, tmp_path, PROBE_TEXT) is None
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    exported = Tokenizer(tmp_path)
    assert exported.fingerprint == source.fingerprint and exported.adds_bos == source.adds_bos
    paths = sorted((SHARED / "data").rglob("*.txt"))
    texts = [text for path in paths for text in path.read_text(encoding="utf-8").split("\n\n")][::4]
    texts += [character * count for character in " -.=a" for count in (5, 20, 47, 79)] + ["  x", "\n x"]
    assert len(texts) > 500
    assert theirs(texts, add_special_tokens=False).input_ids == source.encode_batch(texts)
    begin = [source.bos_id] if source.adds_bos else []
    assert theirs("Bonjour").input_ids == begin + source.encode("Bonjour")
    assert theirs.decode(source.encode(PROBE_TEXT)) == source.decode(source.encode(PROBE_TEXT))
