"""Text to token ids and back, from the tokenizer files of a checkpoint directory, without importing torch.

`tokenizer.json` (Hugging Face tokenizers) is used where it exists, else `tokenizer.model` (SentencePiece). Which ids
begin and end a text is read from `tokenizer_config.json` and `generation_config.json`, as litgpt does.
"""

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.checksums import as_listed
from lit_gpt.errors import DataError, UserError
from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.special_tokens import CONTROL_NAME, hide, made_by_model

CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
CHAT_FILES = (CHAT_TEMPLATE, GENERATION_CONFIG)  # what a training on chats changes
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    GENERATION_CONFIG,
    CHAT_TEMPLATE,
)

_INSTEAD = ": put the tokenizer.json and tokenizer_config.json of the model's Hugging Face repository in its place"

# Encoded for the fingerprint: two tokenizers with one vocabulary may still differ in normalisation, digits or spaces.
PROBE = "[speaker001:] Héllo, l'été 1789…  ça va ?\n[Łukasz:]\tПривет 12 345 €\n\n你好 ﬁn  \u00a0«\u202f!\u202f» 🙂"


class Tokenizer:
    """The tokenizer of `checkpoint_dir`; a UserError if it has no tokenizer files, a DataError if they are damaged."""

    def __init__(self, checkpoint_dir: Path) -> None:
        self.directory = Path(checkpoint_dir)
        json_path, model_path = self.directory / "tokenizer.json", self.directory / "tokenizer.model"
        self._hf = self._sentencepiece = None
        for name in TOKENIZER_FILES:
            as_listed(self.directory / name)
        try:
            if json_path.is_file():
                self._hf = HFTokenizer.from_file(str(json_path))
                self._hf.no_padding()  # some files ask for either; both would change a document without a word
                self._hf.no_truncation()
                self.vocab_size = 1 + max(self._hf.get_vocab(with_added_tokens=True).values())  # ids may leave gaps
            elif model_path.is_file():
                refuse_tiktoken(model_path)
                self._sentencepiece = SentencePieceProcessor(model_file=str(model_path))
                self.vocab_size = self._sentencepiece.vocab_size()
            else:
                refuse_other_formats(self.directory)
                raise UserError(f"{self.directory} has neither tokenizer.json nor tokenizer.model")
        except (UserError, DataError):
            raise
        except Exception as e:  # the tokenizers library raises bare Exception, SentencePiece RuntimeError
            raise DataError(f"the tokenizer of {self.directory} cannot be read: {e}") from e
        self.config = read_json_if_there(self.directory / "tokenizer_config.json")
        self._generation_config = read_json_if_there(self.directory / GENERATION_CONFIG)
        self.bos_id, self.eos_id = self._special_id("bos"), self._special_id("eos")
        self.adds_bos = self._adds_bos()

    def _special_id(self, kind: str) -> int | None:
        token = self.config.get(f"{kind}_token")
        if isinstance(token, dict):
            token = token["content"]
        if token is not None and (found := self.token_id(token)) is not None:
            return found
        found = self._generation_config.get(f"{kind}_token_id")
        if isinstance(found, list):
            found = next(iter(found), None)
        if found is None and self._sentencepiece is not None:
            found = getattr(self._sentencepiece, f"{kind}_id")()
            return None if found < 0 else found
        return found

    @property
    def end_ids(self) -> set[int]:
        """All tokens that end a text: generation_config.json may name several.

        One that the tokenizer has not, such as GPT-2's 50256 beside a smaller vocabulary, ends nothing.
        """
        found = self._generation_config.get("eos_token_id")
        ids = {self.eos_id, *found} if isinstance(found, list) else {self.eos_id, found}
        return {index for index in ids if index is not None and index < self.vocab_size}

    def _adds_bos(self) -> bool:
        """Whether the model was trained with a begin-of-text token: as configured, else as the tokenizer.json does."""
        if self.bos_id is None:
            return False
        if "add_bos_token" in self.config:
            return bool(self.config["add_bos_token"])
        return self._hf is None or self._hf.encode("a").ids[:1] == [self.bos_id]

    def token_id(self, token: str) -> int | None:
        if self._hf is not None:
            return self._hf.token_to_id(token)
        found = self._sentencepiece.piece_to_id(token)
        return None if found == self._sentencepiece.unk_id() and token != "<unk>" else found

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without begin or end tokens; on one thread if TOKENIZERS_PARALLELISM is false.

        Text is text: the name of a control token in it stays characters.
        """
        if self._hf is not None:
            self._plain.encode_special_tokens = True
            return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
        threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0") else -1
        return self._sentencepiece.encode(texts, num_threads=threads)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; begin, end and other special tokens are left out."""
        if self._hf is not None:
            return self._hf.decode(ids, skip_special_tokens=True)
        return self._sentencepiece.decode(ids)

    @property
    def library(self) -> str:
        return "tokenizers" if self._hf is not None else "sentencepiece"

    @cached_property
    def _plain(self) -> HFTokenizer:
        """`_hf`, or where its model makes special tokens of their names' characters, a copy that cannot."""
        names, model = self.control_tokens, self._hf.model
        if all(model.token_to_id(name) is None for name in names):
            return self._hf
        values = json.loads((self.directory / "tokenizer.json").read_bytes())
        return HFTokenizer.from_str(json.dumps(hide(values, names))) if made_by_model(values, names) else self._hf

    def encode_with_special_tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens by their names; SentencePiece does not do that."""
        assert self._hf is not None
        self._hf.encode_special_tokens = False
        return [encoding.ids for encoding in self._hf.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def control_tokens(self) -> list[str]:
        """The names of tokens that are not text, such as `<s>`."""
        if self._hf is not None:
            return [token.content for token in self._hf.get_added_tokens_decoder().values() if token.special]
        model = self._sentencepiece
        ids = range(self.vocab_size)
        return [model.id_to_piece(index) for index in ids if model.is_control(index) or model.is_unknown(index)]

    @cached_property
    def chat_control_tokens(self) -> list[str]:
        """`control_tokens`, and added tokens such as `<|im_end|>` that their maker did not mark as special."""
        unmarked = set(self.special_tokens) - set(self.control_tokens)
        return self.control_tokens + sorted(name for name in unmarked if CONTROL_NAME.fullmatch(name))

    @cached_property
    def special_tokens(self) -> list[str]:
        """The names of control tokens, and of others that were added to the vocabulary: these are in texts, too."""
        if self._hf is not None:
            return [token.content for token in self._hf.get_added_tokens_decoder().values()]
        return self.control_tokens

    @cached_property
    def vocabulary(self) -> list[str]:
        """The vocabulary entries in the order of their ids."""
        if self._hf is not None:
            by_id = {index: token for token, index in self._hf.get_vocab(with_added_tokens=True).items()}
            return [by_id.get(index, "") for index in range(self.vocab_size)]
        return [self._sentencepiece.id_to_piece(index) for index in range(self.vocab_size)]

    @cached_property
    def line_ends(self) -> np.ndarray:
        """bool [vocabulary]: the token ends a line, so that a turn may begin after it."""
        # byte-level BPE writes a newline as Ċ, SentencePiece's byte fallback as <0x0A>
        return np.array([token.endswith(("\n", "Ċ")) or token == "<0x0A>" for token in self.vocabulary])

    @cached_property
    def line_starts(self) -> np.ndarray:
        """bool [vocabulary]: the token begins with a line's end and has more, so that a turn may begin with it."""
        return np.array([token.startswith(("\n", "Ċ")) for token in self.vocabulary]) & ~self.line_ends

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the ids of a probe text: equal for equal tokenizers in any file format."""
        return self.fingerprint_without(0)

    def fingerprint_without(self, count: int) -> str:
        """The fingerprint that the tokenizer had before its last `count` entries were added."""
        vocabulary = self.vocabulary[: self.vocab_size - count]
        content = json.dumps([vocabulary, self.encode(PROBE), self.bos_id, self.eos_id])
        return hashlib.sha256(content.encode()).hexdigest()


def refuse_tiktoken(path: Path) -> None:
    """Raises a DataError for a tokenizer.model as Meta publishes it since Llama 3: a token in base64 and its id a line.

    Such a file does not say how a text is split, nor which tokens are special: Meta's program does.
    """
    with path.open("rb") as file:
        begin = file.read(200)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", begin):
        raise DataError(f"{path} is no SentencePiece model but a list of tokens for tiktoken{_INSTEAD}")


def refuse_other_formats(directory: Path) -> None:
    """Raises a DataError for a directory that has a tokenizer of a format that is not read here."""
    for path in sorted(directory.glob("*.tiktoken")):
        raise DataError(f"{path} is a list of tokens for tiktoken, which does not say how a text is split{_INSTEAD}")
    for path in sorted(directory.glob("tekken*.json")):
        raise DataError(f"{path} is in Mistral's own format, tekken, which is not read here{_INSTEAD}")


def require_utf8(text: str) -> None:
    """Raises a UserError if `text`, as it came from outside, was not UTF-8: Python keeps such bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the text is not UTF-8: {text!a}") from None
