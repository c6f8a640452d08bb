"""The Saiga composition on data of its seven shapes, by one recipe: every record is accounted for, every target proven.

What must happen to each record is planted here; that it did is read from the manifest and from the shards' tokens.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from lit_gpt.tokenizer.tokenizer import Tokenizer
from prepare_data import main
from tests.chats import make_chat_tokenizer
from tests.conftest import run_command
from utils.data.manifest import DatasetSplit, Manifest
from utils.data.parts import TARGET
from utils.data.shards import RowReader
from utils.prepare.options import PrepareOptions

SYSTEM = "Ты — ruGPT-3.5, русскоязычный автоматический ассистент. Ты разговариваешь с людьми и помогаешь им."
BAD = ["как языковая модель", "OpenAI", "я не могу ответить"]
CYRILLIC = "абвгдежзийклмнопрстуфхцчшэюя"
LENGTH = 512


@dataclass
class Shape:
    """The records of a source, and what is to become of each: its answers are trained, or it is left out."""

    rng: random.Random
    name: str
    records: list[Any] = field(default_factory=list)
    rows: int = 0  # conversations in the records
    left_out: Counter[str] = field(default_factory=Counter)
    kept: set[str] = field(default_factory=set)  # answers that must be targets
    shortened: set[str] = field(default_factory=set)  # answers of conversations that are too long
    greetings: set[str] = field(default_factory=set)  # of characters: one of five dialogues begins with it
    prompts: list[str] = field(default_factory=list)

    def text(self, least: int = 12, most: int = 24) -> str:
        return " ".join(self.rng.choices(VOCABULARY, k=self.rng.randint(least, most)))

    def prompt(self) -> str:
        self.prompts.append(self.text())
        return self.prompts[-1]

    def answer(self) -> str:
        """A text that no other answer is."""
        return f"{self.text(3, 20)} {self.name}-{self.rng.getrandbits(48)}"

    def add(self, record: Any, answers: list[str], reason: str | None = None) -> None:
        self.records.append(record)
        self.rows += 1
        if reason:
            self.left_out[reason] += 1
        else:
            self.kept |= set(answers)


def make_vocabulary() -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.choices(CYRILLIC, k=rng.randint(2, 9))) for _ in range(600)]


VOCABULARY = make_vocabulary()


def columns(messages: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {"role": [role for role, _ in messages], "content": [content for _, content in messages]}


def instruct(shape: Shape, output: str, extra: dict[str, Any]) -> None:
    """instruction, input and what `output` names: 300 records, of which 5 are empty, 7 bad, 6 ask what was asked."""
    for number in range(300):
        answer, reason, prompt = shape.answer(), None, shape.prompt()
        if number % 60 == 10:
            answer, reason = " \n", "empty_turn"
        elif number % 40 == 20:
            answer, reason = f"{answer} {BAD[number % 3]} ", "unwanted_text"
        elif number >= 294:
            prompt, reason = shape.prompts[number - 293 if number < 297 else number - 290], "duplicate"
            if number >= 297:  # all but one word
                prompt = f"{prompt.rpartition(' ')[0]} иное"
        given = shape.text(5, 9) if number % 3 == 0 and number < 250 and number > 20 else ""
        record = {"instruction": prompt, "input": given, output: answer, **extra}
        if output == "alternative_output" and (number % 50 == 33 or reason == "empty_turn"):
            record |= {output: "", "output": answer}  # which then counts
        shape.add(record, [answer], reason)


def columnar(shape: Shape, rows: int, turns: int) -> None:
    """Messages in columns, user and bot in turn; some records have columns of two lengths, none, or no answer."""
    for number in range(rows):
        messages, answers, reason = [], [], None
        for _ in range(shape.rng.randint(1, turns)):
            answers.append(shape.answer())
            messages += [("user", shape.prompt()), ("bot", answers[-1])]
        if number % 50 == 7:
            messages[-1] = ("bot", f"{answers[-1]} {BAD[0]}")
            reason = "unwanted_text"
        record = columns(messages)
        if number % 50 == 17:
            record["role"].append("user")
            reason = "unequal_columns"
        elif number % 50 == 27:
            record = columns(messages[:1])
            reason = "no_answer"
        shape.add({"messages": record, "source": shape.name}, answers, reason)


def too_long(shape: Shape) -> None:
    """10 conversations that lose turns from their end, and 3 whose first answer does not fit."""
    for number in range(13):
        answers = [shape.answer() if number < 10 else f"{shape.text(600, 700)} {shape.answer()}" for _ in range(40)]
        messages = []
        for answer in answers:
            messages += [("user", shape.prompt()), ("bot", answer)]
        record = {"messages": columns(messages), "source": shape.name}
        shape.add(record, [], None if number < 10 else "too_long")
        if number < 10:
            shape.kept.add(answers[0])
            shape.shortened |= set(answers[1:])


def role_play(shape: Shape) -> None:
    """40 characters with three dialogues each, of which one in ten is bad."""
    for number in range(40):
        dialogues = []
        for which in range(3):
            answers = [shape.answer() for _ in range(2)]
            is_bad = (3 * number + which) % 10 == 3
            chat = []
            for answer in answers:
                chat.append({"role": "operator", "content": shape.prompt()})
                chat.append({"role": "char", "content": f"{answer} {BAD[2]}" if is_bad else answer})
            dialogues.append({"chat": chat, "model_name": "x", "topic": shape.text(1, 2)})
            shape.rows += 1
            if is_bad:
                shape.left_out["unwanted_text"] += 1
            else:
                shape.kept |= set(answers)
        greeting = shape.answer()
        shape.greetings.add(greeting)
        example = [{"role": "user", "content": shape.text()}, {"role": "char", "content": shape.text()}]
        record = {"char_id": number, "name": "Ада", "context": shape.text(), "greeting": greeting}
        shape.records.append({**record, "example_dialogue": example, "dialogues": dialogues})


def make_shapes() -> dict[str, Shape]:
    names = ("ru_instruct_gpt4", "evol_instruct", "turbo_alpaca", "turbo_saiga", "sharegpt", "oasst", "roleplay")
    shapes = {name: Shape(random.Random(seed), name) for seed, name in enumerate(names)}
    instruct(shapes["ru_instruct_gpt4"], "full_output", {"output": "short", "tags": ["a"]})
    instruct(shapes["evol_instruct"], "output", {})
    instruct(shapes["turbo_alpaca"], "alternative_output", {"output": "another answer", "label": "ok"})
    columnar(shapes["turbo_saiga"], 250, 3)
    columnar(shapes["sharegpt"], 150, 2)
    too_long(shapes["sharegpt"])
    columnar(shapes["oasst"], 200, 2)
    role_play(shapes["roleplay"])
    return shapes


def write(shapes: dict[str, Shape], folder: Path) -> list[dict[str, Any]]:
    """Writes the sources as they are published; returns the entries of --datasets."""
    converters = {
        "ru_instruct_gpt4": {"converter": "instruction", "mapping": {"output": "full_output"}},
        "evol_instruct": {"converter": "instruction"},
        "turbo_alpaca": {
            "converter": "instruction",
            "mapping": {"output": ["alternative_output", "output"]},
            "filter": {"label": "ok"},
        },
        "roleplay": {"converter": "roleplay"},
    }
    entries = []
    for name, shape in shapes.items():
        place = folder / name
        place.mkdir(parents=True)
        if name in ("evol_instruct", "turbo_saiga", "oasst"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shape.records), place / "train.parquet")
        else:
            lines = [json.dumps(record, ensure_ascii=False) for record in shape.records]
            (place / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        converter = converters.get(name, {"converter": "messages"})
        entries.append({"name": name, "path": str(place), "without": BAD, "language": "ru", **converter})
    return entries


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    return make_shapes()


@pytest.fixture(scope="module")
def data_dir(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saiga")
    tokenizer = make_chat_tokenizer(folder / "tokenizer", VOCABULARY, ("</s>", "<s>"), bos_token="<s>")
    recipe = {
        "checkpoint_dir": str(tokenizer),
        "destination_path": str(folder / "data"),
        "max_length": LENGTH,
        "template": "saiga",
        "system": SYSTEM,
        "too_long": "turns",
        "validation_share": 0.05,
        "deduplicate": "near",
        "deduplicate_by": "prompt",
        "similarity": 0.6,
        "datasets": write(shapes, folder / "sources"),
    }
    (folder / "saiga.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    words = ["--config", str(folder / "saiga.yaml"), "--num_workers", "1"]
    assert run_command(PrepareOptions, main, words) == 0
    return folder / "data"


def splits_of(data_dir: Path, name: str) -> list[DatasetSplit]:
    return [entry for entry in Manifest.load(data_dir).splits if entry.dataset == name]


def test_the_counts_of_every_source_add_up_to_its_records(shapes, data_dir):
    for name, shape in shapes.items():
        splits = splits_of(data_dir, name)
        left_out = sum((Counter(entry.skipped) for entry in splits), Counter())
        assert left_out == shape.left_out, name
        assert sum(entry.conversations for entry in splits) + left_out.total() == shape.rows, name
    assert sum(entry.shortened for entry in splits_of(data_dir, "sharegpt")) == 10


def test_the_sums_of_the_manifest_hold(data_dir):
    for entry in Manifest.load(data_dir).splits:
        assert entry.tokens == entry.targets + entry.documents + sum(entry.masked.values())
        assert {"system", "user", "template"} <= entry.masked.keys() or not entry.documents


def test_a_twentieth_is_held_out(shapes, data_dir):
    splits = Manifest.load(data_dir).splits
    held_out = sum(entry.conversations for entry in splits if entry.split == "test")
    assert 0.03 < held_out / sum(entry.conversations for entry in splits) < 0.07


def target_runs(data_dir: Path, entry: DatasetSplit) -> list[str]:
    """What the runs of targets decode to, with special tokens: those of the tokens alone, as they are in the rows."""
    tokenizer, reader, found = Tokenizer(data_dir / "tokenizer"), RowReader(data_dir, entry), []
    for number in range(entry.rows):
        row = reader.read(number)
        assert row.parts is not None
        begin = 0
        for length in row.segment_lengths:
            pairs = zip(row.parts[begin : begin + length], row.tokens[begin : begin + length], strict=True)
            for part, run in groupby(pairs, key=lambda pair: pair[0]):
                if part == TARGET:
                    ids = [int(token) for _, token in run]
                    found.append(tokenizer._hf.decode(ids, skip_special_tokens=False))
            begin += length
    return found


def test_every_run_of_targets_is_an_answer_and_its_end(shapes, data_dir):
    for name, shape in shapes.items():
        runs = [run for entry in splits_of(data_dir, name) for run in target_runs(data_dir, entry)]
        assert all(run.startswith("\n") and run.endswith("</s>\n") for run in runs), name  # after `<s>bot`
        answers = [run.removeprefix("\n").removesuffix("</s>\n") for run in runs]
        repeated = {answer for answer, count in Counter(answers).items() if count > 1}
        assert repeated <= shape.greetings, name
        assert shape.kept <= set(answers) <= shape.kept | shape.shortened | shape.greetings, name


def test_the_template_of_the_data_says_the_system_message(data_dir):
    template = (data_dir / "tokenizer" / "chat_template.jinja").read_text(encoding="utf-8")
    assert SYSTEM in template and "<s>bot" in template
