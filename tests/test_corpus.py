"""Finding datasets, reading documents with exact byte offsets, and tokenising them in any number of processes."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gpt.command import DataError, UserError
from lit_gpt.tokenizer import Tokenizer
from tests.conftest import TOKENIZER
from utils import corpus


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def fail(error):
    raise error


def documents_of(folder, content, on_bad=fail):
    write(folder, {"full.txt": content})
    return list(corpus.read_documents(folder / "full.txt", on_bad))


# Datasets


def test_a_dataset_is_a_folder_with_one_of_three_files(tmp_path):
    files = ("FR/A/train.txt", "FR/A/test.txt", "FR/B/full.txt", "EN/C/D/test.txt", "other/notes.txt", "FR/E/train.TXT")
    found = corpus.find_sources(write(tmp_path, dict.fromkeys(files, "text")))
    assert [(source.dataset, source.split, source.name) for source in found] == [
        ("EN/C/D", "test", "EN/C/D/test.txt"),
        ("FR/A", "train", "FR/A/train.txt"),
        ("FR/A", "test", "FR/A/test.txt"),
        ("FR/B", "train", "FR/B/full.txt"),
    ]


def test_the_source_itself_may_be_a_dataset(tmp_path, monkeypatch):
    write(tmp_path, {"Theatre/train.txt": "text"})
    monkeypatch.chdir(tmp_path / "Theatre")
    for path in (tmp_path / "Theatre", tmp_path / "Theatre" / "." / "..", corpus.Path(".")):
        assert corpus.find_sources(path)[0].dataset == "Theatre"


@pytest.mark.parametrize(
    ("dataset", "language"),
    [("FR/A", "fr"), ("eng/A", "eng"), ("F1/A", ""), ("Plays/A", ""), ("É/A", ""), ("br", "br")],
)
def test_the_language_is_the_first_part_of_the_name(dataset, language, tmp_path):
    assert corpus.Source(dataset, "train", tmp_path, "").language == language


@pytest.mark.parametrize("other", ["train.txt", "test.txt"])
def test_full_beside_another_file_is_an_error_that_names_it(tmp_path, other):
    write(tmp_path, {"FR/A/full.txt": "x", f"FR/A/{other}": "x"})
    with pytest.raises(DataError, match=rf"FR/A has full.txt and {other}"):
        corpus.find_sources(tmp_path)


def test_names_that_make_the_same_shards_are_an_error(tmp_path):
    write(tmp_path, {"FR/X/train.txt": "x", "FR--X/train.txt": "x"})
    with pytest.raises(DataError, match="FR--X and FR/X|FR/X and FR--X"):
        corpus.find_sources(tmp_path)


def test_a_source_that_is_missing_or_holds_nothing(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        corpus.find_sources(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no conversation"):
        corpus.find_sources(write(tmp_path, {"FR/A/notes.txt": "x"}))


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path, {"corpus/FR/A/train.txt": "x", "elsewhere/train.txt": "y"})
    (tmp_path / "corpus" / "FR" / "B").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "FR" / "A" / "up").symlink_to(tmp_path / "corpus")
    assert [source.dataset for source in corpus.find_sources(tmp_path / "corpus")] == ["FR/A", "FR/B"]


# Documents


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("[A:] one\n[B:] two\n\n[A:] three\n", ["[A:] one\n[B:] two", "[A:] three"]),
        (b"[A:] one\r\n[B:] two\r\n\r\n[A:] three\r\n", ["[A:] one\n[B:] two", "[A:] three"]),
        (b"one\rtwo\r\rthree\r", ["one\ntwo", "three"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbf\r\n\r\none", ["one"]),
        ("one\n \t \ntwo\n\u00a0\u3000\nthree", ["one", "two", "three"]),
        ("\n\n  one \n  two  \n\n\n\n", ["one \n  two"]),
        ("one", ["one"]),
        ("", []),
        (" \n\r\n\t", []),
        ("a\u2028b\x0bc\x85d", ["a\u2028b\x0bc\x85d"]),
    ],
)
def test_documents_stand_between_blank_lines(tmp_path, content, documents):
    assert documents_of(tmp_path, content) == documents


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("bad", "inside", "words"), [(b"\xff", 0, "UTF-8"), (b"\xe9t\xe9", 0, "UTF-8"), (b"\0", 0, "NUL")]
)
def test_a_bad_byte_is_named_by_its_offset_in_the_file(tmp_path, ending, mark, bad, inside, words):
    good = "[A:] élan vital 🙂\n[B:] oui\n\n\n".replace("\n", ending).encode()
    content = mark + good + b"  " + "déjà ".encode() + bad + b" rest" + good + good
    offset = len(mark + good + b"  " + "déjà ".encode()) + inside
    with pytest.raises(corpus.BadDocument, match=rf"full\.txt: .*{words}.* at byte offset {offset}$"):
        documents_of(tmp_path, content)
    errors = []
    kept = documents_of(tmp_path, content, errors.append)
    assert len(errors) == 1 and str(errors[0]).endswith(f"offset {offset}")
    assert kept == ["[A:] élan vital 🙂\n[B:] oui"] * 2


@pytest.mark.parametrize(
    ("content", "offset"), [(b"ab\0c\xff", 2), (b"ab\xffc\0", 2), (b"\0", 0), (b"x\n\n\xc3", 3), (b"\xff\n\n", 0)]
)
def test_the_first_bad_byte_of_a_document_counts(tmp_path, content, offset):
    with pytest.raises(corpus.BadDocument, match=f"offset {offset}$"):
        documents_of(tmp_path, content)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.text("a \n\r\t[:]é\ufeff", max_size=40).map(str.encode))
@example(b"\r\n\n\ra")
def test_reading_equals_reading_all_at_once(tmp_path_factory, content):
    """The twin: the whole file decoded, its line ends made equal, and cut at blank lines."""
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
        expected = None if "\0" in text else []
    except UnicodeDecodeError:
        expected = None
    folder = tmp_path_factory.mktemp("twin")
    if expected is None:
        with pytest.raises(corpus.BadDocument):
            documents_of(folder, content)
        return
    block = []
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.strip():
            block.append(line)
        elif block:
            expected.append("\n".join(block).strip())
            block = []
    assert documents_of(folder, content) == expected


# Tokens


TEXTS = ["[A:] Bonjour.\n[B:] Oui [rire] ?\nencore\n[speaker001:] Non", "une ligne", "[A:] x\n\n"]


def test_encoded_documents_lie_side_by_side_with_their_turns():
    tokenizer = Tokenizer(TOKENIZER)
    encoded = corpus.Encoder(TOKENIZER, bos=True, eos=True)(TEXTS[:2])
    ids = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS[:2]]
    assert encoded.tokens.tolist() == ids[0] + ids[1]
    assert encoded.tokens.dtype == np.uint16
    assert encoded.lengths.tolist() == [len(ids[0]), len(ids[1])]
    assert (encoded.turn_count, encoded.words, encoded.empty) == (3, 10, 0)
    lines = np.split(encoded.tokens, encoded.turns)
    assert tokenizer.decode(lines[1].tolist()).strip() == "[B:] Oui [rire] ?"
    assert len(lines) == 4  # a document's first token is no boundary


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True)])
def test_begin_and_end_tokens_are_added_as_asked(bos, eos):
    tokenizer = Tokenizer(TOKENIZER)
    encoded = corpus.Encoder(TOKENIZER, bos, eos)(["texte"])
    expected = [tokenizer.bos_id] * bos + tokenizer.encode("texte") + [tokenizer.eos_id] * eos
    assert encoded.tokens.tolist() == expected


def test_a_document_without_tokens_is_counted(monkeypatch):
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts: [[5, 6] if "a" in text else [] for text in texts]
    )
    encoded = corpus.Encoder(TOKENIZER, bos=True, eos=True)(["a a", "b"])
    assert (encoded.empty, encoded.words, len(encoded.lengths)) == (1, 2, 1)


def test_chunks_joined_equal_one_chunk(monkeypatch):
    encoder = corpus.Encoder(TOKENIZER, bos=True, eos=True)
    one = encoder(TEXTS)
    joined = corpus.join_chunks([encoder([text]) for text in TEXTS], one.tokens.dtype)
    for left, right in zip(one, joined, strict=True):
        assert np.array_equal(left, right)
    empty = corpus.join_chunks([], np.dtype("uint16"))
    assert (len(empty.tokens), empty.tokens.dtype, empty.words) == (0, np.uint16, 0)


def test_several_processes_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 300)
    texts = [f"[A:] Bonjour {number}.\n[B:] Oui {'x' * (number % 7 * 40)}" for number in range(60)]
    found = []
    for workers in (1, 2):
        with corpus.EncoderPool(TOKENIZER, True, True, workers) as pool:
            found.append(corpus.join_chunks(list(pool.encode(iter(texts))), np.dtype("uint16")))
    for left, right in zip(*found, strict=True):
        assert np.array_equal(left, right)


def test_a_killed_worker_process_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 1)
    with corpus.EncoderPool(TOKENIZER, True, True, 2) as pool:
        encoded = pool.encode("texte" for _ in range(1000))
        next(encoded)
        os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)
        with pytest.raises(OSError, match="num_workers"):
            list(encoded)
