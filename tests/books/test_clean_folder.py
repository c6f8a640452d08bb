"""The folder of cleaned books: files and reports, what a second call does, what a person changed, bad inputs."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import pytest

from data.clean_gutenberg import main
from tests.conftest import ROOT, SHARED, run_command
from utils.books.cleaned_folder import RULES
from utils.books.options import CleanOptions

FRANKENSTEIN = SHARED / "data" / "gutenberg"


def clean(source: Path, target: Path, *more: object) -> int:
    arguments = ["--input_dir", source, "--output_dir", target, "--num_workers", 1, "--unwrap", "false", *more]
    return run_command(CleanOptions, main, list(map(str, arguments)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.shared
def test_a_real_book(tmp_path: Path) -> None:
    assert clean(FRANKENSTEIN, tmp_path / "out") == 0
    (cleaned,) = (tmp_path / "out").glob("*.txt")
    text = cleaned.read_text(encoding="utf-8")
    assert "gutenberg" not in text.lower() and "\r" not in text
    assert text.startswith("Frankenstein;\n") or "Frankenstein;\n" in text[:300]
    assert text.endswith("lost in darkness and distance.\n")
    (row,) = rows(tmp_path / "out" / "reports" / "cleaned.csv")
    came = (FRANKENSTEIN / cleaned.name).read_bytes().decode("utf-8-sig")
    assert int(row["characters_in"]) == len(came)
    assert int(row["characters_kept"]) == len(text)
    removed = [json.loads(line) for line in (tmp_path / "out" / "reports" / "removed.jsonl").open(encoding="utf-8")]
    assert {line["reason"] for line in removed} >= {"header", "footer"}
    (book,) = rows(tmp_path / "out" / "books.csv")
    assert (book["number"], book["language"]) == ("84", "en")


def test_rules_are_the_files_that_cleaning_imports() -> None:
    found, waiting = set(), ["utils/books/cleaning.py"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            file = (module or "").replace(".", "/") + ".py"
            if file.startswith("utils/") and file not in found:
                waiting.append(file)
    assert sorted(found) == list(RULES)
