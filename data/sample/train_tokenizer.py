"""Trains the sample's tokenizer, a small SentencePiece BPE in the shape of Llama's, on the train files of both corpora.

Small enough to lie in the repository, and the embedding table of a model that uses it small enough for a laptop.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[0] = str(HERE.parents[1])  # the repository, not this file's folder

import sentencepiece

from lit_gpt.errors import UserError
from utils import cli

TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
}


@dataclass(frozen=True)
class Options:
    """Trains the sample's tokenizer on its train files, the same bytes at every run."""

    data_dir: Path = HERE
    """Folder that holds french/ and english/."""

    out_dir: Path = HERE / "tokenizer"
    """Folder that gets tokenizer.model, tokenizer_config.json and generation_config.json."""

    vocab_size: int = 1280
    """Entries in the vocabulary, 259 of which are special tokens and bytes."""


def main(options: Options) -> None:
    files = sorted(options.data_dir.glob("*/*/*/train.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        raise UserError(f"{options.data_dir} has no <corpus>/<language>/<dataset>/train.txt")
    try:
        model = train(lines, options.vocab_size)
    except RuntimeError as e:
        raise UserError(f"SentencePiece cannot make a vocabulary of {options.vocab_size}: {e}") from None
    options.out_dir.mkdir(parents=True, exist_ok=True)
    (options.out_dir / "tokenizer.model").write_bytes(model)
    write_json(options.out_dir / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(options.out_dir / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def train(lines: list[str], vocab_size: int) -> bytes:
    """The trained model as SentencePiece writes it; equal lines give equal bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        # as Llama's and Mistral's: every text comes back unchanged, a newline as the byte <0x0A>
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        # longer lines would be left out of the training
        max_sentence_length=max(len(line.encode()) for line in lines),
        # the order in which threads count decides between equally frequent pairs
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(Options)))
