"""SentencePiece's tokenizer.model → Hugging Face's tokenizer.json, without protobuf and without transformers.

transformers 5 reads a bare tokenizer.model only where the protobuf package is installed, and then lets the class named
in tokenizer_config.json decide on spaces and normalisation. A tokenizer.json says it all, and every version reads it.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer

# Files beside TOKENIZER_FILES that some tokenizers have.
_OTHER_FILES = ("added_tokens.json", "vocab.json", "merges.txt")

# SentencePiece's ModelProto.SentencePiece.Type and TrainerSpec.ModelType
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
UNIGRAM, BPE = 1, 2


class Piece(NamedTuple):
    text: str
    score: float
    type: int


def tokenizer_json(tokenizer: Tokenizer) -> Any | None:
    """The `tokenizers.Tokenizer` that does what `tokenizer`, read from a tokenizer.model, does.

    None for a kind of SentencePiece model that has no counterpart.

    It begins a text with BOS, when asked to add special tokens, where `tokenizer.adds_bos`. Two differences remain: by
    Hugging Face's convention a control token's name in the text (`</s>`) becomes that token, and where SentencePiece
    normalises, characters of 6 bytes and more that are made of several (half-width ｶﾞ) are not put together.

    Raises:
        DataError: if the tokenizer.model cannot be read.
    """
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as HFTokenizer

    path = tokenizer.directory / "tokenizer.model"
    pieces, trainer, normalizer = parse_sentencepiece(path)
    if trainer.get(3, UNIGRAM) not in (UNIGRAM, BPE) or trainer.get(24, 0):  # treat_whitespace_as_suffix
        return None
    result = HFTokenizer(_model(pieces, trainer))
    steps = [normalizers.Precompiled(normalizer[2])] if normalizer.get(2) else []
    strips, prefix = normalizer.get(4, 1), normalizer.get(3, 1)  # remove_extra_whitespaces, add_dummy_prefix
    if strips:
        steps += [normalizers.Replace(Regex(pattern), by) for pattern, by in ((r"\A +| +\z", ""), (" {2,}", " "))]
    if prefix:
        # SentencePiece puts its space before every text, Metaspace not before one that begins with a space already
        steps.append(normalizers.Prepend("▁") if strips else normalizers.Replace(Regex(r"\A[ ▁]"), " ▁"))
    if steps:
        result.normalizer = normalizers.Sequence(steps)
    result.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first" if prefix else "never", split=False)
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    result.decoder = decoders.Sequence(decoding + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    added = [piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    result.add_tokens(
        [AddedToken(p.text, special=p.type != _USER_DEFINED, normalized=False) for p in added],
    )
    if tokenizer.adds_bos:
        result.post_processor = _begin_with(pieces[tokenizer.bos_id].text, tokenizer.bos_id, True)
    return result


def _model(pieces: list[Piece], trainer: dict[int, Any]) -> Any:
    from tokenizers import models

    unknown = next((index for index, piece in enumerate(pieces) if piece.type == _UNKNOWN), None)
    byte_fallback = bool(trainer.get(35, 0))
    if trainer.get(3, UNIGRAM) == UNIGRAM:
        return models.Unigram([(p.text, p.score) for p in pieces], unk_id=unknown, byte_fallback=byte_fallback)
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(pieces, vocabulary),
        unk_token=None if unknown is None else pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def _merges(pieces: list[Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, in SentencePiece's order: the best-scored piece first.

    SentencePiece takes equal scores from left to right, a list of merges cannot; the longest left part first comes out
    the same (0 of 10,428 runs of up to 79 equal characters differ with Mistral's tokenizer; in ids' order 754 do).
    """
    merges = []
    for piece in pieces:
        for cut in range(len(piece.text) - 1, 0, -1):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-piece.score, -cut, left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def parse_sentencepiece(path: Path) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """The pieces, the trainer's settings and the normaliser's, these two by their field numbers in ModelProto."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append(Piece(piece[1].decode(), score, piece.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, KeyError, IndexError, struct.error, AttributeError, TypeError) as e:
        raise DataError(f"{path} is no SentencePiece model: {e}") from None
    return pieces, trainer, normalizer


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message: varints as int, everything else as bytes.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"wire type {wire_type}")
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        yield number, message[position : position + size]
        position += size


def export_tokenizer(source: Tokenizer, folder: Path, sample: str) -> str | None:
    """Writes into `folder` the tokenizer files with which transformers gives the ids that `source` gives.

    tokenizer_config.json names the class that takes tokenizer.json as it is; others build their own from its
    vocabulary, and some then treat spaces otherwise than training did.

    Args:
        source: the tokenizer that the model was trained with.
        folder: an existing directory.
        sample: text on which a tokenizer.json made here has to agree with `source`.

    Returns:
        A warning, if there is only a tokenizer.model because no tokenizer.json does the same.
    """
    for name in (*TOKENIZER_FILES, *_OTHER_FILES):
        if name != "generation_config.json" and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if path.is_file():
        from tokenizers import Tokenizer as HFTokenizer

        made = HFTokenizer.from_file(str(path))
        if (made.encode("a").ids[:1] == [source.bos_id]) != source.adds_bos:
            made.post_processor = _begin_with(source.vocabulary[source.bos_id], source.bos_id, source.adds_bos)
            made.save(str(path))
    else:
        made = tokenizer_json(source)
        if made is None or made.encode(sample, add_special_tokens=False).ids != source.encode(sample):
            return "no tokenizer.json gives the ids of this tokenizer.model: transformers will need protobuf to read it"
        made.save(str(path))
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    config.pop("auto_map", None)  # code of the foundation's repository
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": source.adds_bos}
    for kind, index in (("bos", source.bos_id), ("eos", source.eos_id)):
        if index is not None:
            config.setdefault(f"{kind}_token", source.vocabulary[index])
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return None


def _begin_with(token: str, index: int, wanted: bool) -> Any:
    """The post-processor that begins a text with `token`, or adds no tokens at all."""
    from tokenizers import processors

    begin = f"{token} " if wanted else ""
    return processors.TemplateProcessing(f"{begin}$A", f"{begin}$A $B", [(token, index)])
