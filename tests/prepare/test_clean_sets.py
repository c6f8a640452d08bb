"""Clean sets of chats end to end: duplicates, validation by groups of prompts, and what test files have, too."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TOKENIZER
from tests.prepare.test_prepare_data import content_of, prepare, report_of, write
from tests.prepare.test_prompts import are_near, components, edited, families, pairs_of_words
from utils.data.manifest import Manifest
from utils.data.shards import RowReader
from utils.prepare import plan

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPT = re.compile(r"<user>(.*?)</user>", re.DOTALL)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BLOCK_BYTES", 9000)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return write(tmp_path, "chat.jinja", TEMPLATE)


def chat(prompt: str, answer: str = "Yes.", system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def write_chats(folder: Path, name: str, chats: list[dict[str, Any]]) -> Path:
    return write(folder, name, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in chats))


def prepare_chats(source: Path, data: Path, template: Path, *more: object) -> int:
    window = ("--max_length", 1023, "--multiple_of", 1)
    return prepare(source, data, "--converter", "messages", "--template", template, *window, *more)


def entries_of(data: Path) -> dict[str, Any]:
    return {f"{entry.dataset} {entry.split}": entry for entry in Manifest.load(data).splits}


def left_out(data: Path, reason: str) -> list[dict[str, Any]]:
    return [line for entry in Manifest.load(data).splits for line in report_of(data, entry) if line["reason"] == reason]


def prompts_in(data: Path, split: str) -> list[str]:
    """The prompts of all conversations in the rows of a split."""
    tokenizer, prompts = Tokenizer(TOKENIZER), []
    for entry in Manifest.load(data).splits:
        if entry.split == split:
            reader = RowReader(data, entry)
            for number in range(entry.rows):
                row = reader.read(number)
                prompts += PROMPT.findall(tokenizer.decode(row.tokens.tolist()))
    return prompts


def test_equal_chats_go_by_conversation_or_by_prompt(tmp_path, template):
    chats = [
        chat("How are you?", "Fine."),
        chat("How are you?", "Fine. "),
        chat("How are you?", "Well."),
        chat("How are you?", "Fine.", system="Be brief."),
        chat("How old are you?", "Old."),
    ]
    chats[1]["messages"][1]["weight"] = 1
    write_chats(tmp_path / "source", "A/a.jsonl", chats)
    write_chats(tmp_path / "source", "B/test/b.jsonl", chats[4:])
    for by, expected in (("conversation", {("A", 1), ("A", 4)}), ("prompt", {("A", 1), ("A", 2), ("A", 3), ("A", 4)})):
        data = tmp_path / by
        assert prepare_chats(tmp_path / "source", data, template, "--deduplicate", "exact", "--deduplicate_by", by) == 0
        lines = (tmp_path / "source/A/a.jsonl").read_bytes().splitlines(keepends=True)
        place_of = {len(b"".join(lines[:number])): number for number in range(len(lines))}
        gone = {("A", place_of[line["byte"]]): line["detail"] for line in left_out(data, "duplicate")}
        assert gone.keys() == expected
        assert gone["A", 4] == "B/test/b.jsonl, byte 0" and gone["A", 1] == "A/a.jsonl, byte 0"
        report = (data / "reports/duplicates.txt").read_text()
        assert f"{len(expected)} of 6 documents repeat another one (--deduplicate exact, chats by {by})" in report
        assert "1 of A-train are left out and repeat one of B-test" in report
        assert f"A/a.jsonl, byte {len(b''.join(lines[:4]))}: How old are you?\nrepeats B/test/b.jsonl, byte 0" in report
        assert entries_of(data)["A train"].conversations == 5 - len(expected)


def test_near_chats_go_and_texts_are_not_mixed_with_them(tmp_path, template):
    rng = random.Random(0)
    answer = " ".join(f"w{rng.randrange(10**6)}" for _ in range(60))
    question = "Что такое столица Франции и где она стоит?"
    chats = [chat(question, answer), chat(question.upper(), f"{answer} indeed"), chat(question, "Нет.")]
    write_chats(tmp_path / "source", "A/a.jsonl", chats)
    write(tmp_path / "source", "A/b.txt", f"{question} {answer}")
    near = ("--deduplicate", "near", "--deduplicate_by")
    assert prepare_chats(tmp_path / "source", tmp_path / "one", template, *near, "conversation") == 0
    (line,) = left_out(tmp_path / "one", "duplicate")
    assert line["text"] == question.upper() and line["detail"] == "A/a.jsonl, byte 0"
    assert entries_of(tmp_path / "one")["A train"].documents == 3
    assert prepare_chats(tmp_path / "source", tmp_path / "two", template, *near, "prompt") == 0
    assert len(left_out(tmp_path / "two", "duplicate")) == 2


def corpus(folder: Path, seed: int) -> dict[str, list[str]]:
    """Three datasets with nearly equal prompts within and across them, one with a held-out file; their prompts."""
    rng = random.Random(seed)
    prompts = families(rng, 260)
    rng.shuffle(prompts)
    parts = {"A/a.jsonl": prompts[:110], "B/b.jsonl": prompts[110:200], "B/test/held.jsonl": prompts[200:215]}
    parts |= {"C/c.jsonl": prompts[215:230], "C/d.jsonl": prompts[230:]}
    for name, of_file in parts.items():
        chats = [chat(prompt, f"Answer {number}.") for number, prompt in enumerate(of_file)]
        chats.insert(3, {"messages": []})
        write_chats(folder, name, chats)
    return parts


@pytest.mark.parametrize("seed", range(2))
def test_near_prompts_are_on_one_side_and_every_chat_on_one(tmp_path, template, capsys, seed):
    source, data = tmp_path / "source", tmp_path / "data"
    parts = corpus(source, seed)
    assert prepare_chats(source, data, template, "--validation_share", 0.25) == 0
    sides = {split: prompts_in(data, split) for split in ("train", "test")}
    everything = [prompt for of_file in parts.values() for prompt in of_file]
    assert Counter(sides["train"]) + Counter(sides["test"]) == Counter(everything)
    train_sets, test_sets = ([pairs_of_words(prompt) for prompt in sides[split]] for split in ("train", "test"))
    assert not any(are_near(*pair) for pair in itertools.product(train_sets, test_sets))
    assert not Counter(parts["B/test/held.jsonl"]) - Counter(sides["test"])
    entries = entries_of(data)
    assert entries.keys() == {f"{name} {split}" for name in "ABC" for split in ("train", "test")}
    malformed = {name: sum(entry.skipped.values()) for name, entry in entries.items()}
    assert malformed == {"A train": 1, "A test": 0, "B train": 1, "B test": 1, "C train": 2, "C test": 0}
    chats = sum(entry.conversations for entry in entries.values())
    moved = chats - entries["A train"].conversations - entries["B train"].conversations
    moved -= entries["C train"].conversations + len(parts["B/test/held.jsonl"])
    assert f"--validation_share 0.25: {moved} of 245 chats are held out" in capsys.readouterr().out
    assert [file["path"] for file in entries["B test"].sources] == ["B/test/held.jsonl", "B/b.jsonl"]


def test_more_data_move_only_chats_whose_group_changed(tmp_path, template):
    source, rng = tmp_path / "source", random.Random(5)
    prompts = families(rng, 150)
    write_chats(source, "A/a.jsonl", [chat(prompt) for prompt in prompts])
    assert prepare_chats(source, tmp_path / "one", template, "--validation_share", 0.3) == 0
    more = [*families(rng, 40), *(edited(rng.choice(prompts), rng) for _ in range(8))]
    write_chats(source, "0/b.jsonl", [chat(prompt) for prompt in more])
    assert prepare_chats(source, tmp_path / "two", template, "--validation_share", 0.3) == 0
    before, after = (set(prompts_in(tmp_path / name, "test")) for name in ("one", "two"))
    groups = components([*more, *prompts])
    changed = {groups[at] for at in range(len(more))}
    stays = [prompt for prompt, group in zip(prompts, groups[len(more) :], strict=True) if group not in changed]
    assert len(stays) > 80
    assert [prompt in before for prompt in stays] == [prompt in after for prompt in stays]


def test_processes_and_a_second_call_change_nothing(tmp_path, template, capsys):
    source = tmp_path / "source"
    corpus(source, 3)
    test = write_chats(tmp_path, "test.jsonl", [chat("x y z " * 5)])
    given = ("--validation_share", 0.2, "--deduplicate", "near", "--contamination", test)
    for workers in (1, 3):
        data = tmp_path / f"data{workers}"
        assert prepare_chats(source, data, template, *given, "--num_workers", workers) == 0
    content = content_of(tmp_path / "data1")
    assert content == content_of(tmp_path / "data3")
    assert prepare_chats(source, tmp_path / "data1", template, *given) == 0
    assert capsys.readouterr().out.count(": kept\n") == 6 and content_of(tmp_path / "data1") == content
    assert prepare_chats(source, tmp_path / "data1", template) == 0
    assert entries_of(tmp_path / "data1").keys() == {"A train", "B train", "B test", "C train"}
    assert not list((tmp_path / "data1/reports").glob("*.txt"))


def test_no_chats_to_divide(tmp_path, template, capsys):
    write(tmp_path / "source", "A/a.txt", "Some text.")
    assert prepare(tmp_path / "source", tmp_path / "data", "--validation_share", 0.1) == 2
    assert "--validation_share divides chats, and there are none" in capsys.readouterr().err


def test_a_share_of_texts_in_files_of_their_own_is_held_out(tmp_path):
    """Which ones does not depend on the others; of two, one; of what is in both, training loses its copy."""
    for number in range(40):
        write(tmp_path / "source", f"{number} - A - B.txt", f"Book {number} of many words.")
    assert prepare(tmp_path / "source", tmp_path / "all", "--validation_share", 0.25) == 0
    entries = entries_of(tmp_path / "all")
    held = {Path(fact["path"]).name for fact in entries["source test"].sources}
    assert 4 <= len(held) <= 16 and entries["source train"].documents == 40 - len(held)
    for path in sorted((tmp_path / "source").iterdir())[::2]:
        path.unlink()
    assert prepare(tmp_path / "source", tmp_path / "half", "--validation_share", 0.25) == 0
    facts = entries_of(tmp_path / "half")["source test"].sources
    left = {path.name for path in (tmp_path / "source").iterdir()}
    assert {Path(fact["path"]).name for fact in facts} == held & left
    write(tmp_path / "two", "1.txt", "The same words in two editions.")
    write(tmp_path / "two", "2.txt", "The same words in two editions.")
    write(tmp_path / "two", "3.txt", "Others.")
    shared = ("--validation_share", 0.01, "--deduplicate", "exact")
    assert prepare(tmp_path / "two", tmp_path / "data", *shared) == 0
    entries = entries_of(tmp_path / "data")
    train = entries["two train"]
    assert entries["two test"].documents == 1 and train.documents + sum(train.skipped.values()) == 2
    assert [*train.skipped] in ([], ["duplicate"])


RUN = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.mark.parametrize("what", ["leave_out", "report"])
def test_what_test_files_have_is_left_out_or_reported(tmp_path, template, what, capsys):
    shown = RUN.replace(" ", ", ").upper()
    chats = [chat("Count!", f"Yes: {shown}."), chat(f"What is {RUN}?"), chat("Count!", "No.")]
    chats.append(chat("Count!", system=f"Say {shown}!"))
    write_chats(tmp_path / "source", "A/a.jsonl", chats)
    write(tmp_path / "source", "B/b.txt", f"A text with\n{shown}\nin it.")
    write(tmp_path / "source", "B/c.txt", "A text without.")
    test = write_chats(tmp_path, "exam.jsonl", [{"question": {"text": RUN}, "id": "7"}])
    other = write(
        tmp_path, "other.txt", "Nothing of this is anywhere in the corpus, and it is long enough to be found."
    )
    given = ("--contamination", other, test, "--contaminated", what)
    data = tmp_path / "data"
    assert prepare_chats(tmp_path / "source", data, template, *given) == 0
    entries = entries_of(data)
    gone = left_out(data, "contaminated")
    words = " ".join(RUN.split()[:13])
    if what == "leave_out":
        assert (entries["A train"].conversations, entries["B train"].documents) == (1, 1)
        assert [line["detail"] for line in gone] == [f"exam.jsonl: {words}"] * 4
        assert entries["A train"].skipped == {"contaminated": 3}
    else:
        assert (entries["A train"].conversations, entries["B train"].documents) == (4, 2) and not gone
    report = (data / "reports/contamination.txt").read_text()
    became = "left out" if what == "leave_out" else "kept"
    assert f"4 documents have words of the test files and are {became} (runs of 13 words)" in report
    assert "3 of A-train have words of exam.jsonl" in report and "1 of B-train have words of exam.jsonl" in report
    assert "B/b.txt, byte 0: A text with" in report and f"has: {words}" in report
    capsys.readouterr()
    assert prepare_chats(tmp_path / "source", data, template, *given) == 0
    assert capsys.readouterr().out.count(": kept\n") == 2
    assert (data / "reports/contamination.txt").read_text() == report


def test_transcribed_dialogue_is_screened_too(tmp_path):
    speech = f"[A:] Bonjour.\n[B:] {RUN}.\n\n[A:] Oui.\n[B:] Non.\n"
    write(tmp_path / "source", "FR/A/full.txt", speech)
    test = write(tmp_path, "exam.txt", f"Before. {RUN}.")
    assert prepare(tmp_path / "source", tmp_path / "data", "--contamination", test) == 0
    (line,) = left_out(tmp_path / "data", "contaminated")
    assert line["byte"] == 0 and entries_of(tmp_path / "data")["FR/A train"].documents == 1


def test_of_a_document_in_parts_the_part_is_left_out(tmp_path):
    rng = random.Random(0)
    words = [f"w{rng.randrange(10**6)}" for _ in range(9000)]
    words[4000:4000] = RUN.split()
    write(tmp_path / "source", "A/a.txt", " ".join(words))
    test = write(tmp_path, "exam.txt", RUN)
    assert prepare(tmp_path / "source", tmp_path / "data", "--contamination", test, "--multiple_of", 1) == 0
    (line,) = left_out(tmp_path / "data", "contaminated")
    entry = entries_of(tmp_path / "data")["A train"]
    tokenizer, rows = Tokenizer(TOKENIZER), RowReader(tmp_path / "data", entry)
    kept = "".join(tokenizer.decode(rows.read(row).tokens.tolist()) for row in range(entry.rows))
    assert line["detail"].startswith("exam.txt: one two three") and words[0] in kept and words[-1] in kept
    assert "eight nine ten" not in kept and entry.documents == 1


def test_a_side_without_chats_is_no_loss_but_a_template_that_refuses_all_is(tmp_path, template, capsys):
    chats = [chat("How are you?", f"Answer {number}.") for number in range(20)]
    write_chats(tmp_path / "source", "A/a.jsonl", [{"messages": []}, *chats])
    assert prepare_chats(tmp_path / "source", tmp_path / "data", template, "--validation_share", 0.5) == 0
    entries = entries_of(tmp_path / "data")
    assert sorted(entry.conversations for entry in entries.values()) == [0, 20]
    assert "warning: the share held out is not as wanted" in capsys.readouterr().out
    refusal = "{% if 'How are' in messages[0].content %}{{ raise_exception('no') }}{% endif %}"
    refusing = write(tmp_path, "no.jinja", refusal + TEMPLATE)
    assert prepare_chats(tmp_path / "source", tmp_path / "other", refusing, "--validation_share", 0.5) == 65
    assert "all chats are left out" in capsys.readouterr().err


def test_a_data_set_that_is_all_in_a_test_file_is_left_out(tmp_path, template):
    write_chats(tmp_path / "source", "A/a.jsonl", [chat(RUN)])
    write_chats(tmp_path / "source", "B/b.jsonl", [chat("Hello")])
    test = write_chats(tmp_path, "exam.jsonl", [chat(RUN)])
    assert prepare_chats(tmp_path / "source", tmp_path / "data", template, "--contamination", test) == 0
    assert entries_of(tmp_path / "data")["A train"].skipped == {"contaminated": 1}
