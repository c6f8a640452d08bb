"""Datasets of a folder tree, documents of a file, tokens of documents."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.command import DataError, UserError
from lit_gpt.tokenizer import Tokenizer
from tests.conftest import TOKENIZER
from utils import corpus
from utils.corpus import BadDocument, Encoder, EncoderPool, find_sources, join_chunks, read_documents

SEED_TEXT = "[speaker001:] Bonjour, ça va ?\n[speaker002:] Très bien, merci."


def write(folder: Path, *names: str, content: bytes | str = SEED_TEXT) -> None:
    """Makes the files `names` below `folder`."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [(source.dataset, source.split, source.name) for source in find_sources(folder)]


def documents_of(path: Path) -> tuple[list[str], list[str]]:
    """The good documents and what is said of the bad ones."""
    errors: list[BadDocument] = []
    return list(read_documents(path, errors.append)), [str(error) for error in errors]


# --- datasets


def test_datasets_are_the_folders_with_corpus_files(tmp_path):
    write(tmp_path, "FR/Theatre/test.txt", "FR/Theatre/train.txt", "FR/Debats/A/full.txt", "EN/Talk/test.txt")
    write(tmp_path, "FR/README.txt", "notes.md", "FR/Theatre/raw/page.txt")
    assert found(tmp_path) == [
        ("EN/Talk", "test", "EN/Talk/test.txt"),
        ("FR/Debats/A", "train", "FR/Debats/A/full.txt"),
        ("FR/Theatre", "train", "FR/Theatre/train.txt"),
        ("FR/Theatre", "test", "FR/Theatre/test.txt"),
    ]


def test_the_source_itself_may_be_a_dataset(tmp_path, monkeypatch):
    write(tmp_path, "Plays/full.txt", "Plays/Inner/full.txt")
    expected = [("Inner", "train", "Inner/full.txt"), ("Plays", "train", "full.txt")]
    assert found(tmp_path / "Plays") == expected
    monkeypatch.chdir(tmp_path / "Plays")
    assert found(Path()) == expected


def test_linked_folders_are_followed_once(tmp_path):
    write(tmp_path, "elsewhere/A/full.txt")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/FR").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/A/loop").symlink_to(tmp_path / "source")
    assert found(tmp_path / "source") == [("FR/A", "train", "FR/A/full.txt")]


@pytest.mark.parametrize(
    "names",
    [("FR--X/full.txt", "FR/X/train.txt"), ("train.txt", "corpus/train.txt"), ("A--B/C/full.txt", "A/B--C/full.txt")],
)
def test_datasets_with_the_same_shard_names_are_refused(tmp_path, names):
    write(tmp_path / "corpus", *names)
    with pytest.raises(DataError, match="same shard names") as error:
        find_sources(tmp_path / "corpus")
    for name in names:
        assert str(tmp_path / "corpus" / name) in str(error.value)


def test_one_name_for_train_and_another_for_test_do_not_collide(tmp_path):
    write(tmp_path, "FR--X/train.txt", "FR/X/test.txt")
    assert len(find_sources(tmp_path)) == 2


def test_sources_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no conversation"):
        find_sources(tmp_path)
    write(tmp_path, "A/full.txt", "A/test.txt")
    with pytest.raises(DataError, match=r"full\.txt and test\.txt"):
        find_sources(tmp_path)


def test_language_is_the_first_part_of_the_name(tmp_path):
    write(tmp_path, *(f"{name}/full.txt" for name in ("FR/Theatre", "en/Talk", "FR", "Plays/FR", "CLAIRE/FR", "fra/A")))
    languages = {source.dataset: source.language for source in find_sources(tmp_path)}
    assert languages == {
        "FR/Theatre": "fr", "en/Talk": "en", "FR": "fr", "Plays/FR": "", "CLAIRE/FR": "", "fra/A": "fra"
    }  # fmt: skip


# --- documents


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"", []),
        (b"\n \n\t\n", []),
        (b"one", ["one"]),
        (b"one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        (b"\n\n  one  \n   \n\n\ntwo\n\n", ["one", "two"]),
        (b"one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        (b"one\rtwo\r\rthree", ["one\ntwo", "three"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbf\r\none", ["one"]),
        (b"\xef\xbb\xbf", []),
        ("un\n\u00a0\u2003\ndeux".encode(), ["un", "deux"]),
        ("un\u2028deux\x0btrois".encode(), ["un\u2028deux\x0btrois"]),
    ],
)
def test_documents_stand_between_blank_lines(tmp_path, content, documents):
    path = tmp_path / "full.txt"
    path.write_bytes(content)
    assert documents_of(path) == (documents, [])


PARTS = ["un", " deux ", "é", "🙂", "[A:] x", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " \n\n", "\t"]
BAD_PARTS = [b"\x00", b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80"]
FILES = st.lists(st.sampled_from([part.encode() for part in PARTS] + BAD_PARTS), max_size=30).map(b"".join)


def documents_by_force(content: bytes) -> tuple[list[str], list[int]]:
    """The good documents, and the offset of the first bad byte of each other one."""
    good, bad = [], []
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    # every byte that is no ASCII space is content here
    for match in re.finditer(rb"(?:[^\r\n]*[^\r\n\t ][^\r\n]*(?:\r\n|\r|\n|\Z))+", content[start:]):
        block, begin = match[0], start + match.start()
        for index in range(1, len(block) + 1):
            try:
                block[:index].decode()
                broken = False
            except UnicodeDecodeError as e:
                broken = e.reason != "unexpected end of data" or index == len(block)
                at = e.start
            if block[index - 1] == 0 or broken:
                bad.append(begin + (at if broken else index - 1))
                break
        else:
            good.append("\n".join(re.split("\r\n|\r|\n", block.decode())).strip())
    return good, bad


@settings(max_examples=300, deadline=None)
@given(content=FILES, mark=st.booleans())
def test_documents_and_offsets_by_brute_force(tmp_path_factory, content, mark):
    path = tmp_path_factory.getbasetemp() / "brute.txt"
    content = b"\xef\xbb\xbf" * mark + content
    path.write_bytes(content)
    documents, errors = documents_of(path)
    expected, offsets = documents_by_force(content)
    assert documents == expected
    assert [int(error.rsplit(" ", 1)[1]) for error in errors] == offsets
    assert all(error.startswith(f"{path}: ") for error in errors)


def test_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "full.txt"
    path.write_bytes(b"un\n\nde\x00ux\n\ntr\xffois\n\nfin")
    said = [f"{path}: a NUL character at byte offset 6", f"{path}: no valid UTF-8 at byte offset 13"]
    assert documents_of(path) == (["un", "fin"], said)

    def stop(error: BadDocument) -> None:
        raise error

    documents = read_documents(path, stop)
    assert next(documents) == "un"
    with pytest.raises(BadDocument, match="offset 6"):
        next(documents)


# --- tokens


def random_documents(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["bonjour", "le", "marché,", "été", "12", "🙂", "oui!", "[rire]", "x" * 20]
    documents = []
    for _ in range(count):
        turns = [
            f"[speaker{turn % 3}:] " + " ".join(rng.choice(words, rng.integers(1, 12)))
            for turn in range(rng.integers(1, 9))
        ]
        documents.append("\n".join(turns))
    return documents


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, True), (True, False), (False, False)])
def test_encoder_against_the_plain_tokenizer(bos, eos):
    tokenizer, texts = Tokenizer(TOKENIZER), random_documents(20)
    encoded = Encoder(TOKENIZER, bos, eos)(texts)
    expected = [[tokenizer.bos_id] * bos + tokenizer.encode(text) + [tokenizer.eos_id] * eos for text in texts]
    documents = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
    assert [document.tolist() for document in documents] == expected
    assert encoded.tokens.dtype == np.uint16
    assert (encoded.words, encoded.characters) == (sum(len(text.split()) for text in texts), sum(map(len, texts)))
    assert encoded.turn_count == sum(text.count("\n[speaker") + 1 for text in texts)
    assert encoded.empty == 0


def test_turns_are_where_lines_begin():
    texts = random_documents(20, seed=1)
    encoded = Encoder(TOKENIZER, True, True)(texts)
    tokenizer = Tokenizer(TOKENIZER)
    assert len(encoded.turns) == sum(text.count("\n") for text in texts)
    ends = np.cumsum(encoded.lengths)
    for turn in encoded.turns:
        end = ends[np.searchsorted(ends, turn, side="right")]
        assert tokenizer.decode(encoded.tokens[turn:end].tolist()).lstrip().startswith("[speaker")


def test_only_names_in_brackets_at_a_line_begin_count_as_turns():
    text = "[A:] un\n[Mme de B.:] deux [C:] trois\n[rire] oui\n [D:] non\n[:] non\n[speaker001:]"
    assert Encoder(TOKENIZER, False, False)([text]).turn_count == 3


@pytest.mark.parametrize("count", [0, 1, 50])
def test_several_processes_give_the_same_in_the_same_order(monkeypatch, count):
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 500)
    documents, results = random_documents(count), []
    for workers in (1, 2) if count else (1,):
        with EncoderPool(TOKENIZER, True, True, workers) as pool:
            results.append(join_chunks(list(pool.encode(documents)), np.dtype(np.uint16)))
    whole = Encoder(TOKENIZER, True, True)(documents)
    for result in results:
        for name in ("tokens", "lengths", "turns"):
            assert np.array_equal(getattr(result, name), getattr(whole, name)), name
            assert getattr(result, name).dtype == getattr(whole, name).dtype
        assert result[3:] == whole[3:]


def _die(_: list[str]) -> None:
    os._exit(9)


def test_a_killed_process_is_an_error_of_the_machine(monkeypatch):
    monkeypatch.setattr(corpus, "_encode_in_worker", _die)
    with EncoderPool(TOKENIZER, True, True, 2) as pool, pytest.raises(OSError, match="fewer --num_workers"):
        list(pool.encode(random_documents(3)))
