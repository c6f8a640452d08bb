"""A raw corpus: its datasets, their documents, and the tokens of these.

1. `find_sources` walks a folder tree: a dataset is a folder that holds full.txt, or train.txt and/or test.txt.
2. `read_documents` streams one such file: conversations separated by blank lines, decoded strictly.
3. `EncoderPool.encode` turns them into `Encoded` chunks, in order, on several processes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.command import DataError, UserError
from lit_gpt.tokenizer import Tokenizer
from utils.shards import TEST, TRAIN, shard_name, token_dtype

SPLIT_OF_FILE = {"full.txt": TRAIN, "train.txt": TRAIN, "test.txt": TEST}
TURN = re.compile(r"^\[[^\]\n]+:\]", flags=re.MULTILINE)
CHUNK_CHARACTERS = 1_000_000  # some 0.2 s of tokenisation: enough to make sending it to another process cheap


@dataclass(frozen=True)
class Source:
    """One file of a dataset."""

    dataset: str
    split: str
    path: Path
    name: str
    """The path relative to the corpus, with `/`."""

    @property
    def language(self) -> str:
        """`fr` for the dataset `FR/Theatre`; empty where the first part of the name is no language code."""
        first = self.dataset.split("/")[0].lower()
        return first if re.fullmatch("[a-z]{2,3}", first) else ""


class BadDocument(DataError):
    """A document that is not UTF-8 text, or that holds a NUL character."""


class Encoded(NamedTuple):
    """The tokens of some documents, side by side.

    tokens [tokens]; lengths [documents]; turns [boundaries], the first token of each line but a document's first,
    counted from the first of `tokens`; then what was counted in the text, and the documents that gave no token.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    turns: np.ndarray
    turn_count: int
    words: int
    characters: int
    empty: int


def find_sources(source_path: Path) -> list[Source]:
    """The corpus files below `source_path`, by dataset name, train before test.

    Raises:
        UserError: if `source_path` is no directory.
        DataError: if there is no dataset, or one cannot be told from another.
        OSError: if a directory cannot be read.
    """
    if not source_path.is_dir():
        raise UserError(f"{source_path} is not a directory; --source_path is the folder of the raw corpus")
    sources: list[Source] = []
    for folder, names in _walk(source_path):
        relative = folder.relative_to(source_path).as_posix()
        dataset = source_path.resolve().name if relative == "." else relative
        files = [name for name in SPLIT_OF_FILE if name in names]
        if "full.txt" in files and len(files) > 1:
            raise DataError(f"{folder} has full.txt and {files[1]}; keep either full.txt, or train.txt and test.txt")
        for name in files:
            path = folder / name
            sources.append(Source(dataset, SPLIT_OF_FILE[name], path, path.relative_to(source_path).as_posix()))
    if not sources:
        raise DataError(f"{source_path} holds no conversation: no folder in it has a full.txt, train.txt or test.txt")
    by_prefix: dict[str, Source] = {}
    for source in sources:
        other = by_prefix.setdefault(shard_name(source.dataset, source.split, 0, 1), source)
        if other is not source:
            raise DataError(f"{other.path} and {source.path} would have the same shard names; rename a folder")
    return sorted(sources, key=lambda source: (source.dataset, source.split != TRAIN))


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder from `top` down and the names of its files; follows links, but yields no folder twice."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=fail):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders.sort()
        yield Path(folder), set(names)


def read_documents(path: Path, on_bad: Callable[[BadDocument], None]) -> Iterator[str]:
    """The documents of `path`: what stands between blank lines, stripped, its line ends `\\n`.

    A byte-order mark is left out. For a document that is not UTF-8, or has a NUL, `on_bad` gets an error with the
    file and the byte's offset in it; if it returns, the document is left out.
    """
    block, begin, offset = bytearray(), 0, 0
    for line in _lines(path):
        if offset == 0 and line.startswith(b"\xef\xbb\xbf"):
            offset, line = 3, line[3:]
        if not line.decode("utf-8", "replace").strip():
            if block:
                yield from _decode(path, block, begin, on_bad)
                block.clear()
        else:
            begin = begin if block else offset
            block += line
        offset += len(line)
    if block:
        yield from _decode(path, block, begin, on_bad)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, which are `\\n`, `\\r\\n` or `\\r`."""
    with path.open("rb") as file:
        for line in file:
            yield from line.splitlines(keepends=True)


def _decode(path: Path, block: bytearray, begin: int, on_bad: Callable[[BadDocument], None]) -> Iterator[str]:
    """The document in `block`, which lies at offset `begin` of `path`; nothing if it is bad and `on_bad` returns."""
    nul = block.find(0)
    try:
        text = block.decode("utf-8")
        bad = nul, "a NUL character"
    except UnicodeDecodeError as e:
        bad = (nul, "a NUL character") if 0 <= nul < e.start else (e.start, "no valid UTF-8")
    if bad[0] < 0:
        yield text.replace("\r\n", "\n").replace("\r", "\n").strip()
    else:
        on_bad(BadDocument(f"{path}: {bad[1]} at byte offset {begin + bad[0]}"))


class Encoder:
    """Texts to `Encoded`: each document is its tokens between the begin- and end-of-text tokens that are wanted."""

    def __init__(self, checkpoint_dir: Path, bos: bool, eos: bool) -> None:
        self._tokenizer = Tokenizer(checkpoint_dir)
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._before = [self._tokenizer.bos_id] if bos else []
        self._after = [self._tokenizer.eos_id] if eos else []

    def __call__(self, texts: list[str]) -> Encoded:
        found = self._tokenizer.encode_batch(texts)
        documents = [np.array([*self._before, *ids, *self._after]) for ids in found if ids]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        tokens = np.concatenate([*documents, np.zeros(0, dtype=np.int64)])
        assert tokens.max(initial=0) < self._tokenizer.vocab_size, "a token id outside of the vocabulary"
        tokens = tokens.astype(self._dtype)
        is_start = self._tokenizer.line_ends[tokens[:-1]] | self._tokenizer.line_starts[tokens[1:]]
        turns = np.setdiff1d(np.flatnonzero(is_start) + 1, np.cumsum(lengths))
        kept = [text for text, ids in zip(texts, found, strict=True) if ids]
        turn_count = sum(len(TURN.findall(text)) for text in kept)
        words = sum(len(text.split()) for text in kept)
        return Encoded(tokens, lengths, turns, turn_count, words, sum(map(len, texts)), len(texts) - len(kept))


_encoder: Encoder | None = None  # a worker process's own


def _start_worker(checkpoint_dir: Path, bos: bool, eos: bool) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    # a parent that was killed outright leaves its workers waiting for ever
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(checkpoint_dir, bos, eos)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> Encoded:
    assert _encoder is not None
    return _encoder(texts)


class EncoderPool(AbstractContextManager["EncoderPool"]):
    """An `Encoder` on `num_workers` processes; one worker is this process itself."""

    def __init__(self, checkpoint_dir: Path, bos: bool, eos: bool, num_workers: int) -> None:
        self._num_workers = num_workers
        self._resources = ExitStack()
        self._encoder = Encoder(checkpoint_dir, bos, eos) if num_workers == 1 else None
        self._pool: ProcessPoolExecutor | None = None
        if num_workers > 1:
            # spawned, not forked: the tokenizers library has threads
            context = multiprocessing.get_context("spawn")
            arguments = (checkpoint_dir, bos, eos)
            self._pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=arguments)
            self._resources.callback(self._pool.shutdown, cancel_futures=True)

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def encode(self, documents: Iterable[str]) -> Iterator[Encoded]:
        """The documents' tokens, in the documents' order, some 1 MB of text at a time.

        Raises:
            OSError: if a worker process was killed, which the system does when memory runs out.
        """
        if self._encoder is not None:
            yield from map(self._encoder, _chunks(documents))
            return
        assert self._pool is not None
        waiting: deque[Future[Encoded]] = deque()
        try:
            for texts in _chunks(documents):
                waiting.append(self._pool.submit(_encode_in_worker, texts))
                if len(waiting) > 2 * self._num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            problem = "a tokenisation process was killed, as happens when memory runs out; use fewer --num_workers"
            raise OSError(errno.ENOMEM, problem) from None


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def join_chunks(chunks: list[Encoded], dtype: np.dtype) -> Encoded:
    """The chunks as one; `dtype` is that of the tokens, for when there is none."""
    offsets = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])
    turns = [chunk.turns + offset for chunk, offset in zip(chunks, offsets, strict=False)]
    return Encoded(
        np.concatenate([np.zeros(0, dtype), *(chunk.tokens for chunk in chunks)]),
        np.concatenate([np.zeros(0, np.int64), *(chunk.lengths for chunk in chunks)]),
        np.concatenate([np.zeros(0, np.int64), *turns]),
        *(sum(getattr(chunk, name) for chunk in chunks) for name in ("turn_count", "words", "characters", "empty")),
    )
