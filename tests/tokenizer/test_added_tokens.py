"""Special tokens added to tokenizers of every kind: the next ids, and the same ids as before for every text."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.added_tokens import extends
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import make_chat_tokenizer
from tests.conftest import SHARED, TOKENIZER, run_command
from utils.prepare.grown_tokenizer import grow_tokenizer
from utils.prepare.options import PrepareOptions

ADDED = ["<|im_start|>", "<|im_end|>"]
TEXTS = [
    "<|im_start|>user\nÇa va ?<|im_end|>\n",
    " two  blanks, 12 345 €, naïve\tПривет 你好 🙂\n\n  x = {'a': [1, 2]}",
    "</s> <s><|endoftext|>",
    "".join(map(chr, range(32, 0x250))),
    unicodedata.normalize("NFD", "été, Łódź"),
]
REAL = [pytest.param(name, marks=pytest.mark.shared) for name in ("gpt2", "falcon", "mistral-7b-v0.1")]


@pytest.mark.parametrize("name", [*REAL, "the sample's"])
def test_they_are_the_next_ids_and_every_text_keeps_its_own(name: str, tmp_path: Path) -> None:
    before = Tokenizer(TOKENIZER if name == "the sample's" else SHARED / "tokenizers" / name)
    grown, added = grow_tokenizer(before, ADDED, tmp_path)
    first = before.vocab_size
    assert added == ADDED and [grown.token_id(token) for token in ADDED] == [first, first + 1]
    assert grown.encode_batch(TEXTS) == before.encode_batch(TEXTS)
    assert (grown.bos_id, grown.eos_id, grown.adds_bos, grown.end_ids) == (
        *(before.bos_id, before.eos_id, before.adds_bos),
        before.end_ids,
    )
    assert grown.decode([first, *before.encode("Ça va ?"), first + 1]).strip() == "Ça va ?"
    theirs = HFTokenizer.from_file(str(grown.directory / "tokenizer.json"))
    assert theirs.encode(TEXTS[0], add_special_tokens=False).ids[0] == first
    # in one step or in two, by whoever comes first
    once, _ = grow_tokenizer(before, ADDED[:1], tmp_path)
    twice, added = grow_tokenizer(once, ADDED, tmp_path)
    assert added == ADDED[1:] and twice.fingerprint == grown.fingerprint
    assert extends(grown, before, ADDED) and extends(grown, once, ADDED[1:]) and not extends(once, grown, [])
    assert not extends(grown, before, ADDED[::-1])


def test_those_that_are_there_stay_and_ordinary_entries_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer(make_chat_tokenizer(tmp_path / "chat"))
    same, added = grow_tokenizer(tokenizer, ADDED, tmp_path / "parts")
    assert same is tokenizer and added == [] and not (tmp_path / "parts").exists()
    assert "has these already, they stay as they are: <|im_start|>, <|im_end|>" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--add_tokens 'Reverse': an ordinary entry of the vocabulary of"):
        grow_tokenizer(tokenizer, ["<|x|>", "Reverse"], tmp_path / "parts")


def test_a_tokenizer_that_cannot_have_them_is_named(tmp_path: Path) -> None:
    # the library counts entries: in a vocabulary with gaps the next id would be another token's
    made = HFTokenizer(models.WordLevel({"a": 0, "b": 1, "c": 5}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"cannot have added tokens: '<\|x\|>' would get the id 3, .* is 6"):
        grow_tokenizer(Tokenizer(tmp_path), ["<|x|>"], tmp_path / "parts")


BAD = [
    (["", "  "], "'', which is blank; --add_tokens ' ', which is blank"),
    (["<|x|>", "<|x|>"], "'<|x|>' twice"),
    (["<|x|> "], "'<|x|> ', which begins or ends with a blank"),
    (["a\0b"], "which holds characters that are not printed"),
    (["a\udcffb"], "which holds characters that are not printed"),
]


@pytest.mark.parametrize("names, said", BAD)
def test_what_is_no_name_is_refused(names: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source_path", "x", "--checkpoint_dir", "y", "--destination_path", "z"]
    assert run_command(PrepareOptions, print, [*words, "--add_tokens", *names]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_files_say_it_to_llama_cpp_and_transformers(tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER, tmp_path / "base")
    grown, _ = grow_tokenizer(Tokenizer(tmp_path / "base"), ADDED, tmp_path)
    config = json.loads((grown.directory / "tokenizer_config.json").read_text())
    first = grown.vocab_size - 2
    assert [config["added_tokens_decoder"][str(first + index)]["content"] for index in (0, 1)] == ADDED
    assert (grown.directory / "tokenizer.model").is_file()
