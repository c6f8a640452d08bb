"""A raw corpus and a tokenizer in, shards and their manifest out.

1. The corpus' files are found (`prepare/sources.py`). Each process chooses, by a sample of the text, the fastest
   library that tokenises as the tokenizer does (`prepare/encoding.py`).
2. Asked to, duplicates are found, over all datasets (`prepare/signatures.py`).
3. Each dataset's split is cut into blocks of a few MB; processes turn them into rows (`block_rows.py`), which are
   written into the split's shards as they come (`data/shards.py`). Then `parts/<dataset>-<split>.json` says what the
   shards hold and what they were made from: a second call keeps every split whose part still fits.
4. The manifest is written last: its presence means the folder is complete.

The tasks of a Slurm step (`srun -n 8 python prepare_data.py …`) share the splits; what is written is the same whatever
their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar

from lit_gpt.errors import DataError, UserError, raise_problems
from lit_gpt.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from utils import cli
from utils.cluster.slurm import Tasks, every_task_needed, join_tasks, slurm_tasks
from utils.data.manifest import FORMAT_VERSION, MANIFEST, TEST, TOKENIZER, DatasetSplit, Manifest
from utils.data.shards import ShardWriter, shard_name, token_dtype, verify_shards
from utils.files.atomic import write_atomically
from utils.files.checksums import file_sha256
from utils.files.folder_lock import FolderLock
from utils.prepare import duplicates
from utils.prepare.block_rows import BlockRows, BlockWorker, Dialogue, Recipe, Remainder, Rows, Work, start_worker
from utils.prepare.blocks import read_blocks
from utils.prepare.dialogue import normalise
from utils.prepare.documents import Bad, parse
from utils.prepare.encoding import Library
from utils.prepare.metadata import DatasetFacts, facts_of, read_metadata
from utils.prepare.progress import Progress
from utils.prepare.removals import RemovalLog
from utils.prepare.sources import PARQUET, CorpusFile, Source, find_sources
from utils.prepare.work_pool import WorkPool

PREPARATION_VERSION = 2  # another one makes every split be done again
BLOCK_BYTES = 4 * 2**20
"""Text that a process gets at once: 0.1 s of work or more."""
SHARD_BYTES = 512 * 2**20
"""Text per shard: some 256 MB of tokens."""
MOST_SHARDS, MOST_OPEN = 64, 256
"""All of a split's shards are open at once, two files each, and processes may open 1,024."""
MOST_CHARACTERS = BLOCK_BYTES // 4
"""For --max_characters: a document that is read in parts has more, each being four bytes at most."""
PACKED = {".gz": 4, ".zst": 4, ".parquet": 3}
"""How much text a compressed file is taken to hold, in its own size."""
SAMPLE_BYTES = 2**17
MAIN_MEMORY, WORKER_MEMORY = 300, 300
"""MB that the program takes at most, and each process that tokenises."""
SAID = 10
"""Documents of each kind that the log names; the report names them all."""
PARTS, REPORTS = "parts", "reports"
_SPLIT = r"\.?[^/]+-(train|test)"
OWN_FILE = re.compile(
    rf"({_SPLIT}-\d{{5}}-of-\d{{5}}\.safetensors|{PARTS}/{_SPLIT}\.json|{REPORTS}/{_SPLIT}\.jsonl)(\.tmp)?"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class PrepareOptions:
    """Turn raw text into packed, tokenised training data; or look at what was made."""

    source_path: Path | None = None
    """Raw corpus: a folder tree, one file, or a .list file that names files. A dataset is a folder with full.txt, or
    train.txt and/or test.txt (conversations), *.jsonl(.gz/.zst), *.parquet, or *.txt (one document each)."""
    checkpoint_dir: Path | None = None
    """Foundation model directory; with --max_length only its tokenizer is needed."""
    destination_path: Path | None = None
    """Data folder to write. It belongs to this program: shards of datasets that are gone are deleted."""
    max_length: int | None = None
    """Positions per sequence; rows have one token more. Default: the model's context."""
    multiple_of: int = 8
    """The number of shards of a split is a multiple of this."""
    padding: bool = True
    """Pack whole documents, cut at turns where need be. false: all documents end to end, cut where a row is full."""
    text_field: str = "text"
    """Field of a JSON line, or column of a Parquet file, that holds the text."""
    group_datasets_by_genre: Path | None = None
    """JSON file, dataset name → group name. A dataset that is not in it is a group of its own."""
    metadata: Path | None = None
    """CSV or JSON file, dataset → language, dialogue, spontaneous, …: its datasets are transcribed dialogue, which is
    normalised and augmented, but where `dialogue` is False; all others are left as they are."""
    augmentation_level: int | None = None
    """Variants per training conversation of a dialogue dataset, at most. Default: the metadata file's, else 8 for
    spontaneous speech and 1 for the rest."""
    seed: int = 1337
    """Of the choice of variants."""
    min_characters: int = 0
    """Leave out documents that are shorter."""
    max_characters: int | None = None
    """Leave out documents that are longer."""
    deduplicate: Literal["no", "exact", "near"] = "no"
    """Leave out documents that repeat one of this corpus: the same text, or nearly the same (MinHash)."""
    similarity: float = 0.8
    """Share of common word 5-grams from which on --deduplicate near takes documents for duplicates."""
    on_bad_input: Literal["error", "skip"] = "error"
    """What to do about what is no document (not UTF-8, NUL, broken JSON, no such field); skipped ones are counted."""
    num_workers: int | None = None
    """Processes that tokenise. Default: one per CPU core; in a Slurm step, one per CPU of the task."""
    fast_tokenizer: bool = True
    """Tokenise by gigatoken, if it is installed and proves itself on a sample of the text."""
    max_memory: float | None = None
    """GB of memory to use at most, for all processes: fewer of them tokenise where that is too little."""
    add_bos: bool | None = None
    """Begin each document with the begin-of-text token. Default: as the tokenizer is configured."""
    add_eos: bool | None = None
    """End each document with the end-of-text token. Default: if the tokenizer has one."""
    inspect: Path | None = None
    """Look at this data folder instead: its table, its checksums, and some rows as text."""
    show: int = 3
    """Rows that --inspect shows, of each split."""
    debug: bool = False
    """Show a traceback for any error."""

    def __post_init__(self) -> None:
        needed = ("source_path", "checkpoint_dir", "destination_path")
        problems = [f"--{name} is missing" for name in needed if not self.inspect and getattr(self, name) is None]
        least = {"max_length": 1, "multiple_of": 1, "num_workers": 1, "max_characters": 1}
        least |= {"augmentation_level": 0, "min_characters": 0, "show": 0, "seed": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                problems.append(f"--{name} must be at least {bound}, not {value}")
        most = {"multiple_of": MOST_OPEN, "max_characters": MOST_CHARACTERS}
        for name, bound in most.items():
            if (value := getattr(self, name)) is not None and value > bound:
                problems.append(f"--{name} must be at most {bound}, not {value}")
        if not 0 < self.similarity <= 1:
            problems.append(f"--similarity must be above 0 and at most 1, not {self.similarity}")
        if self.augmentation_level is not None and self.metadata is None:
            problems.append("--augmentation_level needs --metadata, which says what is dialogue")
        least_memory = (MAIN_MEMORY + WORKER_MEMORY) / 1000
        if self.max_memory is not None and self.max_memory < least_memory:
            problems.append(f"--max_memory must be at least {least_memory} GB, not {self.max_memory}")
        raise_problems(problems)


@dataclass(frozen=True)
class Plan:
    """What is to be prepared and how: found by one task, the same for all."""

    sources: list[Source]
    sizes: list[int]
    """Bytes of each source's files."""
    groups: dict[str, str]
    facts: dict[str, DatasetFacts]
    recipe: Recipe
    sample: list[str]
    """Some of the text, on which a fast tokenizer has to prove itself."""
    tokenizer: str
    """Its fingerprint."""


@dataclass(frozen=True)
class Job:
    """One split to be prepared."""

    source: Source
    language: str
    group: str
    dialogue: Dialogue | None
    duplicates: duplicates.OfSource
    plan: Plan
    options: PrepareOptions

    @property
    def data_dir(self) -> Path:
        assert self.options.destination_path is not None
        return self.options.destination_path

    @property
    def part_path(self) -> Path:
        return self.data_dir / PARTS / f"{self.source.name}.json"

    @property
    def report_path(self) -> Path:
        return self.data_dir / REPORTS / f"{self.source.name}.jsonl"

    def fingerprint(self, files: list[dict[str, Any]]) -> str:
        """SHA-256 over all that the split's shards are made from; `files` is what `file_facts` says."""
        unused = {"checkpoint_dir"} if self.dialogue and self.dialogue.level else {"checkpoint_dir", "seed"}
        recipe = {name: value for name, value in asdict(self.plan.recipe).items() if name not in unused}
        versions = (FORMAT_VERSION, PREPARATION_VERSION)
        made_from = (self.source.dataset, self.source.split, files, self.plan.tokenizer, recipe)
        how = (self.language, self.dialogue and asdict(self.dialogue), duplicates.digest(self.duplicates))
        options = (self.options.multiple_of, self.options.on_bad_input, self.options.fast_tokenizer)
        content = json.dumps([versions, made_from, how, options], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def main(options: PrepareOptions) -> None:
    if options.inspect is not None:
        from utils.inspect_data import inspect

        inspect(options.inspect, options.show, options.seed)
        return
    assert options.destination_path is not None
    require_folder(options)
    tasks = join_tasks(options.destination_path)
    plan = gather(lambda: make_plan(options) if tasks.rank == 0 else None, tasks)[0]
    with owned(options.destination_path, tasks) as lock:
        own = share_out(plan.sources, plan.sizes, tasks.count)[tasks.rank]
        with make_pool(own, plan, options) as pool:
            found = find_duplicates(own, plan, options, tasks, pool)
            mine = prepare([make_job(source, found, plan, options) for source in own], plan, pool)
        everyones = gather(lambda: mine, tasks)
        if lock:
            lock.check()
            publish({source: entry for entries in everyones for source, entry in entries.items()}, plan, options)


@contextmanager
def owned(data_dir: Path, tasks: Tasks) -> Iterator[FolderLock | None]:
    """Takes the data folder for this call, against any other; the lock is task 0's, and leaves nothing behind.

    Raises:
        UserError: on every task, if another call is writing there.
    """
    taken: list[FolderLock] = []

    def take() -> None:
        if tasks.rank == 0:
            data_dir.mkdir(parents=True, exist_ok=True)
            taken.append(FolderLock.acquire(data_dir))

    gather(take, tasks)
    try:
        yield taken[0] if taken else None
    finally:
        for lock in taken:
            lock.release(leave=False)


def gather(action: Callable[[], Result], tasks: Tasks) -> list[Result]:
    """The results of `action`, which every task performs, by rank; of a single task without importing torch."""
    if tasks.count == 1:
        return [action()]
    from utils.cluster.collectives import together

    with every_task_needed():
        return together(action, tasks.group)


def require_folder(options: PrepareOptions) -> None:
    """Raises a `UserError` if the destination is no folder, or one that the next call would read as a corpus."""
    assert options.source_path is not None and options.destination_path is not None
    path = options.destination_path
    if path.exists() and not path.is_dir():
        raise UserError(f"--destination_path: {path} is not a directory")
    if options.source_path.is_dir() and path.resolve().is_relative_to(options.source_path.resolve()):
        raise UserError(f"--destination_path: {path} lies in --source_path, the next call would read what is written")


def make_plan(options: PrepareOptions) -> Plan:
    assert options.source_path is not None and options.checkpoint_dir is not None
    sources = find_sources(options.source_path, say)
    tokenizer = Tokenizer(options.checkpoint_dir)
    recipe = make_recipe(options, tokenizer)
    groups = read_groups(options.group_datasets_by_genre)
    facts = read_metadata(options.metadata) if options.metadata else {}
    for source in sources:
        if dialogue := dialogue_of(source, facts, options):
            check_language(dialogue.language)
    known = {name for source in sources for name in (source.dataset, f"{source.dataset}/{source.split.upper()}")}
    if unknown := sorted(facts.keys() - known):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        say(f"warning: --metadata names datasets that are not here: {', '.join(unknown[:5])}{more}")
    sizes = [sum(file.path.stat().st_size for file in source.files) for source in sources]
    return Plan(sources, sizes, groups, facts, recipe, read_sample(sources, options), tokenizer.fingerprint)


def make_recipe(options: PrepareOptions, tokenizer: Tokenizer) -> Recipe:
    """What the options and the tokenizer say about rows.

    Raises:
        UserError: if the options ask for what the tokenizer or the model does not have.
        DataError: if a configuration names a token outside of the vocabulary.
    """
    bos = tokenizer.adds_bos if options.add_bos is None else options.add_bos
    eos = tokenizer.eos_id is not None if options.add_eos is None else options.add_eos
    wanted = (("bos", bos, tokenizer.bos_id), ("eos", eos, tokenizer.eos_id))
    raise_problems(
        [f"--add_{kind}: the tokenizer has no such token" for kind, add, token in wanted if add and token is None]
    )
    for kind, add, token in wanted:
        if add and token >= tokenizer.vocab_size:
            raise DataError(f"--add_{kind}: token {token} is not in the tokenizer's {tokenizer.vocab_size} entries")
    return Recipe(
        checkpoint_dir=tokenizer.directory,
        vocab_size=tokenizer.vocab_size,
        window=1 + (options.max_length or read_context(tokenizer.directory)),
        bos=bos,
        eos=eos,
        padding=options.padding,
        text_field=options.text_field,
        min_characters=options.min_characters,
        max_characters=options.max_characters,
        seed=options.seed,
    )


def read_context(checkpoint_dir: Path) -> int:
    """The positions of the model in `checkpoint_dir`.

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
            return next(int(config[key]) for key in names if config.get(key))
        except (yaml.YAMLError, ValueError, AttributeError, TypeError, StopIteration):
            raise DataError(f"{path} does not say the model's {' or '.join(names)}; give --max_length") from None
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
    raise_problems([f"--group_datasets_by_genre: {path}: the group of {name} is no string" for name in wrong])
    return groups


def read_sample(sources: list[Source], options: PrepareOptions) -> list[str]:
    """Documents of up to 16 of the sources, some 128 KB together.

    Raises:
        DataError: if no file has a document, or, asked to be strict, if one that was looked at is none.
    """
    sample: list[str] = []
    size = 0
    chosen = sources[:: -(-len(sources) // 16)]
    for source in [*chosen, *(source for source in sources if source not in chosen)]:
        if source not in chosen and sample:
            break
        of_source = 0
        for document in read_documents(source, options):
            of_source += len(document)
            sample.append(document.decode())
            if of_source >= SAMPLE_BYTES // 16:
                break
        size += of_source
    if not sample:
        raise DataError(f"{options.source_path} holds no conversation and no other text: its files are empty")
    return sample


def read_documents(source: Source, options: PrepareOptions) -> Iterator[bytes]:
    """The texts of a source, for as many as are wanted."""
    for file in source.files:
        for block in read_blocks(file, SAMPLE_BYTES, options.text_field):
            documents, bad = parse(block, options.text_field)
            if bad and options.on_bad_input == "error":
                raise DataError(describe_bad(file, bad[0]))
            yield from (document.text for document in documents if document.text)


def describe_bad(file: CorpusFile, bad: Bad) -> str:
    place = f"in row {bad.at}" if file.format == PARQUET else f"at byte offset {bad.at}"
    return f"{file.path}: {bad.problem} {place}"


def share_out(sources: list[Source], sizes: list[int], tasks: int) -> list[list[Source]]:
    """Each task's sources: the largest first, each to the task that has the fewest bytes so far.

    No task then has more than 4/3 of what the best division gives the busiest one (Graham 1969).
    """
    loads, task_of = [0] * tasks, {}
    for size, source in sorted(zip(sizes, sources, strict=True), key=lambda pair: (-pair[0], pair[1].name)):
        task_of[source] = loads.index(min(loads))
        loads[task_of[source]] += size
    return [[source for source in sources if task_of[source] == task] for task in range(tasks)]


def make_job(source: Source, found: dict[str, duplicates.OfSource], plan: Plan, options: PrepareOptions) -> Job:
    facts = facts_of(plan.facts, source.dataset, source.split)
    language = (facts.language if facts else "") or source.language
    group = plan.groups.get(source.dataset, source.dataset)
    dialogue = dialogue_of(source, plan.facts, options)
    return Job(source, language, group, dialogue, found.get(source.name, {}), plan, options)


def dialogue_of(source: Source, all_facts: dict[str, DatasetFacts], options: PrepareOptions) -> Dialogue | None:
    """How the conversations of a split are treated, None if it is plain text."""
    facts = facts_of(all_facts, source.dataset, source.split)
    if facts is None or not facts.dialogue:
        return None
    level = facts.level(source.split)
    if options.augmentation_level is not None and source.split != TEST:
        level = options.augmentation_level
    return Dialogue(facts.language or source.language, level)


def check_language(language: str) -> None:
    """Raises a UserError if dialogue in this language cannot be normalised."""
    try:
        normalise("", language)
    except ValueError as e:
        raise UserError(str(e)) from None


def find_duplicates(
    own: list[Source], plan: Plan, options: PrepareOptions, tasks: Tasks, pool: WorkPool
) -> dict[str, duplicates.OfSource]:
    """What is to be left out of each split because it repeats a document of this corpus."""
    if options.deduplicate == "no":
        return {}
    assert options.destination_path is not None
    parts = options.destination_path / PARTS
    gather(lambda: sign_sources(own, parts, plan, options, pool), tasks)
    threshold = options.similarity if options.deduplicate == "near" else None
    return gather(lambda: duplicates.decide(parts, plan.sources, threshold) if tasks.rank == 0 else {}, tasks)[0]


def sign_sources(own: list[Source], parts: Path, plan: Plan, options: PrepareOptions, pool: WorkPool) -> None:
    """Writes the signatures of the splits that have none yet."""
    near = options.deduplicate == "near"
    settings = [plan.recipe.text_field, plan.recipe.min_characters, plan.recipe.max_characters, near]
    # their blocks are those that will be tokenised: a document is known by its number in a block
    dialogues = {source: dialogue_of(source, plan.facts, options) for source in own}
    keys = {
        source: json.dumps([file_facts(source), settings, block_size(plan, dialogue)])
        for source, dialogue in dialogues.items()
    }
    to_do = [source for source in own if not duplicates.are_written(parts, source, keys[source])]
    if not to_do:
        return
    parts.mkdir(parents=True, exist_ok=True)
    progress = Progress("compared", size_of(to_do))
    for source in to_do:
        results = pool.map(partial(duplicates.sign, near=near), blocks_of(source, plan, dialogues[source], {}))
        duplicates.write_signatures(parts, source, keys[source], counted(results, progress))


def counted(
    results: Iterator[tuple[Work, duplicates.Signed]], progress: Progress
) -> Iterator[tuple[Work, duplicates.Signed]]:
    for work, signed in results:
        progress.advance(work.block.size)
        yield work, signed


def size_of(sources: list[Source]) -> int:
    """Bytes of text in the files, about."""
    files = [file.path for source in sources for file in source.files]
    return sum(path.stat().st_size * PACKED.get(path.suffix, 1) for path in files)


def file_facts(source: Source, stop: Event | None = None) -> list[dict[str, Any]]:
    """The source files as the manifest names them: path relative to the corpus, bytes, SHA-256; not after `stop`."""
    return [
        {"path": file.name, "bytes": file.path.stat().st_size, "sha256": file_sha256(file.path, stop)}
        for file in source.files
    ]


def blocks_of(source: Source, plan: Plan, dialogue: Dialogue | None, found: duplicates.OfSource) -> Iterator[Work]:
    """The blocks of a source's files."""
    size = block_size(plan, dialogue)
    for index, file in enumerate(source.files):
        for number, block in enumerate(read_blocks(file, size, plan.recipe.text_field)):
            yield Work(index, number, block, dialogue, found.get((index, number), {}))


def block_size(plan: Plan, dialogue: Dialogue | None) -> int:
    """Bytes of text in a block: more for a window above 4,096, so that rows are packed from enough documents, but at
    most 32 MB; of dialogue with variants less, which becomes as many tokens.

    A document longer than a block is cut: even one of 32 bytes per token that fills a window is none such, nor one
    that is not too long, of four bytes per character.
    """
    times = min(8.0, max(1.0, plan.recipe.window / 4096))
    wanted = int(times * BLOCK_BYTES) // (1 + dialogue.level if dialogue else 1)
    return max(wanted, 32 * plan.recipe.window, 4 * (plan.recipe.max_characters or 0))


def make_pool(sources: list[Source], plan: Plan, options: PrepareOptions) -> WorkPool:
    """As many processes as are wanted, fit in memory, and get enough text to be worth their start."""
    wanted = options.num_workers or own_cpus()
    if options.max_memory is not None:
        wanted = min(wanted, max(1, int((1000 * options.max_memory - MAIN_MEMORY) / WORKER_MEMORY)))
    useful = -(-size_of(sources) // BLOCK_BYTES)
    make_worker = partial(start_worker, plan.recipe, plan.sample if options.fast_tokenizer else None)
    return WorkPool(make_worker, max(1, min(wanted, useful)))


def own_cpus() -> int:
    """The CPUs of this process: of a Slurm task those it was given, by default one, bound to them or not."""
    if slurm_tasks():
        return int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
    return len(os.sched_getaffinity(0))


def prepare(jobs: list[Job], plan: Plan, pool: WorkPool) -> dict[Source, DatasetSplit]:
    """What each job's split holds: kept where it is there already, made where not."""
    kept = {job.source: entry for job in jobs if (entry := read_part(job)) is not None}
    for source in kept:
        say(f"{source.dataset} {source.split}: kept")
    to_do = [job for job in jobs if job.source not in kept]
    return kept | make_splits(to_do, plan, pool) if to_do else kept


def read_part(job: Job) -> DatasetSplit | None:
    """What an earlier call wrote for the same job, if its shards are intact."""
    try:
        part = json.loads(job.part_path.read_text(encoding="utf-8"))
        if part["fingerprint"] != job.fingerprint(file_facts(job.source)):
            return None
        entry = DatasetSplit.from_dict(part["entry"])
        verify_shards(job.data_dir, [entry])
        if entry.skipped and not job.report_path.is_file():
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AssertionError, DataError):
        return None
    return replace(entry, group=job.group)


def make_splits(jobs: list[Job], plan: Plan, pool: WorkPool) -> dict[Source, DatasetSplit]:
    """Makes the shards of each job and writes its part once they are complete."""
    data_dir = jobs[0].data_dir
    (data_dir / PARTS).mkdir(parents=True, exist_ok=True)
    (data_dir / MANIFEST).unlink(missing_ok=True)
    progress = Progress("tokenised", size_of([job.source for job in jobs]))
    made: dict[Source, DatasetSplit] = {}
    libraries: set[Library] = set()

    def works() -> Iterator[Work | None]:
        for job in jobs:
            yield from blocks_of(job.source, plan, job.dialogue, job.duplicates)
            yield None  # the end of a split

    def say_libraries(results: Iterator[tuple[Work, BlockRows]]) -> Iterator[tuple[Work, BlockRows]]:
        for work, result in results:
            if result and result.library not in libraries:
                libraries.add(result.library)
                progress.line(f"tokenised by {result.library.name}: {result.library.reason}")
            yield work, result

    stop = Event()
    with ThreadPoolExecutor(1) as hashing, ExitStack() as at_end:
        at_end.callback(stop.set)  # nobody waits for the hash of a file that could not be read
        results = say_libraries(pool.map(BlockWorker.__call__, works()))
        for job in jobs:
            of_job = iter(lambda: next(results), (None, None))
            facts = hashing.submit(file_facts, job.source, stop)
            entry = made[job.source] = prepare_split(job, of_job, facts, progress)
            part = {"fingerprint": job.fingerprint(entry.sources), "entry": asdict(entry)}
            write_atomically(job.part_path, json.dumps(part) + "\n")
            progress.line(describe(entry, plan.recipe.window))
    return made


def prepare_split(
    job: Job, results: Iterator[tuple[Work, BlockRows]], facts: Future[list[dict[str, Any]]], progress: Progress
) -> DatasetSplit:
    """Writes the rows of one split as they come; says what it holds."""
    source, recipe = job.source, job.plan.recipe
    count = shard_count(source, job.options.multiple_of)
    names = [shard_name(source.dataset, source.split, index, count) for index in range(count)]
    sums: Counter[str] = Counter()
    with (
        RemovalLog(job.report_path) as removals,
        ShardWriter(job.data_dir, names, recipe.window, token_dtype(recipe.vocab_size)) as writer,
    ):

        def write(rows: Rows) -> None:
            writer.add(*rows)
            sums["rows"] += len(rows.tokens)
            sums["used"] += int(rows.lengths.sum())
            sums["targets"] += int((rows.lengths - rows.overlaps).sum())

        remainder = Remainder(recipe, write)
        for work, result in results:
            note_removals(source.files[work.file], result, removals, job, progress)
            write(result.rows)
            remainder.add(result.rest)
            sums.update({name: getattr(result, name) for name in ("documents", "variants", "turns", "words", "tokens")})
            progress.advance(work.block.size, result.tokens)
        remainder.close()
        for file in source.files:
            if not file.path.stat().st_size:
                removals.add("empty_file", file, 0, "the file is empty")
        shards = writer.publish()
        removals.publish()
    size = sums["rows"] * recipe.window
    return DatasetSplit(
        dataset=source.dataset,
        split=source.split,
        language=job.language,
        group=job.group,
        documents=sums["documents"],
        variants=sums["variants"],
        turns=sums["turns"],
        words=sums["words"],
        tokens=sums["tokens"],
        targets=sums["targets"],
        rows=sums["rows"],
        overlap=sums["used"] - sums["tokens"],
        padding=size - sums["used"],
        skipped=dict(sorted(removals.counts.items())),
        sources=facts.result(),
        shards=shards,
    )


def shard_count(source: Source, multiple_of: int) -> int:
    """By the text's size, before any of it is read: so rows can be written as they come."""
    wanted = -(-size_of([source]) // (multiple_of * SHARD_BYTES))
    return multiple_of * max(1, min(wanted, MOST_SHARDS // multiple_of))


def note_removals(file: CorpusFile, result: BlockRows, removals: RemovalLog, job: Job, progress: Progress) -> None:
    """Writes down what a block left out, and says so; stops at what is no document unless asked to skip that."""
    for bad in result.bad:
        if job.options.on_bad_input == "error":
            raise DataError(describe_bad(file, bad))
        removals.add(bad.reason, file, bad.at, bad.problem)
        if removals.counts[bad.reason] <= SAID:
            progress.line(f"skipped a document: {describe_bad(file, bad)}")
        elif removals.counts[bad.reason] == SAID + 1:
            progress.line(f"more documents of {job.source.name} are skipped: the report names them")
    for removed in result.removed:
        removals.add(removed.reason, file, removed.at, removed.detail, removed.text)


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
    assert options.destination_path is not None
    data_dir, recipe = options.destination_path, plan.recipe
    entries = [found[source] for source in plan.sources]
    manifest = Manifest(
        tokenizer=plan.tokenizer,
        vocab_size=recipe.vocab_size,
        bos=recipe.bos,
        eos=recipe.eos,
        dtype=str(token_dtype(recipe.vocab_size)),
        window=recipe.window,
        splits=entries,
        made_by={
            "program": "prepare_data.py",
            "multiple_of": options.multiple_of,
            "padding": recipe.padding,
            "on_bad_input": options.on_bad_input,
            "deduplicate": options.deduplicate,
            "similarity": options.similarity if options.deduplicate == "near" else None,
            "text_field": recipe.text_field,
            "augmentation_level": options.augmentation_level,
            "min_characters": recipe.min_characters,
            "max_characters": recipe.max_characters,
            "seed": recipe.seed,
            "normalised": {
                source.dataset: dialogue.language
                for source in plan.sources
                if (dialogue := dialogue_of(source, plan.facts, options))
            },
            "version": PREPARATION_VERSION,
        },
    )
    copy_tokenizer(recipe.checkpoint_dir, data_dir / TOKENIZER)
    stale = find_stale(data_dir, found)
    path = data_dir / MANIFEST
    if stale or not path.is_file() or path.read_bytes() != manifest.to_json().encode():
        path.unlink(missing_ok=True)
        for file in stale:
            file.unlink()
            say(f"deleted {file.relative_to(data_dir)}: of no dataset in {options.source_path}")
        manifest.save(data_dir)
    for folder in (data_dir / PARTS).glob("*.signatures"):
        shutil.rmtree(folder)
    say(f"{path}: {sum(entry.rows for entry in entries):,} rows of {recipe.window:,} tokens")


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files beside the shards, by which --inspect reads them."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            content = (source / name).read_bytes()
            if not (target / name).is_file() or (target / name).read_bytes() != content:
                write_atomically(target / name, content)
        else:
            (target / name).unlink(missing_ok=True)


def find_stale(data_dir: Path, found: dict[Source, DatasetSplit]) -> list[Path]:
    """Shards, parts and reports of splits that are gone, or were made anew with other ones."""
    current = {data_dir / shard.file for entry in found.values() for shard in entry.shards}
    current |= {data_dir / PARTS / f"{source.name}.json" for source in found}
    current |= {data_dir / REPORTS / f"{source.name}.jsonl" for source, entry in found.items() if entry.skipped}
    folders = [folder for folder in (data_dir, data_dir / PARTS, data_dir / REPORTS) if folder.is_dir()]
    files = {path for folder in folders for path in folder.iterdir() if path.is_file()}
    return sorted({path for path in files if OWN_FILE.fullmatch(path.relative_to(data_dir).as_posix())} - current)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(PrepareOptions)))
