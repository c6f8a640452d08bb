"""utils/export/llama_cpp_support.py: what llama.cpp cannot read is known without it, and before training."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import DataError
from lit_gpt.formats.families import ARCHITECTURES
from lit_gpt.formats.hf_config import config_from_hf
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import LLAMA_CPP, SAMPLE, SHARED, run
from tests.formats.hf_models import TEXT as LINES
from tests.formats.hf_models import VOCABULARY, make_hf, make_tokenizer
from utils.export.llama_cpp import COMMIT, LlamaCpp
from utils.export.llama_cpp_support import (
    PRE_TOKENIZERS,
    SUPPORTED,
    converter_config,
    pre_tokenizer,
    unlisted_pre_tokenizer,
    unsupported_features,
    visible_context,
)

SIZES = {
    **{"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
    **{"n_embd": 64, "n_layer": 2, "n_head": 4, "intermediate_size": 256, "max_position_embeddings": 512},
}


def config_of(architecture: str, **settings: object) -> dict[str, object]:
    """A config.json with those of `SIZES` and `settings` that the family knows."""
    family = ARCHITECTURES[architecture]
    known = {*family.defaults, *family.keys.split()}
    return {
        "architectures": [architecture],
        **{key: value for key, value in {**SIZES, **settings}.items() if key in known},
    }


LLAMA = config_of("LlamaForCausalLM")
ESCAPES = r" \textbf{C:\new} \\ \" \n \t"
TEXT = "\n".join(LINES[:4]) + ESCAPES + "  Deux  espaces,\n\n ﬁn Ⅷ, l'été 1789…\t[speaker001:] 12 345 € 你好 🙂 "


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


RULES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": split_by(rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"),
    "qwen2": split_by(rf"{WORDS}|\p{{N}}|{REST}"),
    "no": pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
}


def own_byte_level(folder: Path, rules: str = "no") -> Path:
    """A byte-level BPE of one's own, by the rules that llama.cpp has under this name."""
    folder.mkdir()
    own = HFTokenizer(models.BPE(ignore_merges=rules == "llama-bpe"))
    own.pre_tokenizer = RULES[rules]
    if rules == "qwen2":
        own.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = (SAMPLE / "english" / "EN" / "Office" / "test.txt").read_text().splitlines()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"])
    own.train_from_iterator(lines, trainer)
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


def test_every_family_is_decided():
    assert SUPPORTED.keys() == ARCHITECTURES.keys()
    assert unsupported_features({"architectures": ["BertModel"]}, Tokenizer(SAMPLE / "tokenizer"))


@pytest.mark.llama_cpp
def test_the_tables_are_the_installed_converters():
    known = json.loads(PRE_TOKENIZERS.read_text(encoding="utf-8"))
    assert COMMIT in known["source"]
    function = next(
        node
        for node in ast.walk(ast.parse((LLAMA_CPP / "conversion" / "base.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre"
    )
    text = next(
        node.value.value for node in function.body if isinstance(node, ast.Assign) and node.targets[0].id == "chktxt"
    )
    hashes = {
        node.test.comparators[0].value: node.body[0].value.value
        for node in function.body
        if isinstance(node, ast.If) and isinstance(node.test.ops[0], ast.Eq)
    }
    assert known["text"] == text and known["hashes"] == hashes
    listed = (LLAMA_CPP / "conversion" / "__init__.py").read_text(encoding="utf-8")
    assert SUPPORTED.keys() <= set(re.findall(r'^    "(\w+)":', listed, re.MULTILINE))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "architecture", "rules"),
    [
        ("gpt2", "GPT2LMHeadModel", "gpt-2"),
        ("falcon", "FalconForCausalLM", "falcon"),
        ("mistral-7b-v0.1", "MistralForCausalLM", None),
    ],
)
def test_real_tokenizers(name, architecture, rules, tmp_path):
    tokenizer = Tokenizer(SHARED / "tokenizers" / name)
    hf = config_of(architecture)
    assert unsupported_features(hf, tokenizer) == [] and pre_tokenizer(tokenizer) == rules
    for other in ("GemmaForCausalLM", "Phi3ForCausalLM") if rules else ("GPT2LMHeadModel", "FalconForCausalLM"):
        assert "tokenizer.model" in unsupported_features(config_of(other), tokenizer)[0] or not rules
    if rules:  # as OpenAI's own file of GPT-2 has it, and transformers reads it
        content = json.loads((SHARED / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
        del content["model"]["type"]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        shutil.copyfile(SHARED / "tokenizers" / name / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
        assert unsupported_features(hf, Tokenizer(tmp_path)) == []
    tokenizer.adds_bos = not tokenizer.adds_bos
    assert rules is None or unlisted_pre_tokenizer(tokenizer) == {"gpt2": "gpt-2"}.get(
        name
    )  # the hash is of ids with BOS


def test_a_byte_level_bpe_of_ones_own(tmp_path):
    assert "pre-tokenizer" in unsupported_features(LLAMA, Tokenizer(own_byte_level(tmp_path / "own")))[0]
    whole_words = json.loads((own_byte_level(tmp_path / "llama", "llama-bpe") / "tokenizer.json").read_text())
    whole_words["model"]["ignore_merges"] = False
    (tmp_path / "llama" / "tokenizer.json").write_text(json.dumps(whole_words))
    assert pre_tokenizer(Tokenizer(tmp_path / "llama")) is None  # llama.cpp would take words without their merges


@pytest.mark.llama_cpp
@pytest.mark.parametrize(
    ("rules", "architecture"),
    [("gpt-2", "GPT2LMHeadModel"), ("qwen2", "Qwen2ForCausalLM"), ("llama-bpe", "LlamaForCausalLM")],
)
def test_known_rules_with_a_vocabulary_of_ones_own(rules, architecture, tmp_path):
    """llama.cpp's ids are ours, as of another vocabulary by the same rules."""
    tokenizer = Tokenizer(own_byte_level(tmp_path / "own", rules))
    assert unsupported_features(config_of(architecture), tokenizer) == []
    assert pre_tokenizer(tokenizer) == unlisted_pre_tokenizer(tokenizer) == rules
    hf = tmp_path / "hf"
    make_hf(hf, architecture, {"vocab_size": 400})
    for path in tokenizer.directory.iterdir():
        shutil.copyfile(path, hf / path.name)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(converter_config(config)))
    llama = LlamaCpp.find(LLAMA_CPP)
    llama.convert(hf, tmp_path / "model.gguf", "f16", rules)
    (tmp_path / "text").write_text(TEXT)
    assert llama.token_ids(tmp_path / "model.gguf", tmp_path / "text") == tokenizer.encode(TEXT)
    with pytest.raises(DataError, match="BPE pre-tokenizer was not recognized"):
        llama.convert(hf, tmp_path / "model.gguf", "f16")


@pytest.mark.llama_cpp
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_type": "unigram"},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
    ],
)
def test_what_is_said_of_sentencepiece_is_so(settings, tmp_path):
    """llama.cpp's own ids differ where an obstacle is named, and nowhere else."""
    make_tokenizer(tmp_path, **settings)
    tokenizer = Tokenizer(tmp_path)
    hf = tmp_path / "hf"
    make_hf(hf, "Llama", {"vocab_size": VOCABULARY, "num_hidden_layers": 1})
    export_tokenizer(tokenizer, hf, TEXT)
    llama = LlamaCpp.find(LLAMA_CPP)
    llama.convert(hf, tmp_path / "model.gguf", "f16")
    (tmp_path / "text").write_text(TEXT)
    ids = llama.token_ids(tmp_path / "model.gguf", tmp_path / "text")
    same = ids == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    assert same == (unsupported_features(LLAMA, tokenizer) == [])


def test_architectures_in_part():
    tokenizer = Tokenizer(SAMPLE / "tokenizer")
    faster, longer = {"rope_theta": 20000.0}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    for architecture, settings, word in [
        ("GPT2LMHeadModel", {"n_inner": 100}, "n_inner"),
        ("FalconForCausalLM", {"ffn_hidden_size": 100}, "ffn_hidden_size"),
        ("FalconForCausalLM", {"parallel_attn": False}, "side by side"),
        ("GPTNeoXForCausalLM", {"tie_word_embeddings": True}, "tied"),
        ("GPTNeoXForCausalLM", {"rotary_emb_base": 20000}, "rope base 20000"),
        ("GPTNeoXForCausalLM", longer, "scaled positions"),
        ("FalconForCausalLM", longer, "scaled positions"),
        ("PhiForCausalLM", {"intermediate_size": 100}, "intermediate_size"),
        ("PhiForCausalLM", {"num_key_value_heads": 2}, "key/value heads"),
        ("PhiForCausalLM", {"rope_parameters": {**longer["rope_scaling"], **faster}}, "rope base 20000"),
        ("StableLmForCausalLM", longer, "scaled positions"),
    ]:
        hf = config_of(architecture, **settings)
        assert word in unsupported_features(hf, tokenizer)[0]
    assert unsupported_features({**LLAMA, **faster, **longer}, tokenizer) == []
    incomplete = {key: value for key, value in config_of("GPT2LMHeadModel").items() if key != "n_embd"}
    with pytest.raises(DataError, match="n_embd"):
        unsupported_features(incomplete, tokenizer)
    tokenizer.config["add_eos_token"] = True
    assert "add_eos_token" in unsupported_features(LLAMA, tokenizer)[0]


@pytest.mark.llama_cpp
def test_whose_positions_are_lost_is_so_in_the_installed_converter():
    """Classes whose own method neither asks the common one nor writes the key; GPT-2 has none to write."""
    lost: dict[str, set[str]] = {"freq_base": set(), "scaling_type": set()}
    for path in (LLAMA_CPP / "conversion").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            names = {getattr(word, "value", None) for mark in node.decorator_list for word in ast.walk(mark)}
            method = next((part for part in node.body if getattr(part, "name", "") == "set_gguf_parameters"), None)
            body = ast.unparse(method) if method else "super()"
            for key, those in lost.items():
                those |= {name for name in SUPPORTED if name in names and "super()" not in body and key not in body}
    tokenizer, named = Tokenizer(SAMPLE / "tokenizer"), {key: {"GPT2LMHeadModel"} for key in lost}
    settings = {"rotary_emb_base": 20000, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 20000}}
    for name in SUPPORTED:
        said = str(unsupported_features(config_of(name, **settings), tokenizer))
        named["freq_base"] |= {name} if "rope base" in said else set()
        named["scaling_type"] |= {name} if "scaled positions" in said else set()
    assert named == lost
    assert {"FalconForCausalLM", "GPTNeoXForCausalLM", "PhiForCausalLM", "StableLmForCausalLM"} < named["freq_base"]


def test_a_window_that_slides_bounds_the_context():
    mistral = config_of("MistralForCausalLM", sliding_window=128)
    assert visible_context(mistral, config_from_hf(mistral)) == 128
    gemma = config_of("Gemma2ForCausalLM", sliding_window=128)
    assert visible_context(gemma, config_from_hf(gemma)) == 512


def test_an_incomplete_configuration_stops_no_training(tmp_path):
    from types import SimpleNamespace

    from pretrain import gguf_warnings

    shutil.copytree(SAMPLE / "tokenizer", tmp_path / "model")
    hf = {key: value for key, value in config_of("GPT2LMHeadModel").items() if key != "n_embd"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(hf))
    plan = SimpleNamespace(config=None, tokenizer_dir=tmp_path / "model")
    (warning,) = gguf_warnings(SimpleNamespace(model_config=None, checkpoint_dir=tmp_path / "model"), plan)
    assert "could not be exported" in warning and "n_embd" in warning


def test_training_says_that_its_model_could_not_be_exported(model_config, trained_run, tmp_path):
    tokenizer, data = own_byte_level(tmp_path / "own"), tmp_path / "data"
    (tmp_path / "full.txt").write_text((SAMPLE / "english" / "EN" / "Office" / "test.txt").read_text())
    source = ("--source_path", tmp_path / "full.txt", "--checkpoint_dir", tokenizer)
    run("prepare_data.py", *source, "--destination_path", data, "--max_length", 64, "--num_workers", 1)
    arguments = ["--data_dir", data, "--checkpoint_dir", tokenizer, "--model_config", model_config]
    arguments += ["--out_dir", tmp_path / "run", "--max_steps", 1, "--batch_size", 2, "--precision", "32-true"]
    warning = "warning: this model could not be exported to GGUF: it does not know the pre-tokenizer"
    assert run("pretrain.py", *arguments).stdout.count(warning) == 1
    assert (tmp_path / "run" / "training_log.out").read_text().count(warning) == 1
    assert warning in run("pretrain.py", *arguments, "--dry_run", "true").stdout
    assert "GGUF" not in (trained_run / "training_log.out").read_text()
