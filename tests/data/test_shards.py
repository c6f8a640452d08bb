"""Shards and their manifest: what is written is what is read, and what is damaged is noticed."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError, UserError
from tests.conftest import random_rows
from utils.data.manifest import MANIFEST, DatasetSplit, Manifest, Shard
from utils.data.parts import PARTS
from utils.data.shards import Row, RowReader, ShardWriter, shard_name, token_dtype, verify_shards
from utils.files.atomic import write_atomically

WINDOW, VOCABULARY = 17, 500


def write_rows(folder: Path, names: list[str], rows: list[Row], at_once: int, dtype: str = "uint16") -> list[Shard]:
    """`rows`, so many at once, as shards of these names."""
    window = len(rows[0].tokens) if rows else WINDOW
    with ShardWriter(folder, names, window, np.dtype(dtype)) as writer:
        for first in range(0, len(rows), at_once):
            writer.add(*joined(rows[first : first + at_once], window, dtype))
        writer.add(*joined([], window, dtype))
        return writer.publish()


def joined(rows: list[Row], window: int, dtype: str) -> tuple[np.ndarray | None, ...]:
    """Rows as the arrays of a shard, parts as they are before; the types of the numbers of segments are any."""
    parts = np.zeros((len(rows), window), np.uint8)
    for index, row in enumerate(rows):
        if row.parts is not None:
            parts[index, : len(row.parts)] = row.parts
    return (
        np.array([row.tokens for row in rows], dtype).reshape(-1, window),
        np.concatenate([np.zeros(0, np.int32), *(row.segment_lengths for row in rows)]).astype(np.int32),
        np.concatenate([np.zeros(0, np.int64), *(row.segment_overlaps for row in rows)]),
        np.cumsum([0, *(len(row.segment_lengths) for row in rows)]),
        None if all(row.parts is None for row in rows) else parts,
    )


def write_split(folder: Path, rows: list[Row], count: int, dataset: str = "FR/A") -> DatasetSplit:
    """`rows` in `count` shards; what the manifest says of them is made up as far as it must be consistent."""
    shards = write_rows(folder, [shard_name(dataset, "train", index, count) for index in range(count)], rows, 7)
    return DatasetSplit(
        dataset, "train", "fr", dataset, 2, 0, 3, 4, 10, 8, len(rows), 0, 0, {}, [{"path": "FR/A/train.txt"}], shards
    )


def manifest_of(*splits: DatasetSplit) -> Manifest:
    return Manifest("abc", VOCABULARY, True, True, "uint16", WINDOW, list(splits), {"program": "a test"})


@pytest.mark.parametrize(("rows", "count"), [(23, 1), (23, 4), (3, 5), (64, 8)])
def test_rows_come_back_as_they_were_written(tmp_path, rows, count):
    """Row i is row i // count of shard i mod count."""
    written = random_rows(rows, WINDOW, VOCABULARY)
    entry = write_split(tmp_path, written, count)
    verify_shards(tmp_path, [entry])
    in_shards = [index for shard in range(count) for index in range(shard, rows, count)]
    assert [shard.rows for shard in entry.shards] == [len(range(shard, rows, count)) for shard in range(count)]
    reader = RowReader(tmp_path, entry)
    for index in np.random.default_rng(0).permutation(rows):
        read = reader.read(int(index))
        for name in ("tokens", "segment_lengths", "segment_overlaps"):
            assert np.array_equal(getattr(read, name), getattr(written[in_shards[index]], name)), name
        assert read.tokens.dtype == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shard.file for shard in entry.shards)


def twins(rows: list[Row], count: int, dtype: str) -> list[dict[str, np.ndarray]]:
    """What each shard's arrays are to be."""
    found = []
    for shard in range(count):
        tokens, lengths, overlaps, row_segments, _ = joined(rows[shard::count], len(rows[0].tokens), dtype)
        segments = {"segment_lengths": lengths, "segment_overlaps": overlaps.astype(np.int32)}
        found.append({"tokens": tokens, **segments, "row_segments": row_segments.astype(np.int64)})
    return found


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.sampled_from(["uint8", "uint16", "uint32"]), st.data()
)
def test_shards_hold_what_the_library_writes(tmp_path_factory, rows, count, at_once, dtype, data):
    """Each array as `safetensors.numpy.save` of the same rows has it, for numpy and for torch, whatever its place."""
    folder, window = tmp_path_factory.mktemp("shards"), data.draw(st.sampled_from([7, 8, 17, 64]))
    written = random_rows(rows, window, 200, seed=rows)
    names = [f"{index}.safetensors" for index in range(count)]
    shards = write_rows(folder, names, written, at_once, dtype)
    assert [shard.file for shard in shards] == names
    for shard, twin in zip(shards, twins(written, count, dtype), strict=True):
        content = (folder / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        expected = safetensors.numpy.load(safetensors.numpy.save(twin))
        for found in (safetensors.numpy.load(content), safetensors.numpy.load_file(folder / shard.file)):
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                assert found[name].dtype == values.dtype and np.array_equal(found[name], values), name
        for found in (safetensors.torch.load(content), safetensors.torch.load_file(folder / shard.file)):
            assert {name: values.numpy().tobytes() for name, values in found.items()} == {
                name: values.tobytes() for name, values in expected.items()
            }
        assert shard.bytes == 1024 + sum(values.nbytes for values in expected.values())
        assert found["tokens"].dtype == getattr(torch, dtype)


def test_the_same_rows_make_the_same_bytes_however_they_come(tmp_path):
    rows = random_rows(50, WINDOW, VOCABULARY)
    names = [f"{index}.safetensors" for index in range(8)]
    written = [write_rows(tmp_path / str(at_once), names, rows, at_once) for at_once in made(tmp_path, 1, 3, 50)]
    assert written[0] == written[1] == written[2]


def made(folder: Path, *names: int) -> tuple[int, ...]:
    for name in names:
        (folder / str(name)).mkdir()
    return names


def test_rows_of_one_token(tmp_path):
    """A document of one token in a window of one: no target, but a row."""
    rows = [Row(np.array([n]), np.array([1]), np.array([1])) for n in range(5)]
    shards = write_rows(tmp_path, ["a", "b"], rows, 2)
    assert [shard.rows for shard in shards] == [3, 2]
    assert safetensors.numpy.load_file(tmp_path / "a")["tokens"].tolist() == [[0], [2], [4]]


def with_parts(rows: list[Row], seed: int, all_targets: float = 0.3) -> list[Row]:
    """The rows with random parts in runs, some of them all targets, some with a run per token."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        used = int(row.segment_lengths.sum())
        changes = rng.random(used) < rng.choice([0.05, 0.5, 1])
        parts = rng.integers(0, len(PARTS), used).astype(np.uint8)[np.cumsum(changes) - changes[0]]
        kept = None if rng.random() < all_targets or not parts.any() else parts
        found.append(replace(row, parts=kept))
    return found


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 40), st.sampled_from([0, 0.5, 1]))
def test_parts_come_back_as_they_were_written(tmp_path_factory, rows, count, at_once, all_targets):
    """In whatever portions rows come, some with and some without; where all are targets, nothing is stored."""
    folder = tmp_path_factory.mktemp("shards")
    written = with_parts(random_rows(rows, WINDOW, VOCABULARY, seed=rows), rows, all_targets)
    names = [f"{index}.safetensors" for index in range(count)]
    shards = write_rows(folder, names, written, at_once)
    assert shards == write_rows(folder, names, written, 1)
    entry = DatasetSplit("x", "train", "", "x", 0, 0, 0, 0, 0, 0, rows, 0, 0, {}, [], shards)
    reader = RowReader(folder, entry)
    in_shards = [index for shard in range(count) for index in range(shard, rows, count)]
    for index, number in enumerate(in_shards):
        read, expected = reader.read(index), written[number]
        assert (read.parts is None) == (expected.parts is None)
        assert read.parts is None or np.array_equal(read.parts, expected.parts)
        assert reader.count(index)[0] == len(targets_by_hand(expected))
    for shard, name in enumerate(names):
        stored = safetensors.numpy.load_file(folder / name)
        mixed = any(row.parts is not None for row in written[shard::count])
        assert stored.keys() & {"row_runs", "run_lengths", "run_parts"} == (RUNS if mixed else set())
        if mixed:
            assert [stored[name].dtype.name for name in sorted(RUNS)] == ["int64", "int32", "uint8"]


RUNS = {"row_runs", "run_lengths", "run_parts"}


def targets_by_hand(row: Row) -> list[int]:
    """The positions of the row's targets, token by token."""
    found, place = [], 0
    for length, overlap in zip(row.segment_lengths.tolist(), row.segment_overlaps.tolist(), strict=True):
        for offset in range(length):
            is_part = row.parts is None or PARTS[row.parts[place + offset]] == "target"
            if offset >= overlap and is_part:
                found.append(place + offset)
        place += length
    return found


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda runs: {**runs, "run_lengths": runs["run_lengths"] + np.int32(1)},
            r"runs of its row \d+ are \d+ tokens",
        ),
        (lambda runs: {**runs, "run_parts": runs["run_parts"][:-1]}, "not divided among its rows"),
        (lambda runs: {**runs, "row_runs": runs["row_runs"][:-1]}, "not divided among its rows"),
        (lambda runs: {**runs, "row_runs": runs["row_runs"][::-1].copy()}, "not divided among its rows"),
        (lambda runs: {**runs, "run_parts": runs["run_parts"] + np.uint8(99)}, r"part \d+ of its tokens is unknown"),
        (lambda runs: {"row_runs": runs["row_runs"]}, "row_runs alone"),
    ],
)
def test_runs_that_do_not_add_up_are_refused(tmp_path, damage, words):
    """Instead of training on other tokens: the shard is named."""
    written = with_parts(random_rows(9, WINDOW, VOCABULARY), 1, all_targets=0.5)
    [shard] = write_rows(tmp_path, ["x.safetensors"], written, 9)
    arrays = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    runs = {name: arrays.pop(name) for name in RUNS}
    safetensors.numpy.save_file({**arrays, **damage(runs)}, tmp_path / "x.safetensors")
    entry = DatasetSplit("x", "train", "", "x", 0, 0, 0, 0, 0, 0, 9, 0, 0, {}, [], [shard])
    for use in (RowReader.read, RowReader.count):
        with pytest.raises(DataError, match=words) as error:
            use(RowReader(tmp_path, entry), 0)
        assert str(tmp_path / "x.safetensors") in str(error.value)


def test_a_split_without_rows(tmp_path):
    entry = write_split(tmp_path, [], 4)
    assert entry.shards == [] and not list(tmp_path.iterdir())
    verify_shards(tmp_path, [entry])
    with pytest.raises(UserError, match="holds nothing"):
        manifest_of(entry).select("train")


def test_no_shard_has_its_name_before_all_are_complete(tmp_path):
    rows = random_rows(20, WINDOW, VOCABULARY)
    (tmp_path / "a").write_text("earlier")
    with ShardWriter(tmp_path, ["a", "b"], WINDOW, np.dtype(np.uint16)) as writer:
        writer.add(*joined(rows, WINDOW, "uint16"))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp", ".b.tmp", "a"]
        assert (tmp_path / "a").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "earlier"
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, ["a", "b"], WINDOW, np.dtype(np.uint16)) as writer:
        writer.add(*joined(rows, WINDOW, "uint16"))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("failing", range(0, 32, 3))
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, failing):
    """While the files are opened, while rows are written, and while they are completed."""
    import utils.data.shards

    writes, write_array = [], utils.data.shards.write_array

    def fail(file, values) -> None:
        writes.append(file)
        if len(writes) == failing + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_array(file, values)

    before = open_descriptors()
    monkeypatch.setattr(utils.data.shards, "write_array", fail)
    with pytest.raises(OSError, match="No space left") as error:
        write_rows(tmp_path, ["a", "b", "c"], random_rows(15, WINDOW, VOCABULARY), 9)
    assert error.value.filename.rpartition("/")[0] == str(tmp_path)
    del error
    assert not list(tmp_path.iterdir()) and open_descriptors() == before


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (32000, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_the_smallest_type_that_fits(tmp_path, vocabulary, dtype):
    assert token_dtype(vocabulary) == np.dtype(dtype)
    tokens = np.array([0, vocabulary - 1], dtype=dtype)
    row = Row(tokens, np.array([2]), np.array([1]))
    shards = write_rows(tmp_path, ["x.safetensors"], [row], 1, dtype)
    entry = DatasetSplit("x", "train", "", "x", 1, 0, 0, 1, 2, 1, 1, 0, 0, {}, [], shards)
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
    entry = write_split(tmp_path, random_rows(9, WINDOW, VOCABULARY), 3)
    damaged = tmp_path / entry.shards[1].file
    damage(damaged)
    with pytest.raises(DataError, match=words) as error:
        verify_shards(tmp_path, [entry])
    assert str(damaged) in str(error.value) and "prepare_data.py" in str(error.value)


def test_a_manifest_comes_back_as_it_was_saved(tmp_path):
    manifest = manifest_of(write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), 2, "FR/Théâtre"))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert "Théâtre" in (tmp_path / MANIFEST).read_text(encoding="utf-8")
    assert manifest.block_size == WINDOW - 1


def test_the_fingerprint_is_of_the_rows_alone(tmp_path):
    first = write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), 2, "FR/A")
    second = write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY, seed=1), 2, "FR/B")
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
    manifest = manifest_of(write_split(tmp_path, random_rows(5, WINDOW, VOCABULARY), 2))
    content = change(asdict(manifest))
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as error:
        Manifest.load(tmp_path)
    assert str(tmp_path / MANIFEST) in str(error.value)


def test_no_manifest_means_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"prepare_data\.py"):
        Manifest.load(tmp_path)


def test_selection_by_split_and_language(tmp_path):
    french = write_split(tmp_path, random_rows(2, WINDOW, VOCABULARY), 1, "FR/B")
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
