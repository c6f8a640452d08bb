"""The embedded sample: its tokenizer is what its script writes, its files keep the contract for raw corpora."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.sample import train_tokenizer
from lit_gpt.tokenizer.tokenizer import Tokenizer

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
DATASETS = (
    "french/FR/Marche",
    "french/FR/Cuisine",
    "french/FR/Bibliotheque",
    "english/EN/Station",
    "english/EN/Garden",
    "english/EN/Office",
)
FILES = [SAMPLE / dataset / f"{split}.txt" for dataset in DATASETS for split in ("train", "test")]


def read_conversations(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")


def count(path: Path) -> tuple[int, int, int, int]:
    """Conversations, turns, words and bytes of a file, as the README has them."""
    text = path.read_text(encoding="utf-8")
    turns = [line.split(":] ", 1)[1] for line in text.splitlines() if line]
    words = sum(len(re.findall(r"\w+", turn)) for turn in turns)
    return len(read_conversations(path)), len(turns), words, path.stat().st_size


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SAMPLE / "tokenizer")


def test_the_sample_has_these_files_and_no_others():
    found = {path for corpus in ("french", "english") for path in (SAMPLE / corpus).rglob("*.txt")}
    assert found == set(FILES)


def test_tokenizer_script_writes_the_committed_files(tmp_path: Path):
    train_tokenizer.main(train_tokenizer.Options(out_dir=tmp_path))
    names = {"tokenizer.model", "tokenizer_config.json", "generation_config.json"}
    assert (
        {path.name for path in tmp_path.iterdir()} == {path.name for path in (SAMPLE / "tokenizer").iterdir()} == names
    )
    for name in names:
        assert (tmp_path / name).read_bytes() == (SAMPLE / "tokenizer" / name).read_bytes(), name
    assert (tmp_path / "tokenizer.model").stat().st_size < 60_000


def test_tokenizer_script_reports_what_it_cannot_do(tmp_path: Path):
    from lit_gpt.errors import UserError

    with pytest.raises(UserError, match=r"has no <corpus>/<language>/<dataset>/train\.txt"):
        train_tokenizer.main(train_tokenizer.Options(data_dir=tmp_path, out_dir=tmp_path / "tokenizer"))
    with pytest.raises(UserError, match="vocabulary of 100:"):
        train_tokenizer.main(train_tokenizer.Options(out_dir=tmp_path / "tokenizer", vocab_size=100))
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SAMPLE)))
def test_every_line_is_a_turn(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") and "\r" not in text and "\n\n\n" not in text
    named = path.parent.name in ("Cuisine", "Garden", "Office")
    turn = re.compile(r"\[(%s):\] \S.*[.?!…]" % (r"[A-ZÉ][a-zéèï]+" if named else r"speaker00\d"))
    for conversation in read_conversations(path):
        speakers = []
        for line in conversation.split("\n"):
            match = turn.fullmatch(line)
            assert match, line
            # slots, choices and marks of the material, double spaces and missing elisions are mistakes
            assert not re.search(r"[{}<>|~=]|  |\b(de|que) [aeéèiou]", line), line
            assert match[1] not in speakers[-1:], line
            speakers.append(match[1])
        assert len(set(speakers)) > 1, conversation
        if not named:
            order = list(dict.fromkeys(speakers))
            assert order == [f"speaker{number:03d}" for number in range(1, len(order) + 1)]


@pytest.mark.parametrize("dataset", DATASETS)
def test_conversations_are_all_different(dataset: str):
    train, test = (read_conversations(SAMPLE / dataset / f"{split}.txt") for split in ("train", "test"))
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert not set(train) & set(test)
    for conversations in (train, test):
        lengths = [conversation.count("\n") + 1 for conversation in conversations]
        assert min(lengths) <= 6 and max(lengths) >= 40


def test_groups_name_the_datasets():
    groups = json.loads((SAMPLE / "groups.json").read_text(encoding="utf-8"))
    assert set(groups) == {dataset.split("/", 1)[1] for dataset in DATASETS}
    assert len(set(groups.values())) < len(groups)
    assert all(name.split("/")[0] == group.split("/")[0] for name, group in groups.items())


def test_tokenizer_gives_every_text_back(tokenizer: Tokenizer):
    texts = [text for path in FILES for text in (*read_conversations(path), path.read_text(encoding="utf-8"))]
    texts += ["deux  espaces", "  devant", "12,50 €\n\nfin\n", "tab\tet 日本語 🙂", "« œuf »\u00a0!"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert ids.count(tokenizer.token_id("<0x0A>")) == text.count("\n")


def test_tokenizer_begins_and_ends_as_configured(tokenizer: Tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, True)
    assert tokenizer.vocab_size == train_tokenizer.Options().vocab_size


def test_readme_has_the_figures(tokenizer: Tokenizer):
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        name = f"{path.parent.parent.name}/{path.parent.name}"
        figures = " | ".join(f"{figure:,}" for figure in count(path))
        assert f"| {name} | {path.stem} | {figures} |" in readme
    tokens = sum(len(tokenizer.encode(text)) for path in FILES for text in read_conversations(path))
    assert f"The sample is {tokens:,} tokens long" in readme
