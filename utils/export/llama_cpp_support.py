"""What llama.cpp supports of a model's architecture and tokenizer, known without llama.cpp.

The converter recognises the rules of a byte-level BPE by a hash of its ids for one text, which differs from vocabulary
to vocabulary; `pre_tokenizers.json` holds those of the pinned version. Where it has none, the rules are read in the
tokenizer's file, and the converter is told (converter_process.py). It takes every SentencePiece model, but llama.cpp
then treats text as Llama's does.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from litgpt.config import Config
from sentencepiece.sentencepiece_model_pb2 import TrainerSpec

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, config_to_hf, read_hf_config
from lit_gpt.tokenizer.hf_tokenizer import read_sentencepiece
from lit_gpt.tokenizer.tokenizer import Tokenizer

PRE_TOKENIZERS = Path(__file__).with_name("pre_tokenizers.json")


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    (None, rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    ("NFC", rf"{_WORDS}|\p{{N}}|{_REST}", False): "qwen2",
}
"""A normaliser, the pattern by which a text is split, and whether a word that is an entry is one token without merges →
the name; as the models' own tokenizer.json have them."""


class Support(NamedTuple):
    sentencepiece: bool  # whether the pinned converter reads a tokenizer.model
    byte_level: bool  # whether it reads a byte-level BPE in tokenizer.json
    rope_base: bool = True  # whether it writes the base of rotated positions; if not, that has to be 10000
    rope_scaling: bool = True  # whether it writes their scaling
    mlp: str = ""  # what is wrong with an MLP not 4 times as wide as the model, where it takes that for granted
    slides: bool = False  # whether llama.cpp keeps a sliding window; if not, it sees more than the model did


SUPPORTED = {
    "LlamaForCausalLM": Support(True, True),
    "MistralForCausalLM": Support(True, True),
    "GPT2LMHeadModel": Support(False, True, mlp="n_inner is not 4 times n_embd"),
    "FalconForCausalLM": Support(False, True, False, False, "ffn_hidden_size is not 4 times hidden_size"),
    "GPTNeoXForCausalLM": Support(False, True, False, False),
    "Qwen2ForCausalLM": Support(True, True),
    "Qwen3ForCausalLM": Support(True, True),
    "GemmaForCausalLM": Support(True, False, False, False),
    "Gemma2ForCausalLM": Support(True, False, False, False, slides=True),
    "Gemma3ForCausalLM": Support(True, True, slides=True),
    "PhiForCausalLM": Support(False, True, False, False, "intermediate_size is not 4 times hidden_size"),
    "Phi3ForCausalLM": Support(True, False, rope_scaling=False),
    "Olmo2ForCausalLM": Support(False, True),
    "StableLmForCausalLM": Support(False, True, False, False),
}


def export_problems(foundation: Path | None, config: Config, tokenizer_dir: Path) -> list[str]:
    """Why a model that is trained could not be exported to GGUF: one of `config`, from `foundation` or from scratch."""
    try:
        if foundation is not None and (foundation / "config.json").is_file():
            hf = read_hf_config(foundation)
        else:
            hf = config_to_hf(config, None, None, "float32")
        return unsupported_features(hf, Tokenizer(tokenizer_dir))
    except (UserError, DataError) as e:
        return [str(e)]


def unsupported_features(hf: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp does not support of a model with this config.json and tokenizer.
    Raises a UserError if this program does not support the model, a DataError for an incomplete config.json."""
    name = next(iter(hf.get("architectures") or []), "(none)")
    support = SUPPORTED.get(name)
    if support is None:
        return [f"architecture {name} is unknown to its converter"]
    config = config_from_hf(hf)
    problems = []
    if not support.rope_base and config.rope_base != 10000:
        problems.append(f"rope base {config.rope_base}, other than 10000")
    if not support.rope_scaling and config.rope_adjustments:
        problems.append("scaled positions")
    if name == "GPTNeoXForCausalLM" and hf.get("tie_word_embeddings"):
        problems.append("an output layer tied to the embeddings")
    if name == "GPTNeoXForCausalLM" and not hf.get("attention_bias", True):
        problems.append("attention without biases")
    if name == "PhiForCausalLM" and config.n_query_groups != config.n_head:
        problems.append("fewer key/value heads than heads")
    if support.mlp and config.intermediate_size != 4 * config.n_embd:
        problems.append(support.mlp)
    if name == "FalconForCausalLM" and (not config.parallel_residual or config.bias):
        problems.append("Falcon is only known with attention and MLP side by side and without biases")
    return problems + unsupported_in_tokenizer(tokenizer, support, name)


def unsupported_in_tokenizer(tokenizer: Tokenizer, support: Support, architecture: str) -> list[str]:
    if tokenizer.config.get("add_eos_token"):
        return ["its tokenizer ends every text with an end token (add_eos_token in tokenizer_config.json)"]
    if (tokenizer.directory / "tokenizer.model").is_file():
        if not support.sentencepiece:
            return [f"for {architecture} it reads byte-level BPE tokenizers, not SentencePiece's"]
        return unsupported_in_sentencepiece(tokenizer.directory / "tokenizer.model", architecture)
    content = json.loads((tokenizer.directory / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)  # GPT-2's own file, and other old ones, leave it out
    if kind != "BPE" or model.get("byte_fallback"):
        return ["of a tokenizer.json without a tokenizer.model it reads byte-level BPE only"]
    if not support.byte_level:
        return [f"for {architecture} it reads SentencePiece's tokenizer.model only"]
    if pre_tokenizer(tokenizer) is None:
        return ["it does not know the pre-tokenizer of this byte-level BPE"]
    return []


def unsupported_in_sentencepiece(path: Path, architecture: str) -> list[str]:
    """How a tokenizer.model differs from Llama's, or Gemma's, in what llama.cpp does not take from the file."""
    proto = read_sentencepiece(path)
    normalizer = proto.normalizer_spec
    problems = []
    if proto.trainer_spec.model_type != TrainerSpec.BPE:
        problems.append("of SentencePiece's models it knows BPE only")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        problems.append("it does not normalise text as this SentencePiece model does")
    if normalizer.add_dummy_prefix == architecture.startswith("Gemma"):
        problems.append("it treats a text's first space otherwise than this SentencePiece model")
    return problems


def pre_tokenizer(tokenizer: Tokenizer) -> str | None:
    """The name that the pinned llama.cpp has for the rules of a byte-level BPE; None if it has none."""
    return _listed_pre_tokenizer(tokenizer) or _pre_tokenizer_by_rules(tokenizer)


def unlisted_pre_tokenizer(tokenizer: Tokenizer) -> str | None:
    """That name, if the converter has to be told; None for a tokenizer that it knows."""
    if (tokenizer.directory / "tokenizer.model").is_file() or _listed_pre_tokenizer(tokenizer):
        return None
    return _pre_tokenizer_by_rules(tokenizer)


def _listed_pre_tokenizer(tokenizer: Tokenizer) -> str | None:
    """The name by which the converter itself knows the rules.
    Source: `get_vocab_base_pre` in llama.cpp's conversion/base.py; the hash is of the ids with begin and end tokens."""
    known = json.loads(PRE_TOKENIZERS.read_text(encoding="utf-8"))
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    ids = begin + tokenizer.encode(known["text"])
    return known["hashes"].get(sha256(str(ids).encode()).hexdigest())


def _pre_tokenizer_by_rules(tokenizer: Tokenizer) -> str | None:
    """The name of the rules that tokenizer.json spells out, with any vocabulary: GPT-2's, Llama 3's or Qwen 2's."""
    if tokenizer.library != "tokenizers":
        return None
    content = json.loads((tokenizer.directory / "tokenizer.json").read_text(encoding="utf-8"))
    steps = content.get("pre_tokenizer") or {}
    *splits, last = steps.get("pretokenizers", [steps])
    normalizer = (content.get("normalizer") or {}).get("type")
    whole_words = bool(content["model"].get("ignore_merges"))
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if not splits and last.get("use_regex", True):
        return "gpt-2" if normalizer is None and not whole_words else None
    if [split.get("type") for split in splits] != ["Split"] or last.get("use_regex", True):
        return None
    if splits[0].get("invert") or splits[0].get("behavior") != "Isolated":
        return None
    return _SPLITS.get((normalizer, splits[0]["pattern"].get("Regex"), whole_words))


def converter_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with what the converter reads under other keys, or takes for granted."""
    name = hf["architectures"][0]
    config = dict(hf)
    config.pop("auto_map", None)  # names Python code in the folder or elsewhere
    if name == "GPT2LMHeadModel":
        config["n_ctx"] = hf.get("n_positions", 1024)
    elif name == "GPTNeoXForCausalLM":
        # its class in transformers 5 drops the older name of the rotated share; without a model_type, by which
        # transformers chooses a class, the converter takes config.json as it is
        scaling = hf.get("rope_parameters") or {}
        config["rotary_pct"] = hf.get("rotary_pct", scaling.get("partial_rotary_factor", 0.25))
        config.pop("model_type", None)
    elif name == "FalconForCausalLM" and not hf.get("new_decoder_architecture"):
        # transformers ignores this key where one key serves all heads, the converter does not
        config["num_kv_heads"] = 1 if hf.get("multi_query", True) else hf["num_attention_heads"]
    return config


def visible_context(hf: Mapping[str, Any], config: Config) -> int:
    """Tokens over which llama.cpp sees what the model saw: all positions, or a sliding window that it does not keep."""
    window = config.sliding_window_size
    if window and not SUPPORTED[hf["architectures"][0]].slides:
        return min(config.block_size, window)
    return config.block_size
