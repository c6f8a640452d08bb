"""The mixture: which datasets a run trains on, and each one's exact share of the samples.

Without a file every dataset weighs as much as it has rows, so that an epoch holds each row once. `--mixture` names a
YAML file of up to four sections:

    weights: rows                   # or tokens: what a dataset weighs that has no share of its own
    penalties: {FR/Wikipedia: 0.5}  # dataset or group: its datasets' weights are multiplied by this
    languages: {fr: 1, en: 1}       # the samples of these languages stand in this proportion; 0 leaves one out
    shares: {EN/Books: 0.3}         # dataset or group: its share of all samples; 0 leaves it out

1. A dataset's weight is its rows (or tokens), times the penalty of its own name and that of its group's.
2. `languages` splits the samples into one part per language; without it there is one part, the whole.
3. A share is one of all samples, and comes off the part of the dataset's language; a group's is divided by weight.
4. What is left of a part goes to its datasets without a share, by weight. Shares that sum to 1 leave them out.

Numbers are read as exact decimals, or fractions such as 1/3. What contradicts itself is an error, never scaled to fit.
Weights belong to the run, not to the data: another mixture needs no new preparation.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import lcm
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_gpt.errors import UserError
from utils.data.manifest import DatasetSplit
from utils.data.sample_order import integer_weights
from utils.data.table import aligned

MIXTURE = "mixture.csv"  # the table of a run's mixture in its folder
UNITS = ("rows", "tokens")
SECTIONS = ("weights", "shares", "penalties", "languages")
_PARTS = 10**15
# Hundreds of groups with shares of their own would have integer weights of hundreds of digits. Rounded to 10^-15, a
# share differs by less than a sample in the first 10^15.


@dataclass(frozen=True)
class Mixture:
    """The datasets a run trains on and their integer weights: shares of the samples, exact."""

    entries: tuple[DatasetSplit, ...]
    weights: tuple[int, ...]
    left_out: tuple[str, ...] = ()  # names of the datasets that the mixture gives nothing

    @classmethod
    def of(cls, entries: Sequence[DatasetSplit], path: Path | None) -> Mixture:
        """Weights from the YAML file `path`, or each dataset's rows; raises a UserError for all that is wrong in it."""
        if path is None:
            return cls(tuple(entries), integer_weights([entry.rows for entry in entries]))
        try:
            shares = exact_shares(entries, **_read_sections(path))
        except UserError as e:
            raise UserError(f"--mixture {path}: {e}") from None
        chosen = tuple(entry for entry in entries if shares[entry.dataset])
        weights = _integers([shares[entry.dataset] for entry in chosen])
        return cls(chosen, weights, tuple(entry.dataset for entry in entries if not shares[entry.dataset]))

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.entries)


def exact_shares(
    entries: Sequence[DatasetSplit],
    weights: str,
    shares: dict[str, Fraction],
    penalties: dict[str, Fraction],
    languages: dict[str, Fraction],
) -> dict[str, Fraction]:
    """Each dataset's share, in all 1, by the module's rule; a UserError if the sections contradict it or the data."""
    weight = {entry.dataset: Fraction(getattr(entry, weights)) for entry in entries}
    for name, factor in penalties.items():
        if factor == 0:
            raise UserError(f"the penalty of {name} must be above 0; to leave it out give it the share 0")
        if name in shares:
            raise UserError(f"{name} has a share and a penalty; a penalty only changes what has no share")
        for member in _members(entries, name):
            weight[member] *= factor
    explicit: dict[str, Fraction] = {}
    for name, share in shares.items():
        members = _members(entries, name)
        if twice := sorted(explicit.keys() & set(members)):
            raise UserError(f"{twice[0]} has a share twice, by its own name and by its group's")
        explicit |= _divided(share, {member: weight[member] for member in members})
    result: dict[str, Fraction] = {}
    for language, part in _parts(entries, languages).items():
        pool = [entry.dataset for entry in entries if language is None or entry.language == language]
        given = {name: explicit[name] for name in pool if name in explicit}
        others = {name: weight[name] for name in pool if name not in explicit}
        left = part - sum(given.values())
        if left < 0 or (left and not others):
            which = "" if language is None else f" of language {language!r}"
            wrong = "and no other dataset can take the rest, make it" if left > 0 else "which is more than"
            raise UserError(f"the shares{which} sum to {_text(part - left)}, {wrong} {_text(part)}")
        result |= given | _divided(left, others)
    return result


def _parts(entries: Sequence[DatasetSplit], languages: dict[str, Fraction]) -> dict[str | None, Fraction]:
    """The part of the samples that each language gets; all of them to None without `languages`."""
    if not languages:
        return {None: Fraction(1)}
    held = {entry.language for entry in entries}
    if unknown := sorted(languages.keys() - held):
        raise UserError(f"languages names {', '.join(unknown)}, the data holds {', '.join(map(repr, sorted(held)))}")
    if missing := sorted(held - languages.keys()):
        raise UserError(f"languages lacks {', '.join(map(repr, missing))}, which the data holds; 0 leaves it out")
    if not any(languages.values()):
        raise UserError("languages leaves no language with a part above 0")
    return dict(_divided(Fraction(1), languages))


def _members(entries: Sequence[DatasetSplit], name: str) -> list[str]:
    members = [entry.dataset for entry in entries if name in (entry.dataset, entry.group)]
    if not members:
        known = sorted({entry.dataset for entry in entries} | {entry.group for entry in entries})
        raise UserError(f"{name} is not in the data, which holds {', '.join(known)}")
    return members


def _divided(share: Fraction, weights: dict[str, Fraction]) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {name: share * weight / total for name, weight in weights.items()}


def _integers(shares: Sequence[Fraction]) -> tuple[int, ...]:
    if lcm(*(share.denominator for share in shares)) <= _PARTS:
        return integer_weights(shares)
    return tuple(max(1, round(share * _PARTS)) for share in shares)


def _text(fraction: Fraction) -> str:
    return f"{float(fraction):.12g}"


class _NamesAsWritten(yaml.SafeLoader):
    """Takes every key for text: YAML 1.1 reads the language `no` as false, and a dataset `2024` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not _is_merge(key)]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise UserError(f"{twice[0]} is there twice, in or after line {node.start_mark.line + 1}")
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not _is_merge(key):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _is_merge(key: yaml.ScalarNode) -> bool:
    return key.tag == "tag:yaml.org,2002:merge"


def _read_sections(path: Path) -> dict[str, Any]:
    """The file's sections, those it lacks empty, as the arguments of `exact_shares`."""
    if not path.is_file():
        raise UserError("does not exist")
    try:
        sections = yaml.load(path.read_text(encoding="utf-8"), _NamesAsWritten)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(sections, dict) or not sections:
        raise UserError(f"must hold one or more of the sections {', '.join(SECTIONS)}")
    unknown = {name: value for name, value in sections.items() if name not in SECTIONS}
    if unknown:
        problem = f"unknown section {', '.join(map(str, unknown))}, the sections are {', '.join(SECTIONS)}"
        if all(isinstance(value, (int, float)) for value in unknown.values()):
            pairs = ", ".join(f"{name}: {value}" for name, value in unknown.items())
            problem += f"; shares are written `shares: {{{pairs}}}`, where 1 is all samples"
        raise UserError(problem)
    weights = sections.get("weights", "rows")
    if weights not in UNITS:
        raise UserError(f"weights must be {' or '.join(UNITS)}, not {weights!r}")
    return {"weights": weights} | {name: _numbers(name, sections.get(name, {})) for name in SECTIONS[1:]}


def _numbers(section: str, values: Any) -> dict[str, Fraction]:
    if not isinstance(values, dict):
        raise UserError(f"{section} must map names to numbers, such as `{section}: {{name: 0.7}}`")
    numbers = {}
    for name, value in values.items():
        try:
            number = Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            number = Fraction(-1)
        if number < 0:
            raise UserError(f"{section}: {name} must have a number of at least 0 (0.7, 1/3), not {value!r}")
        numbers[str(name)] = number
    return numbers


class MixtureRow(NamedTuple):
    """One dataset of a run's mixture: what it holds, what it is to get, and, once the run has ended, what it got."""

    dataset: str
    language: str
    group: str
    documents: int
    turns: int
    words: int
    tokens: int
    targets: int
    rows: int
    share: float  # of all samples, as the mixture has it
    planned_samples: int
    planned_passes: float  # samples over rows
    samples: int | None
    achieved_share: float | None
    passes: float | None


def mixture_table(mixture: Mixture, planned: int, counts: Sequence[int] | None = None) -> list[MixtureRow]:
    """A row per dataset of a run planned to take `planned` samples, of which `counts` (per dataset) were taken."""
    total = sum(mixture.weights)
    bounds = [planned * weight // total for weight in accumulate(mixture.weights, initial=0)]
    expected = [upper - lower for lower, upper in pairwise(bounds)]  # each within one sample, and none lost in the sum
    table = []
    for index, entry in enumerate(mixture.entries):
        samples = counts[index] if counts else None
        row = MixtureRow(
            dataset=entry.dataset,
            language=entry.language,
            group=entry.group,
            documents=entry.documents,
            turns=entry.turns,
            words=entry.words,
            tokens=entry.tokens,
            targets=entry.targets,
            rows=entry.rows,
            share=mixture.weights[index] / total,
            planned_samples=expected[index],
            planned_passes=expected[index] / entry.rows,
            samples=samples,
            achieved_share=None if samples is None else samples / max(1, sum(counts)),
            passes=None if samples is None else samples / entry.rows,
        )
        table.append(row)
    return table


def table_csv(table: Sequence[MixtureRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MixtureRow._fields)
    writer.writerows(table)
    return text.getvalue()


def table_text(table: Sequence[MixtureRow]) -> str:
    """The table aligned, with a sum per language where there are several, and one over all."""
    sums = []
    languages = sorted({row.language for row in table})
    for language in languages if len(languages) > 1 else []:
        of_language = [row for row in table if row.language == language]
        sums.append(_sum(f"all of {language or 'no language'}", of_language))
    made = table[0].samples is not None  # else samples and passes are those planned
    header = ["dataset", "language", "documents", "turns", "words", "tokens", "targets", "rows", "share"]
    header += ["achieved", "samples", "passes"] if made else ["samples", "passes"]
    rows = [*table, *sums, _sum("all", table)]
    return "\n".join(aligned([header, *map(_cells, rows)], left=2))


def _cells(row: MixtureRow) -> list[str]:
    counts = [f"{count:,}" for count in (row.documents, row.turns, row.words, row.tokens, row.targets, row.rows)]
    if row.samples is None:
        samples = [f"{row.planned_samples:,}", f"{row.planned_passes:,.2f}"]
    else:
        samples = [f"{row.achieved_share:.2%}", f"{row.samples:,}", f"{row.passes:,.2f}"]
    return [row.dataset, row.language, *counts, f"{row.share:.2%}", *samples]


def _sum(name: str, rows: Sequence[MixtureRow]) -> MixtureRow:
    added = {}
    for column in MixtureRow._fields[3:]:
        values = [getattr(row, column) for row in rows]
        added[column] = None if None in values else sum(values)
    added["planned_passes"] = added["planned_samples"] / added["rows"]
    added["passes"] = None if added["samples"] is None else added["samples"] / added["rows"]
    return MixtureRow(name, "", "", **added)
