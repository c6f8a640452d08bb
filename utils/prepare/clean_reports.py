"""Two readable files of a data folder: what repeats what, and what is in test files, with counts and examples."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.data.manifest import REPORTS
from utils.files.atomic import write_atomically
from utils.prepare.plan import PreparePlan
from utils.prepare.progress import say
from utils.prepare.signed_corpus import SignedCorpus

DUPLICATES, CONTAMINATION = "duplicates.txt", "contamination.txt"
MOST_EXAMPLES = 5  # of each pair of splits, or of test file and split


def forget_duplicates(data_dir: Path) -> None:
    (data_dir / REPORTS / DUPLICATES).unlink(missing_ok=True)


def write_duplicates(plan: PreparePlan, corpus: SignedCorpus, repeats: np.ndarray) -> None:
    """Says, and writes down, how many documents repeat others and in which splits these are, with examples."""
    options = plan.options
    copies = np.flatnonzero(repeats >= 0)
    how = options.deduplicate
    if how == "near":
        how += f", similarity {options.similarity:g}"
    if corpus.is_chat.any():
        how += f", chats by {options.deduplicate_by}"
    title = f"{len(copies):,} of {len(repeats):,} documents repeat another one (--deduplicate {how})"
    say(title)
    pairs = corpus.source_of[copies] * len(corpus.sources) + corpus.source_of[repeats[copies]]
    order = np.argsort(pairs, kind="stable")
    found, begins, counts = np.unique(pairs[order], return_index=True, return_counts=True)
    lines = [title, ""]
    for pair, begin, count in zip(found.tolist(), begins.tolist(), counts.tolist(), strict=True):
        copied, kept = (corpus.sources[number].name for number in divmod(pair, len(corpus.sources)))
        lines += [f"{count:,} of {copied} are left out and repeat one of {kept}", ""]
        for copy in copies[order[begin : begin + min(count, MOST_EXAMPLES)]].tolist():
            lines += [_described(corpus, copy), f"repeats {_described(corpus, int(repeats[copy]))}", ""]
    _write(plan.data_dir / REPORTS / DUPLICATES, lines)


def _described(corpus: SignedCorpus, document: int) -> str:
    return f"{corpus.where(document)}: {corpus.beginning(document)}"


def write_contamination(plan: PreparePlan) -> None:
    """Says, and writes down, what of each split has words of which test file, from the splits' files of hits."""
    path, options = plan.data_dir / REPORTS / CONTAMINATION, plan.options
    if not options.contamination:
        path.unlink(missing_ok=True)
        return
    became = "left out" if options.contaminated == "leave_out" else "kept"
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for source in plan.sources:
        for line in _lines(plan.hits_path(source)):
            pair = (source.name, line["reason"])
            counts[pair] += 1
            if counts[pair] <= MOST_EXAMPLES:
                unit = "row" if "row" in line else "byte"
                where = f"{line['file']}, {unit} {line[unit]}: {line.get('text', '')}"
                examples.setdefault(pair, []).extend([where, f"has: {line['detail']}", ""])
    title = f"{counts.total():,} documents have words of the test files and are {became}"
    say(f"{title}: {path}" if counts else title)
    lines = [f"{title} (runs of {options.contamination_words} words)", ""]
    for pair, count in counts.most_common():
        lines += [f"{count:,} of {pair[0]} have words of {pair[1]}", "", *examples[pair]]
    _write(path, lines)


def _lines(path: Path) -> Iterable[dict[str, str]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines).rstrip() + "\n")
