"""tokenizer_config.json of an exported model: what it says is true of this model, the rest of a foundation's goes."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.checksums import add_sums, file_sha256, listed_sums
from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.tokenizer import CHAT_TEMPLATE, Tokenizer

TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
# Which tokens have a meaning, `..._token`, is kept too. https://huggingface.co/docs/transformers/main_classes/tokenizer
_KEPT = (
    *("tokenizer_class", "add_bos_token", "chat_template", "added_tokens_decoder"),
    *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens", "split_special_tokens"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "truncation_side"),
    *("add_prefix_space", "legacy", "sp_model_kwargs"),  # of classes that read a tokenizer.model
)

_TAKEN_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # transformers 4's and 5's general class
_FOR_LITGPT = "LlamaTokenizerFromFile"


def settle_tokenizer_config(folder: Path, source: Tokenizer, context: int, rows: int) -> tuple[int, list[str]]:
    """Makes the tokenizer_config.json in `folder` this model's; returns its padding token, and the keys it leaves out.

    A text is cut at `context` tokens, and a batch is filled up on the left, as generation needs it. `rows` is the
    number of embeddings.
    """
    path = folder / TOKENIZER_CONFIG
    found = read_json_if_there(path)
    kept = {}
    if (folder / CHAT_TEMPLATE).is_file():
        found.pop("chat_template", None)  # transformers takes the file, llama.cpp's converter would take this
    for key, value in found.items():
        if key in _KEPT or (key.endswith("_token") and not key.startswith("add_")):
            kept[key] = value
    # the same names of special tokens once more, which older versions of transformers prefer
    special = read_json_if_there(folder / SPECIAL_TOKENS)
    padding = _padding_token(source, [found.get("pad_token"), special.get("pad_token")], rows)
    inputs = ["input_ids", "attention_mask"]  # transformers 4 would add token types, as BERT has them
    kept |= {"model_max_length": context, "pad_token": padding, "padding_side": "left", "model_input_names": inputs}
    _write(path, kept)
    if special:
        _write(folder / SPECIAL_TOKENS, {**special, "pad_token": padding})
    return source.vocabulary.index(padding), sorted(found.keys() - kept.keys())


def litgpt_leaves_spaces_out(folder: Path) -> bool:
    """Whether litgpt's own chat loses the spaces of the tokenizer.json in `folder`.

    It decodes token by token (litgpt/tokenizer.py, 0.5.13). Where a decoder takes away the space that begins a text,
    it does so of every token, unless the class in tokenizer_config.json says `LlamaTokenizer`.
    """
    kind = read_json_if_there(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    if not (folder / "tokenizer.json").is_file() or not isinstance(kind, str) or "LlamaTokenizer" in kind:
        return False
    made = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    of_words = (index for token, index in made.get_vocab().items() if token[:1] == "▁" and token[1:].isalpha())
    word = next(of_words, None)
    return word is not None and not made.decode([word]).startswith(" ")


def keep_spaces_in_litgpt(folder: Path) -> list[str]:
    """Lets litgpt's own chat keep the spaces in a litgpt directory; returns lines that say what was changed for it.

    transformers 5 takes tokenizer.json as it is both for its general class and for one that it does not know. Its class
    of the name that litgpt looks for would build another tokenizer from the vocabulary.
    """
    if not litgpt_leaves_spaces_out(folder):
        return []
    config = read_json_if_there(folder / TOKENIZER_CONFIG)
    kind = config["tokenizer_class"]
    if kind not in _TAKEN_AS_IT_IS:
        return [f"litgpt's own chat will leave spaces out: it does not know the tokenizer_class {kind}"]
    staged = folder / f".{TOKENIZER_CONFIG}.tmp"  # the file may be a link to another folder's
    _write(staged, {**config, "tokenizer_class": _FOR_LITGPT})
    if TOKENIZER_CONFIG in listed_sums(folder):
        add_sums(folder, {TOKENIZER_CONFIG: file_sha256(staged)})
    staged.replace(folder / TOKENIZER_CONFIG)
    reason = "litgpt's own chat would leave spaces out; transformers 5 reads both alike, 4 only the first"
    return [f"tokenizer_config.json: tokenizer_class was {kind} and is {_FOR_LITGPT}: {reason}"]


def _padding_token(source: Tokenizer, named: list[Any], rows: int) -> str:
    """The foundation's where it has an embedding, else the token that ends a text, or begins it, or any: it is masked.

    transformers would add a token that is not in the vocabulary, with an id that the model does not have.
    """
    for value in named:
        token = value.get("content") if isinstance(value, dict) else value
        index = source.token_id(token) if isinstance(token, str) else None
        if index is not None and index < rows:
            return token
    known = [index for index in (source.eos_id, source.bos_id) if index is not None]
    return source.vocabulary[next(iter(known), 0)]


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
