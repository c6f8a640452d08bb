"""Special tokens that are added to a tokenizer, such as `<|im_start|>` for chats: the next ids after its vocabulary.

The tokenizer gives the same ids as before for every text: the names of special tokens in it stay text.
"""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import DataError, UserError
from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.hf_tokenizer import checked_tokenizer_json
from lit_gpt.tokenizer.tokenizer import PROBE, Tokenizer
from lit_gpt.tokenizer.tokenizer_config import TOKENIZER_CONFIG

TOKENIZER_JSON = "tokenizer.json"


def not_there(tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """Those of the names that are no special tokens yet; a UserError if one is an ordinary entry of the vocabulary."""
    special = set(tokenizer.special_tokens)
    ordinary = sorted(set(names).intersection(tokenizer.vocabulary) - special)
    if ordinary:
        listed = ", ".join(map(repr, ordinary))
        raise UserError(
            f"{listed}: an ordinary entry of the vocabulary of {tokenizer.directory}, which text becomes; take a name"
            " that is not in it"
        )
    return [name for name in names if name not in special]


def with_added_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, bytes]:
    """The tokenizer.json and the tokenizer_config.json with special tokens of these names, which `not_there` has seen.

    A DataError if the tokenizer is of a form that cannot have them.
    """
    first = tokenizer.vocab_size
    values, config = _tokenizer_json(tokenizer), read_json_if_there(tokenizer.directory / TOKENIZER_CONFIG)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = {first + index: {"content": name, **flags} for index, name in enumerate(names)}
    values["added_tokens"] = [
        *(values.get("added_tokens") or []),
        *({"id": index, **token} for index, token in added.items()),
    ]
    # llama.cpp's converter reads them from here beside a tokenizer.model, and takes those that it does not find for
    # unused; transformers adds to tokenizer.json's what it does not have
    decoder = {str(index): token for index, token in added.items()}
    config["added_tokens_decoder"] = {**(config.get("added_tokens_decoder") or {}), **decoder}
    config |= {"add_bos_token": tokenizer.adds_bos}
    for kind, index in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if index is not None and index < first:  # a generation_config.json may name one that is not there
            config.setdefault(f"{kind}_token", tokenizer.vocabulary[index])
    text = json.dumps(values, indent=2, ensure_ascii=False)
    _check(tokenizer, text, added)
    files = {TOKENIZER_JSON: text, TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False)}
    return {name: f"{content}\n".encode() for name, content in files.items()}


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    path = tokenizer.directory / TOKENIZER_JSON
    if path.is_file():
        return json.loads(path.read_bytes())
    made = checked_tokenizer_json(tokenizer, PROBE)
    if made is None:
        raise DataError(
            f"{tokenizer.directory / 'tokenizer.model'} cannot have added tokens: no tokenizer.json gives its ids"
        )
    return json.loads(made.to_str())


def _check(tokenizer: Tokenizer, tokenizer_json: str, added: dict[int, Any]) -> None:
    made = HFTokenizer.from_str(tokenizer_json)
    for index, token in added.items():
        found = made.token_to_id(token["content"])
        if found != index:  # the library counts entries, and some vocabularies have gaps
            raise DataError(
                f"the tokenizer of {tokenizer.directory} cannot have added tokens: {token['content']!r} would get the "
                f"id {found}, and the next one after its vocabulary is {index}"
            )


def extends(grown: Tokenizer, tokenizer: Tokenizer, names: Sequence[str]) -> bool:
    """Whether `grown` is `tokenizer` with special tokens of these names added."""
    count = len(names)
    is_longer = count > 0 and grown.vocab_size == tokenizer.vocab_size + count
    if not is_longer or grown.vocabulary[-count:] != list(names):
        return False
    return grown.fingerprint_without(count) == tokenizer.fingerprint
