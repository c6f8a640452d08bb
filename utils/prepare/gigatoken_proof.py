"""gigatoken, and the characters that it does not tokenise as the tokenizer's own library does.

The two may have other versions of Unicode, so that a new letter is a letter for one of them only. `prove` tries every
character, once for each tokenizer and version of the libraries, and keeps what it found in the user's cache folder.
"""

import hashlib
import json
import os
import re
import socket
import time
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.tokenizer.hf_tokenizer import BEGINS_WITH_SPACE
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.files.atomic import write_atomically
from utils.prepare.work_pool import WorkPool

GIGATOKEN = "gigatoken"
PROOF_VERSION = 1  # another one makes every tokenizer be tried again
FORMS = ("{}", " {}", "a{}", "{}'s")  # what stands beside a character may decide where a text is split
TRIED = (range(0x40000), range(0xE0000, 0xE1000))  # whatever has been assigned, and what of these planes will be
SURROGATES = range(0xD800, 0xE000)
STEP = 4096  # characters that a process tries at once: 0.1 s of work


class Proof(NamedTuple):
    refused: str  # why gigatoken cannot be used; empty if it can
    differing: str  # the characters that it tokenises otherwise

    def avoid(self) -> list[bytes]:
        """What a text must not hold to be tokenised by gigatoken: these characters, and those that were not tried."""
        untried = set()
        for first in range(0x40000, 0x110000, STEP):
            if first not in TRIED[1]:
                untried.add(chr(first).encode()[:2])  # which 4,096 characters begin with
        return [*(character.encode() for character in self.differing), *sorted(untried)]


class Trial:
    """What a process needs to try characters."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer(directory)
        self._problem = ""
        try:
            self._fast = load_gigatoken(directory)
        except (RuntimeError, ValueError) as e:
            self._problem = str(e).partition("\n")[0]

    def __call__(self, codes: range) -> Proof:
        if self._problem:
            return Proof(f"gigatoken does not do this tokenizer: {self._problem}", "")
        characters = [chr(code) for code in codes if code not in SURROGATES]
        texts = [form.format(character) for form in FORMS for character in characters]
        tried = characters * len(FORMS)
        decomposed = [unicodedata.normalize("NFD", character) for character in characters]
        decomposed = [text for text in decomposed if len(text) > 1]  # a tokenizer may compose them
        tried += [text[-1] for text in decomposed]
        differing = set()
        texts += decomposed
        for character, text, ids in zip(tried, texts, self._tokenizer.encode_batch(texts), strict=True):
            if self._fast.encode(text.encode()).tolist() != ids:
                differing.add(character)
        return Proof("", "".join(sorted(differing)))


def prove(tokenizer: Tokenizer, num_workers: int, say: Callable[[str], None]) -> Proof | None:
    """What gigatoken does of this tokenizer; None if it is not installed."""
    try:
        path = _kept_path(tokenizer)
    except PackageNotFoundError:
        return None
    proof = _read(path) if path else None
    if proof is None:
        began = time.monotonic()
        proof = _try_all(tokenizer.directory, num_workers)
        problem = _keep(path, proof) if path else "the user has no home folder"
        if not proof.refused:
            kept = f"this is not kept for later runs: {problem}" if problem else f"kept in {path}"
            say(f"gigatoken tried on every Unicode character in {time.monotonic() - began:.1f} s; {kept}")
    if proof.differing:
        count, library = len(proof.differing), tokenizer.library
        say(f"gigatoken gives other tokens for {count:,} characters: documents that hold one are left to {library}")
    return proof


def _try_all(directory: Path, num_workers: int) -> Proof:
    steps = [range(first, first + STEP) for codes in TRIED for first in codes[::STEP]]
    differing = []
    with WorkPool(partial(Trial, directory), min(num_workers, len(steps))) as pool:
        for _, found in pool.map(Trial.__call__, steps):
            if found.refused:
                return found
            differing.append(found.differing)
    load_gigatoken.cache_clear()
    return Proof("", "".join(differing))


def _kept_path(tokenizer: Tokenizer) -> Path | None:
    """Where the proof of this tokenizer is kept, if anywhere; a PackageNotFoundError if there is no gigatoken."""
    source = tokenizer.directory / ("tokenizer.json" if tokenizer.library == "tokenizers" else "tokenizer.model")
    versions = [version(library) for library in (GIGATOKEN, tokenizer.library)]
    tried = [PROOF_VERSION, str(TRIED), FORMS, unicodedata.unidata_version]
    found = hashlib.sha256(json.dumps([*tried, *versions]).encode())
    found.update(source.read_bytes())
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_folder.is_absolute():  # as the XDG Base Directory Specification says
        try:
            cache_folder = Path("~/.cache").expanduser()
        except RuntimeError:  # the user has no home
            return None
    return cache_folder / "fabricant" / GIGATOKEN / f"{found.hexdigest()}.json"


def _read(path: Path) -> Proof | None:
    """What was kept; None if there is nothing, or it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        proof = Proof(kept["refused"], kept["differing"])
        return proof if kept == _content(proof) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _content(proof: Proof) -> dict[str, str]:
    values = proof._asdict()
    return values | {"sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}


def _keep(path: Path, proof: Proof) -> OSError | None:
    """Writes the proof, or returns why that is not possible here."""
    own = path.with_name(f"{path.stem}.{socket.gethostname()}.{os.getpid()}")  # others may write theirs now
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(own, json.dumps(_content(proof)) + "\n")
        own.replace(path)
    except OSError as e:
        return e
    return None


@cache
def load_gigatoken(directory: Path) -> Any:
    """Raises ImportError where it is not installed, RuntimeError or ValueError for a tokenizer it cannot do."""
    import gigatoken  # an optional package

    return gigatoken.Tokenizer.from_json(_gigatoken_json(directory)).backend


@cache
def load_gigatoken_of_chats(directory: Path) -> Any:
    """Likewise, for texts in which special tokens stand by their names.

    SentencePiece's space stands before a text alone. gigatoken would put one behind each special token too, as some
    tokenizer.json do, but not those that `hf_tokenizer.py` makes.
    """
    import gigatoken  # an optional package

    path = directory / "tokenizer.json"
    if path.is_file() and BEGINS_WITH_SPACE.encode() not in path.read_bytes():
        return load_gigatoken(directory)
    values = json.loads(_gigatoken_json(directory))
    normalizer = values.get("normalizer") or {}
    steps = normalizer.get("normalizers", [])
    without = [step for step in steps if step.get("type") != "Prepend"]
    if len(without) == len(steps):
        return load_gigatoken(directory)
    values["normalizer"] = {**normalizer, "normalizers": without}
    names = tuple(token["content"].encode() for token in values.get("added_tokens") or [] if token["content"])
    return _WithSpace(gigatoken.Tokenizer.from_json(json.dumps(values)).backend, names)


class _WithSpace:
    """gigatoken, with the spaces that the tokenizer.json of `hf_tokenizer.py` adds: before a text that does not begin
    with one of `names`, and to one behind a name.
    """

    def __init__(self, gigatoken: Any, names: tuple[bytes, ...]) -> None:
        self._gigatoken, self._names = gigatoken, names
        any_name = b"|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._before_space = re.compile(b"(?:" + any_name + b")(?= |\xe2\x96\x81)")

    def encode(self, text: bytes) -> Any:
        text = self._before_space.sub(rb"\g<0> ", text) if self._names else text
        return self._gigatoken.encode(text if not text or text.startswith(self._names) else b" " + text)


@cache
def _gigatoken_json(directory: Path) -> bytes | str:
    """What gigatoken loads. Making it of a SentencePiece model takes four times as long as the loading."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json  # an optional package

    path = directory / "tokenizer.json"
    if not path.is_file():
        return sentencepiece_to_tokenizer_json((directory / "tokenizer.model").read_bytes())
    content = path.read_bytes()
    if BEGINS_WITH_SPACE.encode() not in content:
        return content
    return json.dumps(with_known_normalizers(json.loads(content)))


def with_known_normalizers(tokenizer_json: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as `hf_tokenizer.py` makes it, with its spaces in normalizers that gigatoken knows."""
    steps = (tokenizer_json.get("normalizer") or {}).get("normalizers", [])
    spaces = tokenizer_json.get("pre_tokenizer") or {}
    known = [step for step in steps if step.get("pattern") != {"Regex": BEGINS_WITH_SPACE}]
    is_ours = spaces.get("type") == "Metaspace" and spaces.get("prepend_scheme") == "first" and not spaces.get("split")
    if not is_ours or len(known) == len(steps):
        return tokenizer_json
    known.append({"type": "Prepend", "prepend": spaces["replacement"]})
    known.append({"type": "Replace", "pattern": {"String": " "}, "content": spaces["replacement"]})
    return {**tokenizer_json, "normalizer": {"type": "Sequence", "normalizers": known}, "pre_tokenizer": None}
