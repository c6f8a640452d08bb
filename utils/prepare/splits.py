"""From the blocks of a dataset's split to its shards, and to its part, which says what they hold and were made from.

`prepare_splits` keeps every split whose part still fits. For the others, processes turn blocks into rows, and this one
writes them in the order of the blocks, whatever the number of processes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from lit_gpt.errors import DataError
from utils.data.manifest import FORMAT_VERSION, MANIFEST, DatasetSplit
from utils.data.shards import ShardWriter, shard_name, token_dtype, verify_shards
from utils.files.atomic import write_atomically
from utils.prepare.block_rows import BlockRows, Remainder, Rows, Work
from utils.prepare.chat.conversation import remedy
from utils.prepare.chat.converters import identity_of
from utils.prepare.documents import problem_message
from utils.prepare.file_formats import CorpusFile
from utils.prepare.plan import PreparePlan, Sifted, text_bytes, works_of
from utils.prepare.progress import ProgressLine, say
from utils.prepare.removals import RemovalLog
from utils.prepare.sifting import digest
from utils.prepare.sources import Source, file_facts
from utils.prepare.work_pool import WorkPool
from utils.prepare.worker import Worker

PREPARATION_VERSION = 2  # another one makes every split be done again
SHARD_BYTES = 512 * 2**20  # text per shard: some 256 MB of tokens
MOST_SHARDS = 64  # shards of a split, but where --multiple_of asks for more
MOST_NAMED = 10  # documents left out of a split that the log names, of each kind; the report names them all


_COUNTS = ("documents", "variants", "turns", "words", "tokens", "text_bytes", "target_bytes")
_COUNTS += ("conversations", "messages", "shortened", "turns_left_out")


@dataclass(frozen=True)
class SplitJob:
    source: Source
    sifted: Sifted
    plan: PreparePlan

    @property
    def group(self) -> str:
        return self.plan.groups.get(self.source.dataset, self.source.dataset)

    @property
    def part_path(self) -> Path:
        return self.plan.part_path(self.source)

    @property
    def hits_path(self) -> Path:
        return self.plan.hits_path(self.source)

    @property
    def report_path(self) -> Path:
        return self.plan.report_path(self.source)

    def fingerprint(self, files: list[dict[str, Any]]) -> str:
        """SHA-256 over all that the split's shards are made from; `files` is what `file_facts` returns."""
        dialogue = self.plan.dialogues[self.source]
        recipe = asdict(self.plan.recipe)
        del recipe["checkpoint_dir"]  # the tokenizer's fingerprint says more
        if not (dialogue and dialogue.level):
            del recipe["seed"]  # which chooses variants alone
        if self.source.converter is None:
            del recipe["chat"]
        runs = self.plan.recipe.test_runs
        recipe["test_runs"] = runs and (runs.sha256, runs.leave_out)
        options, language = self.plan.options, self.plan.languages[self.source]
        versions = (FORMAT_VERSION, PREPARATION_VERSION)
        made_from = (self.source.dataset, self.source.split, files, self.plan.tokenizer, recipe)
        converter = self.source.converter and identity_of(self.source.converter)
        how = (language, dialogue and asdict(dialogue), converter, digest(self.sifted))
        settings = (options.multiple_of, options.on_bad_input, options.fast_tokenizer)
        content = json.dumps([versions, made_from, how, settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def prepare_splits(
    sources: list[Source], found: Mapping[str, Sifted], plan: PreparePlan, pool: WorkPool
) -> dict[Source, DatasetSplit]:
    """What each source's split holds; `found` is what was decided of its documents, by name of the split."""
    kept: dict[Source, DatasetSplit] = {}
    to_do = []
    for source in sources:
        job = SplitJob(source, found.get(source.name, Sifted()), plan)
        entry = read_part(job)
        if entry is None:
            to_do.append(job)
        else:
            kept[source] = entry
            say(f"{source.dataset} {source.split}: kept")
    return kept | make_splits(to_do, plan, pool) if to_do else kept


def read_part(job: SplitJob) -> DatasetSplit | None:
    """What an earlier call wrote for the same job, if its shards are intact."""
    try:
        part = json.loads(job.part_path.read_text(encoding="utf-8"))
        if part["fingerprint"] != job.fingerprint(file_facts(job.source)):
            return None
        entry = DatasetSplit.from_dict(part["entry"])
        verify_shards(job.plan.data_dir, [entry])
        if entry.skipped and not job.report_path.is_file():
            return None
        if part["hits"] != job.hits_path.is_file():
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AssertionError, DataError):
        return None
    return replace(entry, group=job.group)


def make_splits(jobs: list[SplitJob], plan: PreparePlan, pool: WorkPool) -> dict[Source, DatasetSplit]:
    plan.parts_dir.mkdir(parents=True, exist_ok=True)
    (plan.data_dir / MANIFEST).unlink(missing_ok=True)
    progress = ProgressLine("tokenised", text_bytes([job.source for job in jobs]))
    made: dict[Source, DatasetSplit] = {}

    def works() -> Iterator[Work | None]:
        for job in jobs:
            yield from works_of(job.source, plan, job.sifted)
            yield None  # the end of a split

    stop = Event()
    with ThreadPoolExecutor(1) as hashing, ExitStack() as at_end:
        at_end.callback(progress.close)
        at_end.callback(stop.set)  # nobody waits for the hash of a file that could not be read
        results = pool.map(Worker.rows, works())
        for job in jobs:
            of_job = iter(lambda: next(results), (None, None))
            facts = hashing.submit(file_facts, job.source, stop)
            entry = made[job.source] = make_split(job, of_job, facts, progress)
            hits = job.hits_path.is_file()
            part = {"fingerprint": job.fingerprint(entry.sources), "entry": asdict(entry), "hits": hits}
            write_atomically(job.part_path, json.dumps(part) + "\n")
            progress.line(summary(entry, plan.recipe.window))
            if entry.named:
                progress.line(names_in_text(entry, plan.recipe.special_tokens_in_text))
    return made


def make_split(
    job: SplitJob,
    results: Iterator[tuple[Work, BlockRows]],
    facts: Future[list[dict[str, Any]]],  # what `file_facts` returns
    progress: ProgressLine,
) -> DatasetSplit:
    source, recipe = job.source, job.plan.recipe
    count = shard_count(source, job.plan.options.multiple_of)
    names = [shard_name(source.dataset, source.split, index, count) for index in range(count)]
    sums: Counter[str] = Counter()
    named: Counter[str] = Counter()
    tokens_of: Counter[str] = Counter()  # by what they are (utils/data/parts.py)
    with (
        RemovalLog(job.report_path) as removals,
        RemovalLog(job.hits_path) as hits,
        ShardWriter(job.plan.data_dir, names, recipe.window, token_dtype(recipe.vocab_size)) as writer,
    ):

        def write(rows: Rows) -> None:
            writer.add(*rows)
            sums["rows"] += len(rows.tokens)
            sums["used"] += int(rows.lengths.sum())
            sums["alone"] += int((rows.lengths == rows.overlaps).sum())
            tokens_of.update(rows.count_parts())

        remainder = Remainder(recipe, write)
        for work, result in results:
            progress.line_once(f"tokenised by {result.library.name}: {result.library.reason}")
            note_removals(source.files[work.file], result, (removals, hits), job, progress)
            write(result.rows)
            remainder.add(result.rest)
            for name in _COUNTS:
                sums[name] += getattr(result, name)
            named += result.named
            progress.advance(work.block.size, result.tokens)
        remainder.close()
        note_empty_files(source, removals)
        shards = writer.publish()
        removals.publish()
        hits.publish()
    if source.converter and not sums["documents"]:
        refuse_loss(job, removals)
    if sums["alone"]:
        progress.line(without_targets(source, sums["alone"], sums["documents"]))
    return DatasetSplit(
        dataset=source.dataset,
        split=source.split,
        language=job.plan.languages[source],
        group=job.group,
        **{name: sums[name] for name in _COUNTS},
        targets=tokens_of.pop("target", 0),
        masked=dict(sorted((+tokens_of).items())),
        rows=sums["rows"],
        overlap=sums["used"] - sums["tokens"],
        padding=sums["rows"] * recipe.window - sums["used"],
        skipped=dict(sorted(removals.counts.items())),
        named=dict(sorted(named.items())),
        sources=facts.result(),
        shards=shards,
    )


def shard_count(source: Source, multiple_of: int) -> int:
    """Shards of a split by the size of its text, before any of it is read: so rows can be written as they come."""
    wanted = -(-text_bytes([source]) // (multiple_of * SHARD_BYTES))
    return multiple_of * max(1, min(wanted, MOST_SHARDS // multiple_of))


def note_removals(
    file: CorpusFile, result: BlockRows, logs: tuple[RemovalLog, RemovalLog], job: SplitJob, progress: ProgressLine
) -> None:
    """Reports what a block left out, and what test files have of it, in a log each.

    Raises a DataError at what is not a document, unless that is to be skipped.
    """
    removals, hits = logs
    for hit in result.hits:
        hits.add(hit.reason, file, hit.at, hit.detail, hit.text)
    for bad in result.bad:
        if job.plan.options.on_bad_input == "error":
            raise DataError(problem_message(file, bad))
        removals.add(bad.reason, file, bad.at, bad.problem)
        if removals.counts[bad.reason] <= MOST_NAMED:
            progress.line(f"skipped a document: {problem_message(file, bad)}")
        elif removals.counts[bad.reason] == MOST_NAMED + 1:
            progress.line(f"more documents of {job.source.name} are skipped: the report names them")
    for one in result.left_out:
        removals.add(one.reason, file, one.at, one.detail, one.text)


def note_empty_files(source: Source, removals: RemovalLog) -> None:
    for file in source.own.files:
        if not file.path.stat().st_size:
            removals.add("empty_file", file, 0, "the file is empty")


def refuse_loss(job: SplitJob, removals: RemovalLog) -> None:
    """Raises a `DataError` if nothing of a source's chats is left, unless others have it: a wrong column or template
    does that."""
    source, reasons = job.source, removals.counts.most_common()
    in_other_split = sum(map(len, job.sifted.others.values()))
    if removals.counts.total() <= in_other_split or reasons[0][0] in ("duplicate", "contaminated"):
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
    first = f"{removals.first[reasons[0][0]]}{remedy(reasons[0][0])}"
    raise DataError(f"{source.dataset} {source.split}: all chats are left out ({counts}); {first}")


def summary(entry: DatasetSplit, window: int) -> str:
    name = f"{entry.dataset} {entry.split}"
    if not entry.documents:
        return f"warning: {name}: no documents in {entry.sources[0]['path']}"
    size = entry.rows * window
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in entry.skipped.items())
    what = f"{entry.documents:,} documents, {entry.tokens:,} tokens"
    if entry.conversations:
        what = f"{entry.conversations:,} conversations in {entry.documents:,} samples, {entry.tokens:,} tokens"
        what += f", {100 * entry.targets / entry.tokens:.1f} % targets"
    if entry.shortened:
        skipped += f", {entry.turns_left_out:,} turns left out at the end of {entry.shortened:,} that were too long"
    return (
        f"{name}: {what}, {entry.rows:,} rows, "
        f"padding {100 * entry.padding / size:.2f} %, overlap {100 * entry.overlap / size:.2f} %{skipped} → "
        f"{len(entry.shards)} shards"
    )


def without_targets(source: Source, alone: int, documents: int) -> str:
    return (
        f"warning: {source.dataset} {source.split}: {alone:,} of {documents:,} documents have one token and so no "
        "target: nothing is learnt from them (--add_bos, --add_eos, --min_characters)"
    )


def names_in_text(entry: DatasetSplit, are_tokens: bool) -> str:
    """How often the text has names of special tokens, and what became of them."""
    names = ", ".join(f"{name} {count:,}×" for name, count in Counter(entry.named).most_common(MOST_NAMED))
    if len(entry.named) > MOST_NAMED:
        names += f" and {len(entry.named) - MOST_NAMED} others"
    if entry.conversations:
        became = "stay text, as in the messages of any chat"
    elif are_tokens:
        became = "became these tokens"
    else:
        became = "stay text (tokens with --special_tokens_in_text true)"
    return f"{entry.dataset} {entry.split}: names of special tokens in the text {became}: {names}"
