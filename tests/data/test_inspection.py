"""utils/inspect_data.py: the table, the checksums, and rows as text with their segments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import prepare_data
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TOKENIZER, run_command
from utils import inspect_data
from utils.data.manifest import Manifest
from utils.data.shards import RowReader

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
