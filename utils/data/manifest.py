"""The manifest of a data folder: what its shards hold, and how they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from utils.files.atomic import write_atomically

FORMAT_VERSION = 3
READ_VERSIONS = (2, FORMAT_VERSION)  # version 2 has no chats, and counts no bytes of text
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"  # folder with the tokenizer's files beside the shards, to read them by
REPORTS = "reports"  # folder with what was left out: a file per split that lacks a document, and others
TRAIN, TEST = "train", "test"


def split_name(dataset: str, split: str) -> str:
    """What a split's files are named by: `FR/Theatre`, `train` → `FR--Theatre-train`."""
    return f"{dataset.replace('/', '--')}-{split}"


@dataclass(frozen=True)
class Shard:
    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetSplit:
    """A part of a dataset: rows * window == tokens + overlap + padding, and every token is counted once,

    tokens == targets + documents (their first tokens, before which there is nothing) + sum(masked.values()).
    """

    dataset: str
    split: str
    language: str
    group: str
    documents: int  # documents, their variants (augmentation) included; of chats, their samples
    variants: int
    turns: int
    words: int
    tokens: int  # every token of the documents once, begin- and end-of-text tokens included
    targets: int  # tokens that are predicted: all but each document's first, and what is masked
    rows: int
    overlap: int  # tokens that repeat others as left context
    padding: int  # positions of the rows that hold no token
    skipped: dict[str, int]  # documents that were left out, by reason
    sources: list[dict[str, Any]]  # the corpus' files: path, bytes, SHA-256
    shards: list[Shard]
    named: dict[str, int] = field(default_factory=dict)  # how often the text has each name of a special token
    masked: dict[str, int] = field(default_factory=dict)  # tokens that are no targets, by what they are (parts.py)
    text_bytes: int | None = None  # UTF-8 bytes of the documents' text; None: not counted (format version 2)
    target_bytes: int | None = None  # of the text that is predicted
    conversations: int = 0  # of which samples were made: several of one, where its history changes with each answer
    messages: int = 0
    shortened: int = 0  # conversations from whose end turns were left out
    turns_left_out: int = 0

    def __post_init__(self) -> None:
        counted = self.targets + self.documents + sum(self.masked.values())
        assert self.tokens == counted, f"{self.tokens} tokens, but {counted} targets, first and masked tokens"
        assert self.rows == sum(shard.rows for shard in self.shards)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetSplit:
        return cls(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})


@dataclass(frozen=True)
class Manifest:
    tokenizer: str  # fingerprint of the tokenizer (`Tokenizer.fingerprint`)
    vocab_size: int
    bos: bool
    eos: bool
    dtype: str
    window: int
    splits: list[DatasetSplit]
    made_by: dict[str, Any] = field(default_factory=dict)
    added_tokens: list[str] = field(default_factory=list)  # the vocabulary's last, which the foundation's lacks
    template: str = ""  # SHA-256 of the chat template (tokenizer/chat_template.jinja); empty without chats
    format_version: int = FORMAT_VERSION

    @property
    def block_size(self) -> int:
        """Positions a row takes in the model: one less than its tokens."""
        return self.window - 1

    def fingerprint(self, entries: Iterable[DatasetSplit]) -> str:
        """SHA-256 over the tokenizer and the rows of `entries`: what decides which tokens a sample stands for."""
        rows = [(entry.dataset, entry.split, [shard.sha256 for shard in entry.shards]) for entry in entries]
        return hashlib.sha256(json.dumps([self.tokenizer, self.window, rows]).encode()).hexdigest()

    def select(self, split: str, language: str | None = None) -> list[DatasetSplit]:
        """The datasets of `split` that have rows, in name order, of one `language`; a UserError if there are none."""
        chosen = []
        for entry in sorted(self.splits, key=lambda entry: entry.dataset):
            speaks = language is None or entry.language == language.lower()
            if entry.split == split and entry.rows and speaks:
                chosen.append(entry)
        if not chosen:
            wanted = f"'{split}' rows of language '{language}'" if language else f"'{split}' rows"
            full = [entry for entry in self.splits if entry.rows]
            names = sorted({f"{entry.dataset} ({entry.language}, {entry.split})" for entry in full})
            raise UserError(f"the data has no {wanted}; it holds {', '.join(names) or 'nothing'}")
        return chosen

    def to_json(self) -> str:
        values = asdict(self)
        if not self.added_tokens:
            del values["added_tokens"]  # which earlier versions do not know
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def save(self, data_dir: Path) -> None:
        write_atomically(data_dir / MANIFEST, self.to_json())

    @classmethod
    def load(cls, data_dir: Path) -> Manifest:
        """Raises a UserError if there is no manifest, a DataError if it cannot be read or has another version."""
        path = data_dir / MANIFEST
        if not path.is_file():
            raise UserError(f"{path} is missing: not a data folder, or its preparation did not end (prepare_data.py)")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] not in READ_VERSIONS:
                read = " and ".join(map(str, READ_VERSIONS))
                versions = f"format version {values['format_version']}, this program reads {read}"
                raise DataError(f"{path} has {versions}; prepare the data again (prepare_data.py)")
            return cls(**{**values, "splits": [DatasetSplit.from_dict(entry) for entry in values["splits"]]})
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as e:
            raise DataError(f"{path} is no manifest of this program ({e}); prepare the data again") from None
