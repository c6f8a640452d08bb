"""Names of special tokens in a corpus: the same rows with either of a tokenizer's file formats, and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import TOKENIZER
from tests.prepare.test_prepare_data import prepare, write

TEXT = "un<s>deux </s> trois\n\n<s>quatre<s>\n\n<|endoftext|> cinq <unk>\n"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample's tokenizer.model, and the same tokenizer as tokenizer.json."""
    folder = tmp_path_factory.mktemp("json")
    export_tokenizer(Tokenizer(TOKENIZER), folder, "Bonjour")
    shutil.move(folder / "tokenizer.model", folder.with_suffix(".model"))
    return {"model": TOKENIZER, "json": folder}


def tokens_of(data_dir: Path) -> list[list[int]]:
    return [load_file(path)["tokens"].tolist() for path in sorted(data_dir.glob("*.safetensors"))]


@pytest.mark.parametrize("wanted", ["false", "true"])
@pytest.mark.parametrize("fast", ["true", "false"])
def test_both_file_formats_give_the_same_rows(wanted, fast, tokenizers, tmp_path, capsys):
    source = write(tmp_path / "source", "FR/Set/train.txt", TEXT).parents[2]
    found, manifests = [], []
    for name, tokenizer in tokenizers.items():
        more = ("--special_tokens_in_text", wanted, "--fast_tokenizer", fast)
        assert prepare(source, tmp_path / name, *more, tokenizer=tokenizer) == 0
        found.append(tokens_of(tmp_path / name))
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text()))
    assert found[0] == found[1] and found[0]
    assert manifests[0]["tokenizer"] == manifests[1]["tokenizer"]
    for manifest in manifests:
        assert manifest["splits"][0]["named"] == {"</s>": 1, "<s>": 3, "<unk>": 1}
        assert manifest["made_by"]["special_tokens_in_text"] is (wanted == "true")
    out = capsys.readouterr().out
    assert out.count("tokenised by gigatoken: ") == (2 if fast == "true" else 0)
    assert "<s> 3×" in out and ("became these tokens" if wanted == "true" else "stay text") in out
    tokenizer = Tokenizer(TOKENIZER)
    flat = [token for rows in found[0] for row in rows for token in row]
    assert flat.count(tokenizer.bos_id) == 3 + (3 if wanted == "true" else 0)
    text = tokenizer.decode(flat)
    assert ("un<s>deux </s> trois" in text) is (wanted == "false")


def test_another_value_makes_the_rows_anew(tokenizers, tmp_path, capsys):
    source = write(tmp_path / "source", "FR/Set/train.txt", TEXT).parents[2]
    for value, kept in (("false", False), ("false", True), ("true", False)):
        assert prepare(source, tmp_path / "out", "--special_tokens_in_text", value) == 0
        assert ("kept" in capsys.readouterr().out) is kept


def test_a_percent_sign_in_a_name_is_printed_as_it_is(tmp_path, capsys):
    source = write(tmp_path / "source", "50%/a.txt", "un deux").parents[1]
    assert prepare(source, tmp_path / "data", "--fast_tokenizer", "false") == 0
    assert "50% train: 1 documents" in capsys.readouterr().out
