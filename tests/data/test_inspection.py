"""utils/inspect_data.py: the table, the checksums, and rows as text with their segments."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import prepare_data
from lit_gpt.checksums import file_sha256
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED, TOKENIZER, run_command
from utils import inspect_data
from utils.data.manifest import MANIFEST, Manifest
from utils.data.parts import PARTS
from utils.data.shards import Row, RowReader
from utils.data.shown_rows import REASONS, Mark, RowShower

TEXTS = [f"[A:] document {n}, {'encore ' * (3 * n)}fin\n[B:] oui" for n in range(1, 30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus/FR/A").mkdir(parents=True)
    (tmp_path / "corpus/FR/A/full.txt").write_text("\n\n".join([*TEXTS, "\n"]), encoding="utf-8")
    given = ("--source_path", tmp_path / "corpus", "--checkpoint_dir", TOKENIZER, "--max_length", 100)
    prepare(*given, "--destination_path", tmp_path / "data")
    return tmp_path / "data"


def prepare(*arguments: object) -> int:
    return run_command(prepare_data.PrepareOptions, prepare_data.main, [str(word) for word in arguments])


def inspect(*arguments: object) -> int:
    return run_command(inspect_data.InspectOptions, inspect_data.main, [str(word) for word in arguments])


def test_every_row_is_shown_as_its_text(folder, capsys):
    capsys.readouterr()
    assert inspect(folder, "--show", 1000) == 0
    shown = capsys.readouterr().out
    entry = Manifest.load(folder).splits[0]
    assert re.search(rf"^FR/A +train +fr +29 +58 .* {entry.rows} ", shown, flags=re.MULTILINE)
    assert f"{len(entry.shards)} shards" in shown
    blocks = re.split(r"\n══ FR/A train, row \d+ of \d+\n", shown)[1:]
    assert len(blocks) == entry.rows
    reader, tokenizer = RowReader(folder, entry), Tokenizer(TOKENIZER)
    for number, block in enumerate(blocks):
        row = reader.read(number)
        segments = re.split(r"^── (?:segment|padding).*\n?", block, flags=re.MULTILINE)[1:]
        texts = segments[: len(row.segment_lengths)]
        assert "".join(texts).replace("│", "").replace("\n", "").replace(" ", "") == "".join(
            tokenizer.decode(row.tokens[: row.segment_lengths.sum()].tolist()).split()
        )
        assert block.count("── segment") == len(row.segment_lengths)
        assert [int(count) for count in re.findall(r"── segment \d+: (\d+) tokens", block)] == list(row.segment_lengths)
    assert {text.split(",")[0] for text in TEXTS} <= set(re.findall(r"\[A:\] document \d+", shown))


def test_the_same_rows_come_for_the_same_seed(folder, capsys):
    capsys.readouterr()
    shown = []
    for seed in (1, 1, 2):
        inspect(folder, "--show", 2, "--seed", seed)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


def test_a_changed_shard_and_no_data_folder(folder, tmp_path, capsys):
    shard = next(folder.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert inspect(folder) == 65
    assert shard.name in capsys.readouterr().err
    assert inspect(tmp_path / "nowhere") == 2
    assert "manifest.json is missing" in capsys.readouterr().err


def test_the_option_of_prepare_data_does_the_same(folder, tmp_path, capsys):
    capsys.readouterr()
    assert inspect(folder, "--show", 2, "--seed", 3) == 0
    shown = capsys.readouterr()
    assert prepare("--inspect", folder, "--show", 2, "--seed", 3) == 0
    assert capsys.readouterr() == shown
    assert prepare("--inspect", tmp_path / "nowhere") == 2
    assert "manifest.json is missing" in capsys.readouterr().err


def test_options_that_cannot_be(folder, capsys):
    assert inspect() == 2
    assert "no folder is given" in capsys.readouterr().err
    assert inspect(folder, "--show", -1) == 2
    assert "--show must be at least 0, not -1" in capsys.readouterr().err
    assert inspect(folder, folder, "--html", "page.html") == 2
    assert "--html is the page of one data folder" in capsys.readouterr().err


QUESTION = "שלום <b>&amp;</b> </s>\x1b[31m"
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Combien font\n{n} et {n} ?"},
            {"role": "assistant", "content": "🙂" * n},
        ]
    }
    for n in range(1, 9)
]
CHATS.append({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Привет"}]})
CHATS.append({"messages": [{"role": "user", "content": "nobody answers <i>"}]})


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, CHATS)), encoding="utf-8")
    given = ("--source_path", folder / "train.jsonl", "--converter", "messages", "--template", "saiga")
    where = ("--checkpoint_dir", TOKENIZER, "--destination_path", folder / "data")
    assert prepare(*given, *where, "--max_length", 128, "--multiple_of", 1) == 0
    return folder / "data"


def test_every_token_of_a_chat_is_shown_with_its_part(chats, capsys):
    capsys.readouterr()
    assert inspect(chats, "--show", 1000) == 0
    shown = capsys.readouterr().out
    entry = Manifest.load(chats).splits[0]
    assert f"{entry.tokens:,}  {entry.targets:,}" in re.sub(" +", "  ", shown)
    assert f"no targets: {entry.masked['template']:,} template, {entry.masked['user']:,} user" in shown
    for n in range(1, 9):
        lines = [
            "template       │user↵",
            "user           │Combien font↵",
            f"               │{n} et {n} ?",
            "template       │</s>↵",
        ]
        assert "\n".join(lines) in shown
        assert f"<s>bot\ntarget         │⟦↵\n               │{'🙂' * n}</s>↵⟧\n" in shown
    assert shown.count("first          │<s>\n") == len(CHATS) - 1
    assert "\\x1b[31m" in shown and "\x1b" not in shown
    for label in ("template", "user", "first"):
        counted = sum(int(count) for count in re.findall(rf"(\d+) {label}\b", shown.partition("══")[2]))
        assert counted == (entry.documents if label == "first" else entry.masked[label])


@pytest.mark.parametrize(
    ("worst", "key"),
    [
        ("longest", lambda length, targets: -length),
        ("fewest_targets", lambda length, targets: targets),
        ("most_left_out", lambda length, targets: targets - length),
    ],
)
def test_the_worst_come_first(chats, capsys, worst, key):
    capsys.readouterr()
    assert inspect(chats, "--show", 4, "--worst", worst) == 0
    shown = capsys.readouterr().out
    found = [tuple(map(int, pair)) for pair in re.findall(r"── segment \d+: (\d+) tokens, (\d+) of", shown)]
    entry = Manifest.load(chats).splits[0]
    every = []
    for row in map(RowReader(chats, entry).read, range(entry.rows)):
        is_target = np.split(row.is_target(), np.cumsum(row.segment_lengths)[:-1])
        every += [(len(flags), int(flags.sum())) for flags in is_target]
    expected = sorted((key(*pair), -pair[0]) for pair in every)[:4]
    assert [(key(*pair), -pair[0]) for pair in found] == expected
    assert ("left out as no_answer: 1" in shown) == (worst == "most_left_out")
    assert ("nobody answers" in shown) == (worst == "most_left_out")


class PageReader(HTMLParser):
    """Texts of the page's marks by their classes, and all tags with what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[list[str]] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [name for name, _ in attributes if name in ("src", "href", "srcset", "onload", "onerror")]
        if ("class", "mark") in [(name, (value or "").split(" ")[0]) for name, value in attributes]:
            self.marks.append([dict(attributes)["class"].removeprefix("mark "), ""])

    def handle_data(self, data: str) -> None:
        if self.marks:
            self.marks[-1][1] += data


def test_the_page_says_the_same_without_colours(chats, tmp_path, capsys):
    """Each mark's label is written beside it, all text is escaped, and nothing is loaded."""
    capsys.readouterr()
    assert inspect(chats, "--show", 1000, "--html", tmp_path / "page.html", "--worst", "most_left_out") == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = PageReader()
    page.feed(content)
    assert page.tags <= {"html", "meta", "title", "style", "h1", "h2", "h3", "pre", "p", "div", "b", "span"}
    assert not page.loads and "http:" not in content and "https:" not in content and "url(" not in content
    texts = [(label, text.strip()) for label, text in page.marks]
    assert all(text.startswith(label) for label, text in texts)
    assert ("user", f"user{QUESTION}".replace("\x1b", "\\x1b")) in texts
    for n in range(1, 9):
        assert any(label == "target" and f"{'🙂' * n}</s>" in text and "⟧" in text for label, text in texts)
    assert [label for label, _ in texts[: len(REASONS)]] == list(REASONS)
    assert any("nobody answers <i>" in text for _, text in texts)


def test_every_part_has_its_reason():
    assert set(PARTS) < set(REASONS)


@pytest.mark.parametrize("name", ["gpt2", "mistral-7b-v0.1"])
def test_a_character_of_several_tokens_is_never_shown_in_pieces(name):
    """A border within it is shown behind it; the counts stay those of the tokens."""
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    tokenizer = Tokenizer(folder)
    shower = RowShower(tokenizer)
    text = "a 👩‍👩‍👧 שלום 🙂 b"
    tokens = np.array(tokenizer.encode(text))
    one = np.array([1])
    for border in range(1, len(tokens)):
        parts = np.where(np.arange(len(tokens)) < border, PARTS.index("user"), PARTS.index("target")).astype(np.uint8)
        [segment] = shower.segments(Row(tokens, one * len(tokens), one, parts))
        assert "".join(mark.text for mark in segment.marks).replace("▁", "").strip() == text
        assert segment.counts["target"] == len(tokens) - border and sum(segment.counts.values()) == len(tokens)


def test_special_tokens_are_seen(tmp_path):
    tokenizer = Tokenizer(TOKENIZER)
    tokens = np.array([tokenizer.bos_id, *tokenizer.encode("Bonjour le monde"), tokenizer.eos_id])
    parts = np.array([1, *[3] * (len(tokens) - 3), 0, 0], np.uint8)
    [segment] = RowShower(tokenizer).segments(Row(tokens, np.array([len(tokens)]), np.array([1]), parts))
    assert segment.marks[0] == Mark("first", "<s>") and segment.marks[-1].text.endswith("</s>")
    assert "".join(mark.text for mark in segment.marks) == "<s>Bonjour le monde</s>"


def test_shards_with_other_targets_than_the_manifest_says(chats, tmp_path, capsys):
    """A mask that was exchanged together with its checksum is noticed by the number of targets."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in chats.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    [shard] = folder.glob("*.safetensors")
    arrays = safetensors.numpy.load_file(shard)
    arrays["run_parts"][arrays["run_parts"] == PARTS.index("user")] = PARTS.index("target")
    safetensors.numpy.save_file(arrays, shard)
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    values["splits"][0]["shards"][0] |= {"sha256": file_sha256(shard), "bytes": shard.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    assert inspect(folder, "--show", 0) == 65
    assert "targets, the manifest says" in capsys.readouterr().err
