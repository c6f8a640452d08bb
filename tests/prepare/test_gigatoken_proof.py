"""gigatoken is tried on every character: what differs is left to the tokenizer's own library, whose tokens come out."""

from __future__ import annotations

import json
import os
import pwd
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer, tokenizer_json
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SAMPLE, SHARED, TOKENIZER
from tests.prepare.test_prepare_data import prepare, write
from tests.prepare.test_special_tokens_in_text import tokens_of
from utils.prepare import gigatoken_proof
from utils.prepare.documents import Document
from utils.prepare.encoding import GIGATOKEN, Encoder, Library, choose_library
from utils.prepare.gigatoken_proof import FORMS, TRIED, Proof, Trial, prove

REAL = SHARED / "tokenizers"
EVERY = 29  # of so many characters one; 1 takes two minutes
NEW = "\U00011de0\U00011de1\U00016ff4"  # Unicode 17: digits for gigatoken, unassigned for tokenizers
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def of_new_characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that splits as Llama 3 does and has tokens of a space and the first bytes of a new character."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = HFTokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<eos>"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("test.txt"))]
    made.train_from_iterator([*texts, *(f"le {character} " * 99 for character in NEW)], trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/fabricant/gigatoken"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries few characters, among them new ones."""
    monkeypatch.setattr(
        gigatoken_proof, "TRIED", (range(0x20, 0x400), range(0x11D00, 0x11E00), range(0xE0000, 0xE1000))
    )


def assigned() -> list[str]:
    every = (chr(code) for codes in TRIED for code in codes[::EVERY])
    return [
        character for character in every if unicodedata.category(character) not in ("Cn", "Cs") and character > "\0"
    ]


def encoded(folder: Path, library: Library, texts: list[str]) -> list[list[int]]:
    found = Encoder(folder, False, False, 2**62, library)([Document(text.encode(), 0) for text in texts])
    ids = iter(np.split(found.tokens, np.cumsum(found.lengths)[:-1]))
    return [[] if number in found.empty else next(ids).tolist() for number in range(len(texts))]


def by_tokenizers(folder: Path) -> Callable[[list[str]], list[list[int]]]:
    """The twin: Hugging Face's library alone."""
    path = folder / "tokenizer.json"
    made = HFTokenizer.from_file(str(path)) if path.is_file() else tokenizer_json(Tokenizer(folder))
    made.encode_special_tokens = True
    return lambda texts: [one.ids for one in made.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize(
    "folder",
    [
        TOKENIZER,
        *(pytest.param(REAL / name, marks=pytest.mark.shared) for name in ("mistral-7b-v0.1", "falcon", "gpt2")),
    ],
    ids=lambda folder: folder.name,
)
def test_every_assigned_character_in_four_positions(folder):
    said: list[str] = []
    proof = prove(Tokenizer(folder), 1, said.append)
    library = choose_library(Tokenizer(folder), ["Bonjour"], proof)
    assert (library.name == GIGATOKEN) == (folder.name != "falcon")
    characters, twin = assigned(), by_tokenizers(folder)
    assert len(characters) > 130_000 / EVERY
    for form in FORMS:
        texts = [form.format(character) for character in characters]
        assert encoded(folder, library, texts) == twin(texts)


@pytest.mark.shared
def test_a_character_that_differs_only_before_others_is_left_to_the_slower_library():
    """No version of Unicode has U+3327E yet: a letter for gigatoken, so that GPT-2's `'s` would begin behind it."""
    tokenizer = Tokenizer(REAL / "gpt2")
    library = choose_library(tokenizer, ["Bonjour"], prove(tokenizer, 1, print))
    texts = ["\U0003327e's", "un \U0003327e'll"]
    assert library.name == GIGATOKEN
    assert encoded(REAL / "gpt2", library, texts) == by_tokenizers(REAL / "gpt2")(texts)


def test_a_character_that_differs_is_left_to_the_slower_library(of_new_characters, quick, cache, tmp_path, capsys):
    tokenizer = Tokenizer(of_new_characters)
    proof = prove(tokenizer, 1, print)
    assert set(NEW[:2]) <= set(proof.differing) and len(proof.differing) < 10_000
    said = capsys.readouterr().out
    assert f"other tokens for {len(proof.differing)} characters: documents that hold one are left to tokenizers" in said
    texts = [f"le {character} marché" for character in "ab" + NEW[:2]]
    expected = by_tokenizers(of_new_characters)(texts)
    # without the proof they come out otherwise, which the sample does not show
    blind = choose_library(tokenizer, ["le marché"])
    assert blind.name == GIGATOKEN
    try:
        assert encoded(of_new_characters, blind, texts) != expected
    except DataError as e:
        assert "gigatoken gives other tokens" in str(e)
    library = choose_library(tokenizer, ["le marché"], proof)
    assert library.name == GIGATOKEN and encoded(of_new_characters, library, texts) == expected
    # and through the whole program, whatever the number of processes
    source = write(tmp_path / "source", "FR/Set/train.txt", "\n\n".join([*["le marché " * 3000] * 9, *texts])).parents[
        2
    ]
    rows = []
    for more in (("--fast_tokenizer", "false"), (), ("--num_workers", 3)):
        assert prepare(source, tmp_path / f"out{len(rows)}", *more, tokenizer=of_new_characters) == 0
        rows.append(tokens_of(tmp_path / f"out{len(rows)}"))
    assert rows[0] == rows[1] == rows[2]
    assert "tokenised by gigatoken" in capsys.readouterr().out


def test_characters_that_were_not_tried_are_avoided():
    avoid = Proof("", "").avoid()
    for code in (*range(0x40000, 0x110000, 997), 0x40000, 0xDFFFF, 0xE1000, 0x10FFFF):
        character = chr(code).encode()
        is_tried = any(code in codes for codes in TRIED)
        assert any(character.startswith(start) for start in avoid) is not is_tried, hex(code)
    for code in (*range(0, 0x40000, 997), *TRIED[1]):
        if not 0xD800 <= code < 0xE000:
            assert not any(start in chr(code).encode() for start in avoid)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_character_is_tried_once(of_new_characters, quick, cache, workers, monkeypatch):
    said: list[str] = []
    proof = prove(Tokenizer(of_new_characters), workers, said.append)
    assert set(NEW[:2]) <= set(proof.differing) and len(said) == 2 and str(cache) in said[0]
    (kept,) = cache.iterdir()
    assert oct(kept.stat().st_mode & 0o777) == oct(0o666 & ~_umask())

    def fail(directory: Path, num_workers: int) -> Proof:
        raise AssertionError("tried again")

    monkeypatch.setattr(gigatoken_proof, "_try_all", fail)
    assert prove(Tokenizer(of_new_characters), 1, said.append) == proof and len(said) == 3
    for name, value in (("PROOF_VERSION", 99), ("version", lambda library: "99")):
        with monkeypatch.context() as patched:
            patched.setattr(gigatoken_proof, name, value)
            with pytest.raises(AssertionError, match="tried again"):
                prove(Tokenizer(of_new_characters), 1, said.append)


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("content", ["", "{", "[]", '{"refused": 3, "differing": null}', "another character"])
def test_a_damaged_proof_is_made_anew(of_new_characters, quick, cache, content):
    proof = prove(Tokenizer(of_new_characters), 1, print)
    (kept,) = cache.iterdir()
    kept.write_text(kept.read_text().replace("de0", "de1") if content == "another character" else content)
    assert prove(Tokenizer(of_new_characters), 1, print) == proof
    assert json.loads(kept.read_text()).items() >= proof._asdict().items()


def test_a_proof_that_cannot_be_kept(of_new_characters, quick, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    assert prove(Tokenizer(of_new_characters), 1, said.append).differing
    assert "not kept for later runs" in said[0]


def test_a_user_without_a_home(of_new_characters, quick, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folder")
    monkeypatch.delenv("HOME")

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    said: list[str] = []
    assert prove(Tokenizer(of_new_characters), 1, said.append).differing
    assert "not kept for later runs: the user has no home folder" in said[0]


def test_characters_that_a_tokenizer_may_compose_are_tried(monkeypatch):
    trial = Trial(TOKENIZER)
    right = trial._fast

    class Wrong:
        def encode(self, text: bytes) -> np.ndarray:
            return right.encode(text)[:-1] if text.decode() == "E\u0323\u0302" else right.encode(text)

    monkeypatch.setattr(trial, "_fast", Wrong())
    assert trial(range(0x1E00, 0x1F00)) == Proof("", "\u0302")


def test_a_tokenizer_that_gigatoken_does_not_do(tmp_path, cache):
    made = HFTokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    made.save(str(tmp_path / "tokenizer.json"))
    said: list[str] = []
    for _ in range(2):
        proof = prove(Tokenizer(tmp_path), 1, said.append)
        assert proof.refused.startswith("gigatoken does not do this tokenizer: ") and not said
        library = choose_library(Tokenizer(tmp_path), ["a"], proof)
        assert (library.name, library.reason) == ("tokenizers", proof.refused)


def test_without_gigatoken_nothing_is_tried(monkeypatch, cache):
    def missing(library: str) -> str:
        raise gigatoken_proof.PackageNotFoundError(library)

    monkeypatch.setattr(gigatoken_proof, "version", missing)
    assert prove(Tokenizer(TOKENIZER), 1, print) is None and not cache.exists()


@pytest.mark.parametrize("source", [TOKENIZER, pytest.param(REAL / "mistral-7b-v0.1", marks=pytest.mark.shared)])
def test_the_exported_tokenizer_json_goes_the_fast_way(source, quick, cache, tmp_path):
    export_tokenizer(Tokenizer(source), tmp_path, "Bonjour")
    (tmp_path / "tokenizer.model").unlink()
    exported = Tokenizer(tmp_path)
    proof = prove(exported, 1, print)
    assert proof == Proof("", "")
    library = choose_library(exported, ["Bonjour, ça va ?"], proof)
    assert library.name == GIGATOKEN
    texts = [" a", "  a", "▁a", "a\n b", " ", "\n\n", "a" * 99, "x" + " " * 29 + "y", "un  deux\t trois "]
    texts += [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("test.txt"))]
    assert encoded(tmp_path, library, texts) == by_tokenizers(tmp_path)(texts) == Tokenizer(source).encode_batch(texts)
