"""What a model is sent for a conversation is the same everywhere, or a note says where not, or nothing is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.export.go_templates import real_templates
from tests.export.served_table import make_folder, make_gguf, markdown, read_rows
from utils.export.llama_cpp import CHATS, FOLDER, LlamaCpp
from utils.export.ollama_go import check_by_go
from utils.export.served_chats import (
    BEGIN,
    SPACE,
    Sent,
    battery_of,
    check_llama_cpp,
    check_transformers,
    read_answers,
    render_ours,
    request_of,
)
from utils.export.turns import Turns

pytestmark = [pytest.mark.llama_cpp, pytest.mark.shared]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("served") / "hf")


@pytest.fixture(scope="module")
def vocabulary(folder) -> Path:
    return make_gguf(folder, folder.with_name("vocabulary.gguf"))


def test_the_table_of_published_templates_is_that_of_the_docs(folder, vocabulary):
    rows = read_rows(folder, vocabulary)
    assert markdown(rows) in (ROOT / "docs" / "served.md").read_text(encoding="utf-8")
    assert all(row.transformers == row.rendered for row in rows)


def template_of(folder: Path, name: str) -> ChatTemplate:
    return ChatTemplate(Tokenizer(folder), real_templates()[name].read_text(encoding="utf-8"))


def with_template(vocabulary: Path, source: str, folder: Path) -> Path:
    """A copy of the GGUF file that has this template."""
    copy = Path(shutil.copyfile(vocabulary, folder / "copy.gguf"))
    (folder / "own.jinja").write_text(source, encoding="utf-8")
    LlamaCpp.find(FOLDER).set_template(copy, folder / "own.jinja")
    return copy


@pytest.mark.parametrize("name", ["qwen3_5_nothink", "llama3_1"])
def test_what_llama_cpp_sets_of_its_own_is_left_out_of_the_gguf_file(folder, vocabulary, tmp_path, name):
    """A thought that is opened, or today's date, where the training had an empty one, or a date in 2024."""
    llama, template = LlamaCpp.find(FOLDER), template_of(folder, name)
    file, battery = with_template(vocabulary, template.source, tmp_path), battery_of(template)
    requests, ours = [request_of(case) for case in battery], render_ours(template, battery)
    assert read_answers(llama.chats(file, requests)) != ours
    notes, flags = check_llama_cpp(llama, file, template, battery, ours)
    assert not flags and len(notes) == 1 and notes[0].startswith("The template in the GGUF file leaves out")
    assert read_answers(llama.chats(file, requests)) == ours


def test_a_begin_token_that_the_chats_had_not_is_not_put_before_them(folder, vocabulary, tmp_path):
    llama, template = LlamaCpp.find(FOLDER), template_of(folder, "qwen2_5")
    file, battery = with_template(vocabulary, template.source, tmp_path), battery_of(template)
    requests, ours = [request_of(case) for case in battery], render_ours(template, battery)
    assert llama.set_flag(file, BEGIN, True) and not llama.set_flag(file, SPACE, True)
    assert read_answers(llama.chats(file, requests))[0].ids == [template.tokenizer.bos_id, *ours[0].ids]
    notes, flags = check_llama_cpp(llama, file, template, battery, ours)
    assert flags == (BEGIN,) and notes[0].startswith("The GGUF file puts no begin token before a text")
    assert len(notes) == 1 and read_answers(llama.chats(file, requests)) == ours


def test_another_text_of_a_plain_chat_is_not_published(folder, vocabulary, tmp_path):
    llama, template = LlamaCpp.find(FOLDER), template_of(folder, "qwen2_5")
    battery = battery_of(template)
    ours = render_ours(template, battery)
    file = with_template(vocabulary, template.source.replace("You are Qwen", "You are Kwen"), tmp_path)
    with pytest.raises(DataError, match=r"server sends the model something else .*: no system, three turns, blanks;"):
        check_llama_cpp(llama, file, template, battery, ours)
    spoilt = list(ours)
    spoilt[7] = Sent(ours[7].text, ours[7].ids[1:])
    check_transformers(battery, ours, ours)
    with pytest.raises(DataError, match=r"transformers sends .*: thinking;"):
        check_transformers(battery, ours, spoilt)


def test_what_else_differs_is_said(folder, vocabulary, tmp_path):
    llama, template = LlamaCpp.find(FOLDER), template_of(folder, "gemma")
    file, battery = with_template(vocabulary, template.source, tmp_path), battery_of(template)
    ((note,), _) = check_llama_cpp(llama, file, template, battery, render_ours(template, battery))
    assert note.startswith("llama.cpp's server answers, where the model's own template refuses: system, empty system")
    own = Path(shutil.copytree(FOLDER, tmp_path / "llama", ignore=shutil.ignore_patterns(CHATS, "gguf-py")))
    ((note,), _) = check_llama_cpp(LlamaCpp.find(own), file, template, battery, render_ours(template, battery))
    assert "not compared" in note and "install_llama_cpp.py" in note


@pytest.mark.go
def test_go_has_to_render_what_the_form_says(tmp_path, monkeypatch):
    turns = Turns({("", "user"): "U:", ("user", ""): "A:"}, frozenset(), False)
    chats = [[{"role": "user", "content": " a"}], [{"role": "system", "content": "s"}]]
    assert "2 conversations rendered by Go" in check_by_go(turns, chats, tmp_path)
    monkeypatch.setattr(Turns, "go", lambda _: "U:{{ .Prompt }} A:")
    with pytest.raises(DataError, match=r"Go renders .* a chat of user"):
        check_by_go(turns, chats, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in check_by_go(turns, chats, tmp_path)
