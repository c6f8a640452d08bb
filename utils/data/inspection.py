"""A look into a data folder: what it holds, whether its files are what they were, and what some rows say."""

from __future__ import annotations

import random
from pathlib import Path

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.manifest import TOKENIZER, DatasetSplit, Manifest
from utils.data.shards import Row, RowReader, verify_shards

_COLUMNS = ("dataset", "split", "language", "documents", "turns", "words", "tokens", "rows", "padding", "repeated")


def inspect(data_dir: Path, show: int, seed: int) -> None:
    """Prints the datasets, compares every shard with its checksum, and decodes `show` rows of each split.

    Raises:
        UserError: if it is no data folder.
        DataError: if a file is not what the manifest says.
    """
    manifest = Manifest.load(data_dir)
    print(table(manifest))
    verify_shards(data_dir, manifest.splits)
    shards = sum(len(entry.shards) for entry in manifest.splits)
    print(f"\n{shards} shards, {sum_of_bytes(manifest):,} bytes: each has the SHA-256 of the manifest", flush=True)
    if not show:
        return
    tokenizer = Tokenizer(data_dir / TOKENIZER)
    for entry in manifest.splits:
        reader = RowReader(data_dir, entry)
        for number in sorted(random.Random(seed).sample(range(entry.rows), min(show, entry.rows))):
            print(f"\n══ {entry.dataset} {entry.split}, row {number:,} of {entry.rows:,}")
            print(describe_row(reader.read(number), tokenizer))


def sum_of_bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for entry in manifest.splits for shard in entry.shards)


def table(manifest: Manifest) -> str:
    """The datasets as aligned text, with what was left out of each."""
    lines = [_COLUMNS, *(_cells(entry, manifest.window) for entry in manifest.splits)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    texts = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    for index, entry in enumerate(manifest.splits, start=1):
        if entry.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in entry.skipped.items())
            texts[index] += f"  left out: {reasons}"
    return "\n".join(texts)


def _cells(entry: DatasetSplit, window: int) -> tuple[str, ...]:
    size = max(1, entry.rows * window)
    counts = (entry.documents, entry.turns, entry.words, entry.tokens, entry.rows)
    shares = (f"{share / size:.2%}".replace("%", " %") for share in (entry.padding, entry.overlap))
    return (entry.dataset, entry.split, entry.language, *(f"{count:,}" for count in counts), *shares)


def describe_row(row: Row, tokenizer: Tokenizer) -> str:
    """The text of a row, segment by segment; what a segment repeats as context stands before `│`."""
    texts, begin = [], 0
    for number, (length, overlap) in enumerate(
        zip(row.segment_lengths.tolist(), row.segment_overlaps.tolist(), strict=True), start=1
    ):
        tokens = row.tokens[begin : begin + length].tolist()
        repeated = f"{tokenizer.decode(tokens[: overlap - 1])}│" if overlap > 1 else ""
        targets = f"{length:,} tokens, {length - overlap:,} of them targets"
        texts.append(f"── segment {number}: {targets}\n{repeated}{tokenizer.decode(tokens[max(0, overlap - 1) :])}")
        begin += length
    if padding := len(row.tokens) - begin:
        texts.append(f"── padding: {padding:,} tokens")
    return "\n".join(texts)
