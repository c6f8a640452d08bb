"""The stages for books: what of their results is compared, and what is checked before they are run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_MODEL, TOKENIZER, run_command
from tests.stages.recipes import write_recipe
from utils.books.book_list import BOOKS, Book, write_books
from utils.recipe.sections import Recipe
from utils.recipes import RecipesOptions, main
from utils.stages.digests import result_digest
from utils.stages.records import expected_record, read_record, write_record


def write_folder(folder: Path, *texts: str) -> None:
    """A folder of books with its list, as each of the commands leaves one."""
    (folder / "reports").mkdir(parents=True)
    (folder / "reports" / "review.csv").write_text("file,reason,line,text\n")
    books = []
    for number, text in enumerate(texts, start=1):
        file = f"{number} - A - B.txt"
        (folder / file).write_text(text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        books.append(Book(file, number, "B", "A", "en", "", "", "utf-8", sha256))
    write_books(folder, books)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    sections = {
        "acquire": {"output_dir": str(tmp_path / "acquired"), "topic": "horror"},
        "clean": {"output_dir": str(tmp_path / "cleaned")},
        "prepare": {"checkpoint_dir": str(TOKENIZER), "destination_path": str(tmp_path / "data"), "max_length": 64},
    }
    return Recipe(tmp_path / "recipe.yaml", sections)


def test_a_folder_is_whole_with_its_list_and_each_book_on_it(recipe: Recipe, tmp_path: Path) -> None:
    assert result_digest(recipe, "clean") is None
    write_folder(tmp_path / "cleaned", "One.", "Two.")
    digest = result_digest(recipe, "clean")
    assert digest is not None
    (tmp_path / "cleaned" / "2 - A - B.txt").rename(tmp_path / "2.txt")
    assert result_digest(recipe, "clean") is None
    (tmp_path / "2.txt").rename(tmp_path / "cleaned" / "2 - A - B.txt")
    assert result_digest(recipe, "clean") == digest
    (tmp_path / "cleaned" / BOOKS).write_text("file,number\n")
    assert result_digest(recipe, "clean") is None


def test_a_book_that_is_corrected_is_prepared_again_and_a_report_that_is_read_is_not(
    recipe: Recipe, tmp_path: Path
) -> None:
    write_folder(tmp_path / "acquired", "One.")
    write_folder(tmp_path / "cleaned", "One.")
    for name in ("acquire", "clean"):
        write_record(recipe, expected_record(recipe, name))
    before = expected_record(recipe, "prepare")
    (tmp_path / "cleaned" / "reports" / "review.csv").write_text("looked through")
    assert expected_record(recipe, "prepare").difference(before) is None
    (tmp_path / "cleaned" / "1 - A - B.txt").write_text("One, corrected.")
    assert "source_path" in expected_record(recipe, "prepare").difference(before)
    assert expected_record(recipe, "clean").difference(read_record(recipe, "clean")) is None
    (tmp_path / "acquired" / "1 - A - B.txt").write_text("One, acquired anew.")
    assert "input_dir" in expected_record(recipe, "clean").difference(read_record(recipe, "clean"))


def test_delays_and_processes_change_nothing_of_what_is_made(recipe: Recipe) -> None:
    before = expected_record(recipe, "acquire")
    recipe.sections["acquire"]["delay"] = 9.0
    patient = Recipe(recipe.path, recipe.sections)  # whose options are read anew
    assert expected_record(patient, "acquire").difference(before) is None
    recipe.sections["acquire"]["num_records"] = 7
    assert "num_records" in expected_record(Recipe(recipe.path, recipe.sections), "acquire").difference(before)


def checked(tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    code = run_command(RecipesOptions, main, ["check", str(write_recipe(tmp_path / "recipe.yaml", content))])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_books_of_ones_own_are_cleaned_without_a_catalogue(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before they are cleaned the data are not looked at, but the model is."""
    (tmp_path / "model.yaml").write_text(TINY_MODEL)
    content = {name: dict(values) for name, values in recipe.sections.items() if name != "acquire"}
    content["clean"]["input_dir"] = str(tmp_path / "mine")
    content["pretrain"] = {"model_config": str(tmp_path / "model.yaml"), "out_dir": str(tmp_path / "run")}
    code, out, _ = checked(tmp_path, content, capsys)
    assert code == 2 and f"clean: input_dir {tmp_path / 'mine'} is not there" in out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("It began.")
    code, out, err = checked(tmp_path, content, capsys)
    assert code == 0, err
    assert f"{tmp_path / 'cleaned'} is not there yet" in out and "memory of the training: " in out
    content["prepare"]["max_length"] = 65
    assert checked(tmp_path, content, capsys)[0] == 2  # the model has 64 positions
    del content["pretrain"]
    content["chunk"] = {"output_dir": str(tmp_path / "cleaned")}
    code, out, _ = checked(tmp_path, content, capsys)
    assert code == 2 and "is the result of clean, too; give each another" in out
    del content["chunk"], content["clean"]["input_dir"]
    code, out, _ = checked(tmp_path, content, capsys)
    assert code == 2 and "clean: input_dir is missing, and so is the section acquire to take it from" in out


def test_a_shipped_recipe_is_copied_before_it_is_run(capsys: pytest.CaptureFixture) -> None:
    assert run_command(RecipesOptions, main, ["run", "books/small"]) == 2
    assert "books/small is not there: it is shipped, and `recipes.py cp books/small FILE`" in capsys.readouterr().err
    assert run_command(RecipesOptions, main, ["check", "nothing.yaml"]) == 2
    assert capsys.readouterr().err == "error: FILE nothing.yaml is not there\n"
