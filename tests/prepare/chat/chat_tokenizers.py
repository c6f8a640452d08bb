"""Tokenizers of real vocabularies with the special tokens of a chat template."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from tests.conftest import SHARED, TOKENIZER

_SPECIAL = re.compile(
    r"<[|｜][^<>\s]+[|｜]>|<\|[a-z_\"]+>|<[a-z_\"]+\|>|</?s>|<(?:start|end)_of_turn>|<[be]os>|\[/?[A-Z_]{3,}\]"
)


def with_tokens(base: str, folder: Path, tokens: Sequence[str], bos: str | None = None, eos: str | None = None) -> Path:
    """Writes into `folder` the tokenizer `base` of ../shared with more special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    if base == "sample":  # SentencePiece
        shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
        return folder
    made = HFTokenizer.from_file(str(SHARED / "tokenizers" / base / "tokenizer.json"))
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
