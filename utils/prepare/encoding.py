"""Documents to tokens: exactly those of the checkpoint's tokenizer, by the fastest library that gives them.

`gigatoken` is several times as fast as tokenizers and sentencepiece, but does not do every tokenizer, nor all of each.
So it is used only where it gave the same tokens for a sample of the run's own text (`choose_library`), never sees a
document with a character (`gigatoken_proof.py`) or the name of a special token that it treats otherwise, and is
compared again on the first documents of each block: if it is wrong there, the program stops.

A part that continues a document begins with the two words before the cut (`Document.context`). Where their tokens are
the first of the part, what follows are the whole document's tokens there; the last of them is the one both parts share.
"""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.batches import batches
from lit_gpt.tokenizer.hf_tokenizer import encoder_of_special_tokens
from lit_gpt.tokenizer.special_tokens import any_of
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.shards import token_dtype
from utils.prepare.documents import Document
from utils.prepare.gigatoken_proof import GIGATOKEN, Proof, load_gigatoken, load_gigatoken_of_chats
from utils.prepare.word_cuts import cut_between_words

BATCH_BYTES = 1_000_000  # text that the slower libraries get at once: they take 100 bytes of memory per token
CHECK_BYTES = 8_192  # text of each block that the slower library checks: 0.2 %, 2 % of the time of the faster one
MOST_GROWTH = 80 * 10**6  # bytes by which a process may grow: gigatoken keeps every word that it has seen
FEW_STARTS = 8  # so many searches take less time than one with a pattern
COUNTED_BYTES = 1 << 18  # text whose words are counted at once: it and the arrays made of it stay in the cache


class Encoded(NamedTuple):
    tokens: np.ndarray  # [tokens], in the smallest unsigned type that holds the vocabulary
    lengths: np.ndarray  # [documents] int64, of those that gave a token
    turns: np.ndarray  # [boundaries] int64, ascending: where a line begins within a document longer than `window`
    shared: int  # how many documents' first tokens repeat the last one of an earlier part of their document
    turn_count: int  # lines of the text that begin with a speaker's tag
    words: int  # what white space separates in the text
    text_bytes: int  # UTF-8 bytes of the documents that gave a token, what parts of one repeat only once
    empty: list[int]  # numbers of the documents that gave no token
    named: Counter[str]  # how often the text has each name of a control token


@dataclass(frozen=True)
class Library:
    name: str
    reason: str  # why this one
    avoid: tuple[bytes, ...] = ()  # a document that holds one is left to the slower library


def choose_library(
    tokenizer: Tokenizer, sample: list[str] | None, proof: Proof | None = None, special_tokens_in_text: bool = False
) -> Library:
    """gigatoken if it gives the tokens of `tokenizer` for every text of `sample`, else the tokenizer's own library."""
    own = tokenizer.library
    if sample is None:
        return Library(own, "asked for by --fast_tokenizer false")
    if proof and proof.refused:
        return Library(own, proof.refused)
    try:
        load = load_gigatoken_of_chats if special_tokens_in_text else load_gigatoken
        fast = load(tokenizer.directory)
    except ImportError:
        return Library(own, "gigatoken is not installed (pip install gigatoken)")
    except (RuntimeError, ValueError) as e:
        return Library(own, f"gigatoken does not do this tokenizer: {str(e).partition(chr(10))[0]}")

    encode = encoder_of_special_tokens(tokenizer) if special_tokens_in_text else tokenizer.encode_batch

    def differs(text: str) -> bool:
        return fast.encode(text.encode()).tolist() != encode([text])[0]

    avoid = proof.avoid() if proof else []
    for name in tokenizer.special_tokens:
        # gigatoken makes tokens of these always
        is_text = name in tokenizer.control_tokens and not special_tokens_in_text
        # a special token may take the white space beside it
        if is_text or differs(f"a{name}b") or differs(f"a {name} b"):
            avoid.append(name.encode())
    avoided = _Names(avoid)
    fast_sample = [text for text in sample if not avoided.in_text(text.encode())]
    if wrong := next(filter(differs, fast_sample), None):
        return Library(own, f"gigatoken gives other tokens for {wrong[:40]!r}")
    size = sum(map(len, fast_sample))
    return Library(GIGATOKEN, f"the same tokens as {own} for {size:,} characters of this corpus", tuple(avoid))


class FastTokenizer:
    """gigatoken, where it is known to be right, proven again on each block, and kept from growing."""

    def __init__(self, tokenizer: Tokenizer, avoid: Sequence[bytes], special_tokens_in_text: bool) -> None:
        self._directory, self._slow_name = tokenizer.directory, tokenizer.library
        self._load = load_gigatoken_of_chats if special_tokens_in_text else load_gigatoken
        self._gigatoken: Any = self._load(tokenizer.directory)
        self._size_at_first = resident_bytes()
        self._avoid = _Names(avoid)

    def encode(self, texts: list[bytes]) -> list[np.ndarray | None]:
        """The ids of each text, uint32 [tokens]; None for one that is left to the slower library."""
        encode = self._gigatoken.encode
        return [None if self._avoid.in_text(text) else encode(text) for text in texts]

    def start_block(self, texts: list[bytes], slowly: Callable[[list[bytes]], list[np.ndarray]]) -> None:
        """Raises a `DataError` if gigatoken gives other tokens for the first of `texts`: so it may have before."""
        self._keep_small()
        checked, size = [], 0
        for text in texts:
            if size + len(text) > CHECK_BYTES and not checked:
                text = text[: cut_between_words(text, 0, min(CHECK_BYTES, len(text) - 1))[0]]
            size += len(text)
            if size > CHECK_BYTES:
                break
            if not self._avoid.in_text(text):
                checked.append(text)
        for text, ids in zip(checked, slowly(checked), strict=True):
            if not np.array_equal(self._gigatoken.encode(text), ids):
                begin = text.decode("utf-8", "ignore")[:40]
                raise DataError(
                    f"gigatoken gives other tokens than {self._slow_name} for a text beginning {begin!r}; "
                    "run the same command again with --fast_tokenizer false"
                )

    def _keep_small(self) -> None:
        """Loads gigatoken anew, which takes 0.1 s, where it has made this process grow too much."""
        if resident_bytes() - self._size_at_first > MOST_GROWTH:
            self._gigatoken = None
            load_gigatoken.cache_clear()
            load_gigatoken_of_chats.cache_clear()
            self._gigatoken = self._load(self._directory)
            give_back_memory()
            self._size_at_first = max(self._size_at_first, resident_bytes())


class Encoder:
    """Documents to `Encoded`: each one's tokens, between the begin- and end-of-text tokens that are wanted."""

    def __init__(
        self,
        checkpoint_dir: Path,
        bos: bool,
        eos: bool,
        window: int,
        library: Library,
        special_tokens_in_text: bool = False,
    ) -> None:
        self._tokenizer = Tokenizer(checkpoint_dir)
        self._encode_special = encoder_of_special_tokens(self._tokenizer) if special_tokens_in_text else None
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._nothing = np.zeros(0, np.uint32)
        self._before = np.array([self._tokenizer.bos_id], np.uint32) if bos else self._nothing
        self._after = np.array([self._tokenizer.eos_id], np.uint32) if eos else self._nothing
        self._window = window
        self._fast = None
        if library.name == GIGATOKEN:
            self._fast = FastTokenizer(self._tokenizer, library.avoid, special_tokens_in_text)
        self._control_names = _Names([name.encode() for name in self._tokenizer.control_tokens])
        self._line_ends, self._line_starts = self._tokenizer.line_ends, self._tokenizer.line_starts

    def __call__(self, documents: list[Document]) -> Encoded:
        """The tokens of a block's documents, in their order; a DataError if gigatoken gives others for the first of
        them.

        A part of a document begins with the last token of the part before it, where that can be told from the text, and
        has no begin-of-text token then; only its last part has an end-of-text token.
        """
        texts = [document.text for document in documents]
        if self._fast is not None:
            self._fast.start_block(texts, self._encode_slowly)
        found = self._encode(texts)
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        empty: list[int] = []
        shared = 0
        for number, (document, ids) in enumerate(zip(documents, found, strict=True)):
            if not len(ids):
                empty.append(number)
                continue
            repeats = False
            if document.context:
                ids, repeats = self._without_context(document, ids)
            before = self._nothing if repeats else self._before
            after = self._after if document.ends else self._nothing
            parts += [before, ids, after]
            lengths.append(len(before) + len(ids) + len(after))
            shared += repeats
        joined = np.concatenate([self._nothing, *parts], dtype=np.uint32, casting="unsafe")
        assert joined.max(initial=0) < self._tokenizer.vocab_size, "a token id outside of the vocabulary"
        tokens = joined.astype(self._dtype)
        own_texts = [document.text[document.context :] for document in documents]
        words, turn_count = count_words_and_turns(own_texts)
        return Encoded(
            tokens=tokens,
            lengths=np.array(lengths, np.int64),
            turns=self._turns(tokens, np.array(lengths, np.int64)),
            shared=shared,
            turn_count=turn_count,
            words=words,
            text_bytes=sum(map(len, own_texts)) - sum(len(own_texts[number]) for number in empty),
            empty=empty,
            named=self._control_names.count(own_texts),
        )

    def _encode(self, texts: list[bytes]) -> list[np.ndarray]:
        if self._fast is None:
            return self._encode_slowly(texts)
        found = self._fast.encode(texts)
        slowly = iter(self._encode_slowly([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(slowly) if ids is None else ids for ids in found]

    def _encode_slowly(self, texts: list[bytes]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for batch in batches(texts, BATCH_BYTES):
            if len(batch) == 1 and len(batch[0]) > BATCH_BYTES:
                found.append(self._encode_long(batch[0]))
            else:
                found += self._encode_batch(batch)
        return found

    def _encode_batch(self, texts: list[bytes]) -> list[np.ndarray]:
        encode = self._encode_special or self._tokenizer.encode_batch
        return [np.array(ids, np.uint32) for ids in encode([text.decode() for text in texts])]

    def _encode_long(self, text: bytes) -> np.ndarray:
        """The ids of a text that takes much memory at once: of parts that repeat two words, if they fit together."""
        found = []
        position = context = 0
        while position < len(text):
            rest = text[position - context : position + BATCH_BYTES]
            end, following = len(rest), 0
            if position + BATCH_BYTES < len(text):
                end, following = cut_between_words(rest, context, len(rest) - 1)
            [ids] = self._encode_batch([rest[:end]])
            if context:
                [repeated] = self._encode_batch([rest[:context]])
                if not np.array_equal(ids[: len(repeated)], repeated):
                    return self._encode_batch([text])[0]
                ids = ids[len(repeated) :]
            found.append(ids)
            position, context = position - context + end, following
            if not following and position < len(text):
                return self._encode_batch([text])[0]
        return np.concatenate(found)

    def _without_context(self, document: Document, ids: np.ndarray) -> tuple[np.ndarray, bool]:
        """The ids that follow the context, after the last id of the context; and whether they begin with that one."""
        context = self._encode([document.text[: document.context]])[0]
        if len(context) and np.array_equal(ids[: len(context)], context):
            return ids[len(context) - 1 :], True
        return self._encode([document.text[document.context :]])[0], False

    def _turns(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        found = [np.zeros(0, np.int64)]
        ends = np.cumsum(lengths)
        for document in np.flatnonzero(lengths > self._window).tolist():
            first = int(ends[document] - lengths[document])
            own = tokens[first : ends[document]]
            begins = _find(self._line_ends, own[:-1]) | _find(self._line_starts, own[1:])
            found.append(np.flatnonzero(begins) + 1 + first)
        return np.concatenate(found)


class _Names:
    """Texts that are looked for in documents."""

    def __init__(self, names: Sequence[bytes]) -> None:
        source = any_of(name.decode("latin-1") for name in names) if names else "(?!)"
        self._pattern = re.compile(source.encode("latin-1"))
        # most documents have no byte with which a name begins, which is found 60 times as fast as the pattern, or at
        # least not the three or two bytes, where these are few
        self._starts: list[tuple[bytes, bytes]] = []
        for first in sorted({name[:1] for name in names}):
            own = [name for name in names if name.startswith(first)]
            starts = ({name[:size] for name in own} for size in (3, 2))
            few = next((found for found in starts if len(found) <= FEW_STARTS), {first})
            self._starts += [(first, start) for start in sorted(few)]

    def in_text(self, text: bytes) -> bool:
        return self._may_be_in(text) and self._pattern.search(text) is not None

    def count(self, texts: list[bytes]) -> Counter[str]:
        found: Counter[bytes] = Counter()
        for text in filter(self._may_be_in, texts):
            found.update(self._pattern.findall(text))
        return Counter({name.decode(): count for name, count in found.items()})

    def _may_be_in(self, text: bytes) -> bool:
        return any(first in text and start in text for first, start in self._starts)


def _find(chosen: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Which of `tokens` are `chosen`, bool [vocabulary]: bool [tokens]."""
    ids = np.flatnonzero(chosen)
    if len(ids) > 4:  # comparing with each of few ids is some 20 times as fast as looking up each token
        return chosen.take(tokens, mode="clip")
    found = np.zeros(len(tokens), bool)
    for token in ids.tolist():
        found |= tokens == token
    return found


def resident_bytes() -> int:
    """Memory that this process holds; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back_memory() -> None:
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def count_words_and_turns(texts: list[bytes]) -> tuple[int, int]:
    """What white space separates, no-break spaces included (as `wc -w` counts), and lines that begin with a tag."""
    words = turns = 0
    for batch in batches(texts, COUNTED_BYTES):
        letters = np.frombuffer(b"\n".join([*batch, b""]), np.uint8)
        words += _count_words(letters)
        turns += _count_turns(letters)
    return words, turns


def _count_words(letters: np.ndarray) -> int:
    is_space = letters <= 0x20
    for code in ("\u00a0", "\u202f"):
        first, *others = code.encode()
        found = np.flatnonzero(letters == first)  # these bytes are rare
        for offset, byte in enumerate(others, start=1):
            found = found[letters[found + offset] == byte]
        for offset in range(len(others) + 1):
            is_space[found + offset] = True
    return int(np.count_nonzero(is_space[1:] > is_space[:-1]))


def _count_turns(letters: np.ndarray) -> int:
    """Counts the lines that begin with a speaker's tag, `[name:]`, in text that ends with a line."""
    ends = np.flatnonzero(letters == 0x0A)
    begins = np.append(0, ends[:-1] + 1)
    tagged = letters[begins] == 0x5B
    begins, ends = begins[tagged], ends[tagged]
    closes = np.append(np.flatnonzero(letters == 0x5D), len(letters))
    close = closes[np.searchsorted(closes, begins)]
    is_tag = (close < ends) & (close > begins + 2) & (letters[close - 1] == 0x3A)
    return int(np.count_nonzero(is_tag))
