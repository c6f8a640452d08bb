"""utils/hf_upload_dataset.py: the Hub's own client in real processes, against a Hub on this machine (hub_server.py)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess

import datasets
import pytest
import yaml
from pyarrow import parquet

from data import chunk_books
from tests.books.chunk_folders import BOOKS, book, make_folder, rows_of, sum_up, write_chunks
from tests.conftest import ROOT, TOKENIZER, assert_error, command_line, run_command
from tests.formats.hub_server import TOKEN, Hub, sha256
from utils.books.options import ChunkOptions
from utils.export.options import UploadDatasetOptions
from utils.hf_upload_dataset import main

REPO = "datasets/org/books"


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "chunks")


def words_of(folder, *arguments):
    return command_line("utils/hf_upload_dataset.py", "org/books", "--input_dir", folder, *arguments)


def upload(hub, folder, *arguments, token=TOKEN):
    environment = hub.environment(folder.parent / "home", token)
    words = words_of(folder, *arguments)
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=100)


def on_hub(hub):
    return {name: sha256(content) for name, content in hub.files(REPO).items() if name != ".gitattributes"}


def hashes_here(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_dataset_is_created_stays_and_is_replaced(hub, folder, tmp_path):
    """What lies beside it is left out and named; a second call sends nothing; another version leaves no rows behind."""
    sent = hashes_here(folder)
    beside = ("other.parquet", ".env", "notes.txt", "reports/removed.jsonl", "data-1.csv", "sub/data-0.parquet")
    for name in beside:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not to be sent")
    (folder / "LICENSE-link").symlink_to(folder / "README.md")
    done = upload(hub, folder, "--message", "Première version")
    assert done.returncode == 0, done.stderr
    assert on_hub(hub) == sent and hub.messages == ["Première version"]
    assert hub.repositories[REPO]["private"] and set(hub.repositories) == {REPO}
    named = ".env, LICENSE-link, a link, data-1.csv, notes.txt, other.parquet, reports/ (1), sub/ (1)"
    assert f"not sent: 7 files: {named}\n" in done.stdout
    assert f"on the Hub: {len(sent)} files" in done.stdout

    received = dict(hub.received)
    again = upload(hub, folder)
    assert again.returncode == 0, again.stderr
    assert hub.received == received and len(hub.repositories[REPO]["commits"]) == 2, "it was sent twice"

    hub.add(REPO, {**hub.files(REPO), "train.parquet": b"somebody's", "old/data-0.parquet": b"somebody's"})
    smaller = cut_books(tmp_path)
    done = upload(hub, smaller)
    assert done.returncode == 0, done.stderr
    removed = "data-00000-of-00002.parquet, data-00001-of-00002.parquet"
    assert f"the commit removes what is of an earlier dataset: {removed}\n" in done.stdout
    others = {"train.parquet", "old/data-0.parquet"}
    assert {name: sha256 for name, sha256 in on_hub(hub).items() if name not in others} == hashes_here(smaller)
    assert others <= set(hub.files(REPO))
    load_and_prepare(hub, tmp_path)


STORY = "It was a dark night; the raven said nothing.\n\n"


def cut_books(tmp_path):
    """A folder as data/chunk_books.py makes it, of a reader's own books and licence."""
    (tmp_path / "own").mkdir()
    for name, repeats in (("one", 300), ("two", 500)):
        (tmp_path / "own" / f"{name}.txt").write_text(STORY * repeats + f"The end of {name}.\n")
    words = ["--input_dir", tmp_path / "own", "--output_dir", tmp_path / "out", "--licence", "CC-BY-4.0"]
    assert run_command(ChunkOptions, chunk_books.main, list(map(str, words))) == 0
    return tmp_path / "out"


def load_and_prepare(hub, tmp_path):
    """What is on the Hub is read by `datasets`, of the files that the card names, and prepared by its name there."""
    back = tmp_path / "back"
    for name, content in hub.files(REPO).items():
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes(content)
    loaded = datasets.load_dataset(str(back), split="train", cache_dir=str(tmp_path / "cache"))
    for name in ("one", "two"):
        text = "".join(row["text"] for row in loaded if row["source"] == f"{name}.txt")
        assert text == (tmp_path / "own" / f"{name}.txt").read_text()

    said = (back / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    for name, value in (("ORG/NAME", "org/books"), ("MODEL", TOKENIZER), ("DATA", tmp_path / "data")):
        said = said.replace(name, str(value))
    (tmp_path / "recipe.yaml").write_text(said)
    arguments = ["--config", tmp_path / "recipe.yaml", "--num_workers", 1, "--max_length", 64]
    words = command_line("prepare_data.py", *arguments)
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    (split,) = json.loads((tmp_path / "data" / "manifest.json").read_text())["splits"]
    assert (split["dataset"], split["documents"]) == ("books", 2) and len(loaded) > 4, "books were not made whole"


def test_killed_halfway_and_repeated(hub, tmp_path):
    """SIGKILL in the middle of a file: nobody sees a part of it, the next call sends the rest, and both ways agree."""
    folder = make_folder(tmp_path / "chunks", files=4, chunks=200)
    sizes = [path.stat().st_size for path in folder.glob("*.parquet")]
    hub.stop_after = sum(sizes) // 2
    log = tmp_path / "log"
    with log.open("wb") as output:
        environment = hub.environment(tmp_path / "home")
        process = subprocess.Popen(words_of(folder), stdout=output, stderr=output, cwd=ROOT, env=environment)
        assert hub.halted.wait(60), log.read_text()
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    hub.released.set()
    whole = set(hub.objects)
    assert 0 < len(whole) < len(sizes) and list(hub.files(REPO)) == [".gitattributes"]
    hub.stop_after, before = None, dict(hub.received)

    done = upload(hub, folder)
    assert done.returncode == 0, done.stderr
    assert all(hub.received[oid] == before[oid] for oid in whole), "what the Hub had whole was sent again"
    assert on_hub(hub) == hashes_here(folder)


def test_dry_run_says_what_would_go_and_asks_nobody(hub, folder):
    before = hashes_here(folder)
    done = upload(hub, folder, "--dry_run", "true", token=None)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in before) and "would be sent to org/books: a dataset" in done.stdout
    assert not hub.requests and hashes_here(folder) == before


def test_refusal_is_one_line(hub, folder):
    assert_error(upload(hub, folder, token="hf_wrong"), 2, "refuses this for datasets/org/books", "hf auth login")
    assert not hub.repositories


def change_card(folder, change):
    """Changes the metadata of the card; the list of checksums is made again."""
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(metadata)
    change(values)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(values)}---\n{text}", encoding="utf-8")
    sum_up(folder)


def other_text(folder, old, new):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert old in text
    (folder / "README.md").write_text(text.replace(old, new), encoding="utf-8")
    sum_up(folder)


def truncated(folder):
    path = folder / "data-00001-of-00002.parquet"
    os.truncate(path, path.stat().st_size // 2)


def with_link(folder):
    path = folder / "data-00001-of-00002.parquet"
    path.rename(folder.parent / "elsewhere.parquet")
    path.symlink_to(folder.parent / "elsewhere.parquet")


def with_more_rows(folder):
    write_chunks(folder, rows_of(BOOKS, chunks=6))
    sum_up(folder)


def with_other_book(folder):
    write_chunks(folder, rows_of([*BOOKS, book("foreign")]))
    sum_up(folder)


def with_other_columns(folder):
    path = folder / "data-00000-of-00002.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.drop_columns("number"), path)
    sum_up(folder)


def with_flipped_byte(folder):
    path = folder / "data-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)


def without(name):
    return lambda folder: (folder / name).unlink()


def truncated_and_summed(folder):
    truncated(folder)
    sum_up(folder)


CASES = [
    (truncated, 65, ("data-00001-of-00002.parquet", "SHA-256")),
    (truncated_and_summed, 65, ("data-00001-of-00002.parquet is truncated or no Parquet file",)),
    (with_flipped_byte, 65, ("data-00000-of-00002.parquet does not have the SHA-256",)),
    (without("data-00001-of-00002.parquet"), 65, ("data-00001-of-00002.parquet is missing",)),
    (without("README.md"), 2, ("no README.md", "data/chunk_books.py writes it")),
    (without("books.csv"), 2, ("no books.csv", "data/chunk_books.py writes it")),
    (without("SHA256SUMS"), 2, ("no SHA256SUMS", "data/chunk_books.py writes it")),
    (lambda folder: (folder / "data-2.parquet").write_bytes(b""), 65, ("data-2.parquet is not in SHA256SUMS",)),
    (with_link, 2, ("data-00001-of-00002.parquet is a link", "put the file in its place")),
    (with_more_rows, 65, ("README.md", "num_examples: 18", "num_examples: 21", "writes it anew")),
    (with_other_book, 65, ("chunks of 'foreign.txt', which books.csv does not list",)),
    (with_other_columns, 65, ("data-00000-of-00002.parquet has the columns text, source, position instead",)),
    (lambda folder: other_text(folder, "---", "----"), 2, ("README.md is no card",)),
    (lambda folder: other_text(folder, "## Use", "[More Information Needed]"), 2, ("README.md is not filled",)),
    (lambda folder: other_text(folder, "| all | 3 |", "| all | 4 |"), 65, ("says 4 books", "have 3 books")),
    (lambda folder: change_card(folder, lambda card: card.pop("license")), 2, ("no licence", "--licence NAME")),
    (lambda folder: change_card(folder, lambda card: card.pop("configs")), 65, ("configs do not name",)),
    (lambda folder: change_card(folder, lambda card: card.pop("dataset_info")), 65, ("no dataset_info",)),
    (
        lambda folder: change_card(folder, lambda card: card["dataset_info"]["features"].pop()),
        65,
        ("features are not the columns", "position (int64)"),
    ),
    (
        lambda folder: change_card(folder, lambda card: card["configs"][0]["data_files"][0].update(path="*0*.csv")),
        65,
        ("configs do not name",),
    ),
]


@pytest.mark.parametrize(("spoil", "code", "words"), CASES)
def test_folders_that_cannot_go(folder, capsys, spoil, code, words):
    """Found before anybody is asked: the dry run of the same folder says the same."""
    spoil(folder)
    found = run_command(UploadDatasetOptions, main, ["org/books", "--input_dir", str(folder), "--dry_run", "true"])
    error = capsys.readouterr().err
    assert found == code and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_damaged_folder_sends_nothing(hub, folder):
    truncated_and_summed(folder)
    assert_error(upload(hub, folder), 65, "data-00001-of-00002.parquet")
    assert not hub.requests
