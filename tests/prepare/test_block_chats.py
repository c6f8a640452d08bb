"""Chats through prepare_data.py: every record is counted, every sample is in a row as transformers tokenises it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prepare_data import main
from tests.conftest import TOKENIZER, run_command
from utils.data.manifest import Manifest
from utils.data.parts import PARTS
from utils.data.shards import RowReader
from utils.prepare.options import PrepareOptions

WORDS = ["le", "chat", "mange", "une", "pomme", "verte", "maison", "bleue", "🙂", "demain", "peut-être"]
NAMES = ["<|endoftext|>", "</s>", "<|im_end|>"]
MALFORMED = {
    "no_answer": {"messages": [{"role": "user", "content": "Hello?"}]},
    "unknown_role": {"messages": [{"role": "narrator", "content": "Night."}]},
    "wrong_type": ["messages"],
}


def chat(rng: random.Random) -> list[dict[str, str]]:
    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    words = WORDS + NAMES * (rng.random() < 0.2)
    messages = [{"role": "system", "content": "Tu aides."}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        messages += [{"role": "user", "content": text(30)}, {"role": "assistant", "content": text(40)}]
    return messages


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> tuple[Path, list[list[dict[str, str]]]]:
    """A file with conversations, malformed records among them, and a text beside it."""
    rng = random.Random(7)
    conversations = [chat(rng) for _ in range(400)]
    records = [json.dumps({"messages": messages}) for messages in conversations]
    for record in MALFORMED.values():
        records.insert(rng.randrange(len(records)), json.dumps(record))
    records.insert(40, '{"messages": [')
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "chats").mkdir()
    (folder / "chats" / "a.jsonl").write_text("\n".join(records), encoding="utf-8")
    (folder / "texts").mkdir()
    (folder / "texts" / "b.txt").write_text("Il était une fois. " * 300, encoding="utf-8")
    return folder, conversations


def prepare(source: Path, target: Path, *argv: str) -> int:
    given = ["--source_path", source, "--checkpoint_dir", TOKENIZER, "--destination_path", target]
    chat_options = ["--converter", "messages", "--template", "chatml", "--max_length", "300"]
    return run_command(PrepareOptions, main, [*map(str, given), *chat_options, *argv])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_record_is_counted_and_every_sample_is_in_a_row(chats, tmp_path):
    folder, conversations = chats
    assert prepare(folder, tmp_path / "one", "--num_workers", "1", "--too_long", "drop") == 0
    manifest = Manifest.load(tmp_path / "one")
    entry, text = manifest.splits
    assert text.masked == {} and text.targets == text.tokens - text.documents

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one" / "tokenizer")
    expected: Counter[tuple[int, ...]] = Counter()
    too_long = 0
    for messages in conversations:
        if any(name in message["content"] for message in messages for name in NAMES):
            continue  # names of special tokens are text here, tokens for transformers
        ids = tuple(tokenizer.apply_chat_template(messages, return_dict=False))
        too_long += len(ids) > manifest.window
        expected[ids] += len(ids) <= manifest.window
    reader = RowReader(tmp_path / "one", entry)
    found: Counter[tuple[int, ...]] = Counter()
    targets: Counter[str] = Counter()
    for number in range(entry.rows):
        row = reader.read(number)
        begin = 0
        for length in row.segment_lengths.tolist():
            found[tuple(row.tokens[begin : begin + length].tolist())] += 1
            targets.update(PARTS[part] for part in row.parts[begin + 1 : begin + length].tolist())
            begin += length
    assert too_long and not expected - found
    assert found.total() == entry.documents == entry.conversations
    assert entry.conversations + sum(entry.skipped.values()) == len(conversations) + len(MALFORMED) + 1
    assert entry.skipped == {**dict.fromkeys(MALFORMED, 1), "broken_json": 1, "too_long": entry.skipped["too_long"]}
    assert targets["target"] == entry.targets and entry.masked == {
        part: count for part, count in targets.items() if part != "target"
    }
    lines = (tmp_path / "one" / "reports" / "chats-train.jsonl").read_text(encoding="utf-8").splitlines()
    assert Counter(json.loads(line)["reason"] for line in lines) == entry.skipped


def test_the_number_of_processes_changes_no_byte_and_a_second_call_redoes_what_changed(chats, tmp_path, capsys):
    folder, _ = chats
    assert prepare(folder, tmp_path / "one", "--num_workers", "1") == 0
    assert prepare(folder, tmp_path / "three", "--num_workers", "3") == 0
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "three")
    assert Manifest.load(tmp_path / "one").splits[0].shortened > 0
    capsys.readouterr()
    assert prepare(folder, tmp_path / "one") == 0
    assert "chats train: kept" in capsys.readouterr().out and contents(tmp_path / "one") == first
    assert prepare(folder, tmp_path / "one", "--template", "vicuna") == 0
    said = capsys.readouterr().out
    assert "texts train: kept" in said and "chats train: kept" not in said
    assert Manifest.load(tmp_path / "one").template != Manifest.load(tmp_path / "three").template


@pytest.mark.parametrize(
    ("argv", "exit_code", "words"),
    [
        (["--converter", "instruction"], 65, "have no field 'instruction' but messages"),
        (["--padding", "false"], 2, "--padding false would cut conversations"),
        (["--template", "gemma"], 2, "--template gemma is neither a file nor one of"),
        (["--max_length", "8"], 65, "9 are allowed; raise --max_length"),
    ],
)
def test_what_gives_nothing_is_refused_in_one_line(chats, tmp_path, capsys, argv, exit_code, words):
    folder, _ = chats
    assert prepare(folder / "chats", tmp_path / "data", *argv) == exit_code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_template_that_closes_no_answer_is_warned_of(chats, tmp_path, capsys):
    """As GLM 4's, whose answers end where the next role's token stands."""
    folder, _ = chats
    template = tmp_path / "open.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    assert prepare(folder / "chats", tmp_path / "data", "--template", str(template), "--num_workers", "1") == 0
    assert "writes nothing after an answer, so that no end is trained" in capsys.readouterr().out
