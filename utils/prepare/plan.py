"""What is to be prepared and how, found once, by one task: datasets, recipe of the rows, treatment of dialogue.

`make_plan` reads the small files that the options name and a sample of the text, so that everything wrong in them is an
error before any work. `share_out`, `works_of` and `make_pool` divide the work among tasks, into blocks, among
processes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from lit_gpt.errors import DataError, UserError, raise_problems
from lit_gpt.tokenizer.hf_tokenizer import encoder_of_special_tokens
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.manifest import REPORTS, TEST
from utils.prepare.block_rows import Dialogue, Recipe, Work
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.converters import fields_of, make_converter
from utils.prepare.dataset_entries import repeated_entries
from utils.prepare.dialogue import normalise
from utils.prepare.documents import parse, problem_message
from utils.prepare.entry_sources import find_entry_sources, where_of
from utils.prepare.file_formats import ARROW, CONVERSATIONS, LINES, PARQUET, PLAIN, RECORDS, CorpusFile, Unread
from utils.prepare.gigatoken_proof import Proof, prove
from utils.prepare.grown_tokenizer import grow_tokenizer
from utils.prepare.held_out import with_held_out
from utils.prepare.joined_rows import is_of_chunks
from utils.prepare.metadata import DatasetFacts, facts_of, read_metadata
from utils.prepare.options import MAIN_MEMORY, WORKER_MEMORY, PrepareOptions
from utils.prepare.progress import say
from utils.prepare.records import require_fields
from utils.prepare.sources import Source, find_sources
from utils.prepare.unpacking import PACKED
from utils.prepare.work_pool import WorkPool, own_cpus
from utils.prepare.worker import Worker

SAMPLE_BYTES = 2**17  # text on which a fast tokenizer has to prove itself
SAMPLE_SOURCES = 16  # from how many sources it comes
BLOCK_BYTES = 4 * 2**20  # text that a process gets at once: 0.1 s of work or more
PROVEN_CHATS = 2**25  # bytes of chats for which trying gigatoken on every character, 3 to 14 s, is worth it
PARTS_FOLDER = "parts"  # in a data folder, for what a preparation needs until it is complete, or to be continued
PARQUET_TIMES = 3  # estimated text in a Parquet file, as a multiple of its size


class Sifted(NamedTuple):
    """What is decided of a split's documents before they are made rows, by (file, block)."""

    duplicates: Mapping[tuple[int, int], dict[int, str]] = {}  # document in the block → which one it repeats
    others: Mapping[tuple[int, int], np.ndarray] = {}  # the conversations that are of the dataset's other split


@dataclass(frozen=True)
class PreparePlan:
    options: PrepareOptions
    sources: list[Source]
    sizes: list[int]  # bytes of each source's files
    languages: dict[Source, str]
    groups: dict[str, str]  # group by dataset, where the options name one
    dialogues: dict[Source, Dialogue | None]  # how each source's conversations are treated; None for plain text
    recipe: Recipe
    sample: list[str]  # some of the text, on which a fast tokenizer has to prove itself
    proof: Proof | None  # on which characters it has failed
    tokenizer: str  # the tokenizer's fingerprint
    added_tokens: list[str]  # those of --add_tokens that it did not have
    chat_files: Mapping[str, bytes]  # of chats, files to go with the tokenizer's: the template, the ends of answers
    unread: list[Unread]  # files of the corpus that are not read

    @property
    def data_dir(self) -> Path:
        assert self.options.destination_path is not None
        return self.options.destination_path

    @property
    def parts_dir(self) -> Path:
        return self.data_dir / PARTS_FOLDER

    @property
    def divides_chats(self) -> bool:
        """Whether chats that two splits share are to be divided among them."""
        return any(source.shared for source in self.sources)

    def part_path(self, source: Source) -> Path:
        """What a split's shards hold and were made from."""
        return self.parts_dir / f"{source.name}.json"

    def hits_path(self, source: Source) -> Path:
        """What of a split test files have, too; it is there if there is any."""
        return self.parts_dir / f"{source.name}.hits.jsonl"

    def report_path(self, source: Source) -> Path:
        """What was left out of a split; it is there if anything was."""
        return self.data_dir / REPORTS / f"{source.name}.jsonl"


def make_plan(options: PrepareOptions, parts_dir: Path) -> PreparePlan:
    """Raises a UserError or a DataError for whatever is wrong in the options, the files they name, and the corpus.

    A tokenizer to which tokens are added is written into `parts_dir`.
    """
    assert options.checkpoint_dir is not None
    unread: list[Unread] = []
    sources = sources_of(options, unread)
    if not options.check:  # which names all sources that lack one, beside a table of the others
        require_fields_of(sources)
        if options.validation_share:
            sources = with_held_out(sources, options.validation_share)
    tokenizer = Tokenizer(options.checkpoint_dir)
    added_tokens: list[str] = []
    if options.add_tokens:
        tokenizer, added_tokens = grow_tokenizer(tokenizer, options.add_tokens, parts_dir)
    if options.special_tokens_in_text:
        encoder_of_special_tokens(tokenizer)  # which raises where there is none
    recipe = make_recipe(options, tokenizer)
    files_of_chats: dict[str, bytes] = {}
    if any(source.converter for source in sources):
        # with Jinja, 0.1 s that plain text does not pay
        from utils.prepare.chat_plan import plan_chats

        chat, files_of_chats = plan_chats(options, tokenizer)
        recipe = replace(recipe, chat=chat)
    groups = read_groups(options.group_datasets_by_genre)
    groups |= {source.dataset: source.entry.group for source in sources if source.entry and source.entry.group}
    facts = read_metadata(options.metadata) if options.metadata else {}
    dialogues = {source: dialogue_of(source, facts, options) for source in sources}
    for dialogue in filter(None, dialogues.values()):
        try:
            normalise("", dialogue.language)
        except ValueError as e:
            raise UserError(str(e)) from None
    warn_of_unknown(facts, sources)
    for name, earlier in repeated_entries(options.entries):
        say(f"warning: --datasets, {name}: it is the same data as {earlier}, and would be trained on twice")
    sample = read_sample(sources, options)
    chat_bytes = text_bytes([source for source in sources if source.converter])
    worth_it = bool(sample) or chat_bytes >= PROVEN_CHATS
    return PreparePlan(
        options=options,
        sources=sources,
        sizes=[sum(file.path.stat().st_size for file in source.files) for source in sources],
        languages={source: language_of(source, facts) for source in sources},
        groups=groups,
        dialogues=dialogues,
        recipe=recipe,
        sample=sample,
        proof=prove(tokenizer, most_workers(options), say) if options.fast_tokenizer and worth_it else None,
        tokenizer=tokenizer.fingerprint,
        added_tokens=added_tokens,
        chat_files=files_of_chats,
        unread=unread,
    )


def sources_of(options: PrepareOptions, unread: list[Unread]) -> list[Source]:
    of_options = [path for path in (options.metadata, options.group_datasets_by_genre) if path]
    of_options += [Path(file) for file in options.contamination]
    if options.source_path is None:
        sources = find_entry_sources(options.entries, say, of_options, unread, first_alone=options.check)
    else:
        found = find_sources(options.source_path, say, of_options, unread)
        sources = [source.with_converter(options.own_converter) for source in found]
        if options.own_converter and not any(source.converter for source in sources):
            raise UserError(
                f"--converter: {options.source_path} has no records (JSON, CSV, Parquet or Arrow), only text"
            )
    sources = [with_joins(source, options.join_field) for source in sources]
    for source in sources:
        try:
            if source.converter:
                make_converter(source.converter)
        except UserError as e:
            raise UserError(f"{where_of(source.entry) if source.entry else '--converter'}: {e}") from None
    return sources


def with_joins(source: Source, join_field: str | None) -> Source:
    """The source with the field by which its rows of text are joined, if one is wanted."""
    wanted = source.entry.join_field if source.entry else join_field
    files = [
        file for file in source.files if not source.converter_of(file) and file.format not in (CONVERSATIONS, PLAIN)
    ]
    if not wanted:
        tables = [file for file in files if file.format in (PARQUET, ARROW)]
        if tables and is_of_chunks(tables[0]):
            way = "join_field: source" if source.entry else "--join_field source"
            say(f"{tables[0].name} has chunks of books: an end token follows each; {way} makes whole books of them")
        return source
    if not files:
        raise UserError(f"join_field: {source.dataset} {source.split} has no rows of text")
    joined = tuple(joined_by(file, wanted) if file in files else file for file in source.files)
    return replace(source, files=joined)


def joined_by(file: CorpusFile, join_field: str) -> CorpusFile:
    if file.format == LINES and file.span is not None:
        raise UserError(
            f"join_field: of {file.name}, which has a record per line, all rows are read; give no part of a split"
        )
    # records per line are read one after the other too, as other JSON is: a line may belong to the one before it
    return replace(file, join_field=join_field, format=RECORDS if file.format == LINES else file.format)


def require_fields_of(sources: list[Source]) -> None:
    """A DataError if the first file of chats of a source has not what its converter reads."""
    for source in sources:
        files = [file for file in source.files if source.converter_of(file)]
        if source.converter and files:
            require_fields(files[0], fields_of(source.converter))


def make_recipe(options: PrepareOptions, tokenizer: Tokenizer) -> Recipe:
    bos = tokenizer.adds_bos if options.add_bos is None else options.add_bos
    eos = tokenizer.eos_id is not None if options.add_eos is None else options.add_eos
    added = [("bos", tokenizer.bos_id)] if bos else []
    if eos:
        added.append(("eos", tokenizer.eos_id))
    raise_problems([f"--add_{kind}: the tokenizer has no such token" for kind, token in added if token is None])
    for kind, token in added:
        if token >= tokenizer.vocab_size:
            raise DataError(f"--add_{kind}: token {token} is not in the tokenizer's {tokenizer.vocab_size} entries")
    return Recipe(
        checkpoint_dir=tokenizer.directory,
        vocab_size=tokenizer.vocab_size,
        window=1 + (options.max_length or read_context(options.checkpoint_dir)),
        bos=bos,
        eos=eos,
        padding=options.padding,
        text_field=options.text_field,
        min_characters=options.min_characters,
        max_characters=options.max_characters,
        special_tokens_in_text=options.special_tokens_in_text,
        seed=options.seed,
    )


def read_context(checkpoint_dir: Path) -> int:
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


def dialogue_of(source: Source, all_facts: Mapping[str, DatasetFacts], options: PrepareOptions) -> Dialogue | None:
    """How the conversations of a split are treated, None if it is plain text."""
    facts = facts_of(all_facts, source.dataset, source.split)
    if facts is None or not facts.dialogue:
        return None
    level = facts.level(source.split)
    if options.augmentation_level is not None and source.split != TEST:
        level = options.augmentation_level
    return Dialogue(facts.language or source.language, level)


def language_of(source: Source, all_facts: Mapping[str, DatasetFacts]) -> str:
    facts = facts_of(all_facts, source.dataset, source.split)
    if facts is not None and facts.language:
        return facts.language
    return source.language


def warn_of_unknown(facts: Mapping[str, DatasetFacts], sources: list[Source]) -> None:
    known = {source.dataset for source in sources}
    known |= {f"{source.dataset}/{source.split.upper()}" for source in sources}
    unknown = sorted(facts.keys() - known)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        say(f"warning: --metadata names datasets that are not here: {', '.join(unknown[:5])}{more}")


def read_sample(sources: list[Source], options: PrepareOptions) -> list[str]:
    """Documents of up to 16 of the sources of plain text, some 128 KB together; of others where these have none."""
    sources = [source for source in sources if not all(map(source.converter_of, source.files))]
    if not sources:
        return []
    every = -(-len(sources) // SAMPLE_SOURCES)
    chosen = sources[::every]
    others = [source for source in sources if source not in chosen]
    sample: list[str] = []
    for source in chosen + others:
        if source in chosen or not sample:
            sample += sample_of(source, options)
    if not sample and not any(source.converter for source in sources):
        for source in sources:
            sample_of(source, replace(options, on_bad_input="error"))  # says what all was left out for
        raise DataError(f"{options.corpus} holds no conversation and no other text: its files are empty")
    return sample


def sample_of(source: Source, options: PrepareOptions) -> list[str]:
    """The first documents of a source, some 8 KB together."""
    sample = []
    size = 0
    for document in read_documents(source, options):
        size += len(document)
        sample.append(document.decode())
        if size >= SAMPLE_BYTES // SAMPLE_SOURCES:
            break
    return sample


def read_documents(source: Source, options: PrepareOptions) -> Iterator[bytes]:
    """The texts of a source that are no chats."""
    for file in source.files:
        if source.converter_of(file):
            continue
        for block in read_blocks(file, SAMPLE_BYTES, options.text_field):
            documents, bad = parse(block, options.text_field)
            if bad and options.on_bad_input == "error":
                raise DataError(problem_message(file, bad[0]))
            yield from (document.text for document in documents if document.text)


def share_out(sources: list[Source], sizes: list[int], tasks: int) -> list[list[Source]]:
    """Gives the largest source first, to the task with the fewest bytes: at most 4/3 of the best division (Graham
    1969).
    """
    loads = [0] * tasks
    task_of = {}
    for size, source in sorted(zip(sizes, sources, strict=True), key=lambda pair: (-pair[0], pair[1].name)):
        task_of[source] = loads.index(min(loads))
        loads[task_of[source]] += size
    return [[source for source in sources if task_of[source] == task] for task in range(tasks)]


def text_bytes(sources: list[Source]) -> int:
    times = {**PACKED, ".parquet": PARQUET_TIMES}
    files = [file.path for source in sources for file in source.files]
    return sum(path.stat().st_size * times.get(path.suffix.lower(), 1) for path in files)


def works_of(source: Source, plan: PreparePlan, sifted: Sifted) -> Iterator[Work]:
    dialogue = plan.dialogues.get(source)
    first_shared = len(source.files) - source.shared
    for index, file in enumerate(source.files):
        converter = source.converter_of(file)
        fields = fields_of(converter) if converter else plan.recipe.text_field
        # two splits that share a file of chats have the same blocks
        size = block_bytes(plan, None if converter else dialogue)
        for number, block in enumerate(read_blocks(file, size, fields)):
            duplicates = sifted.duplicates.get((index, number), {})
            others = sifted.others.get((index, number))
            yield Work(index, number, block, dialogue, duplicates, converter, others, index >= first_shared)


def block_bytes(plan: PreparePlan, dialogue: Dialogue | None) -> int:
    # with windows above 4,096 more text, at most 32 MB, so that rows are packed from enough documents
    times = min(8.0, max(1.0, plan.recipe.window / 4096))
    # with variants less, since they become as many tokens
    forms = 1 + dialogue.level if dialogue else 1
    wanted = int(times * BLOCK_BYTES) // forms
    # a document longer than a block is cut, so whatever fits a window or is not too long must fit a block:
    # a token has up to 32 bytes, a character up to four
    return max(wanted, 32 * plan.recipe.window, 4 * (plan.recipe.max_characters or 0))


def make_pool(sources: list[Source], plan: PreparePlan) -> WorkPool:
    """As many processes as are wanted, fit in memory, and get enough text to be worth their start."""
    useful = -(-text_bytes(sources) // BLOCK_BYTES)
    sample = plan.sample if plan.options.fast_tokenizer else None
    make_worker = partial(Worker, plan.recipe, sample, plan.proof)
    return WorkPool(make_worker, max(1, min(most_workers(plan.options), useful)))


def most_workers(options: PrepareOptions) -> int:
    """Processes that are wanted and fit in memory."""
    wanted = options.num_workers or own_cpus()
    if options.max_memory is not None:
        fitting = int((1000 * options.max_memory - MAIN_MEMORY) / WORKER_MEMORY)
        wanted = min(wanted, max(1, fitting))
    return wanted
