"""A folder of books cleaned by several processes: what is to do, what stays, and what is nobody's any more.

`reports/records/` has a file for each book that says what it was made from, and the SHA-256 of what was written. It is
written before the book, and after an older result is gone: a book that differs from its record was changed by hand,
and is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lit_gpt.checksums import file_sha256
from lit_gpt.errors import DataError, UserError
from utils.books.book_list import BOOKS, Book, is_book, listed_books, write_books
from utils.books.cleaning import CleanedBook, Review, clean
from utils.books.file_names import listing, printable
from utils.books.options import CleanOptions
from utils.books.reports import Reported, write_reports
from utils.files.atomic import write_atomically
from utils.files.folder_lock import locked
from utils.prepare.book_folders import REPORTS
from utils.prepare.progress import ProgressLine, say
from utils.prepare.work_pool import WorkPool, own_cpus

RECORDS = "records"
CLEANED, EDITED, EMPTY, REFUSED = "cleaned", "changed by hand", "nothing left", "refused"
LONGEST_NAME = 240
"""Bytes of a file's name: while it is written, it has a few more, and 255 are allowed."""
RULES = (
    "utils/books/back_matter.py",
    "utils/books/boilerplate.py",
    "utils/books/cleaning.py",
    "utils/books/contents.py",
    "utils/books/edits.py",
    "utils/books/gaps.py",
    "utils/books/header_fields.py",
    "utils/books/illustrations.py",
    "utils/books/markers.py",
    "utils/books/notes.py",
    "utils/books/page_marks.py",
    "utils/books/paragraphs.py",
    "utils/books/typography_marks.py",
    "utils/books/unwrap.py",
    "utils/files/text_encoding.py",
)
"""What decides how books are cleaned: when one of these files changes, all books are cleaned anew."""


@dataclass(frozen=True)
class Cleaner:
    """What a process needs to clean one book after the other."""

    input_dir: Path
    output_dir: Path
    unwrap: bool
    rules: str
    """A digest of the code that cleans."""


@dataclass(frozen=True)
class Outcome:
    """What became of one book."""

    name: str
    kind: str
    """CLEANED, EDITED, EMPTY or REFUSED."""
    why: str = ""
    sha256: str | None = None
    """Of the file in the folder; None where there is none."""
    is_new: bool = False
    """Whether this call cleaned it."""


def clean_folder(options: CleanOptions) -> list[Outcome]:
    """Cleans what is new or changed, and writes the folder's reports and its books.csv."""
    names = _find_books(options)
    listed = listed_books(options.input_dir)
    cleaner = Cleaner(options.input_dir, options.output_dir, options.unwrap, _rules_version())
    with locked(options.output_dir, lambda take: take(), leave=False) as lock:
        (options.output_dir / REPORTS / RECORDS).mkdir(parents=True, exist_ok=True)
        _remove_stale(options.output_dir, names)
        outcomes = _clean_all(cleaner, names, options.num_workers or own_cpus())
        if lock:
            lock.check()
        _write_lists(options.output_dir, outcomes, listed)
    return outcomes


def _find_books(options: CleanOptions) -> list[str]:
    """The names of the books, in order."""
    source, target = options.input_dir.resolve(), options.output_dir.resolve()
    if not source.is_dir():
        raise UserError(f"--input_dir {options.input_dir} is {'no folder' if source.exists() else 'not there'}")
    if target.exists() and not target.is_dir():
        raise UserError(f"--output_dir {options.output_dir} is no folder")
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"--output_dir {options.output_dir} and --input_dir {options.input_dir} must lie apart")
    if (source / REPORTS / RECORDS).is_dir():
        raise UserError(
            f"--input_dir {options.input_dir} has books that are cleaned, see its {REPORTS}/: is it the --output_dir?"
        )
    entries = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    books = [path.name for path in entries if is_book(path)]
    counts = {path.name: sum(map(is_book, path.rglob("*"))) for path in entries if path.is_dir()}
    folders = [name for name, count in counts.items() if count]
    if folders:
        say(
            f"{sum(counts.values())} books lie in folders of {options.input_dir} and are not read ({listing(folders)}):"
            " put them beside the others"
        )
    others = [path.name for path in entries if path.name not in {BOOKS, *books, *folders}]
    if not books:
        raise UserError(f"--input_dir {options.input_dir} has no *.txt files")
    if others:
        say(f"{len(others)} entries of {options.input_dir} are no *.txt files and are left out: {listing(others)}")
    return books


def _rules_version() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for name in RULES:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def _clean_all(cleaner: Cleaner, names: list[str], num_workers: int) -> list[Outcome]:
    sizes = {name: (cleaner.input_dir / name).stat().st_size for name in names}
    progress = ProgressLine("cleaned", sum(sizes.values()))
    outcomes = []
    with WorkPool(partial(replace, cleaner), max(1, min(num_workers, len(names)))) as pool:
        for name, outcome in pool.map(clean_one, names):
            outcomes.append(outcome)
            progress.advance(sizes[name])
            if outcome.kind != CLEANED:
                progress.line(f"{printable(name)}: {outcome.kind}{': ' * bool(outcome.why)}{outcome.why}")
    progress.close()
    return outcomes


def clean_one(cleaner: Cleaner, name: str) -> Outcome:
    """Cleans a book, unless it is done or was changed by hand."""
    if problem := _problem_of_name(name):
        return Outcome(name, REFUSED, problem)
    data = (cleaner.input_dir / name).read_bytes()
    made_from = f"{hashlib.sha256(data).hexdigest()} {cleaner.rules} unwrap={cleaner.unwrap}"
    path, target = record_path(cleaner.output_dir, name), cleaner.output_dir / name
    record, present = read_record(path), _sha256(target)
    if present and present != (record or {}).get("sha256"):
        return Outcome(name, EDITED, "it is kept; delete it to have it cleaned again", present)
    if record and record["made_from"] == made_from and record["sha256"] == present:
        return Outcome(name, record["kind"], record["why"], present)
    target.unlink(missing_ok=True)
    kind, why, book = _cleaned(data, name, cleaner.unwrap)
    content = book.text.encode()
    sha256 = hashlib.sha256(content).hexdigest() if content else None
    write_atomically(path, _record(name, made_from, kind, why, sha256, book))
    if content:
        write_atomically(target, content)
    return Outcome(name, kind, why, sha256, is_new=True)


def _problem_of_name(name: str) -> str:
    if "\\" in name:
        return "its name has a backslash, which other systems take for a folder"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "its name is not Unicode"
    is_long = size > LONGEST_NAME
    return f"its name has {size} bytes; at most {LONGEST_NAME} leave room for what is added" if is_long else ""


def _cleaned(data: bytes, name: str, unwrap: bool) -> tuple[str, str, CleanedBook]:
    """The kind of outcome, why it is no other, and the book; an empty one where there is none."""
    try:
        book = clean(data, printable(name), unwrap)
    except DataError as e:
        return REFUSED, str(e), CleanedBook(reviews=[Review(REFUSED, 1, str(e))])
    if book.text:
        return CLEANED, "", book
    return EMPTY, "the file has no text" if not book.characters else "nothing in it is a work's", book


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.exists() else None


def record_path(output_dir: Path, name: str) -> Path:
    """The file that says how a book was cleaned."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return output_dir / REPORTS / RECORDS / f"{digest[:32]}.jsonl"


def _record(name: str, made_from: str, kind: str, why: str, sha256: str | None, book: CleanedBook) -> str:
    """A line on the book, and one for each passage taken out, as removed.jsonl has them."""
    head = {
        "name": name,
        "made_from": made_from,
        "kind": kind,
        "why": why,
        "sha256": sha256,
        "encoding": book.encoding,
        "characters": book.characters,
        "kept": len(book.text),
        "taken_out": book.taken_out,
        "put_in": book.put_in.total(),
        "fields": book.fields._asdict(),
        "reviews": [asdict(review) for review in book.reviews],
    }
    lines = [head, *({"file": name, **asdict(removed)} for removed in book.removed)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record's first line; None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.loads(file.readline())
    except (FileNotFoundError, ValueError):
        return None


def settings_of(folder: Path, books: Sequence[Book]) -> dict[str, str]:
    """How the books of a folder were cleaned, for a dataset's card; nothing where there is no record of any of them."""
    used: set[tuple[str, str]] = set()
    others = 0
    for book in books:
        record = read_record(record_path(folder, book.file)) or {}
        words = record.get("made_from", "").split()
        if len(words) == 3 and record["sha256"] == book.sha256:
            used.add((words[2].removeprefix("unwrap=").lower(), words[1][:12]))
        else:
            others += 1
    if not used:
        return {}
    unwrap, rules = (" and ".join(sorted(set(values))) for values in zip(*used, strict=True))
    changed = {"books changed since": str(others)} if others else {}
    return {"unwrap": unwrap, "version of the rules": rules, **changed}


def _remove_stale(output_dir: Path, names: list[str]) -> None:
    """Removes what a killed call left, and results whose books have left the input, unless a person changed them."""
    records = output_dir / REPORTS / RECORDS
    for path in (*output_dir.glob(".*.tmp"), *records.glob(".*.tmp"), *records.parent.glob(".*.tmp")):
        path.unlink()
    present = set(names)
    removed, kept = [], []
    for path in sorted(set(records.glob("*.jsonl")) - {record_path(output_dir, name) for name in names}):
        record = read_record(path)
        if record is None:
            continue
        name = record["name"]
        if _sha256(output_dir / name) in (record["sha256"], None):
            (output_dir / name).unlink(missing_ok=True)
            path.unlink()
            removed.append(name)
        else:
            kept.append(name)
    known = present.union(kept)
    strange = [path.name for path in sorted(output_dir.iterdir()) if is_book(path) and path.name not in known]
    if removed:
        say(f"{len(removed)} books have left the input and are removed: {listing(removed)}")
    if kept:
        say(f"{len(kept)} books have left the input, but were changed by hand and are kept: {listing(kept)}")
    if strange:
        say(f"{len(strange)} files of {output_dir} are no books of the input and are left alone: {listing(strange)}")


def _write_lists(output_dir: Path, outcomes: list[Outcome], listed: dict[str, Book]) -> None:
    books = []
    reported: list[Reported] = []
    for outcome in outcomes:
        path = record_path(output_dir, outcome.name)
        record = read_record(path) or {}
        if outcome.sha256:
            book = listed.get(outcome.name) or _own_book(outcome.name, record)
            encoding = book.encoding or record.get("encoding", "")
            books.append(replace(book, encoding=encoding, sha256=outcome.sha256))
        own = [] if outcome.kind != EDITED else [Review(EDITED, 1, outcome.why)]
        if outcome.kind == REFUSED and not record:
            own = [Review(REFUSED, 1, outcome.why)]
        reported.append(Reported(outcome.name, path if record else None, record, own))
    write_reports(output_dir, reported)
    write_books(output_dir, books)


def _own_book(name: str, record: dict[str, Any]) -> Book:
    """A line of books.csv by the book's header, or its file's name, such as `Author - Title.txt`."""
    fields = record.get("fields", {})
    parts = Path(name).stem.split(" - ")
    return Book(
        name,
        fields.get("number"),
        fields.get("title") or parts[-1],
        fields.get("authors") or "".join(parts[-2:-1]),
        fields.get("language", ""),
        encoding=record.get("encoding", ""),
    )
