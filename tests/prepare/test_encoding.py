"""Tokens of documents, whole and in parts, by the fast and the slow library, against Hugging Face's; words, turns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.hf_tokenizer import tokenizer_json
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SAMPLE, SHARED, TOKENIZER
from utils.prepare import encoding
from utils.prepare.blocks import read_blocks
from utils.prepare.documents import Document, parse
from utils.prepare.encoding import (
    GIGATOKEN,
    Encoded,
    Encoder,
    Library,
    choose_library,
    count_words_and_turns,
    load_gigatoken,
)
from utils.prepare.file_formats import CONVERSATIONS, PLAIN, CorpusFile

CLAIRE, REAL = SHARED / "data" / "claire", SHARED / "tokenizers"
TOKENIZERS = [TOKENIZER] + [
    pytest.param(REAL / name, marks=pytest.mark.shared) for name in ("mistral-7b-v0.1", "falcon", "gpt2")
]
SLOW = Library("slow", "asked for")
ALL = 2**62  # a window that no document is longer than


def make_encoder(
    folder: Path, library: Library = SLOW, bos: bool = True, eos: bool = True, window: int = ALL, special: bool = False
) -> Encoder:
    return Encoder(folder, bos and Tokenizer(folder).bos_id is not None, eos, window, library, special)


def split(encoded: Encoded) -> list[list[int]]:
    """The tokens of each document."""
    return (
        [ids.tolist() for ids in np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])]
        if len(encoded.lengths)
        else []
    )


def documents(*texts: str) -> list[Document]:
    return [Document(text.encode(), 0) for text in texts]


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["bonjour", "le", "marché,", "été", "12", "🙂", "oui!", "[rire]", "x" * 20, "Привет", "中文"]
    return [
        "\n".join(
            f"[speaker{turn % 3}:] " + " ".join(rng.choice(words, rng.integers(1, 12)))
            for turn in range(rng.integers(1, 9))
        )
        for _ in range(count)
    ]


def reference(folder: Path) -> Callable[[list[str]], list[list[int]]]:
    """Token ids by Hugging Face's library alone.

    mistral has only a tokenizer.model. transformers' own conversion of it takes the piece of two spaces, whose score is
    the lowest, for the first merge, and so differs from SentencePiece in one document, with two spaces in a row.
    """
    from tokenizers import Tokenizer as HFTokenizer

    path = folder / "tokenizer.json"
    made = HFTokenizer.from_file(str(path)) if path.is_file() else tokenizer_json(Tokenizer(folder))
    return lambda texts: [one.ids for one in made.encode_batch(texts, add_special_tokens=False)]


def libraries(folder: Path, sample: list[str], special: bool = False) -> list[Library]:
    """The slow one, and the one that is chosen for the sample if that is gigatoken."""
    chosen = choose_library(Tokenizer(folder), sample, None, special)
    assert (chosen.name == GIGATOKEN) == (folder.name != "falcon")
    return [SLOW, chosen][: 1 + (chosen.name == GIGATOKEN)]


def read_whole(path: Path, plain: bool = False) -> list[str]:
    """The texts between blank lines, or of the whole file, as Python reads them."""
    text = path.read_text(encoding="utf-8-sig")
    return [part.strip() for part in ([text] if plain else re.split(r"\n\s*\n", text)) if part.strip()]


def encode_in_parts(encoder: Encoder, path: Path, size: int, plain: bool = False) -> tuple[list[list[int]], int]:
    """The tokens of a file's documents, the parts of each joined at the token they share; and the number of parts."""
    found: list[list[int]] = []
    parts = 0
    for block in read_blocks(CorpusFile(path, path.name, PLAIN if plain else CONVERSATIONS), size, "text"):
        of_block, bad = parse(block, "text")
        encoded = encoder(of_block)
        assert not bad and not encoded.empty and encoded.shared == sum(document.context > 0 for document in of_block)
        for document, ids in zip(of_block, split(encoded), strict=True):
            if document.context:
                assert found[-1][-1] == ids[0]
                found[-1] += ids[1:]
                parts += 1
            else:
                found.append(ids)
    return found, parts


def expected_of(folder: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer(folder)
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*before, *ids, tokenizer.eos_id] for ids in reference(folder)(texts)]


# --- against the Hugging Face library


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "falcon", "gpt2"])
def test_every_document_of_a_real_corpus(name, monkeypatch):
    monkeypatch.setattr(encoding, "CHECK_BYTES", 0)  # else what gigatoken gets wrong would be corrected in part
    paths = sorted(CLAIRE.rglob("*.txt"))
    texts = {path: read_whole(path) for path in paths}
    assert sum(map(len, texts.values())) > 1600
    expected = {path: expected_of(REAL / name, texts[path]) for path in paths}
    for library in libraries(REAL / name, [texts[path][0] for path in paths]):
        encoder = make_encoder(REAL / name, library)
        for path in paths:
            assert split(encoder(documents(*texts[path]))) == expected[path], path


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "falcon", "gpt2"])
def test_every_document_of_a_real_corpus_in_parts(name):
    texts = {path: read_whole(path) for path in sorted(CLAIRE.rglob("test.txt"))}
    expected = {path: expected_of(REAL / name, texts[path]) for path in texts}
    for library in libraries(REAL / name, [text for of_path in texts.values() for text in of_path[:3]]):
        encoder = make_encoder(REAL / name, library)
        for size in (300, 2000):
            for path in texts:
                found, parts = encode_in_parts(encoder, path, size)
                assert found == expected[path] and parts > 0.2 * path.stat().st_size / size, (path, size)


@pytest.mark.parametrize("size", [200, 777])
def test_parts_of_plain_texts(size):
    folder = TOKENIZER
    for path in sorted(SAMPLE.rglob("test.txt")):
        expected = expected_of(folder, read_whole(path, plain=True))
        for library in libraries(folder, read_whole(path)):
            found, parts = encode_in_parts(make_encoder(folder, library), path, size, plain=True)
            assert found == expected and len(found) == 1 and parts >= path.stat().st_size // size - 2


WORD = st.sampled_from(["un", "deux,", "été", "🙂", "[A:]", "oui!", "Привет", "12", "l'", "3.5", "...", "«"])
GAP = st.sampled_from([" ", "\n", "\r\n", "  ", "\u00a0", "\n ", "\t", "   \n"])


@settings(max_examples=150, deadline=None)
@given(
    # three words with one space between: so there is a place to cut within a hundred bytes
    words=st.lists(st.tuples(WORD, st.just(" "), WORD, st.just(" "), WORD, GAP), min_size=20, max_size=70),
    size=st.integers(100, 300),
)
def test_parts_of_random_texts(tmp_path_factory, words, size):
    text = "".join(map("".join, words)).strip()
    path = tmp_path_factory.getbasetemp() / "parts.txt"
    path.write_bytes(text.encode())
    expected = expected_of(TOKENIZER, [text.replace("\r\n", "\n")])
    for library in libraries(TOKENIZER, ["un"]):
        assert encode_in_parts(make_encoder(TOKENIZER, library), path, size, plain=True)[0] == expected


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def train_tokenizer(folder: Path, regex: str = LLAMA_3) -> Path:
    """A byte-level BPE that splits texts as Llama 3 does: a full stop and a line's end are one piece."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer

    made = HFTokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"]
    )
    made.train_from_iterator([path.read_text() for path in sorted(SAMPLE.rglob("train.txt"))], trainer)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    return folder


def test_parts_where_a_full_stop_and_a_line_s_end_are_one_token(tmp_path):
    folder = train_tokenizer(tmp_path)
    assert any(token.startswith(".Ċ") for token in Tokenizer(folder).vocabulary)
    for path in sorted(SAMPLE.rglob("test.txt")):
        expected = expected_of(folder, read_whole(path, plain=True))
        for library in libraries(folder, read_whole(path)):
            for size in (200, 500):
                assert encode_in_parts(make_encoder(folder, library), path, size, plain=True)[0] == expected


def test_a_context_that_is_tokenised_otherwise_begins_a_new_document():
    whole = Document(b"un deux trois", 0, context=2)  # cut within "un deux": "u" is no token before it
    encoder = make_encoder(TOKENIZER)
    part = Document(b"bonjour le monde", 5, context=4)
    ids = Tokenizer(TOKENIZER).encode("bonjour le monde")
    assert ids[: len(Tokenizer(TOKENIZER).encode("bonj"))] != Tokenizer(TOKENIZER).encode("bonj")
    encoded = encoder([part])
    assert encoded.shared == 0
    assert split(encoded) == expected_of(TOKENIZER, ["our le monde"])
    encoded = encoder([whole])
    assert (
        encoded.shared == 1
        and split(encoded)[0] == expected_of(TOKENIZER, ["un deux trois"])[0][len(Tokenizer(TOKENIZER).encode("un")) :]
    )


@pytest.mark.parametrize("folder", TOKENIZERS)
@pytest.mark.parametrize("limit", [100, 1000, 5000])
def test_long_texts_are_encoded_in_parts(folder, limit, monkeypatch):
    texts = [text for path in sorted(SAMPLE.rglob("test.txt")) for text in read_whole(path, plain=True)]
    expected = expected_of(folder, texts)
    monkeypatch.setattr(encoding, "BATCH_BYTES", limit)
    encoder = make_encoder(folder)
    seen: list[int] = []
    encode_batch = encoder._tokenizer.encode_batch

    def count(texts: list[str]) -> list[list[int]]:
        seen.append(sum(len(text.encode()) for text in texts))
        return encode_batch(texts)

    monkeypatch.setattr(encoder._tokenizer, "encode_batch", count)
    assert split(encoder(documents(*texts))) == expected
    assert max(seen) <= 2 * limit and sum(seen) > sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("text", ["x" * 3000, "é  " * 1000, "a b" + "\n" * 3000 + "c d"])
def test_long_texts_without_words_are_encoded_whole(text, monkeypatch):
    expected = expected_of(TOKENIZER, [text])
    monkeypatch.setattr(encoding, "BATCH_BYTES", 500)
    assert split(make_encoder(TOKENIZER)(documents(text))) == expected


# --- the choice of the library


class Wrong:
    """gigatoken, but for texts that hold a word."""

    def __init__(self, folder: Path, word: bytes) -> None:
        self._right, self._word = load_gigatoken(folder), word
        self.calls = 0

    def encode(self, text: bytes) -> np.ndarray:
        self.calls += 1
        ids = self._right.encode(text)
        return ids[::-1] if self._word in text else ids


def test_gigatoken_is_chosen_where_it_is_right():
    library = choose_library(Tokenizer(TOKENIZER), ["Bonjour, ça va ?", "Oui."])
    assert (
        library.name == GIGATOKEN
        and library.reason == "the same tokens as sentencepiece for 20 characters of this corpus"
    )


def test_a_gigatoken_that_is_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(encoding, "load_gigatoken", lambda folder: Wrong(folder, b"marche"))
    tokenizer = Tokenizer(TOKENIZER)
    assert choose_library(tokenizer, ["Bonjour", "il va"]).name == GIGATOKEN
    library = choose_library(tokenizer, ["Bonjour", "il marche " * 20])
    assert library.name == "sentencepiece"
    assert library.reason == f"gigatoken gives other tokens for {('il marche ' * 20)[:40]!r}"
    assert split(make_encoder(TOKENIZER, library)(documents("il marche"))) == expected_of(TOKENIZER, ["il marche"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("no module"), "not installed"),
        (RuntimeError("Unsupported model\n\nLocation: x"), "does not do this tokenizer: Unsupported model"),
        (ValueError(""), "does not do this tokenizer: "),
    ],
)
def test_a_gigatoken_that_cannot_be_used(monkeypatch, error, reason):
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(encoding, "load_gigatoken", fail)
    library = choose_library(Tokenizer(TOKENIZER), ["un"])
    assert library.name == "sentencepiece" and library.reason.removesuffix(" (pip install gigatoken)").endswith(reason)


@pytest.mark.shared
def test_falcon_is_left_to_tokenizers():
    library = choose_library(Tokenizer(REAL / "falcon"), ["un"])
    assert library.name == "tokenizers" and library.reason.startswith("gigatoken does not do this tokenizer: ")


def encode_last(folder: Path, library: Library, texts: list[str], special: bool = False) -> list[list[int]]:
    """The tokens of texts that come so late that gigatoken is not compared on them; it must not refuse."""
    before = random_texts(200)
    assert sum(map(len, before)) > 2 * encoding.CHECK_BYTES
    encoder = make_encoder(folder, library, special=special)
    found = split(encoder(documents(*before, *texts)))
    assert split(encoder(documents(*texts))) == found[len(before) :]
    return found[len(before) :]


@pytest.mark.parametrize("folder", TOKENIZERS)
def test_names_of_special_tokens_in_a_text(folder):
    tokenizer = Tokenizer(folder)
    names = [*tokenizer.special_tokens, "<s>", "</s>", "<unk>", "<|endoftext|>", "<0x0A>", "<pad>", "▁"]
    texts = [form.format(name) for name in names for form in ("{}", "a{}b", "a {} b", "{0}{0}", "a\n{}\nb", "un {}")]
    expected = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    for library in libraries(folder, ["Bonjour, ça va ?"]):
        assert encode_last(folder, library, texts) == expected


def test_special_tokens_that_take_the_space_beside_them(tmp_path):
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as HFTokenizer

    made = HFTokenizer.from_file(str(train_tokenizer(tmp_path) / "tokenizer.json"))
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    made.save(str(tmp_path / "tokenizer.json"))
    texts = ["un <mask> deux", "un<mask>deux", "<mask>", "un  <mask>\ndeux <eos>"]
    for library in libraries(tmp_path, ["un"], special=True):
        assert encode_last(tmp_path, library, texts, special=True) == expected_of(tmp_path, texts)


def test_a_name_that_is_special_only_beside_a_space(monkeypatch):
    right = load_gigatoken(TOKENIZER)

    class Greedy:
        def encode(self, text: bytes) -> np.ndarray:
            return right.encode(text.replace(b" <unk> ", b"<unk>"))

    monkeypatch.setattr(encoding, "load_gigatoken", lambda folder: Greedy())
    library = choose_library(Tokenizer(TOKENIZER), ["un"])
    assert library.name == GIGATOKEN and b"<unk>" in library.avoid
    assert encode_last(TOKENIZER, library, ["un <unk> deux"]) == expected_of_model(["un <unk> deux"])


def expected_of_model(texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer(TOKENIZER)
    return [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]


@pytest.mark.parametrize("text", ["il marche", "il marche " * 2000])
def test_a_gigatoken_that_turns_wrong_is_an_error(monkeypatch, text):
    wrong = Wrong(TOKENIZER, b"marche")
    monkeypatch.setattr(encoding, "load_gigatoken", lambda folder: wrong)
    encoder = make_encoder(TOKENIZER, Library(GIGATOKEN, ""))
    assert split(encoder(documents("il va", "oui"))) == expected_of(TOKENIZER, ["il va", "oui"])
    assert wrong.calls
    with pytest.raises(DataError, match=r"gigatoken gives other tokens .*il marche.*--fast_tokenizer false"):
        encoder(documents(text.strip(), "oui"))


def test_a_gigatoken_that_has_grown_is_loaded_anew(monkeypatch):
    text = next((SAMPLE / "english").rglob("train.txt")).read_text(encoding="utf-8")
    encoder = make_encoder(TOKENIZER, Library(GIGATOKEN, ""))
    expected = split(encoder(documents(text)))
    first = load_gigatoken(TOKENIZER)
    assert split(encoder(documents(text))) == expected and load_gigatoken(TOKENIZER) is first
    monkeypatch.setattr(encoding, "MOST_GROWTH", -(2**40))
    assert split(encoder(documents(text))) == expected
    assert load_gigatoken(TOKENIZER) is not first


def test_gigatoken_is_not_used_where_it_is_not_wanted():
    library = choose_library(Tokenizer(TOKENIZER), None)
    assert library.name == "sentencepiece" and "--fast_tokenizer" in library.reason


# --- what an encoder gives


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["slow", GIGATOKEN])
def test_encoder_against_the_plain_tokenizer(bos, eos, name):
    tokenizer, texts = Tokenizer(TOKENIZER), random_texts(20)
    encoded = make_encoder(TOKENIZER, Library(name, ""), bos, eos)(documents(*texts))
    expected = [[tokenizer.bos_id] * bos + tokenizer.encode(text) + [tokenizer.eos_id] * eos for text in texts]
    assert split(encoded) == expected
    assert (encoded.tokens.dtype, encoded.lengths.dtype) == (np.uint16, np.int64)
    assert (encoded.words, encoded.turn_count) == (
        sum(len(text.split()) for text in texts),
        sum(text.count("\n[speaker") + 1 for text in texts),
    )
    assert not encoded.shared and not encoded.empty


@pytest.mark.parametrize("name", ["slow", GIGATOKEN])
def test_documents_without_tokens(name):
    encoder = make_encoder(TOKENIZER, Library(name, ""))
    encoded = encoder(documents("", "un", "", "deux", ""))
    assert encoded.empty == [0, 2, 4] and split(encoded) == expected_of(TOKENIZER, ["un", "deux"])
    for nothing in ([], documents(""), documents("", "")):
        encoded = encoder(nothing)
        assert (len(encoded.tokens), len(encoded.lengths), len(encoded.turns)) == (0, 0, 0)
        assert encoded.tokens.dtype == np.uint16 and encoded.empty == list(range(len(nothing)))
        assert (encoded.words, encoded.turn_count, encoded.shared) == (0, 0, 0)


def test_tokens_outside_of_the_vocabulary_are_a_bug(monkeypatch):
    encoder = make_encoder(TOKENIZER)
    monkeypatch.setattr(encoder._tokenizer, "encode_batch", lambda texts: [[70_000] for _ in texts])
    with pytest.raises(AssertionError, match="outside of the vocabulary"):
        encoder(documents("un"))


@pytest.mark.parametrize("folder", TOKENIZERS)
def test_turns_of_long_documents_are_where_lines_begin(folder):
    texts, tokenizer = random_texts(20, seed=1), Tokenizer(folder)
    lengths = [len(ids) for ids in split(make_encoder(folder)(documents(*texts)))]
    for window in (0, sorted(lengths)[12], max(lengths) - 1, max(lengths)):
        encoded = make_encoder(folder, window=window)(documents(*texts))
        lines = [text.count("\n") for text, length in zip(texts, lengths, strict=True) if length > window]
        assert len(encoded.turns) == sum(lines) and np.all(np.diff(encoded.turns) > 0)
        ends = np.cumsum(encoded.lengths)
        for turn in encoded.turns.tolist():
            document = int(np.searchsorted(ends, turn, side="right"))
            begin, end = ends[document] - lengths[document], ends[document]
            assert lengths[document] > window and turn > begin
            assert tokenizer.decode(encoded.tokens[turn:end].tolist()).lstrip().startswith("[speaker")
            assert tokenizer.decode([int(encoded.tokens[turn])]).strip(), "the line's end belongs to the turn before"


# --- words and turns


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8),
    limit=st.sampled_from([1, 20, 2**17]),
)
def test_words_of_random_texts(texts, limit):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoding, "COUNTED_BYTES", limit)
        words, _ = count_words_and_turns([text.encode() for text in texts])
    # unlike for str.split: all of ASCII's control characters are white space, of Unicode's spaces only no-break ones
    assert words == sum(len(re.findall("[^\x00-\x20\u00a0\u202f]+", text)) for text in texts)


PLAIN_TEXT = st.text(st.sampled_from("ab é🙂\t\n [:]\u00a0\u202f\u2003x\u00e2\u0080\u00af\u00c2"), max_size=40)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(PLAIN_TEXT.map(lambda text: text.replace("\u2003", " ")), max_size=8))
def test_words_are_what_python_splits(texts):
    assert count_words_and_turns([text.encode() for text in texts])[0] == sum(len(text.split()) for text in texts)


@settings(max_examples=500, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("[]: a\né:]["), max_size=30), max_size=8))
def test_turns_are_lines_that_begin_with_a_tag(texts):
    expected = sum(len(re.findall(r"^\[[^\]\n]+:\]", text, re.MULTILINE)) for text in texts)
    assert count_words_and_turns([text.encode() for text in texts])[1] == expected


def test_only_names_in_brackets_at_a_line_begin_count_as_turns():
    text = "[A:] un\n[Mme de B.:] deux [C:] trois\n[rire] oui\n [D:] non\n[:] non\n[speaker001:]"
    assert count_words_and_turns([text.encode()]) == (len(text.split()), 3)
