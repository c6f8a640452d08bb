"""The Modelfile as Ollama reads it: parsed by its rules, and its template filled by Go."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.export.go_templates import tokenizer_folder
from utils.export.modelfile import form_of, modelfile, served_context
from utils.prepare.dialogue import normalise

MESSAGES = [
    {"role": "user", "content": "Bonjour ?"},
    {"role": "assistant", "content": "Bonjour !"},
    {"role": "user", "content": "Ça va ?"},
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def folder_with(tmp_path: Path, provenance: dict | None = None, template: str | None = None) -> Path:
    if provenance is not None:
        (tmp_path / "training_provenance.json").write_text(json.dumps(provenance))
    return tokenizer_folder(tmp_path, template)


def parse(text: str) -> dict[str, list[str]]:
    """Commands of a Modelfile; a value in quotes goes over lines, and no backslash means anything."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(r'^(FROM|TEMPLATE|PARAMETER \w+) (?:"""(.*?)"""|"(.*?)"|(\S+))$', text, re.S | re.M):
        found.setdefault(match[1], []).append(next(value for value in match.groups()[1:] if value is not None))
    return found


@pytest.mark.go
@pytest.mark.parametrize("language", [None, "fr", "en"])
def test_a_dialogue_is_written_as_in_the_training(tmp_path, language, go):
    provenance = {"turns": 12, "normalised": {"X": language} if language else {}, "schedule": {"window": 65}}
    folder = folder_with(tmp_path, provenance)
    commands = parse(modelfile("m.gguf", form_of(folder), served_context(folder, 128), "</s>"))
    raw = "[speaker001:] Bonjour ?\n[speaker002:] Bonjour !\n[speaker001:] Ça va ?\n[speaker002:]"
    expected = normalise(raw, language, open_end=True) if language else raw
    spaced = [{**m, "content": normalise(m["content"], language) if language else m["content"]} for m in MESSAGES]
    assert go.render(commands["TEMPLATE"][0], spaced) == expected
    assert commands["PARAMETER stop"] == ["\n[", "</s>"] and commands["PARAMETER num_ctx"] == ["64"]
    assert commands["FROM"] == ["./m.gguf"]


def test_of_as_many_languages_the_first_counts(tmp_path):
    for first, second in (("fr", "en"), ("en", "fr")):
        form = form_of(folder_with(tmp_path, {"turns": 12, "normalised": {"A": first, "B": second}}))
        assert form == form_of(folder_with(tmp_path, {"turns": 12, "normalised": {"A": first}}))


@pytest.mark.go
def test_text_is_gone_on_with(tmp_path, go):
    # what is left of a base model's chat template is not what this run taught
    folder = folder_with(tmp_path, {"turns": 0, "options": {"seed": 1}, "schedule": {"window": 4097}}, CHATML)
    commands = parse(modelfile("m.gguf", form_of(folder), served_context(folder, 2048), None))
    assert commands["TEMPLATE"] == ["{{ .Prompt }}"] and "PARAMETER stop" not in commands
    assert commands["PARAMETER num_ctx"] == ["2048"]
    assert go.render(commands["TEMPLATE"][0], MESSAGES[:1]) == "Bonjour ?"


@pytest.mark.go
@pytest.mark.parametrize(("template", "stop"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>")])
def test_a_chat_is_what_transformers_writes(tmp_path, template, stop, go):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = folder_with(tmp_path, template=template)
    commands = parse(modelfile("m.gguf", form_of(folder), 64, None))
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert go.render(commands["TEMPLATE"][0], MESSAGES) == expected
    assert stop in commands["PARAMETER stop"]


def test_an_answer_that_ends_with_text_stops_where_training_ended_it(tmp_path):
    """Behind the last answer nothing was trained: what begins the next question never comes."""
    template = CHATML.replace("<|im_end|>", "[END]").replace("<|im_start|>", "#")
    commands = parse(modelfile("m.gguf", form_of(tokenizer_folder(tmp_path, template)), 64, None))
    assert commands["PARAMETER stop"] == ["[END]"]


def test_a_chat_template_of_another_kind_is_left_to_ollama(tmp_path):
    template = "{% for m in messages %}<|{{ m.role }}|>{{ loop.index }} {{ m.content }}{% endfor %}"
    text = modelfile("m.gguf", form_of(tokenizer_folder(tmp_path, template)), 64, "</s>")
    assert "TEMPLATE" not in parse(text) and "ollama show" in text
