"""A look into a data folder: its table, whether its files are what they were, and some rows as text or as a page."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.inspection_page import page
from utils.data.manifest import REPORTS, TOKENIZER, DatasetSplit, Manifest, split_name
from utils.data.shards import Row, RowReader, verify_shards
from utils.data.shown_rows import RowShower, Shown, legend, segment_text, visible
from utils.data.table import aligned
from utils.files.atomic import write_atomically

Worst = Literal["longest", "fewest_targets", "most_left_out"]

_COLUMNS = ["dataset", "split", "language", "documents", "turns", "words", "tokens", "targets", "rows", "padding"]
_COLUMNS += ["repeated"]
ALL = -1  # segments of a row are shown


def inspect(data_dir: Path, show: int, seed: int, worst: Worst | None = None, html: Path | None = None) -> None:
    """Prints the datasets, compares every shard with its checksum and its targets with the manifest, and shows `show`
    rows of each split: some at random, or the texts that are the `worst`; as text, or as a page in the file `html`.
    """
    manifest = Manifest.load(data_dir)
    summary = table(manifest)
    print(summary)
    verify_shards(data_dir, manifest.splits)
    for entry in manifest.splits:
        verify_targets(data_dir, entry)
    shards = [shard for entry in manifest.splits for shard in entry.shards]
    size = sum(shard.bytes for shard in shards)
    print(f"\n{len(shards)} shards, {size:,} bytes: each has the SHA-256 of the manifest", flush=True)
    if not show and html is None:
        return
    items = shown_rows(data_dir, manifest, show, seed, worst)
    if worst == "most_left_out":
        items = chain(items, shown_removals(data_dir, manifest, show))
    if html:
        write_atomically(html, page(data_dir.name, summary, items))
        print(f"{html}: what else there is to see, as a page")
        return
    if any(entry.conversations for entry in manifest.splits):
        print(f"\n{legend()}")
    for item in items:
        print(f"\n══ {item.title}\n{item.text}")


def verify_targets(data_dir: Path, entry: DatasetSplit) -> None:
    """Raises a DataError if the shards have another number of targets than the manifest says."""
    targets = sum(int(segments.targets.sum()) for segments in RowReader(data_dir, entry).segments())
    if targets != entry.targets:
        which = f"the shards of {entry.dataset} {entry.split}"
        raise DataError(f"{data_dir}: {which} have {targets:,} targets, the manifest says {entry.targets:,}")


def shown_rows(data_dir: Path, manifest: Manifest, show: int, seed: int, worst: Worst | None) -> Iterator[Shown]:
    tokenizer = Tokenizer(data_dir / TOKENIZER)
    shower = RowShower(tokenizer)
    for entry in manifest.splits:
        reader = RowReader(data_dir, entry)
        if worst:
            places = worst_segments(reader, worst, show)
        else:
            chosen = random.Random(seed).sample(range(entry.rows), min(show, entry.rows))
            places = [(number, ALL) for number in sorted(chosen)]
        for number, segment in places:
            row = reader.read(number)
            segments = list(shower.segments(row))
            title = f"{entry.dataset} {entry.split}, row {number:,} of {entry.rows:,}"
            if segment != ALL:
                title += f", segment {segment + 1:,} of {len(segments):,}"
                row, segments = only(row, segment), [segments[segment]]
            padding = len(row.tokens) - int(row.segment_lengths.sum())
            rest = [f"── padding: {padding:,} tokens"] if padding else []
            text = "\n".join([*map(segment_text, segments), *rest])
            yield Shown(title, text if entry.conversations else row_text(row, tokenizer), segments, rest)


def only(row: Row, segment: int) -> Row:
    """The row as if it had this one of its segments alone, and no padding."""
    end = int(row.segment_lengths[: segment + 1].sum())
    own, tokens = slice(segment, segment + 1), slice(end - int(row.segment_lengths[segment]), end)
    parts = None if row.parts is None else row.parts[tokens]
    return Row(row.tokens[tokens], row.segment_lengths[own], row.segment_overlaps[own], parts)


def worst_segments(reader: RowReader, worst: Worst, count: int) -> list[tuple[int, int]]:
    """Row and segment of the `count` worst segments, the worst one first."""
    found: list[tuple[int, int, int, int]] = []
    for rows, numbers, lengths, targets in reader.segments():
        key = {"longest": lengths, "fewest_targets": -targets, "most_left_out": lengths - 1 - targets}[worst]
        order = np.lexsort((rows, -lengths, -key))[:count].tolist()
        found += [(-int(key[n]), -int(lengths[n]), int(rows[n]), int(numbers[n])) for n in order]
        found = sorted(found)[:count]
    return [(row, number) for *_, row, number in found]


def shown_removals(data_dir: Path, manifest: Manifest, show: int) -> Iterator[Shown]:
    """What the reports name as left out: by split and reason, so many of each."""
    for entry in manifest.splits:
        path = data_dir / REPORTS / f"{split_name(entry.dataset, entry.split)}.jsonl"
        found: defaultdict[str, list[str]] = defaultdict(list)
        for line in path.open(encoding="utf-8") if path.is_file() else ():
            values = json.loads(line)
            of_reason = found[values.pop("reason")]
            if len(of_reason) < show:
                of_reason.append(", ".join(f"{name}: {visible(str(value))}" for name, value in values.items()))
        for reason, lines in found.items():
            title = f"{entry.dataset} {entry.split}, left out as {reason}: {entry.skipped.get(reason, 0):,}"
            yield Shown(title, "\n".join(lines), [], lines)


def table(manifest: Manifest) -> str:
    texts = aligned([_COLUMNS, *(_cells(entry, manifest.window) for entry in manifest.splits)], left=3)
    for index, entry in enumerate(manifest.splits, start=1):
        if entry.masked:
            reasons = ", ".join(f"{count:,} {part}" for part, count in entry.masked.items())
            texts[index] += f"  no targets: {reasons}"
        if entry.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in entry.skipped.items())
            texts[index] += f"  left out: {reasons}"
        if entry.shortened:
            texts[index] += f"  {entry.shortened:,} shortened by {entry.turns_left_out:,} answers"
    return "\n".join(texts)


def _cells(entry: DatasetSplit, window: int) -> list[str]:
    size = max(1, entry.rows * window)
    cells = [entry.dataset, entry.split, entry.language]
    for count in (entry.documents, entry.turns, entry.words, entry.tokens, entry.targets, entry.rows):
        cells.append(f"{count:,}")
    for tokens in (entry.padding, entry.overlap):
        cells.append(f"{tokens / size:.2%}".replace("%", " %"))
    return cells


def row_text(row: Row, tokenizer: Tokenizer) -> str:
    """The text of a row of plain text, segment by segment; what a segment repeats as context is before `│`."""
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
