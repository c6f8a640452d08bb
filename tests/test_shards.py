"""Shards and their manifest: what is written is what is read, and what is damaged is noticed."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.command import DataError, UserError
from tests.conftest import random_rows
from utils.shards import (
    MANIFEST,
    DatasetSplit,
    Manifest,
    Row,
    RowReader,
    file_sha256,
    shard_name,
    token_dtype,
    verify_shards,
    write_atomically,
    write_shard,
)

WINDOW, VOCABULARY = 17, 500


def write_split(folder: Path, rows: list[Row], counts: list[int], dataset: str = "FR/A") -> DatasetSplit:
    """`rows` in shards of `counts` rows; what the manifest says of them is made up as far as it must be consistent."""
    shards, first = [], 0
    for index, count in enumerate(counts):
        path = folder / shard_name(dataset, "train", index, len(counts))
        shards.append(write_shard(path, rows[first : first + count], WINDOW, np.dtype(np.uint16)))
        first += count
    assert first == len(rows)
    return DatasetSplit(
        dataset, "train", "fr", dataset, 2, 3, 4, 10, 8, len(rows), 0, 0, {}, [{"path": "FR/A/train.txt"}], shards
    )


def manifest_of(*splits: DatasetSplit) -> Manifest:
    return Manifest("abc", VOCABULARY, True, True, "uint16", WINDOW, list(splits), {"program": "a test"})


@pytest.mark.parametrize("counts", [[23], [5, 6, 6, 6], [0, 1, 0, 22, 0], [3, 3, 3, 3, 3, 3, 3, 2]])
def test_rows_come_back_as_they_were_written(tmp_path, counts):
    rows = random_rows(sum(counts), WINDOW, VOCABULARY)
    entry = write_split(tmp_path, rows, counts)
    assert [shard.rows for shard in entry.shards] == counts
    verify_shards(tmp_path, [entry])
    reader = RowReader(tmp_path, entry)
    for index in np.random.default_rng(0).permutation(len(rows)):
        read = reader.read(int(index))
        for name in ("tokens", "segment_lengths", "segment_overlaps"):
            assert np.array_equal(getattr(read, name), getattr(rows[index], name)), name
        assert read.tokens.dtype == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shard.file for shard in entry.shards)


def test_a_split_without_rows(tmp_path):
    entry = write_split(tmp_path, [], [0])
    verify_shards(tmp_path, [entry])
    with pytest.raises(UserError, match="holds nothing"):
        manifest_of(entry).select("train")


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (32000, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_the_smallest_type_that_fits(tmp_path, vocabulary, dtype):
    assert token_dtype(vocabulary) == np.dtype(dtype)
    tokens = np.array([0, vocabulary - 1], dtype=dtype)
    row = Row(tokens, np.array([2]), np.array([1]))
    shard = write_shard(tmp_path / "x.safetensors", [row], 2, np.dtype(dtype))
    entry = DatasetSplit("x", "train", "", "x", 1, 0, 1, 2, 1, 1, 0, 0, {}, [], [shard])
    read = RowReader(tmp_path, entry).read(0).tokens
    assert read.tolist() == [0, vocabulary - 1] and read.dtype == np.dtype(dtype)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, words):
    entry = write_split(tmp_path, random_rows(9, WINDOW, VOCABULARY), [3, 3, 3])
    damaged = tmp_path / entry.shards[1].file
    damage(damaged)
    with pytest.raises(DataError, match=words) as error:
        verify_shards(tmp_path, [entry])
    assert str(damaged) in str(error.value) and "prepare_data.py" in str(error.value)


def test_a_manifest_comes_back_as_it_was_saved(tmp_path):
    manifest = manifest_of(write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), [2, 3], "FR/Théâtre"))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert "Théâtre" in (tmp_path / MANIFEST).read_text(encoding="utf-8")
    assert manifest.block_size == WINDOW - 1


def test_the_fingerprint_is_of_the_rows_alone(tmp_path):
    first = write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), [2, 3], "FR/A")
    second = write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY, seed=1), [2, 3], "FR/B")
    manifest = manifest_of(first, second)
    base = manifest.fingerprint([first, second])
    assert manifest_of(first).fingerprint([first, replace(second, group="other", words=7)]) == base
    others = [
        manifest.fingerprint([first]),
        manifest.fingerprint([first, replace(second, dataset="FR/C")]),
        manifest.fingerprint([first, replace(second, shards=first.shards)]),
        replace(manifest, window=9).fingerprint([first, second]),
        replace(manifest, tokenizer="other").fingerprint([first, second]),
    ]
    assert base not in others and len(set(others)) == len(others)


def changed(**values: object):
    return lambda content: json.dumps({**content, **values})


def with_split(**values: object):
    return lambda content: json.dumps({**content, "splits": [{**content["splits"][0], **values}]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(format_version=99), "format version 99"),
        (changed(unknown=1), "unknown"),
        (changed(splits=[1]), "no manifest"),
        (changed(splits=None), "no manifest"),
        (with_split(targets=9), "target"),
        (with_split(rows=7), "no manifest"),
        (with_split(shards=[{}]), "no manifest"),
        (lambda content: json.dumps(content)[:-20], "no manifest"),
        (lambda content: "[]", "no manifest"),
        (lambda content: "{}", "format_version"),
        (lambda content: b"\xff", "no manifest"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, change, words):
    manifest = manifest_of(write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), [2, 3]))
    content = change(asdict(manifest))
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as error:
        Manifest.load(tmp_path)
    assert str(tmp_path / MANIFEST) in str(error.value)


def test_no_manifest_means_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"prepare_data\.py"):
        Manifest.load(tmp_path)


def test_selection_by_split_and_language(tmp_path):
    french = write_split(tmp_path, random_rows(2, WINDOW, VOCABULARY), [2], "FR/B")
    english = replace(french, dataset="EN/A", language="en")
    other, empty = replace(french, dataset="FR/A", split="test"), replace(french, dataset="FR/C", rows=0, shards=[])
    manifest = manifest_of(french, english, other, empty)
    assert manifest.select("train") == [english, french]
    assert manifest.select("train", "FR") == [french]
    assert manifest.select("test") == [other]
    with pytest.raises(UserError, match=r"no 'test' rows of language 'en'; it holds EN/A \(en, train\)"):
        manifest.select("test", "en")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / MANIFEST
    write_atomically(path, "old")
    sha256 = file_sha256(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(path, b"new")
    assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
    assert file_sha256(path) == sha256 and list(tmp_path.iterdir()) == [path]
