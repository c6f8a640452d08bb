"""A tokenizer for chats made on the spot, whose end of a turn is not its end of a text."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
NAMES = (END_OF_TEXT, "<|im_start|>", END_OF_TURN)
WORDS = ("user", "assistant", "system", "Reverse", "Repeat", "First", "Last")


def make_chat_tokenizer(
    folder: Path, words: Sequence[str] = WORDS, names: Sequence[str] = NAMES, **config: str
) -> Path:
    """Byte-level BPE of the 256 bytes, the special tokens `names`, of which the first ends a text, and `words`.

    `config` is for tokenizer_config.json.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=[*names], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([word for word in words for _ in range(2)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[0], **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def make_chat_sentencepiece(folder: Path, words: Sequence[str] = WORDS, names: Sequence[str] = NAMES[1:]) -> Path:
    """A SentencePiece model of the 256 bytes, `words`, digits and the control tokens `names`: llama.cpp reads it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence for word in words for sentence in [word] * 50 + [f"{word} 0123456789"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=350,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=[*names],
        character_coverage=1.0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    said = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder
