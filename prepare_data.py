"""A raw corpus and a tokenizer in, shards and their manifest out.

Each dataset's split is read, tokenised and packed into rows of one window, and its shards are written; then
`parts/<dataset>-<split>.json` says what they hold and what they were made from. A second call keeps every split whose
part still fits and whose shards are intact. The manifest is written last: its presence means the folder is complete.

The tasks of a Slurm step (`srun -n 8 python prepare_data.py …`) share the splits; what is written is the same whatever
their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lit_gpt import command
from lit_gpt.command import DataError, UserError
from lit_gpt.tokenizer import Tokenizer
from utils import corpus, packing
from utils.corpus import BadDocument, Source
from utils.shards import (
    FORMAT_VERSION,
    MANIFEST,
    DatasetSplit,
    Manifest,
    Row,
    Shard,
    file_sha256,
    shard_name,
    token_dtype,
    verify_shards,
    write_atomically,
    write_shard,
)
from utils.slurm import Tasks, every_task_needed, join_tasks, slurm_tasks

PACKING_VERSION = 1  # another one makes every split be done again
SHARD_BYTES = 256 * 2**20
PARTS = "parts"
PART_FILE = re.compile(r"\.?.+-(train|test)\.json(\.tmp)?")
SHARD_FILE = re.compile(r"\.?.+-(train|test)-\d{5}-of-\d{5}\.safetensors(\.tmp)?")

Result = TypeVar("Result")


@dataclass(frozen=True)
class PrepareOptions:
    """Turn raw conversations into packed, tokenised training data."""

    source_path: Path
    """Folder tree of the raw corpus; a dataset is a folder with full.txt, or train.txt and/or test.txt."""
    checkpoint_dir: Path
    """Foundation model directory; with --max_length only its tokenizer is needed."""
    destination_path: Path
    """Data folder to write. It belongs to this program: shards of datasets that are gone are deleted."""
    max_length: int | None = None
    """Positions per sequence; rows have one token more. Default: the model's context."""
    multiple_of: int = 8
    """The number of shards of a split is a multiple of this."""
    padding: bool = True
    """Pack whole documents, cut at turns where need be. false: all documents end to end, cut where a row is full."""
    group_datasets_by_genre: Path | None = None
    """JSON file, dataset name → group name. A dataset that is not in it is a group of its own."""
    on_bad_input: Literal["error", "skip"] = "error"
    """What to do about a document that is not UTF-8 or holds a NUL character; skipped ones are counted."""
    num_workers: int | None = None
    """Processes that tokenise. Default: one per CPU core; in a Slurm step, one per CPU of the task."""
    add_bos: bool | None = None
    """Begin each document with the begin-of-text token. Default: as the tokenizer is configured."""
    add_eos: bool | None = None
    """End each document with the end-of-text token. Default: if the tokenizer has one."""
    debug: bool = False
    """Show a traceback for any error."""

    def __post_init__(self) -> None:
        problems = []
        if self.max_length is not None and self.max_length < 1:
            problems.append(f"--max_length must be at least 1 position, not {self.max_length}")
        if self.multiple_of < 1:
            problems.append(f"--multiple_of must be at least 1, not {self.multiple_of}")
        if self.num_workers is not None and self.num_workers < 1:
            problems.append(f"--num_workers must be at least 1, not {self.num_workers}")
        command.raise_problems(problems)


@dataclass(frozen=True)
class Recipe:
    """All that decides a split's rows, but for its text."""

    tokenizer: str
    vocab_size: int
    window: int
    bos: bool
    eos: bool
    padding: bool
    multiple_of: int
    on_bad_input: str
    format_version: int = FORMAT_VERSION
    packing_version: int = PACKING_VERSION


@dataclass(frozen=True)
class Plan:
    """What is to be prepared and how: found by one task, the same for all."""

    sources: list[Source]
    sizes: list[int]
    """Bytes of each source."""
    groups: dict[str, str]
    recipe: Recipe


@dataclass(frozen=True)
class Job:
    """One split to be prepared."""

    source: Source
    group: str
    facts: dict[str, Any]
    """The source file as the manifest names it: path relative to the corpus, bytes, SHA-256."""
    recipe: Recipe
    data_dir: Path

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that the split's shards are made from."""
        content = [self.source.dataset, self.source.split, self.facts, asdict(self.recipe)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def part_path(self) -> Path:
        return part_path(self.data_dir, self.source)


def part_path(data_dir: Path, source: Source) -> Path:
    return data_dir / PARTS / f"{source.dataset.replace('/', '--')}-{source.split}.json"


def main(options: PrepareOptions) -> None:
    require_folder(options.destination_path)
    tasks = join_tasks(options.destination_path)
    plan = gather(lambda: make_plan(options) if tasks.rank == 0 else None, tasks)[0]
    share = share_out(plan.sources, plan.sizes, tasks.count)[tasks.rank]
    mine = prepare([make_job(source, plan, options.destination_path) for source in share], options)
    everyones = gather(lambda: mine, tasks)
    if tasks.rank == 0:
        publish({source: entry for entries in everyones for source, entry in entries.items()}, plan, options)


def gather(action: Callable[[], Result], tasks: Tasks) -> list[Result]:
    """The results of `action`, which every task performs, by rank; of a single task without importing torch."""
    if tasks.count == 1:
        return [action()]
    from utils.processes import together

    with every_task_needed():
        return together(action, tasks.group)


def require_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"--destination_path: {path} is not a directory")


def make_recipe(options: PrepareOptions) -> Recipe:
    """What the options and the tokenizer say about rows.

    Raises:
        UserError: if the options ask for what the tokenizer or the model does not have.
        DataError: if a configuration names a token outside of the vocabulary.
    """
    tokenizer = Tokenizer(options.checkpoint_dir)
    bos = tokenizer.adds_bos if options.add_bos is None else options.add_bos
    eos = tokenizer.eos_id is not None if options.add_eos is None else options.add_eos
    wanted = (("bos", bos, tokenizer.bos_id), ("eos", eos, tokenizer.eos_id))
    command.raise_problems(
        [f"--add_{kind}: the tokenizer has no such token" for kind, add, token in wanted if add and token is None]
    )
    for kind, add, token in wanted:
        if add and token >= tokenizer.vocab_size:
            raise DataError(f"--add_{kind}: token {token} is not in the tokenizer's {tokenizer.vocab_size} entries")
    max_length = options.max_length or read_context(options.checkpoint_dir)
    policy = (bos, eos, options.padding, options.multiple_of, options.on_bad_input)
    return Recipe(tokenizer.fingerprint, tokenizer.vocab_size, max_length + 1, *policy)


def read_context(checkpoint_dir: Path) -> int:
    """The positions of the model in `checkpoint_dir`: its context, or its sliding window where that is smaller.

    Raises:
        UserError: if there is no file that says so.
        DataError: if it cannot be read.
    """
    import yaml

    keys = {"model_config.yaml": ("block_size",), "config.json": ("max_position_embeddings", "n_positions")}
    for name, names in keys.items():
        path = checkpoint_dir / name
        if not path.is_file():
            continue
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
            context = next(int(config[key]) for key in names if config.get(key))
        except (yaml.YAMLError, ValueError, AttributeError, TypeError, StopIteration):
            raise DataError(f"{path} does not say the model's {' or '.join(names)}; give --max_length") from None
        sliding = config.get("sliding_window_size") or config.get("sliding_window")
        return min(context, int(sliding)) if sliding and config.get("use_sliding_window", True) else context
    raise UserError(
        f"{checkpoint_dir} has neither model_config.yaml nor config.json to say its context: give --max_length"
    )


def read_groups(path: Path | None) -> dict[str, str]:
    """Dataset name → group name.

    Raises:
        UserError: if `path` is no JSON object of strings.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"--group_datasets_by_genre: {path} does not exist")
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"--group_datasets_by_genre: {path} is not valid JSON: {e}") from None
    if not isinstance(groups, dict):
        raise UserError(f"--group_datasets_by_genre: {path} must be an object, dataset name → group name")
    wrong = [name for name, group in groups.items() if not isinstance(group, str)]
    command.raise_problems([f"--group_datasets_by_genre: {path}: the group of {name} is no string" for name in wrong])
    return groups


def require_documents(sources: list[Source], options: PrepareOptions) -> None:
    """Raises a `DataError` if no file has a document, before anything is written."""

    def on_bad(error: BadDocument) -> None:
        if options.on_bad_input == "error":
            raise error

    if not any(True for source in sources for _ in corpus.read_documents(source.path, on_bad)):
        raise DataError(f"{options.source_path} holds no conversation: its files are empty")


def make_plan(options: PrepareOptions) -> Plan:
    sources = corpus.find_sources(options.source_path)
    recipe = make_recipe(options)
    groups = read_groups(options.group_datasets_by_genre)
    require_documents(sources, options)
    return Plan(sources, [source.path.stat().st_size for source in sources], groups, recipe)


def share_out(sources: list[Source], sizes: list[int], tasks: int) -> list[list[Source]]:
    """Each task's sources: the largest first, each to the task that has the fewest bytes so far.

    No task then has more than 4/3 of what the best division gives the busiest one (Graham 1969).
    """
    loads, task_of = [0] * tasks, {}
    for size, source in sorted(zip(sizes, sources, strict=True), key=lambda pair: (-pair[0], pair[1].name)):
        task_of[source] = loads.index(min(loads))
        loads[task_of[source]] += size
    return [[source for source in sources if task_of[source] == task] for task in range(tasks)]


def make_job(source: Source, plan: Plan, data_dir: Path) -> Job:
    """The job for a source file, which is read once to know it again."""
    facts = {"path": source.name, "bytes": source.path.stat().st_size, "sha256": file_sha256(source.path)}
    return Job(source, plan.groups.get(source.dataset, source.dataset), facts, plan.recipe, data_dir)


def read_part(job: Job) -> DatasetSplit | None:
    """What an earlier call wrote for the same job, if its shards are intact."""
    try:
        part = json.loads(job.part_path.read_text(encoding="utf-8"))
        if part["fingerprint"] != job.fingerprint:
            return None
        entry = DatasetSplit.from_dict(part["entry"])
        verify_shards(job.data_dir, [entry])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AssertionError, DataError):
        return None
    return replace(entry, group=job.group)


def prepare(jobs: list[Job], options: PrepareOptions) -> dict[Source, DatasetSplit]:
    """What each job's split holds: kept where it is there already, made where not."""
    kept = {job.source: entry for job in jobs if (entry := read_part(job)) is not None}
    for source in kept:
        print(f"{source.dataset} {source.split}: kept", flush=True)
    to_do = [job for job in jobs if job.source not in kept]
    return kept | make_splits(to_do, options) if to_do else kept


def make_splits(jobs: list[Job], options: PrepareOptions) -> dict[Source, DatasetSplit]:
    """Makes the shards of each job and writes its part once they are complete."""
    (options.destination_path / PARTS).mkdir(parents=True, exist_ok=True)
    (options.destination_path / MANIFEST).unlink(missing_ok=True)
    size = sum(job.facts["bytes"] for job in jobs)
    recipe = jobs[0].recipe
    # a process that gets less than one chunk of text takes longer to start than to work
    useful = -(-size // corpus.CHUNK_CHARACTERS)
    workers = max(1, min(options.num_workers or own_cpus(), useful))
    progress = Progress(size)
    made = {}
    with corpus.EncoderPool(options.checkpoint_dir, recipe.bos, recipe.eos, workers) as pool:
        for job in jobs:
            entry = made[job.source] = prepare_split(job, pool, progress)
            write_atomically(job.part_path, json.dumps({"fingerprint": job.fingerprint, "entry": asdict(entry)}) + "\n")
            progress.line(describe(entry, recipe.window))
    return made


def own_cpus() -> int:
    """The CPUs of this process: of a Slurm task those it was given, by default one, bound to them or not."""
    if slurm_tasks():
        return int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
    return len(os.sched_getaffinity(0))


def prepare_split(job: Job, pool: corpus.EncoderPool, progress: Progress) -> DatasetSplit:
    """Reads, tokenises, packs and writes one split; says what it holds."""
    source, window = job.source, job.recipe.window
    skipped: dict[str, int] = {}

    def on_bad(error: BadDocument) -> None:
        if job.recipe.on_bad_input == "error":
            raise error
        skipped["bad_input"] = skipped.get("bad_input", 0) + 1
        progress.line(f"skipped a document: {error}")

    chunks = []
    for chunk in pool.encode(corpus.read_documents(source.path, on_bad)):
        progress.advance(chunk.characters)
        chunks.append(chunk)
    text = corpus.join_chunks(chunks, token_dtype(job.recipe.vocab_size))
    if text.empty:
        skipped["no_tokens"] = text.empty
    rows = packing.pack(text.lengths, text.turns, window) if job.recipe.padding else packing.join(text.lengths, window)
    shards = write_shards(job, text, rows)
    tokens, documents = len(text.tokens), len(text.lengths)
    padding = sum(packing.hole_of(row, window) for row in rows)
    return DatasetSplit(
        dataset=source.dataset,
        split=source.split,
        language=source.language,
        group=job.group,
        documents=documents,
        turns=text.turn_count,
        words=text.words,
        tokens=tokens,
        targets=sum(piece.end - piece.start - piece.overlap for row in rows for piece in row),
        rows=len(rows),
        overlap=len(rows) * window - padding - tokens,
        padding=padding,
        skipped=skipped,
        sources=[job.facts],
        shards=shards,
    )


def write_shards(job: Job, text: corpus.Encoded, rows: list[packing.Row]) -> list[Shard]:
    """Writes `rows` as shards of at most about 256 MB, their sizes within one row of each other."""
    if not rows:
        return []
    window, dtype, multiple = job.recipe.window, text.tokens.dtype, job.recipe.multiple_of
    rows_per_shard = max(1, SHARD_BYTES // (window * dtype.itemsize))
    count = multiple * -(-len(rows) // (multiple * rows_per_shard))
    bounds = [len(rows) * index // count for index in range(count + 1)]
    firsts = np.cumsum(text.lengths) - text.lengths
    shards = []
    for index in range(count):
        path = job.data_dir / shard_name(job.source.dataset, job.source.split, index, count)
        filled = [fill_row(row, text.tokens, firsts, window) for row in rows[bounds[index] : bounds[index + 1]]]
        shards.append(write_shard(path, filled, window, dtype))
    return shards


def fill_row(row: packing.Row, tokens: np.ndarray, firsts: np.ndarray, window: int) -> Row:
    """The tokens of a row's pieces, side by side; `firsts` [documents] is where each document begins in `tokens`."""
    filled = np.zeros(window, dtype=tokens.dtype)
    position = 0
    for piece in row:
        length = piece.end - piece.start
        first = firsts[piece.document] + piece.start
        filled[position : position + length] = tokens[first : first + length]
        position += length
    lengths = np.array([piece.end - piece.start for piece in row])
    return Row(filled, lengths, np.array([piece.overlap for piece in row]))


def describe(entry: DatasetSplit, window: int) -> str:
    """One line about a split that is done."""
    name = f"{entry.dataset} {entry.split}"
    if not entry.documents:
        return f"warning: {name}: no documents in {entry.sources[0]['path']}"
    size = entry.rows * window
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in entry.skipped.items())
    return (
        f"{name}: {entry.documents:,} documents, {entry.tokens:,} tokens, {entry.rows:,} rows, "
        f"padding {entry.padding / size:.2%}, overlap {entry.overlap / size:.2%}{skipped} → {len(entry.shards)} shards"
    ).replace("%", " %")


def publish(found: dict[Source, DatasetSplit], plan: Plan, options: PrepareOptions) -> None:
    """Deletes what belongs to no split any more and writes the manifest, unless it already says the same."""
    data_dir, recipe = options.destination_path, plan.recipe
    entries = [found[source] for source in plan.sources]
    manifest = Manifest(
        tokenizer=recipe.tokenizer,
        vocab_size=recipe.vocab_size,
        bos=recipe.bos,
        eos=recipe.eos,
        dtype=str(token_dtype(recipe.vocab_size)),
        window=recipe.window,
        splits=entries,
        made_by={
            "program": "prepare_data.py",
            "multiple_of": recipe.multiple_of,
            "padding": recipe.padding,
            "on_bad_input": recipe.on_bad_input,
            "packing_version": recipe.packing_version,
        },
    )
    stale = find_stale(data_dir, found)
    path = data_dir / MANIFEST
    if stale or not path.is_file() or path.read_bytes() != manifest.to_json().encode():
        path.unlink(missing_ok=True)
        for file in stale:
            file.unlink()
            print(f"deleted {file.relative_to(data_dir)}: of no dataset in {options.source_path}", flush=True)
        manifest.save(data_dir)
    print(f"{path}: {sum(entry.rows for entry in entries):,} rows of {recipe.window:,} tokens", flush=True)


def find_stale(data_dir: Path, found: dict[Source, DatasetSplit]) -> list[Path]:
    """Shards and parts of splits that are gone or were made anew with another number of shards."""
    current = {data_dir / shard.file for entry in found.values() for shard in entry.shards}
    current |= {part_path(data_dir, source) for source in found}
    shards = [path for path in data_dir.iterdir() if SHARD_FILE.fullmatch(path.name)]
    parts = [path for path in (data_dir / PARTS).iterdir() if PART_FILE.fullmatch(path.name)]
    return sorted({*shards, *parts} - current)


class Progress:
    """A line that says how far the work is, on a terminal; what else is printed goes above it."""

    def __init__(self, size: int) -> None:
        self._size, self._done, self._start = size, 0, time.monotonic()
        self._live = sys.stdout.isatty()

    def advance(self, size: int) -> None:
        """Counts `size` more characters of the corpus as tokenised."""
        self._done += size
        if self._live:
            rest = (time.monotonic() - self._start) * max(0, self._size / max(self._done, 1) - 1)
            print(f"\r\033[Ktokenised {self._done / self._size:.0%}, about {rest:.0f} s left", end="", flush=True)

    def line(self, text: str) -> None:
        print(("\r\033[K" if self._live else "") + text, flush=True)


if __name__ == "__main__":
    sys.exit(command.run(PrepareOptions, main))
