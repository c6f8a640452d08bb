"""Tokenizers of real vocabularies with the special tokens of a chat template."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from tests.conftest import SHARED, TOKENIZER

_SPECIAL = re.compile(
    r"<[|｜][^<>\s]+[|｜]>|<\|[a-z_\"]+>|<[a-z_\"]+\|>|</?s>|<(?:start|end)_of_turn>|<[be]os>|\[/?[A-Z_]{3,}\]"
)


# how Llama 3 and Qwen split a text: line ends stay together, whatever follows (OpenAI's GPT-2 puts the last one apart)
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_tokens(base: str, folder: Path, tokens: Sequence[str], bos: str | None = None, eos: str | None = None) -> Path:
    """Writes into `folder` the tokenizer `base` of ../shared with more special tokens.

    `llama3` is GPT-2's vocabulary with Llama 3's way to split a text; `sample` is the sample's SentencePiece model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if base == "sample":  # SentencePiece
        shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
        return folder
    source = "gpt2" if base == "llama3" else base
    made = HFTokenizer.from_file(str(SHARED / "tokenizers" / source / "tokenizer.json"))
    if base == "llama3":
        split = pre_tokenizers.Split(Regex(_LLAMA_3), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    wanted = [*tokens, *filter(None, (bos, eos))]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(wanted)])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "add_bos_token": False}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tokens_named(source: str) -> list[str]:
    """What looks like special tokens in a template."""
    return sorted(set(_SPECIAL.findall(source)))
