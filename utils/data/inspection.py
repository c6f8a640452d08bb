"""A look into a data folder: its table, whether its files are what they were, and some rows as text."""

import random
from pathlib import Path

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.manifest import TOKENIZER, DatasetSplit, Manifest
from utils.data.shards import Row, RowReader, verify_shards
from utils.data.table import aligned

_COLUMNS = ["dataset", "split", "language", "documents", "turns", "words", "tokens", "rows", "padding", "repeated"]


def inspect(data_dir: Path, show: int, seed: int) -> None:
    """Prints the datasets, compares every shard with its checksum, and decodes `show` rows of each split."""
    manifest = Manifest.load(data_dir)
    print(table(manifest))
    verify_shards(data_dir, manifest.splits)
    shards = [shard for entry in manifest.splits for shard in entry.shards]
    size = sum(shard.bytes for shard in shards)
    print(f"\n{len(shards)} shards, {size:,} bytes: each has the SHA-256 of the manifest", flush=True)
    if not show:
        return
    tokenizer = Tokenizer(data_dir / TOKENIZER)
    for entry in manifest.splits:
        reader = RowReader(data_dir, entry)
        chosen = random.Random(seed).sample(range(entry.rows), min(show, entry.rows))
        for number in sorted(chosen):
            print(f"\n══ {entry.dataset} {entry.split}, row {number:,} of {entry.rows:,}")
            print(row_text(reader.read(number), tokenizer))


def table(manifest: Manifest) -> str:
    texts = aligned([_COLUMNS, *(_cells(entry, manifest.window) for entry in manifest.splits)], left=3)
    for index, entry in enumerate(manifest.splits, start=1):
        if entry.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in entry.skipped.items())
            texts[index] += f"  left out: {reasons}"
    return "\n".join(texts)


def _cells(entry: DatasetSplit, window: int) -> list[str]:
    size = max(1, entry.rows * window)
    cells = [entry.dataset, entry.split, entry.language]
    for count in (entry.documents, entry.turns, entry.words, entry.tokens, entry.rows):
        cells.append(f"{count:,}")
    for tokens in (entry.padding, entry.overlap):
        cells.append(f"{tokens / size:.2%}".replace("%", " %"))
    return cells


def row_text(row: Row, tokenizer: Tokenizer) -> str:
    """The text of a row, segment by segment; what a segment repeats as context is before `│`."""
    texts = []
    begin = 0
    segments = zip(row.segment_lengths.tolist(), row.segment_overlaps.tolist(), strict=True)
    for number, (length, overlap) in enumerate(segments, start=1):
        tokens = row.tokens[begin : begin + length].tolist()
        repeated = f"{tokenizer.decode(tokens[: overlap - 1])}│" if overlap > 1 else ""
        targets = f"{length:,} tokens, {length - overlap:,} of them targets"
        texts.append(f"── segment {number}: {targets}\n{repeated}{tokenizer.decode(tokens[max(0, overlap - 1) :])}")
        begin += length
    if padding := len(row.tokens) - begin:
        texts.append(f"── padding: {padding:,} tokens")
    return "\n".join(texts)
