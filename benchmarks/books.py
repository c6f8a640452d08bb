"""Seconds and memory that cleaning and cutting books take, what a way without care loses, and how chunks pack.

    python benchmarks/books.py [--books 2000 --workers 2 --rounds 1]

1. The books, of about 400 KB each: the header, credits and licence of a real one of ../shared, a contents page, and
   chapters of paragraphs dealt out anew from it and from English and French plays. Lines are wrapped, some paragraphs
   have _emphasis_, every third book has page numbers, every second one lines that end in CRLF, every fifth is Latin-1.
2. In fresh processes: data/clean_gutenberg.py, data/chunk_books.py, and the second again, which finds all made. Time is
   from start to exit; memory is the peak of the sum over all processes of a run, as in benchmarks/prepare.py.
3. On the same cleaned books, in this process: cutting as ours does and as `by_sentences` does, which joins sentences by
   spaces and drops what is below the minimum at a book's end. How many chunks have a good size, what text is lost, and
   how many paragraphs end in the result.
4. Ten of the books of prose become rows of 2,048 tokens as whole books, as chunks, and as chunks that are joined: how
   many rows, how much padding, how many end tokens.

Prints a table and appends it to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.prepare import SHARED, measure
from benchmarks.results import Figure, record
from utils.books.chunking import Sizes, cut

REAL = SHARED / "data" / "gutenberg" / "Mary Shelley - Frankenstein.txt"
PLAYS = ("EN/Shakespeare", "FR/TheatreMoliere")
PLAY_CHARACTERS = 1_000_000
BOOK_CHARACTERS = 380_000
"""Of the work; header, licence and contents are another 20,000."""
SIZES = Sizes(7000, 6000)
COMPARED, PACKED = 50, 10
"""Books that are cut in both ways, and books of prose that become rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokenizer", default="mistral-7b-v0.1", help="a directory, or a name in ../shared/tokenizers")
    parser.add_argument("--work_dir", type=Path, help="keeps the books for the next call; default: a temporary folder")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    if not REAL.is_file():
        sys.exit(f"error: {REAL} is missing, of which the books are made")
    if arguments.work_dir:
        figures = compare(arguments, arguments.work_dir)
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = compare(arguments, Path(folder))
    if not arguments.no_record:
        record("books", figures)


def compare(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    raw = make_books(folder, arguments.books)
    size = sum(path.stat().st_size for path in raw.iterdir())
    shape = f"{arguments.books} books, {size / 1e6:.0f} MB, {arguments.workers} processes"
    print(shape, flush=True)
    figures = []
    for number in range(arguments.rounds):
        clean, chunks = folder / f"clean-{number}", folder / f"chunks-{number}"
        runs = {
            "clean": ("clean_gutenberg", raw, clean),
            "chunk": ("chunk_books", clean, chunks),
            "chunk again": ("chunk_books", clean, chunks),
        }
        for who, (script, source, target) in runs.items():
            words = ["--input_dir", source, "--output_dir", target, "--num_workers", str(arguments.workers)]
            seconds, peak, output = measure([sys.executable, f"data/{script}.py", *words])
            gib = f"{peak / 2**30:.2f}"
            print(f"{who:14} {seconds:8.1f} s   {size / seconds / 1e6:6.1f} MB/s   {gib} GiB", flush=True)
            print(textwrap.indent(output.strip(), "    "), flush=True)
            figures.append(Figure(who, shape, f"{seconds:.1f}", "s", gib))
    return [
        *figures,
        *compare_cuts(clean),
        *compare_packing(folder, clean, SHARED / "tokenizers" / arguments.tokenizer),
    ]


# The books


def make_books(folder: Path, count: int) -> Path:
    """A folder with so many books; those of an earlier call are kept."""
    raw = folder / f"raw-{count}"
    raw.mkdir(parents=True, exist_ok=True)
    real = REAL.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    head, _, rest = real.partition("*** START OF THIS PROJECT GUTENBERG EBOOK FRANKENSTEIN ***")
    work, _, licence = rest.partition("*** END OF THIS PROJECT GUTENBERG EBOOK FRANKENSTEIN ***")
    credits, _, novel = work.partition("Frankenstein;")
    paragraphs = [paragraphs_of(novel), *(wrapped_play(name) for name in PLAYS)]
    for number in range(1, count + 1):
        path = raw / f"{number} - Nobody - A Book of Numbers {number}.txt"
        if path.is_file():
            continue
        title = f"A BOOK OF NUMBERS {number}"
        header = head.replace("Frankenstein", title.title()).replace("#84", f"#{number}")
        start, end = (f"*** {word} OF THIS PROJECT GUTENBERG EBOOK {title} ***" for word in ("START", "END"))
        text = "".join([header, start, credits, work_of(title, paragraphs, number), end, licence])
        path.write_bytes(encoded(text, number))
    return raw


def paragraphs_of(text: str) -> list[str]:
    return [part for part in re.split(r"\n\n+", text.strip()) if len(part) > 40]


def wrapped_play(name: str) -> list[str]:
    """The turns of plays, each a paragraph of wrapped lines."""
    text = (SHARED / "data" / "claire" / name / "train.txt").read_text(encoding="utf-8")[:PLAY_CHARACTERS]
    turns = [line.partition(":] ")[2] for line in text.splitlines()]
    return [textwrap.fill(turn, 72) for turn in turns if turn]


def work_of(title: str, sources: list[list[str]], number: int) -> str:
    """A title, contents, and chapters whose paragraphs are one source's in another order."""
    draw = random.Random(number)
    source = sources[number % len(sources)]
    parts: list[str] = []
    chapters: list[str] = []
    size = 0
    while size < BOOK_CHARACTERS:
        if len(parts) % 60 == 0:
            chapters.append(f"CHAPTER {len(chapters) + 1}")
            parts.append(f"\n\n{chapters[-1]}\n")
        part = draw.choice(source)
        if draw.random() < 0.05:
            part = re.sub(r"\b(\w{5,})\b", r"_\1_", part, count=1)
        if number % 3 == 0 and draw.random() < 0.1:
            part = f"{part}\n\n[Pg {len(parts)}]"
        parts.append(part)
        size += len(part) + 2
    contents = "\n\n".join(chapters)
    return f"{title}\n\n\nby\n\nNobody\n\n\n\n\nCONTENTS\n\n\n{contents}\n\n\n" + "\n\n".join(parts) + "\n\n\n\n\n"


def encoded(text: str, number: int) -> bytes:
    if number % 2:
        text = text.replace("\n", "\r\n")
    if number % 5 == 0:
        text = text.replace("Character set encoding: UTF-8", "Character set encoding: ISO-8859-1")
        return text.encode("latin-1", "replace")
    return text.encode("utf-8-sig" if number % 4 == 0 else "utf-8")


# Two ways to cut


def compare_cuts(clean: Path) -> list[Figure]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(clean.glob("*.txt"))[:COMPARED]]
    ways = {"ours": ours, "by sentences": by_sentences}
    figures = []
    characters = sum(len("".join(text.split())) for text in texts)
    paragraphs = sum(text.strip().count("\n\n") for text in texts)
    for who, way in ways.items():
        chunks = [chunk for text in texts for chunk in way(text)]
        good = sum(SIZES.least <= len(chunk) <= SIZES.most for chunk in chunks) / len(chunks)
        lost = characters - sum(len("".join(chunk.split())) for chunk in chunks)
        kept = sum(chunk.count("\n\n") for chunk in chunks) / paragraphs
        print(f"{who}: {good:.1%} of {len(chunks)} chunks have a good size, {lost} of {characters} letters are lost,")
        print(f"    {kept:.1%} of {paragraphs} ends of paragraphs are there")
        shape = f"{len(texts)} books"
        figures.append(Figure(f"cut: {who}", shape, f"{100 * good:.2f}", "% of good size"))
        figures.append(Figure(f"cut: {who}", shape, f"{100 * lost / characters:.4f}", "% of letters lost"))
        figures.append(Figure(f"cut: {who}", shape, f"{100 * kept:.2f}", "% of paragraphs kept"))
    return figures


def ours(text: str) -> list[str]:
    return [chunk.text for chunk in cut(text, SIZES)]


_SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’»)]))\s+")


def by_sentences(text: str) -> list[str]:
    """Sentences joined by spaces up to the target; what is below the minimum then is dropped."""
    chunks: list[str] = []
    held = ""
    for sentence in _SENTENCE.split(" ".join(text.split())):
        if held and len(held) + 1 + len(sentence) > SIZES.target:
            chunks.append(held)
            held = ""
        held = f"{held} {sentence}".strip()
    chunks.append(held)
    return [chunk for chunk in chunks if len(chunk) >= SIZES.least]


# Rows


def compare_packing(folder: Path, clean: Path, tokenizer: Path) -> list[Figure]:
    prose = [path for path in clean.glob("*.txt") if int(path.name.partition(" ")[0]) % (1 + len(PLAYS)) == 0]
    whole, chunks = folder / "prose", folder / "prose-chunks"
    for path in (whole, chunks):
        shutil.rmtree(path, ignore_errors=True)
    whole.mkdir()
    for path in sorted(prose, key=lambda path: int(path.name.partition(" ")[0]))[:PACKED]:
        shutil.copy(path, whole)
    measure([sys.executable, "data/chunk_books.py", "--input_dir", whole, "--output_dir", chunks])
    ways = {"whole": (whole, ()), "chunks": (chunks, ()), "joined": (chunks, ("--join_field", "source"))}
    figures = []
    for who, (source, more) in ways.items():
        target = folder / f"rows-{who}"
        words = ["--source_path", source, "--checkpoint_dir", tokenizer, "--destination_path", target]
        output = measure([sys.executable, "prepare_data.py", *words, "--max_length", "2048", *more])[2]
        found = re.search(r"train: ([\d,]+) documents, ([\d,]+) tokens, ([\d,]+) rows, padding ([\d.]+) %", output)
        assert found is not None, output
        ends, tokens, rows, padding = found.groups()
        print(f"{who:14} {rows} rows of 2,048 for {tokens} tokens, padding {padding} %, {ends} end tokens", flush=True)
        shape = f"{tokens} tokens, {tokenizer.name}"
        figures.append(Figure(f"rows: {who}", shape, rows.replace(",", ""), "rows of 2,048 tokens"))
        figures.append(Figure(f"rows: {who}", shape, padding, "% padding"))
        figures.append(Figure(f"rows: {who}", shape, ends.replace(",", ""), "end tokens"))
    return figures


if __name__ == "__main__":
    main()
