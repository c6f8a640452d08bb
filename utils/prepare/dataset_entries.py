"""The entries of --datasets: what a user may say of a dataset, checked before anything is read.

    datasets:
      - {name: alpaca, hub: IlyaGusev/ru_turbo_alpaca, revision: 9a3b…, converter: instruction}
      - {name: mine, path: chats/*.jsonl, converter: messages, mapping: {messages: dialogue}, filter: {lang: [ru, en]}}

Nothing heavy is imported here: the options are checked by it.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from lit_gpt.formats.repo_id import check_repo_id
from utils.prepare.chat.conversation import Converter
from utils.prepare.chat.json_values import plain_text
from utils.prepare.named_splits import parse_split

TEXT = "text"  # the converter of plain text and of transcribed dialogue
KEYS = (
    *("name", "path", "hub", "revision", "subset", "split", "converter", "mapping", "filter", "without"),
    *("join_field", "language", "group"),
)
_TEXTS = ("name", "path", "hub", "revision", "subset", "split", "converter", "join_field", "language", "group")


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset as the user describes it; what is not said is empty."""

    name: str
    converter: Converter
    path: str = ""  # a folder, a file, a .list, or a pattern such as chats/*.jsonl
    hub: str = ""  # ORG/NAME of the Hugging Face Hub
    revision: str = ""
    subset: str = ""
    split: str = ""
    join_field: str = ""
    language: str = ""
    group: str = ""
    commit: str = ""  # what the revision is, once the files are here

    @property
    def text_field(self) -> str:
        """The field of plain text, empty if it is that of --text_field."""
        return dict(self.converter.mapping).get(TEXT, "") if self.converter.name == TEXT else ""


def read_entries(datasets: Sequence[Mapping[str, Any]]) -> tuple[list[DatasetEntry], list[str]]:
    """The entries, and everything that is wrong with them; entries with a problem are not among the first."""
    entries, problems = [], []
    names: dict[str, str] = {}  # by what their shards are named
    for number, values in enumerate(datasets, start=1):
        name = values.get("name")
        where = f"--datasets, {name if isinstance(name, str) and name else f'entry {number}'}"
        wrong = [f"{where}: {problem}" for problem in _problems(values)]
        if not wrong:
            files = values["name"].replace("/", "--")
            if files in names:
                wrong.append(f"{where}: another entry is named {names[files]}, and both would have the same shards")
            names[files] = values["name"]
        problems += wrong
        if not wrong:
            entries.append(_entry(values))
    return entries, problems


def pairs(mapping: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """A mapping as a `Converter` has it: a pair for each field that a name may be in, in the order of preference."""
    found = []
    for name, fields in sorted((mapping or {}).items()):
        found += [(name, field) for field in (fields if isinstance(fields, list) else [fields])]
    return tuple(found)


def _entry(values: Mapping[str, Any]) -> DatasetEntry:
    keep = [(field, _listed(wanted)) for field, wanted in sorted((values.get("filter") or {}).items())]
    converter = Converter(
        values.get("converter") or TEXT,
        mapping=pairs(values.get("mapping")),
        keep=tuple(keep),
        without=tuple(text.lower() for text in _listed(values.get("without") or [])),
    )
    others = {key: values[key] for key in _TEXTS if key != "converter" and values.get(key)}
    return DatasetEntry(converter=converter, **others)


def _listed(values: Any) -> tuple[str, ...]:
    """One value or several as texts, as the fields of a record are compared with them."""
    several = values if isinstance(values, (list, tuple)) else [values]
    return tuple(map(plain_text, several))


def repeated_entries(entries: Sequence[DatasetEntry]) -> list[tuple[str, str]]:
    """The names of entries that read the same as an earlier one, with the earlier one's."""
    first: dict[DatasetEntry, str] = {}
    found = []
    for entry in entries:
        read = replace(entry, name="", language="", group="", commit="")
        if read in first:
            found.append((entry.name, first[read]))
        first.setdefault(read, entry.name)
    return found


def _problems(values: Mapping[str, Any]) -> list[str]:
    problems = [f"no key '{key}' is known{_nearest(str(key))}" for key in values if key not in KEYS]
    for key in _TEXTS:
        value = values.get(key)
        if value is not None and not isinstance(value, str):
            mend = "" if isinstance(value, (list, dict)) else ": put it into quotes"
            problems.append(f"{key} must be text, not {value!r}{mend}")
    if problems:
        return problems
    problems += _problems_of_name(values.get("name") or "")
    given = [key for key in ("path", "hub") if values.get(key)]
    if len(given) != 1:
        problems.append("it needs a path or a hub" if not given else "it has both a path and a hub; keep one")
    problems += _problems_of_hub(values.get("hub") or "", values.get("revision") or "")
    if values.get("path") and values.get("revision"):
        problems.append("revision is of a dataset on the Hub, and this one has a path")
    try:
        parse_split(values.get("split") or "train")
    except ValueError as e:
        problems.append(f"split: {e}")
    mapping = values.get("mapping")
    if mapping is not None and not _is_mapping_of_texts(mapping):
        problems.append(f"mapping must be names → names of fields, such as {{output: answer}}, not {mapping!r}")
    problems += _problems_of_text(values)
    keep = values.get("filter")
    if keep is not None and not (isinstance(keep, Mapping) and all(map(_is_plain, keep.values()))):
        problems.append(f"filter must be fields → a value or a list of values, such as {{lang: ru}}, not {keep!r}")
    without = values.get("without")
    if without and not _is_plain(without):
        problems.append(f"without must be a list of texts, not {without!r}")
    return problems


def _problems_of_name(name: str) -> list[str]:
    if not name:
        return ["it needs a name"]
    parts = PurePosixPath(name).parts
    is_plain = "/".join(parts) == name and ".." not in parts and not name.startswith(("/", "."))
    if not is_plain or not name.isprintable() or len(name) > 200:
        return ["name must be a readable name such as alpaca or RU/alpaca, no path with '..'"]
    return []


def _problems_of_hub(repo_id: str, revision: str) -> list[str]:
    problems = check_repo_id(repo_id, "hub") if repo_id else []
    if revision and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision or revision.startswith("/")):
        problems.append(f"revision must be a branch, a tag or a commit, not {revision!r}")
    return problems


def _problems_of_text(values: Mapping[str, Any]) -> list[str]:
    """What is asked of plain text that only chats have, or of chats that only plain text has."""
    if (values.get("converter") or TEXT) != TEXT:
        return ["join_field is of plain text, and a converter makes chats"] if values.get("join_field") else []
    problems = [
        f"{key} needs a converter of chats; this one is plain text" for key in ("filter", "without") if values.get(key)
    ]
    mapping = values.get("mapping") or {}
    if isinstance(mapping, Mapping) and not mapping.keys() <= {TEXT}:
        problems.append("the mapping of plain text is {text: FIELD}; of chats it needs a converter")
    return problems


def _is_mapping_of_texts(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    texts = [*value]
    for fields in value.values():
        texts += fields if isinstance(fields, list) and fields else [fields]
    return all(isinstance(text, str) for text in texts)


def _is_plain(value: Any) -> bool:
    several = value if isinstance(value, (list, tuple)) else [value]
    return bool(several) and all(one is None or isinstance(one, (str, int, float)) for one in several)


def _nearest(key: str) -> str:
    nearest = difflib.get_close_matches(key, KEYS, n=1)
    return f", the nearest is '{nearest[0]}'" if nearest else f"; there are {', '.join(KEYS)}"
