"""Cleaned books → a dataset of chunks: Parquet files with the columns text, source, number and position.

1. The books are read one by one and cut between paragraphs and sentences (utils/books/chunking.py), by as many
   processes as there are cores. The chunks of a book joined are its text.
2. Their rows are written in the order of the files' names, whatever the number of processes.
3. books.csv, the card and the checksums come last; then the folder gets its name. A second call with the same books and
   options leaves it as it is.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this file's folder

from utils import cli
from utils.books.options import ChunkOptions

if __name__ == "__main__":
    OPTIONS = cli.parse_or_exit(ChunkOptions)  # --help and mistakes are answered before the imports below

from lit_gpt.checksums import file_sha256, write_sums
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_files import matches
from utils.books.book_list import Book, write_books
from utils.books.chunk_files import CHUNK_FILES, SENT
from utils.books.chunk_work import ChunkCounts, Cutter, books_to_cut, digest
from utils.books.chunk_writer import ChunkWriter, is_made_from
from utils.books.chunking import Sizes
from utils.books.cleaned_folder import settings_of
from utils.books.dataset_card import dataset_card
from utils.books.sentences import import_sentencex
from utils.files.staged_folder import carry_over, check_replaceable, recover, staged
from utils.prepare.dataset_cards import CARD
from utils.prepare.progress import ProgressLine, say
from utils.prepare.unpacking import import_pyarrow
from utils.prepare.work_pool import WorkPool, own_cpus


def main(options: ChunkOptions) -> None:
    import_pyarrow()
    import_sentencex()
    check_output_dir(options)
    books = books_to_cut(options.input_dir, say)
    made_from = digest(books, options)
    if is_made_from(options.output_dir, made_from):
        say(f"{options.output_dir} is up to date: made from these {len(books):,} books with these options")
        return
    cleaned = settings_of(options.input_dir, books)
    if not cleaned:
        say(f"{options.input_dir} has no record of a cleaning: its texts are cut as they are, with any licence in them")
    made: list[tuple[str, dict[str, Any]]] = [("data/clean_gutenberg.py", cleaned)] if cleaned else []
    made.append(("data/chunk_books.py", {"chunk_target": options.chunk_target, "chunk_min": options.chunk_min}))
    with staged(options.output_dir) as stage:
        kept = write_chunks(stage, books, options, made_from)
        write_books(stage, kept)
        card = dataset_card(stage, kept, made, options.licence)
        (stage / CARD).write_text(card, encoding="utf-8")
        write_sums(stage, {path.name: file_sha256(path) for path in sorted(stage.iterdir())})
        earlier = {path.name for path in options.output_dir.glob(CHUNK_FILES)}
        carry_over(options.output_dir, stage, gone=earlier)
    say(f"wrote {options.output_dir}")


def check_output_dir(options: ChunkOptions) -> None:
    """Raises a UserError if the folder, which is replaced, has files of others, or what is to be read."""
    folder = options.output_dir
    check_replaceable(folder)
    if options.input_dir.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--input_dir {options.input_dir} lies in --output_dir {folder}, which is replaced")
    recover(folder)  # before it is looked into
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # hidden files, such as those of git, stay as licences do
    foreign = [name for name in names if not matches(name, (*SENT, ".*"))]
    if foreign:
        more = ", …" if len(foreign) > 3 else ""
        raise UserError(
            f"--output_dir {folder} holds something else ({', '.join(foreign[:3])}{more});"
            " give a folder that is new or empty"
        )


def write_chunks(folder: Path, books: Sequence[Book], options: ChunkOptions, made_from: str) -> list[Book]:
    """Writes the Parquet files; returns the books that have text."""
    sizes = Sizes(options.chunk_target, options.chunk_min)
    counts = ChunkCounts(sizes)
    bytes_of = {book.file: (options.input_dir / book.file).stat().st_size for book in books}
    progress = ProgressLine("cut", sum(bytes_of.values()))
    num_workers = max(1, min(options.num_workers or own_cpus(), len(books)))
    kept = []
    with (
        WorkPool(partial(Cutter, options.input_dir, sizes), num_workers) as pool,
        ChunkWriter(folder, made_from) as writer,
    ):
        for book, chunks in pool.map(Cutter.cut, books):
            writer.add(book.file, book.number, [chunk.text for chunk in chunks])
            counts.add(chunks)
            progress.advance(bytes_of[book.file])
            if chunks:
                kept.append(book)
            else:
                progress.line(f"{book.file} has no text: left out")
    progress.close()
    if not kept:
        raise DataError(f"no book in {options.input_dir} has text")
    say(f"{len(kept):,} books: {counts.line()}")
    return kept


if __name__ == "__main__":
    sys.exit(cli.run(main, OPTIONS))
