"""--check: what the first rows of every source would become, in seconds, with nothing written."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lit_gpt.errors import DataError, UserError
from prepare_data import main
from tests.conftest import TOKENIZER, assert_error, run, run_command
from utils import cli
from utils.prepare.options import PrepareOptions

ROW = {"messages": [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you."}]}
EMPTY = {"messages": [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": ""}]}
LONG = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "A long answer. " * 99}]}
SHAPES = ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow"]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(*entries: dict, validation_share: float = 0.0) -> None:
    words = ["--checkpoint_dir", str(TOKENIZER), "--max_length", "200", "--check", "true"]
    words += ["--validation_share", str(validation_share)]
    if any("converter" in entry for entry in entries):
        words += ["--template", "chatml"]
    main(cli.parse(PrepareOptions, [*words, "--datasets", json.dumps(entries)]))


def table(printed: str) -> dict[str, dict[str, str]]:
    """The printed table, by source."""
    lines = printed.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("source "))
    header = ["rows", "conversations", "samples", "tokens", "targets", "share", "longest", "too long", "shortened"]
    found = {}
    for line in lines[begin + 1 :]:
        words = line.replace(" %", "").split()
        if len(words) != 12 or words[1] not in ("train", "test"):
            break
        found[f"{words[0]} {words[1]}"] = dict(zip([*header, "left out"], words[2:], strict=True))
    return found


def test_the_table_of_every_kind_of_source(tmp_path: Path, capsys: pytest.CaptureFixture):
    turn = ROW["messages"]
    chats = write_rows(tmp_path / "chats.jsonl", [*[ROW] * 40, EMPTY, LONG, {"messages": [*turn, *LONG["messages"]]}])
    many = write_rows(tmp_path / "many.jsonl", [ROW] * 150)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(many.read_bytes()))
    (tmp_path / "array.json").write_text(json.dumps([ROW] * 150))
    columns = pa.table({"instruction": ["Do it"] * 150, "output": ["Done."] * 150})
    parquet.write_table(columns, tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("instruction,output\n" + "Do it,Done.\n" * 150)
    (tmp_path / "book.txt").write_text("Some text of a book. " * 9)
    before = sorted(path.name for path in tmp_path.iterdir())
    named = [("many", many), ("packed", tmp_path / "packed.jsonl.gz"), ("array", tmp_path / "array.json")]
    check(
        {"name": "chats", "path": str(chats), "converter": "messages"},
        *({"name": name, "path": str(path), "converter": "messages"} for name, path in named),
        {"name": "columns", "path": str(tmp_path / "rows.parquet"), "converter": "instruction"},
        {"name": "commas", "path": str(tmp_path / "rows.csv"), "converter": "instruction"},
        {"name": "book", "path": str(tmp_path / "book.txt")},
    )
    printed = capsys.readouterr().out
    found = table(printed)
    assert {name: row["rows"] for name, row in found.items()} == {
        "array train": "100",
        "book train": "1",
        "chats train": "43",
        "columns train": "100",
        "commas train": "100",
        "many train": "100",
        "packed train": "100",
    }
    of_chats = found["chats train"]
    assert (of_chats["conversations"], of_chats["left out"], of_chats["too long"]) == ("41", "2", "1")
    assert (of_chats["shortened"], of_chats["samples"]) == ("1", "41")
    assert found["columns train"] == found["commas train"]
    assert found["many train"] == found["packed train"] == found["array train"]
    book = found["book train"]
    assert int(book["targets"]) == int(book["tokens"]) - 1
    assert "1 left out (empty_turn), such as: message 2, of the assistant, is empty (chats/chats.jsonl, byte" in printed
    assert "1 left out (too_long), such as: the first answer and what is before it have" in printed
    assert "chat template: chatml; targets: assistant; at most 201 tokens" in printed
    assert "it lacks <|im_end|>, <|im_start|>, which become text" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_check_says_what_the_run_does(tmp_path: Path, capsys: pytest.CaptureFixture):
    chats = write_rows(tmp_path / "chats.jsonl", [ROW, EMPTY, LONG, ROW, ROW])
    entry = {"name": "chats", "path": str(chats), "converter": "messages"}
    check(entry)
    (row,) = table(capsys.readouterr().out).values()
    check(entry, validation_share=0.5)
    assert table(capsys.readouterr().out) == {"chats train": row}
    words = ["--checkpoint_dir", str(TOKENIZER), "--max_length", "200", "--template", "chatml", "--num_workers", "1"]
    words += ["--datasets", json.dumps([entry]), "--destination_path", str(tmp_path / "data")]
    assert run_command(PrepareOptions, main, words) == 0
    (split,) = json.loads((tmp_path / "data" / "manifest.json").read_text())["splits"]
    assert [int(row[name].replace(",", "")) for name in ("samples", "tokens", "targets", "left out")] == [
        split["documents"],
        split["tokens"],
        split["targets"],
        sum(split["skipped"].values()),
    ]


def test_a_source_that_gives_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture):
    good = {"name": "good", "path": str(write_rows(tmp_path / "good.jsonl", [ROW] * 3)), "converter": "messages"}
    columns = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"question": ["Do it"], "reply": ["Done."]}), columns)
    lines = write_rows(tmp_path / "lines.jsonl", [{"question": "Do it", "reply": "Done."}] * 3)
    empties = write_rows(tmp_path / "empties.jsonl", [EMPTY] * 2)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"messages": \n{"messages"\n')
    wrong = {
        "wrong train: .*has no column 'instruction' but question, reply; say by `mapping`": (columns, "instruction"),
        "wrong train: the first 3 records of .* have no field 'instruction' but question, reply": (
            lines,
            "instruction",
        ),
        "wrong train: nothing is left of 2 rows; 2 empty_turn: message 2": (empties, "messages"),
        "wrong train: .*empty.jsonl is empty": (tmp_path / "empty.jsonl", "messages"),
        "wrong train: nothing is left of 2 rows; 2 broken_json": (tmp_path / "broken.jsonl", "messages"),
    }
    for problem, (path, converter) in wrong.items():
        with pytest.raises(DataError, match=problem):
            check(good, {"name": "wrong", "path": str(path), "converter": converter})
        printed = capsys.readouterr().out
        assert printed.index("wrong train: ") < printed.index("source ")
        assert table(printed)["good train"]["samples"] == "3"


@pytest.mark.parametrize(
    ("row", "converter"),
    [
        (ROW, "messages"),
        ({"conversations": [], "id": "1"}, "conversations"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction"),
        ({"instruction": "a", "reasoning": "b", "output": "c"}, "reasoning"),
        ({"messages": [], "functions": "[]"}, "function_calls"),
    ],
)
def test_chats_without_their_converter_are_told_it(tmp_path: Path, row: dict, converter: str):
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=rf"no field 'text' \(--text_field\) among .* \(--converter {converter} reads"):
        check({"name": "chats", "path": str(path)})
    with pytest.raises(
        DataError, match=f"`mapping` which fields .* reads; --converter {converter} reads these as they"
    ):
        check({"name": "chats", "path": str(path), "converter": "roleplay"})


def test_a_check_that_finds_nothing_ends_with_one_line_and_65(tmp_path: Path):
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "Do it"}])
    words = ["--checkpoint_dir", TOKENIZER, "--max_length", "200", "--template", "chatml", "--check", "true"]
    done = run("prepare_data.py", "--source_path", path, "--converter", "messages", *words, check=False)
    assert_error(done, 65, "have no field 'messages' but question; say by `mapping`")
    words[-1] = "false"
    done = run("prepare_data.py", "--source_path", path, "--converter", "message", *words, check=False)
    assert_error(done, 2, "--destination_path is missing")


def test_text_at_which_the_run_would_stop_is_named(tmp_path: Path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "Some text."}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"x train: .*text.jsonl: the field 'text' is int, no text, at byte offset 23"):
        check({"name": "x", "path": str(path)})


def test_what_a_converter_cannot_be_is_said_before_anything_is_read(tmp_path: Path):
    path = str(write_rows(tmp_path / "rows.jsonl", [ROW]))
    for entry, problem in (
        ({"converter": "mesages"}, "--datasets, x: there is no converter 'mesages'"),
        ({"converter": "messages", "mapping": {"output": "a"}}, "--datasets, x: .*reads messages, tools, not 'output'"),
        ({"converter": "gone.py:convert"}, "--datasets, x: .*gone.py"),
        ({"filter": {"lang": "ru"}}, "--datasets, x: filter needs a converter of chats; this one is plain text"),
        ({"mapping": {"output": "a"}}, "--datasets, x: the mapping of plain text is {text: FIELD}"),
    ):
        with pytest.raises(UserError, match=problem):
            check({"name": "x", "path": path, **entry})


def test_each_dataset_of_plain_text_has_its_own_field(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("body", "text"):
        write_rows(tmp_path / f"{name}.jsonl", [{name: "Some text of a book."}] * 5)
    check(
        {"name": "one", "path": str(tmp_path / "body.jsonl"), "mapping": {"text": "body"}},
        {"name": "two", "path": str(tmp_path / "text.jsonl")},
    )
    found = table(capsys.readouterr().out)
    assert found["one train"] == found["two train"]
    assert found["one train"]["samples"] == "5"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_part_of_a_file_is_checked_from_where_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    answers = [f"Answer {number}." if number < 40 else "" for number in range(300)]
    path = tmp_path / f"rows.{kind}"
    rows = [{"instruction": "Do it", "output": answer} for answer in answers]
    if kind == "csv":
        path.write_text("instruction,output\n" + "".join(f"Do it,{answer}\n" for answer in answers))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.Table.from_pylist(rows).schema) as stream:
            stream.write_table(pa.Table.from_pylist(rows), max_chunksize=33)
    else:
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if kind == "jsonl.gz" else text.encode())
    check({"name": "x", "path": str(path), "converter": "instruction", "split": "train[10%:90%]"})
    row = table(capsys.readouterr().out)["x train"]
    assert (row["rows"], row["samples"], row["left out"]) == ("100", "10", "90")


def bytes_read() -> int:
    """By this process so far, from files and the system's memory of them."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_no_file_is_read_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    texts = ["Bonjour", *(hashlib.shake_256(str(number).encode()).hexdigest(250) for number in range(20_000))]
    rows = [{"instruction": text, "output": text} for text in texts]
    for count in (200, 20_000):  # the first imports what reading needs
        path = tmp_path / f"{count}.{kind}"
        if kind == "parquet":
            parquet.write_table(pa.Table.from_pylist(rows[:count]), path, row_group_size=1_000)
        else:
            with gzip.open(path, "wt", compresslevel=1) if kind == "jsonl.gz" else path.open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows[:count])
        before = bytes_read()
        check({"name": "x", "path": str(path), "converter": "instruction"})
        read = bytes_read() - before
        assert table(capsys.readouterr().out)["x train"]["rows"] == "100"
    assert path.stat().st_size > 6_000_000 and read < path.stat().st_size / 3
