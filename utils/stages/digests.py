"""SHA-256 of what a stage reads and of what it made, by which a later start knows whether anything changed.

What of a result is compared is what later stages read of it: a card that somebody edits, or times in a log, make no
stage run again. Files of over 64 MiB that the folder's SHA256SUMS lists are not read: who uses them compares them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from lit_gpt.checksums import SUMS, file_sha256, listed_sums
from lit_gpt.errors import DataError
from lit_gpt.formats.hf_files import CONFIG, WEIGHTS
from lit_gpt.tokenizer.tokenizer_config import TOKENIZER_CONFIG
from utils.books.book_list import BOOKS, read_books
from utils.data.manifest import MANIFEST, TOKENIZER
from utils.recipe.sections import BOOK_STAGES, Recipe
from utils.run.checkpoint_folders import list_checkpoints
from utils.run.csv_log import VALIDATION, read_csv
from utils.run.progress import STATE
from utils.run.record import PROVENANCE, RUN

LARGE = 2**26
OF_LITGPT = (WEIGHTS, CONFIG, TOKENIZER_CONFIG)
"""What convert_hf_checkpoint.py writes or changes in a Hugging Face folder."""
OF_A_MODEL = (".safetensors", ".bin", ".pth", ".json", ".yaml", ".model", ".jinja", ".txt")
OF_BOOKS = (".txt", ".csv", ".parquet")
OF_A_START = (RUN, STATE, ".metadata")
"""Files of a checkpoint that say when it was made."""

OF_A_CLOCK = ("seconds", "device_seconds")
"""Columns of validation.csv."""


def digest_of(path: Path) -> str | None:
    """The digest of a file, of a folder's files, or of all that fit a pattern; None if there is nothing."""
    if path.is_file():
        return _sha256(path)
    if path.is_dir():
        return _digest(path, [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)])
    if is_pattern(path):
        return _digest(Path(path.anchor), [file for file in matching(path) if file.is_file()])
    return None


def is_pattern(path: Path) -> bool:
    return any(sign in str(path) for sign in "*?[")


def matching(pattern: Path) -> Iterator[Path]:
    """What fits a pattern, in no order."""
    anchor = Path(pattern.anchor)
    return anchor.glob(str(pattern.relative_to(anchor)))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _digest(folder: Path, files: Iterable[Path], use_size: Callable[[Path], bool] = lambda _: False) -> str | None:
    """The digest of names and contents; of a file that `use_size` is true of, of its size."""
    files = sorted(files)
    listed = {parent: listed_sums(parent) for parent in {file.parent for file in files}}

    def one(file: Path) -> str:
        size = file.stat().st_size
        if use_size(file):
            return str(size)
        known = listed[file.parent].get(file.name) if size > LARGE else None
        return known or _sha256(file)

    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
        found = list(pool.map(one, files))
    names = [file.relative_to(folder).as_posix() for file in files]
    return _of_values(dict(zip(names, found, strict=True))) if files else None


def _sha256(file: Path) -> str:
    """The SHA-256 of a file, which is read once as long as it stays as it is: a start asks for each several times."""
    found = file.stat()
    return _sha256_of(file, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@cache
def _sha256_of(file: Path, state: tuple[int, ...]) -> str:
    return file_sha256(file)


def _of_values(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def input_digest(name: str, path: Path) -> str | None:
    """The digest of what a stage reads at `path`, without what it writes there itself."""
    if name == "convert_hf":
        return _model_files(path, without=OF_LITGPT)
    return digest_of(path)


def result_digest(recipe: Recipe, name: str) -> str | None:
    """The digest of what a stage has made; None if it is not there, or not whole."""
    path = recipe.result(name)
    if path is None or not path.exists():
        return None
    if name in BOOK_STAGES:
        return _of_books(path)
    if name == "prepare":
        return _of_data(path)
    if name == "pretrain":
        return _of_run(path)
    if name == "validate":
        rows = read_csv(path / VALIDATION)
        return _of_values([{key: row[key] for key in row if key not in OF_A_CLOCK} for row in rows]) if rows else None
    if name in ("plot", "chat"):
        return digest_of(path)
    if name == "quantize":
        files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
        return _digest(path, files, use_size=lambda file: file.suffix == ".gguf")
    if name == "merge":
        return _with_weights(path.parent if path.suffix == ".pth" else path)
    if name == "convert_hf":
        return _with_weights(path)
    options = recipe.values(name)
    if name == "download" and options.get("convert", True) and options.get("weights", True):
        return _with_weights(path)
    return _model_files(path, without=OF_LITGPT)


def _of_books(folder: Path) -> str | None:
    """The digest of a folder of books, or of their chunks: of all but its card and its reports, which people edit.

    It is whole if it has its list and each book that is listed, or each file of chunks.
    """
    try:
        names = [*listed_sums(folder)] or [book.file for book in read_books(folder)]
    except (DataError, FileNotFoundError):
        return None
    if not names or not all((folder / name).is_file() for name in (BOOKS, *names)):
        return None
    files = [file for file in folder.iterdir() if file.suffix.lower() in OF_BOOKS and not file.name.startswith(".")]
    return _digest(folder, [file for file in files if file.is_file()])


def _of_data(folder: Path) -> str | None:
    """The digest of a data folder: its manifest has its shards' checksums, which pretrain.py compares."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = [folder / shard["file"] for split in manifest["splits"] for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(shard.is_file() for shard in shards):
        return None
    return _digest(folder, [folder / MANIFEST, *(path for path in (folder / TOKENIZER).iterdir() if path.is_file())])


def _of_run(folder: Path) -> str | None:
    """The digest of a run: the checksums of all its checkpoints' files but those that have times."""
    sums = {}
    for checkpoint in list_checkpoints(folder):
        try:
            listed = listed_sums(checkpoint)
        except DataError:
            return None
        if not all((checkpoint / name).is_file() for name in listed):
            return None
        sums[checkpoint.name] = {name: sha256 for name, sha256 in listed.items() if name not in OF_A_START}
    return _of_values(sums) if sums else None


def _with_weights(folder: Path) -> str | None:
    return _model_files(folder) if (folder / WEIGHTS).is_file() else None


def _model_files(folder: Path, without: Iterable[str] = ()) -> str | None:
    """The digest of a model's weights, configuration and tokenizer."""
    left_out = {*without, SUMS, PROVENANCE}
    files = [file for file in folder.iterdir() if file.suffix in OF_A_MODEL and not file.name.startswith(".")]
    return _digest(folder, [file for file in files if file.is_file() and file.name not in left_out])
