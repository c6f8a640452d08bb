"""Padding, lost tokens and cuts: prepare_data.py's rows beside one document per row and plain concatenation.

    python benchmarks/padding.py [--windows 513 2049 8193 --tokenizers mistral-7b-v0.1 gpt2 falcon] [--together]

1. Ours is what prepare_data.py writes. The manifest says how much of it is padding and repeated context. What is lost
   or cut is found without it, from the shards: the tokens that are targets there, counted by id, against those that
   should be, which are all but each document's first (one too many counts like one too few); and the documents that
   are no segment there as they are, found by their tokens.
2. One document per row: a longer one goes on in further rows, each is filled with padding. Nothing is repeated.
3. Concatenation: documents end to end, a new row wherever one is full, the unfinished last row dropped.

Lost is a token that is no target anywhere, but for each document's first: a row's first token has nothing before it
unless it is repeated, and what is dropped is never seen. Cut are the documents that no row holds whole, avoidable the
cuts through those that fit a window.
--together packs all splits as one dataset: the last row of a small one is no matter then.
Prints a table and appends it to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from utils.data.manifest import Manifest
    from utils.data.shards import Row

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


class Waste(NamedTuple):
    """What a way of making rows costs: shares of all positions in rows, and numbers of tokens and documents."""

    rows: int
    padding: float
    repeated: float
    lost: int
    cut: int
    avoidable: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "claire")
    parser.add_argument("--windows", type=int, nargs="+", default=[513, 2049, 8193], help="tokens of a row")
    parser.add_argument(
        "--tokenizers",
        nargs="+",
        default=["mistral-7b-v0.1", "gpt2", "falcon"],
        help="directories, or names in ../shared/tokenizers",
    )
    parser.add_argument("--together", action="store_true", help="all splits as one dataset")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    from benchmarks.results import Figure, record

    print(f"{'tokenizer':16} {'window':>6}  {'':13} {'rows':>7} {'padding':>9} {'repeated':>9}", end="")
    print(f" {'lost':>8} {'cut':>6} {'avoidable':>9}")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        source = put_together(arguments.source, Path(folder)) if arguments.together else arguments.source
        for tokenizer in (SHARED / "tokenizers" / name for name in arguments.tokenizers):
            for window in arguments.windows:
                for who, waste in measure(source, tokenizer, window).items():
                    print(f"{tokenizer.name:16} {window:6}  {who:13} {waste.rows:7,} {waste.padding:9.3%}", end="")
                    print(f" {waste.repeated:9.3%} {waste.lost:8,} {waste.cut:6,} {waste.avoidable:9,}", flush=True)
                    shape = f"{tokenizer.name} {window}{' together' if arguments.together else ''}"
                    figures += [
                        Figure(who, shape, f"{100 * waste.padding:.4f}", "% padding"),
                        Figure(who, shape, f"{100 * waste.repeated:.4f}", "% repeated"),
                        Figure(who, shape, str(waste.lost), "tokens lost"),
                        Figure(who, shape, str(waste.avoidable), "avoidable cuts"),
                    ]
    if not arguments.no_record:
        record("padding", figures)


def put_together(source: Path, folder: Path) -> Path:
    """A corpus of one dataset with the conversations of all files of `source`."""
    texts = [path.read_text(encoding="utf-8-sig").strip() for path in sorted(source.rglob("*.txt"))]
    (folder / "All").mkdir()
    (folder / "All" / "full.txt").write_text("\n\n".join([*texts, ""]), encoding="utf-8")
    return folder


def measure(source: Path, tokenizer: Path, window: int) -> dict[str, Waste]:
    """The waste of each way, over all datasets and splits; these are packed one by one."""
    from utils.data.manifest import Manifest

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "prepare_data.py", "--source_path", source, "--checkpoint_dir", tokenizer]
        command += ["--destination_path", folder, "--max_length", str(window - 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            sys.exit(f"error: prepare_data.py exited with {done.returncode}:\n{done.stderr[-2000:]}")
        manifest = Manifest.load(Path(folder))
        splits = encode_splits(source, tokenizer, manifest)
        ours = read_ours(Path(folder), manifest, [document for documents in splits for document in documents])
    lengths = [np.array([len(document) for document in documents]) for documents in splits]
    return {
        "ours": ours,
        "per document": add_up([pad_documents(split, window) for split in lengths]),
        "concatenated": add_up([concatenate(split, window) for split in lengths]),
    }


def encode_splits(source: Path, tokenizer_dir: Path, manifest: Manifest) -> list[list[np.ndarray]]:
    """Each split's documents as tokens, by the tokenizer's own library and with the manifest's begin and end tokens."""
    from lit_gpt.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(tokenizer_dir)
    before = [tokenizer.bos_id] if manifest.bos else []
    after = [tokenizer.eos_id] if manifest.eos else []
    splits = []
    for entry in manifest.splits:
        texts = [text for facts in entry.sources for text in read_documents(source / facts["path"])]
        splits.append([np.array([*before, *ids, *after]) for ids in tokenizer.encode_batch(texts)])
        if sum(map(len, splits[-1])) != entry.tokens:
            sys.exit(f"error: {entry.dataset} {entry.split} has {entry.tokens} tokens, not those of its text as it is")
    return splits


def read_documents(path: Path) -> list[str]:
    blocks = path.read_text(encoding="utf-8-sig").split("\n\n")
    return [block.strip() for block in blocks if block.strip()]


# Ours


def read_ours(data_dir: Path, manifest: Manifest, documents: list[np.ndarray]) -> Waste:
    from utils.data.shards import RowReader

    targets = np.zeros(manifest.vocab_size, dtype=np.int64)
    segments: Counter[bytes] = Counter()
    for entry in manifest.splits:
        reader = RowReader(data_dir, entry)
        for number in range(entry.rows):
            for tokens, overlap in split_row(reader.read(number)):
                targets += np.bincount(tokens[overlap:], minlength=len(targets))
                segments[tokens.astype(np.uint32).tobytes()] += 1
    expected = np.bincount(np.concatenate([document[1:] for document in documents]), minlength=len(targets))
    wanted = Counter(document.astype(np.uint32).tobytes() for document in documents)
    fitting = Counter({key: count for key, count in wanted.items() if len(key) // 4 <= manifest.window})
    size = manifest.window * sum(entry.rows for entry in manifest.splits)
    return Waste(
        rows=size // manifest.window,
        padding=sum(entry.padding for entry in manifest.splits) / size,
        repeated=sum(entry.overlap for entry in manifest.splits) / size,
        lost=int(np.abs(expected - targets).sum()),
        cut=(wanted - segments).total(),
        avoidable=(fitting - segments).total(),
    )


def split_row(row: Row) -> list[tuple[np.ndarray, int]]:
    """The row's segments: their tokens, and how many of the first of these are no targets."""
    ends = np.cumsum(row.segment_lengths)
    pieces = np.split(row.tokens, ends)[:-1]
    return list(zip(pieces, row.segment_overlaps.tolist(), strict=True))


# The other ways


def pad_documents(lengths: np.ndarray, window: int) -> Waste:
    rows = -(-lengths // window)
    size = int(rows.sum()) * window
    return Waste(
        rows=int(rows.sum()),
        padding=(size - int(lengths.sum())) / size,
        repeated=0.0,
        lost=int((rows - 1).sum()),
        cut=int((rows > 1).sum()),
        avoidable=0,
    )


def concatenate(lengths: np.ndarray, window: int) -> Waste:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rows = int(ends[-1]) // window
    kept = rows * window
    row_starts = np.arange(rows) * window
    dropped = int(ends[-1]) - kept - int((starts >= kept).sum())  # a document's first token is no target anyway
    cut = ((starts // window < (ends - 1) // window) & (starts < kept)) | (starts >= kept)
    return Waste(
        rows=rows,
        padding=0.0,
        repeated=0.0,
        lost=dropped + int((~np.isin(row_starts, starts)).sum()),
        cut=int(cut.sum()),
        avoidable=int((cut & (lengths <= window)).sum()),
    )


def add_up(parts: list[Waste]) -> Waste:
    """One `Waste` of several: shares weighted by rows."""
    rows = [part.rows for part in parts]
    shares = np.array([part[1:3] for part in parts]).T @ rows / max(1, sum(rows))
    counts = [sum(column) for column in zip(*(part[3:] for part in parts), strict=True)]
    return Waste(sum(rows), *shares.tolist(), *counts)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
