"""--datasets: which files an entry names, and what is wrong with an entry, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lit_gpt.errors import DataError, UserError
from utils import cli
from utils.prepare.chat.conversation import Converter
from utils.prepare.data_folder import require_folder
from utils.prepare.dataset_entries import repeated_entries
from utils.prepare.entry_sources import find_entry_sources
from utils.prepare.options import PrepareOptions

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
NEEDED = ("--checkpoint_dir", "model", "--destination_path", "data")


def write_chats(path: Path, count: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((json.dumps(CHAT) + "\n") * count)
    return path


def options_of(*entries: dict, argv: tuple[str, ...] = NEEDED) -> PrepareOptions:
    return cli.parse(PrepareOptions, [*argv, "--datasets", json.dumps(entries)])


def sources_of(*entries: dict) -> dict[tuple[str, str], list[str]]:
    sources = find_entry_sources(options_of(*entries).entries, lambda _: None)
    return {(source.dataset, source.split): [file.name for file in source.files] for source in sources}


def test_an_entry_is_a_folder_a_file_a_pattern_or_a_list(tmp_path: Path):
    for name in ("a/one.jsonl", "a/deep/two.jsonl", "a/test/three.jsonl", "b/four.jsonl", "b/five.json"):
        write_chats(tmp_path / name)
    (tmp_path / "some.list").write_text("a/one.jsonl\nb/four.jsonl\n")
    paths = {"folder": "a", "file": "b/four.jsonl", "pattern": "*/*.jsonl", "tree": "[a]", "list": "some.list"}
    found = sources_of(*({"name": name, "path": str(tmp_path / path)} for name, path in paths.items()))
    assert found == {
        ("folder", "train"): ["folder/one.jsonl", "folder/deep/two.jsonl"],
        ("folder", "test"): ["folder/test/three.jsonl"],
        ("file", "train"): ["file/four.jsonl"],
        ("pattern", "train"): ["pattern/a/one.jsonl", "pattern/b/four.jsonl"],
        ("tree", "train"): ["tree/a/one.jsonl", "tree/a/deep/two.jsonl"],
        ("tree", "test"): ["tree/a/test/three.jsonl"],
        ("list", "train"): ["list/a/one.jsonl", "list/b/four.jsonl"],
    }


def test_a_recipe_file_says_the_same_as_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_chats(tmp_path / "chats" / "a.jsonl")
    (tmp_path / "plain.txt").write_text("A text.")
    entries = [
        {
            "name": "RU/mine",
            "path": "chats/*.jsonl",
            "converter": "instruction",
            "mapping": {"output": "answer"},
            "filter": {"lang": ["ru", "en"], "stars": [5, 4.0], "good": True},
            "without": ["As An AI"],
            "group": "talk",
        },
        {"name": "books", "path": "plain.txt", "language": "FR"},
    ]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"datasets": entries}))
    monkeypatch.chdir(tmp_path)
    options = cli.parse(PrepareOptions, [*NEEDED, "--config", str(recipe)])
    assert options.entries == options_of(*entries).entries
    chats, books = find_entry_sources(options.entries)
    assert chats.converter == Converter(
        name="instruction",
        mapping=(("output", "answer"),),
        keep=(("good", ("true",)), ("lang", ("ru", "en")), ("stars", ("5", "4"))),
        without=("as an ai",),
    )
    assert (chats.language, chats.entry.group, chats.name) == ("ru", "talk", "RU--mine-train")
    assert (books.converter, books.language, books.entry.group) == (None, "fr", "")


def test_records_have_a_converter_and_text_files_beside_them_have_none(tmp_path: Path):
    write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "book.txt").write_text("A text.")
    (source,) = find_entry_sources(options_of({"name": "x", "path": str(tmp_path), "converter": "messages"}).entries)
    by_file = {file.path.name: source.converter_of(file) for file in source.files}
    assert by_file == {"book.txt": None, "chats.jsonl": Converter("messages")}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "a", "paht": "x"}, "a: no key 'paht' is known, the nearest is 'path'"),
        ({"name": "a", "zzz": "x"}, "a: no key 'zzz' is known; there are name, path, hub"),
        ({"path": "x"}, "entry 1: it needs a name"),
        ({"name": "a"}, "a: it needs a path or a hub"),
        ({"name": "a", "path": "x", "hub": "o/n"}, "a: it has both a path and a hub; keep one"),
        ({"name": "a", "path": "x", "revision": "main"}, "a: revision is of a dataset on the Hub"),
        ({"name": "a", "hub": "o/n", "revision": 1234567}, "a: revision must be text, not 1234567: put it into quotes"),
        ({"name": "a/../b", "path": "x"}, "a/../b: name must be a readable name"),
        ({"name": "/a", "path": "x"}, "/a: name must be a readable name"),
        ({"name": "a\nb", "path": "x"}, "name must be a readable name"),
        ({"name": False, "path": "x"}, "entry 1: name must be text, not False"),
        ({"name": "a", "hub": "x"}, "a: hub must be ORG/NAME"),
        ({"name": "a", "hub": "o/n", "revision": "a/../b"}, "a: revision must be a branch, a tag or a commit"),
        ({"name": "a", "path": "x", "split": "train[:5"}, "a: split: 'train[:5' is no split such as train"),
        ({"name": "a", "path": "x", "split": "train[1:5%]"}, "a: split: 'train[1:5%]': both ends of a part are rows"),
        ({"name": "a", "path": "x", "split": "train[:101%]"}, "a: split: 'train[:101%]': a percent is at most 100"),
        ({"name": "a", "path": "x", "mapping": ["b"]}, "a: mapping must be names → names of fields"),
        ({"name": "a", "path": "x", "mapping": {"b": 3}}, "a: mapping must be names → names of fields"),
        (
            {"name": "a", "path": "x", "filter": {"b": 1}},
            "a: filter needs a converter of chats; this one is plain text",
        ),
        ({"name": "a", "path": "x", "filter": {"b": []}}, "a: filter must be fields → a value or a list"),
        ({"name": "a", "path": "x", "filter": "ru"}, "a: filter must be fields → a value or a list"),
        ({"name": "a", "path": "x", "without": {"b": "c"}}, "a: without must be a list of texts"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict, problem: str):
    with pytest.raises(UserError) as caught:
        options_of(entry)
    assert problem in str(caught.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError) as caught:
        options_of({"name": "a", "paht": "x"}, {"name": "b"}, argv=())
    named = ("a: no key 'paht'", "b: it needs a path", "--checkpoint_dir is missing", "--destination_path is missing")
    assert all(problem in str(caught.value) for problem in named)


@pytest.mark.parametrize("names", [("a", "a"), ("RU/a", "RU--a")])
def test_two_entries_do_not_share_their_shards(names: tuple[str, str]):
    with pytest.raises(UserError, match=f"another entry is named {names[0]}"):
        options_of(*({"name": name, "path": "x"} for name in names))


def test_data_that_is_listed_twice_is_named():
    def entry(name: str, **values: str) -> dict:
        return {"name": name, "path": "a.jsonl", "converter": "messages", **values}

    entries = options_of(
        entry("A"), entry("B", split="train"), entry("C", converter="conversations"), entry("D", group="g"), entry("E")
    ).entries
    assert repeated_entries(entries) == [("D", "A"), ("E", "A")]


def test_options_that_contradict_each_other():
    entry = json.dumps([{"name": "a", "path": "x"}])
    for argv, problem in {
        ("--datasets", entry, "--source_path", "x"): "--datasets and --source_path are both given",
        ("--datasets", entry, "--converter", "messages"): "--datasets has them in each entry",
        ("--datasets", "[]"): "--datasets names none",
        ("--datasets", "x"): "--datasets must be a list of mappings",
        ("--mapping", "x"): "--mapping must be a mapping of texts",
        ("--source_path", "x", "--mapping", '{"a": "b"}'): "--mapping needs a --converter",
        ("--source_path", "x", "--template", "saiga"): "--template is of chats, and there are none: give a --converter",
        ("--datasets", entry, "--targets", "last"): "--targets is of chats, and there are none: give a --converter",
        ("--source_path", "x", "--validation_share", "1"): "--validation_share must be at least 0 and below 1",
        ("--source_path", "x", "--html", "x.html"): "--worst and --html need --inspect",
    }.items():
        with pytest.raises(UserError) as caught:
            cli.parse(PrepareOptions, [*NEEDED, *argv])
        assert problem in str(caught.value)


def test_paths_that_lead_nowhere_are_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "pool.jsonl")
    (tmp_path / "pool.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "itself.list").write_text("itself.list\n")
    for path, problem in {
        "gone.jsonl": "is neither a directory nor a file",
        "loop.jsonl": "is neither a directory nor a file",
        "gone*.jsonl": "matches no file that is read",
        "itself.list": "itself.list is none of",
    }.items():
        with pytest.raises(UserError, match=f"--datasets, a: .*{problem}"):
            sources_of({"name": "a", "path": str(tmp_path / path)})
    with pytest.raises(DataError, match="holds no conversation and no other text"):
        sources_of({"name": "a", "path": str(tmp_path / "empty")})


@pytest.mark.parametrize("path", ["corpus", "corpus/**/*.jsonl"])
def test_the_data_folder_does_not_lie_in_a_dataset(tmp_path: Path, path: str):
    write_chats(tmp_path / "corpus" / "a.jsonl")
    argv = ("--checkpoint_dir", "model", "--destination_path", str(tmp_path / "corpus" / "data"))
    with pytest.raises(UserError, match="lies in --datasets, x"):
        require_folder(options_of({"name": "x", "path": str(tmp_path / path)}, argv=argv))


def test_a_loop_of_links_is_walked_once(tmp_path: Path):
    write_chats(tmp_path / "a" / "one.jsonl")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert sources_of({"name": "x", "path": str(tmp_path / "a")}) == {("x", "train"): ["x/one.jsonl"]}
