"""What is known of the datasets of a corpus: a CSV or JSON file beside it.

A CSV file has a line per dataset and these columns, all but the first optional, in any order and among others:

    dataset             FR/X; FR/X/TRAIN or FR/X/TEST where a split differs
    language            fr
    spontaneous         True for speech that was not prepared
    dialogue            False for plain text, which is neither normalised nor augmented; default True
    augmentation_level  variants per conversation; default: 8 for spontaneous speech, 1 for other dialogue

A JSON file is an object of the datasets, each an object of such fields, or a list of objects with `dataset` among them.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError, raise_problems
from utils.data.manifest import TEST

SPONTANEOUS_LEVEL, OTHER_LEVEL = 8, 1  # the Claire models'
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class DatasetFacts:
    language: str = ""  # in lower case; empty where the file does not say
    dialogue: bool = True
    spontaneous: bool = False
    augmentation_level: int | None = None  # as the file says; None where it does not

    def level(self, split: str) -> int:
        if split == TEST or not self.dialogue:
            return 0
        if self.augmentation_level is not None:
            return self.augmentation_level
        return SPONTANEOUS_LEVEL if self.spontaneous else OTHER_LEVEL


def facts_of(facts: Mapping[str, DatasetFacts], dataset: str, split: str) -> DatasetFacts | None:
    return facts.get(f"{dataset}/{split.upper()}", facts.get(dataset))


def read_metadata(path: Path) -> dict[str, DatasetFacts]:
    """The facts in a metadata file by the name they have there; a UserError names all that is wrong in it at once."""
    reader = {".csv": _csv_entries, ".json": _json_entries}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: metadata is a .csv or .json file")
    if not path.is_file():
        raise UserError(f"{path}: there is no such metadata file")
    facts: dict[str, DatasetFacts] = {}
    problems: list[str] = []
    try:
        for where, fields in reader(path.read_text(encoding="utf-8-sig"), problems):
            found: list[str] = []
            name, read = _name(fields, found), _read_facts(fields, found)
            if not found and facts.setdefault(name, read) != read:
                found.append(f"{name} has other facts than before; a dataset stands there once")
            problems += [f"{where}: {problem}" for problem in found]
    except UnicodeDecodeError as e:
        problems.append(f"not UTF-8 at byte offset {e.start}")
    except (csv.Error, json.JSONDecodeError, RecursionError) as e:
        problems.append(f"no valid {path.suffix[1:].upper()}: {e}")
    raise_problems([f"{path}: {problem}" for problem in problems])
    return facts


def _csv_entries(text: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's number and fields. Whatever is wrong is added to `problems`."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in next(rows, [])]
    if "dataset" not in header:
        problems.append("line 1: there is no column `dataset`; the first line names the columns, between commas")
        return
    problems += [f"line 1: column {name} stands there {times} times" for name, times in _repeated(header)]
    for row in rows:
        if row and len(row) != len(header):
            problems.append(f"line {rows.line_num}: {len(row)} fields, but line 1 names {len(header)} columns")
        elif row:
            yield f"line {rows.line_num}", dict(zip(header, row, strict=True))


def _json_entries(text: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dataset's name, or its number in the list from 1, and its fields; `problems` gets whatever is wrong."""

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        problems.extend(f"{name} stands there {times} times" for name, times in _repeated([name for name, _ in pairs]))
        return dict(pairs)

    content = json.loads(text, object_pairs_hook=as_object)
    is_named = isinstance(content, dict)
    if is_named:
        entries = list(content.items())
    else:
        listed = content if isinstance(content, list) else [content]
        entries = [(f"entry {number}", fields) for number, fields in enumerate(listed, start=1)]
    for where, fields in entries:
        if not isinstance(fields, dict):
            problems.append(f"{where}: must be an object of fields")
        elif is_named:
            yield where, {**fields, "dataset": where}
        else:
            yield where, fields


def _repeated(names: list[str]) -> list[tuple[str, int]]:
    return [(name, times) for name, times in Counter(filter(None, names)).items() if times > 1]


def _name(fields: dict[str, Any], problems: list[str]) -> str:
    name = fields.get("dataset")
    if not isinstance(name, str) or not name.strip():
        problems.append("no name in `dataset`")
        return ""
    return name.strip()


def _read_facts(fields: dict[str, Any], problems: list[str]) -> DatasetFacts:
    given = {name: str(value).strip() for name, value in fields.items() if value is not None}
    values: dict[str, Any] = {}
    if language := given.get("language", "").lower():
        values["language"] = language
        if not re.fullmatch("[a-z]{2,3}", language):
            problems.append(f"language must be a code such as fr, not {language!r}")
    for name in ("dialogue", "spontaneous"):
        if text := given.get(name):
            values[name] = BOOLEANS.get(text.lower())
            if values[name] is None:
                problems.append(f"{name} must be True or False, not {text!r}")
    if level := given.get("augmentation_level"):
        if re.fullmatch("[0-9]{1,6}", level):
            values["augmentation_level"] = int(level)
        else:
            problems.append(f"augmentation_level must be a number of variants from 0 on, not {level!r}")
    facts = DatasetFacts(**values)
    if facts.augmentation_level and facts.dialogue is False:
        problems.append("augmentation_level must be 0 for plain text, whose `dialogue` is False")
    return facts
