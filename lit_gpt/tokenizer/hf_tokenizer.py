"""SentencePiece's tokenizer.model → Hugging Face's tokenizer.json.

transformers' own converters take spaces and normalisation from the class that tokenizer_config.json names: of ten texts
LlamaTokenizer gave other ids for 3 to 9, depending on how the model was trained (transformers 5.3, `KINDS` in
tests/export/test_convert_litgpt_to_transformers.py). The tokenizer.json made here says all that tokenizer.model does.
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto, NormalizerSpec, TrainerSpec
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.special_tokens import any_of, hide
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer, refuse_tiktoken

_Piece = ModelProto.SentencePiece
BEGINS_WITH_SPACE = r"\A[ ▁]"
Encode = Callable[[list[str]], list[list[int]]]


def tokenizer_json(tokenizer: Tokenizer) -> HFTokenizer | None:
    """The `tokenizers.Tokenizer` that does what `tokenizer`, read from a tokenizer.model, does. Two differences remain:

    1. By Hugging Face's convention a control token's name in the text (`</s>`) becomes that token.
    2. Where SentencePiece normalises, characters of 6 bytes and more, made of several (half-width ｶﾞ), stay apart.

    None for a kind of SentencePiece model that has no counterpart. A DataError if the tokenizer.model cannot be read.
    """
    proto = read_sentencepiece(tokenizer.directory / "tokenizer.model")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (TrainerSpec.UNIGRAM, TrainerSpec.BPE) or trainer.treat_whitespace_as_suffix:
        return None
    adds_space = normalizer.add_dummy_prefix
    result = HFTokenizer(_model(proto))
    if steps := _normalizers(normalizer):
        result.normalizer = normalizers.Sequence(steps)
    scheme = "first" if adds_space else "never"
    result.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_space:
        decoding.append(decoders.Strip(" ", 1, 0))
    result.decoder = decoders.Sequence(decoding)
    added = []
    for piece in proto.pieces:
        if piece.type in (_Piece.UNKNOWN, _Piece.CONTROL, _Piece.USER_DEFINED):
            is_special = piece.type != _Piece.USER_DEFINED
            added.append(AddedToken(piece.piece, special=is_special, normalized=False))
    result.add_tokens(added)
    if tokenizer.adds_bos:
        result.post_processor = _begin_with(proto.pieces[tokenizer.bos_id].piece, tokenizer.bos_id, True)
    return result


def encoder_of_special_tokens(tokenizer: Tokenizer) -> Encode:
    """What gives the token ids of texts where the name of a special token is that token, not its characters.

    A DataError for a kind of SentencePiece model that has no tokenizer.json.
    """
    if tokenizer.library == "tokenizers":
        return tokenizer.encode_with_special_tokens
    made = _required_json(tokenizer)
    names = re.compile(any_of(tokenizer.control_tokens))

    def encode(texts: list[str]) -> list[list[int]]:
        found = tokenizer.encode_batch(texts)
        for number, text in enumerate(texts):
            if names.search(text):
                found[number] = made.encode(text, add_special_tokens=False).ids
        return found

    return encode


def encoder_of_hidden_names(tokenizer: Tokenizer) -> Encode:
    """Likewise, but of names that `hide` gave these tokens: so a text can hold both them and their names."""
    hidden = tokenizer_with_offsets(tokenizer, hidden_names=True)
    return lambda texts: [hidden.encode(text, add_special_tokens=False).ids for text in texts]


def tokenizer_with_offsets(tokenizer: Tokenizer, hidden_names: bool) -> HFTokenizer:
    """The tokenizer as Hugging Face's library has it, so that each token says which characters it covers.

    The name of a special token in a text is that token: its own name, or the one that `hide` gave it. A DataError for a
    kind of SentencePiece model that has no tokenizer.json.
    """
    if tokenizer.library == "tokenizers":
        made = HFTokenizer.from_file(str(tokenizer.directory / "tokenizer.json"))
    else:
        made = _required_json(tokenizer)
    if hidden_names:
        made = HFTokenizer.from_str(json.dumps(hide(json.loads(made.to_str()), tokenizer.chat_control_tokens)))
    made.post_processor = None  # it would take the spaces from what tokens cover
    made.no_padding()
    made.no_truncation()
    return made


def _required_json(tokenizer: Tokenizer) -> HFTokenizer:
    if made := tokenizer_json(tokenizer):
        return made
    raise DataError(f"the tokenizer of {tokenizer.directory} needs a tokenizer.json for special tokens in a text")


def read_sentencepiece(path: Path) -> ModelProto:
    """Reads a tokenizer.model; a DataError if it is not a SentencePiece model."""
    refuse_tiktoken(path)
    try:
        proto = ModelProto.FromString(path.read_bytes())
    except DecodeError as e:
        raise DataError(f"{path} is no SentencePiece model: {e}") from None
    if not proto.pieces:
        raise DataError(f"{path} is no SentencePiece model: it has no vocabulary")
    return proto


def _normalizers(normalizer: NormalizerSpec) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if normalizer.add_dummy_prefix:
        # SentencePiece puts its space before every text, Metaspace not before one that begins with a space already
        if normalizer.remove_extra_whitespaces:
            steps.append(normalizers.Prepend("▁"))
        else:
            steps.append(normalizers.Replace(Regex(BEGINS_WITH_SPACE), " ▁"))
    return steps


def _model(proto: ModelProto) -> models.Model:
    pieces, trainer = proto.pieces, proto.trainer_spec
    types = [piece.type for piece in pieces]
    unknown = types.index(_Piece.UNKNOWN) if _Piece.UNKNOWN in types else None
    if trainer.model_type == TrainerSpec.UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        return models.Unigram(scores, unk_id=unknown, byte_fallback=trainer.byte_fallback)
    vocabulary = {piece.piece: index for index, piece in enumerate(pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(pieces, vocabulary),
        unk_token=None if unknown is None else pieces[unknown].piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _merges(pieces: Sequence[_Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, in SentencePiece's order: the best-scored piece first.

    SentencePiece takes equal scores from left to right, a list of merges cannot; the longest left part first comes out
    the same (0 of 10,428 runs of up to 79 equal characters differ with Mistral's tokenizer; in ids' order 754 do).
    """
    merges = []
    for piece in pieces:
        if piece.type in (_Piece.UNKNOWN, _Piece.CONTROL):
            continue  # no text becomes one of these
        for cut in range(len(piece.piece) - 1, 0, -1):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-piece.score, -cut, left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def export_tokenizer(source: Tokenizer, folder: Path, sample: str) -> str | None:
    """Writes into `folder` the tokenizer files with which transformers gives the ids that `source` gives.

    A tokenizer.json made here has to agree with `source` on the text `sample`, and on texts with symbols that the
    tokenizer's maker added: around these its spaces may be others. Returns a warning if it does not.
    """
    for name in (*TOKENIZER_FILES, "added_tokens.json", "vocab.json", "merges.txt"):
        if name != "generation_config.json" and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if path.is_file():
        made = HFTokenizer.from_file(str(path))
        asks_for = (made.padding, made.truncation)  # of every text, as its maker's last call had it
        made.no_padding()
        made.no_truncation()
        begin = [source.bos_id] if source.adds_bos else []
        adds_others = made.encode("a").ids != [*begin, *made.encode("a", add_special_tokens=False).ids]
        if adds_others:
            made.post_processor = _begin_with(source.vocabulary[source.bos_id or 0], source.bos_id or 0, bool(begin))
        if adds_others or asks_for != (None, None):
            made.save(str(path))
    else:
        made = checked_tokenizer_json(source, sample)
        if made is None:
            return "no tokenizer.json gives the ids of this tokenizer.model: transformers will need protobuf to read it"
        made.save(str(path))
    config = {}
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    # takes tokenizer.json as it is; other classes build their own from its vocabulary, some with other spaces
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": source.adds_bos}
    for kind, index in (("bos", source.bos_id), ("eos", source.eos_id)):
        if index is not None:
            config.setdefault(f"{kind}_token", source.vocabulary[index])
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return None


def checked_tokenizer_json(source: Tokenizer, sample: str) -> HFTokenizer | None:
    """`tokenizer_json`, or None if it gives other ids than `source` for a text of `export_tokenizer`."""
    made = tokenizer_json(source)
    texts = [sample, *_texts_with_symbols(source)]
    if made and all(made.encode(text, add_special_tokens=False).ids == source.encode(text) for text in texts):
        return made
    return None


def _texts_with_symbols(source: Tokenizer) -> list[str]:
    proto = read_sentencepiece(source.directory / "tokenizer.model")
    symbols = [piece.piece for piece in proto.pieces if piece.type == _Piece.USER_DEFINED]
    return [form.format(symbol) for symbol in symbols for form in ("{} a", "a {} b", "a{}b")]


def _begin_with(token: str, index: int, wanted: bool) -> processors.PostProcessor:
    """The post-processor that begins a text with `token`, or adds no tokens at all."""
    begin = f"{token} " if wanted else ""
    return processors.TemplateProcessing(f"{begin}$A", f"{begin}$A $B", [(token, index)])
