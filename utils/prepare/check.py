"""`--check`: what would become of the first 100 rows of every source, before hours are spent on all of them.

The rows go the way of the real run (`plan.py`, `worker.py`); nothing is written, and no file is read to its end.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.parts import PARTS, TARGET
from utils.data.table import aligned
from utils.prepare.block_rows import BlockRows, Remainder, Rows, Work
from utils.prepare.blocks import read_blocks
from utils.prepare.chat.conversation import remedy
from utils.prepare.documents import parse, problem_message
from utils.prepare.file_formats import CONVERSATIONS, PLAIN, CorpusFile
from utils.prepare.options import PrepareOptions
from utils.prepare.plan import PreparePlan, Sifted, make_plan, require_fields_of, works_of
from utils.prepare.progress import say
from utils.prepare.records import parse_records
from utils.prepare.row_spans import first_rows
from utils.prepare.sources import Source
from utils.prepare.worker import Worker

ROWS = 100  # of each source
TEXT_BYTES = 2**16  # of each *.txt file, which may be one long document


@dataclass
class Found:
    """What the first rows of a source gave."""

    rows: int = 0
    conversations: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    shortened: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # one of each reason
    named: Counter[str] = field(default_factory=Counter)
    error: UserError | DataError | None = None  # for which no more was read


HEADER = (
    *("source", "rows", "conversations", "samples", "tokens", "targets", "share", "longest", "too long"),
    *("shortened", "left out"),
)


def check(options: PrepareOptions) -> None:
    """Prints a table of all sources; raises the first error of the sources that give nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        plan, found = look(options, Path(scratch))
        errors = errors_of(found)
        for error in errors:
            say(str(error))
        say_found(plan, found)
    if errors:
        raise errors[0]


def look(options: PrepareOptions, scratch: Path) -> tuple[PreparePlan, dict[Source, Found]]:
    """What the first rows of every source give; a tokenizer to which tokens are added is written into `scratch`."""
    # which rows are held out is decided by all prompts, of which only some are read
    changed = replace(options, check=True, fast_tokenizer=False, on_bad_input="skip", validation_share=0.0)
    plan = make_plan(changed, scratch)
    worker = Worker(plan.recipe, None, None)
    return plan, {source: check_source(source, plan, worker, options) for source in plan.sources}


def errors_of(found: Mapping[Source, Found]) -> list[UserError | DataError]:
    """What is wrong with the sources that give nothing, or at which a real run would stop."""
    return [error for source in found if (error := _error(source, found[source]))]


def say_found(plan: PreparePlan, found: Mapping[Source, Found]) -> None:
    """Prints the table of all sources, what is left out of each, and the template."""
    lines = [HEADER, *(_line(source, found[source]) for source in plan.sources)]
    for line in aligned(lines, 1):
        say(line)
    for source in plan.sources:
        _say_left_out(source, found[source], plan.options)
    _say_template(plan)


def check_source(source: Source, plan: PreparePlan, worker: Worker, options: PrepareOptions) -> Found:
    found = Found()
    try:
        require_fields_of([source])
        for work in first_works(source, plan):
            result = worker.rows(work)
            rows = rows_of(work, plan)
            _add(found, source.files[work.file], rows, result, plan)
            if result.bad and options.on_bad_input == "error":  # the real run would stop
                raise DataError(f"{problem_message(source.files[work.file], result.bad[0])} (--on_bad_input)")
            if found.rows >= ROWS:
                break
    except (UserError, DataError) as e:
        found.error = e
    return found


def first_works(source: Source, plan: PreparePlan) -> Iterator[Work]:
    """As `works_of`, of the first rows of each file in turn."""
    for number, file in enumerate(source.files):
        if file.format in (CONVERSATIONS, PLAIN):
            block = next(read_blocks(file, TEXT_BYTES, plan.recipe.text_field), None)
            if block is not None:
                yield Work(number, 0, block, plan.dialogues[source], {})
            continue
        one = replace(source, files=(first_rows(file, ROWS),))
        short = replace(plan, dialogues={one: plan.dialogues[source]})
        yield from (work._replace(file=number) for work in works_of(one, short, Sifted()))


def rows_of(work: Work, plan: PreparePlan) -> int:
    """The records or texts of a block, whatever becomes of them."""
    if work.converter:
        return sum(map(len, parse_records(work.block)))
    return sum(map(len, parse(work.block, plan.recipe.text_field)))


def _add(found: Found, file: CorpusFile, rows: int, result: BlockRows, plan: PreparePlan) -> None:
    def count(rows: Rows) -> None:
        found.targets += rows.count_parts()[PARTS[TARGET]]
        found.longest = max(found.longest, int(np.max(rows.lengths, initial=0)))

    remainder = Remainder(plan.recipe, count)
    count(result.rows)
    remainder.add(result.rest)
    remainder.close()
    found.rows += rows
    found.conversations += result.conversations
    found.samples += result.documents
    found.tokens += result.tokens
    found.shortened += result.shortened
    found.named += result.named
    for bad in result.bad:
        found.left_out[bad.reason] += 1
        found.examples.setdefault(bad.reason, problem_message(file, bad))
    for one in result.left_out:
        found.left_out[one.reason] += 1
        begin = f": {one.text!r}" if one.text else ""
        place = f"{file.name}, {file.unit} {one.at:,}"
        found.examples.setdefault(one.reason, f"{one.detail or one.reason} ({place}{begin})")


def _name(source: Source) -> str:
    return f"{source.dataset} {source.split}"


def _line(source: Source, found: Found) -> list[str]:
    share = f"{100 * found.targets / found.tokens:.1f} %" if found.tokens else "-"
    of_chats = (found.conversations, found.samples) if source.converter else (0, found.samples)
    too_long = found.left_out["too_long"]
    counts = (found.tokens, found.targets)
    others = (found.longest, too_long, found.shortened, found.left_out.total())
    texts = [f"{number:,}" for number in (found.rows, *of_chats, *counts)]
    return [_name(source), *texts, share, *(f"{number:,}" for number in others)]


def _error(source: Source, found: Found) -> UserError | DataError | None:
    """What is wrong with a source that gives nothing."""
    if found.error is not None:
        return type(found.error)(f"{_name(source)}: {found.error}")
    if found.samples:
        return None
    if not found.rows:
        return DataError(f"{_name(source)}: {source.files[0].path} is empty, as all of its files are")
    reason, count = found.left_out.most_common(1)[0]
    example = f"{found.examples[reason]}{remedy(reason)}"
    return DataError(f"{_name(source)}: nothing is left of {found.rows:,} rows; {count:,} {reason}: {example}")


def _say_left_out(source: Source, found: Found, options: PrepareOptions) -> None:
    for reason, count in found.left_out.most_common():
        say(f"{_name(source)}: {count:,} left out ({reason}), such as: {found.examples[reason]}")
    if found.shortened:
        say(f"{_name(source)}: {found.shortened:,} shortened (too long): turns at the end are left out")
    if found.named and not options.special_tokens_in_text:
        names = ", ".join(f"{name} {count:,}×" for name, count in found.named.most_common(10))
        say(f"{_name(source)}: names of special tokens in the text stay text: {names}")


def _say_template(plan: PreparePlan) -> None:
    chat, options = plan.recipe.chat, plan.options
    if chat is None:
        return
    assert options.checkpoint_dir is not None
    # with Jinja, 0.1 s that plain text does not pay
    from lit_gpt.tokenizer.shipped_templates import OWN, missing_tokens

    name = f"that of {options.checkpoint_dir}" if options.template == OWN else options.template
    missing = missing_tokens(chat.template, Tokenizer(plan.recipe.checkpoint_dir))
    lacks = f"it lacks {', '.join(missing)}, which become text" if missing else "it has all of the template's tokens"
    say(
        f"chat template: {name}; targets: {chat.targets}; at most {plan.recipe.window:,} tokens; the tokenizer: {lacks}"
    )
