"""Tokenizers of both file formats: ids, special tokens, line boundaries, fingerprints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.conftest import SAMPLE, SHARED, TOKENIZER

REAL = SHARED / "tokenizers"
MISTRAL, FALCON, GPT2 = REAL / "mistral-7b-v0.1", REAL / "falcon", REAL / "gpt2"
TEXT = "[speaker001:] Bonjour, ça va ?\n[Łukasz:] Très bien — 12 345 €, merci 🙂\n[speaker001:]  Oui."


def copy(source: Path, folder: Path, **config: object) -> Path:
    """A copy of a tokenizer's files, with other values in tokenizer_config.json; None deletes one."""
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **config}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def lines_by_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The texts between those tokens that begin a line."""
    ids_array = np.array(ids)
    cuts = np.flatnonzero(tokenizer.line_ends[ids_array[:-1]] | tokenizer.line_starts[ids_array[1:]]) + 1
    return [tokenizer.decode(part.tolist()).strip() for part in np.split(ids_array, cuts)]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "size", "bos", "eos", "adds_bos"),
    [
        (MISTRAL, 32000, 1, 2, True),
        (FALCON, 65024, 11, 11, False),
        (GPT2, 50257, 50256, 50256, False),
    ],
)
def test_real_tokenizers(folder, size, bos, eos, adds_bos):
    tokenizer = Tokenizer(folder)
    assert (tokenizer.vocab_size, len(tokenizer.vocabulary)) == (size, size)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (bos, eos, adds_bos)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert bos not in ids and eos not in ids
    assert lines_by_tokens(tokenizer, ids) == TEXT.split("\n")
    assert tokenizer.encode_batch([TEXT, "", "a"]) == [ids, [], tokenizer.encode("a")]


@pytest.mark.shared
def test_real_tokenizers_are_told_apart(tmp_path):
    fingerprints = {Tokenizer(folder).fingerprint for folder in (MISTRAL, FALCON, GPT2, TOKENIZER)}
    assert len(fingerprints) == 4
    for folder in (MISTRAL, GPT2):
        assert Tokenizer(copy(folder, tmp_path / folder.name)).fingerprint in fingerprints


@pytest.mark.shared
def test_lines_of_a_real_corpus():
    text = (SHARED / "data/claire/FR/TheatreMoliere/test.txt").read_text(encoding="utf-8")[:30000].strip()
    for folder in (MISTRAL, FALCON, GPT2):
        tokenizer = Tokenizer(folder)
        lines = lines_by_tokens(tokenizer, tokenizer.encode(text))
        assert [line for line in lines if line] == [line.strip() for line in text.split("\n") if line.strip()]


def test_sample_tokenizer():
    tokenizer = Tokenizer(TOKENIZER)
    assert (tokenizer.vocabulary[tokenizer.bos_id], tokenizer.vocabulary[tokenizer.eos_id]) == ("<s>", "</s>")
    assert tokenizer.adds_bos and tokenizer.token_id("no such entry") is None and tokenizer.token_id("<unk>") == 0
    for path in sorted(SAMPLE.glob("*/*/*/*.txt")):
        text = path.read_text(encoding="utf-8").strip()
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert max(ids) < tokenizer.vocab_size and tokenizer.bos_id not in ids
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(TEXT), tokenizer.eos_id]) == TEXT
    assert lines_by_tokens(tokenizer, tokenizer.encode(TEXT)) == TEXT.split("\n")


@pytest.mark.parametrize(
    "folder", [TOKENIZER, *(pytest.param(folder, marks=pytest.mark.shared) for folder in (MISTRAL, FALCON, GPT2))]
)
def test_library_and_special_tokens(folder, tmp_path):
    tokenizer = Tokenizer(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        added = [token["content"] for token in json.loads(path.read_text(encoding="utf-8"))["added_tokens"]]
        assert (tokenizer.library, sorted(tokenizer.special_tokens)) == ("tokenizers", sorted(added))
    else:
        assert (tokenizer.library, tokenizer.special_tokens) == ("sentencepiece", ["<unk>", "<s>", "</s>"])
        export_tokenizer(tokenizer, tmp_path, TEXT)
        made = Tokenizer(tmp_path)
        assert (made.library, made.special_tokens) == ("tokenizers", ["<unk>", "<s>", "</s>"])
    # no text becomes one of these by what is said, only by its name
    ids = {tokenizer.token_id(name) for name in tokenizer.special_tokens}
    assert None not in ids and not ids.intersection(tokenizer.encode(TEXT))


def test_special_tokens_that_were_added(tmp_path):
    from tokenizers import Tokenizer as HFTokenizer

    export_tokenizer(Tokenizer(TOKENIZER), tmp_path, TEXT)
    made = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made.add_tokens(["[rire]"])
    made.add_special_tokens(["<mask>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).special_tokens == ["<unk>", "<s>", "</s>", "[rire]", "<mask>"]


def test_threads_make_no_difference(monkeypatch):
    tokenizer = Tokenizer(TOKENIZER)
    texts = [TEXT * count for count in range(1, 9)]
    several = tokenizer.encode_batch(texts)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tokenizer.encode_batch(texts) == several


@pytest.mark.parametrize("source", [TOKENIZER, pytest.param(MISTRAL, marks=pytest.mark.shared)])
def test_both_file_formats_are_one_tokenizer(tmp_path, source):
    model = Tokenizer(source)
    assert export_tokenizer(model, tmp_path, TEXT) is None
    (tmp_path / "tokenizer.model").unlink()
    fast = Tokenizer(tmp_path)
    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.glob("*/*/*/test.txt"))]
    assert fast.encode_batch([TEXT, "", " ", *texts]) == model.encode_batch([TEXT, "", " ", *texts])
    assert fast.decode(model.encode(TEXT)) == TEXT
    for name in ("fingerprint", "vocab_size", "bos_id", "eos_id", "adds_bos"):
        assert getattr(fast, name) == getattr(model, name), name
    assert np.array_equal(fast.line_ends, model.line_ends) and np.array_equal(fast.line_starts, model.line_starts)


def test_padding_and_truncation_of_a_file_are_not_for_documents(tmp_path):
    from tokenizers import Tokenizer as HFTokenizer

    export_tokenizer(Tokenizer(TOKENIZER), tmp_path, TEXT)
    path = str(tmp_path / "tokenizer.json")
    greedy = HFTokenizer.from_file(path)
    greedy.enable_truncation(4)
    greedy.enable_padding(length=100)
    greedy.save(path)
    assert Tokenizer(tmp_path).encode(TEXT) == Tokenizer(TOKENIZER).encode(TEXT)


def test_what_makes_another_fingerprint(tmp_path):
    base = Tokenizer(TOKENIZER).fingerprint
    assert Tokenizer(copy(TOKENIZER, tmp_path / "same")).fingerprint == base
    assert Tokenizer(copy(TOKENIZER, tmp_path / "eos", eos_token="<unk>")).fingerprint != base
    export_tokenizer(Tokenizer(TOKENIZER), tmp_path / "same", TEXT)
    path = tmp_path / "same/tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["normalizer"] = {"type": "Lowercase"}  # the same vocabulary, other ids
    path.write_text(json.dumps(values))
    assert Tokenizer(tmp_path / "same").fingerprint != base


@pytest.mark.parametrize(
    ("config", "adds_bos"),
    [({"add_bos_token": False}, False), ({"add_bos_token": True}, True), ({"add_bos_token": None}, True)],
)
def test_who_decides_on_the_begin_token(tmp_path, config, adds_bos):
    assert Tokenizer(copy(TOKENIZER, tmp_path, **config)).adds_bos is adds_bos


@pytest.mark.parametrize(("value", "eos"), [(5, 5), ([7, 5], 7), ([], 2), (None, 2)])
def test_special_tokens_from_the_generation_config(tmp_path, value, eos):
    copy(TOKENIZER, tmp_path, eos_token=None)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert Tokenizer(tmp_path).eos_id == eos


def test_special_tokens_as_objects(tmp_path):
    assert Tokenizer(copy(TOKENIZER, tmp_path, eos_token={"content": "</s>"}, bos_token={"content": "<s>"})).bos_id == 1


def test_no_tokenizer(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model") as error:
            Tokenizer(folder)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b""),
        ("tokenizer.model", b"not a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
        ("generation_config.json", b"3"),
    ],
)
def test_corrupt_files(tmp_path, name, content):
    copy(TOKENIZER, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        Tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n", "tiktoken"),
        ("tokenizer.model", b"IQ== 0\r\nIg== 1\r\n", "tiktoken"),
        ("qwen.tiktoken", b"IQ== 0\n", "tiktoken"),
        ("tekken.json", b'{"config": {"pattern": "x"}, "vocab": []}', "tekken"),
    ],
)
def test_other_formats_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        Tokenizer(tmp_path)
    message = str(error.value)
    assert str(tmp_path / name) in message and "put the tokenizer.json" in message and "\n" not in message
    copy(TOKENIZER, tmp_path / "other")
    export_tokenizer(Tokenizer(tmp_path / "other"), tmp_path, TEXT)  # what the message says to do
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert Tokenizer(tmp_path).library == "tokenizers"


def test_a_truncated_model(tmp_path):
    path = copy(TOKENIZER, tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DataError):
        Tokenizer(tmp_path)


def test_an_end_token_that_the_tokenizer_has_not_ends_nothing(tmp_path):
    """As GPT-2's 50256, which transformers writes where a configuration names none."""
    shutil.copytree(TOKENIZER, tmp_path / "own")
    (tmp_path / "own" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 50256]}))
    assert Tokenizer(tmp_path / "own").end_ids == {2}
