"""The Modelfile as Ollama reads it: parsed by its rules, and its template filled by Go."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_files import with_default_system
from tests.export.go_templates import tokenizer_folder
from utils import cli
from utils.export.modelfile import form_of, modelfile, quoted, served_context, with_answers
from utils.export.options import ConvertOptions, QuantizeOptions
from utils.export.template_battery import with_contents
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
    """Commands of a Modelfile with their values, as Ollama reads them, character by character.

    A value goes on after a line's end as long as its quotes are open; characters that Go does not print are dropped; a
    backslash is a backslash, and only a line's beginning makes a comment.
    """
    found: dict[str, list[str]] = {}
    name, value = "", ""
    for character in text + "\n":
        if name.count(" ") < 1 + name.startswith("PARAMETER "):  # before the value
            if not name and character in "# \t\r\n":
                name = "#" if character == "#" else ""
            elif name == "#":
                name = "" if character in "\r\n" else "#"
            else:
                name += character
            continue
        is_whole = not value.strip().startswith('"') or is_closed(value.strip())
        if character in "\r\n" and is_whole:
            quotes = '"""' if value.strip().startswith('"""') else '"' if value.strip().startswith('"') else ""
            value = value.strip()
            found.setdefault(name.strip(), []).append(value[len(quotes) : len(value) - len(quotes)])
            name, value = "", ""
        elif character.isprintable() or character in "\r\n\t":
            value += character
    assert not name and not value
    return found


def is_closed(value: str) -> bool:
    if value.startswith('"""'):
        return len(value) >= 6 and value.endswith('"""')
    return len(value) >= 2 and value.endswith('"')


def test_values_come_out_as_they_went_in():
    """Of what a Modelfile can hold; what it cannot is said."""
    draw, held = random.Random(11), 0
    pieces = ['"', '"""', "\n", " ", "\t", "\\n", "#", "é", "PARAMETER stop", "<|im_end|>", "{{ .System }}"]
    for _ in range(3000):
        value = "".join(draw.choices(pieces, k=draw.randrange(1, 7)))
        written = quoted(value)
        if written is not None:
            held += 1
            read = parse(f"# {pieces}\nFROM x\nSYSTEM {written}\nPARAMETER top_k 3\n")
            assert read == {"FROM": ["x"], "SYSTEM": [value], "PARAMETER top_k": ["3"]}
    assert held > 2700
    for value in ("a\u00a0!", "👩\u200d💻", "a\0", '"""\n'):
        assert quoted(value) is None


SAMPLED = {"temperature": 0.2, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.15, "max_new_tokens": 1536}


@pytest.mark.go
def test_the_recipes_chat_is_in_the_modelfile(tmp_path, go):
    """SYSTEM where it is not what the template writes; what Ollama drops from SYSTEM is in the template."""
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "convert": {"input_path": "runs/x", "output_dir": "hf"},
                "quantize": {"output_dir": "gguf", "top_k": 5},
                "chat": {**SAMPLED, "system": 'Sois "bref".\n', "stop": ["\nQ:"]},
            }
        )
    )
    options = cli.parse(QuantizeOptions, ["--config", str(tmp_path / "r.yaml")])
    assert str(options.model_dir) == "hf" and options.sampling() == {**SAMPLED, "top_k": 5}
    form = form_of(folder_with(tmp_path / "hf", template=CHATML))
    served = with_answers(form, options.system, options.stop, options.sampling())
    commands = parse(modelfile("m.gguf", served, 64, "</s>"))
    assert commands["SYSTEM"] == ['Sois "bref".\n'] and commands["TEMPLATE"] == [form.template]
    assert commands["PARAMETER stop"] == [*form.stops, "\nQ:", "</s>"]
    numbers = {name: commands[f"PARAMETER {name}"] for name in ("temperature", "top_k", "top_p", "num_predict")}
    assert numbers == {"temperature": ["0.2"], "top_k": ["5"], "top_p": ["0.9"], "num_predict": ["1536"]}
    assert commands["PARAMETER repeat_penalty"] == ["1.15"] and commands["PARAMETER repeat_last_n"] == ["-1"]

    windowed = modelfile("m.gguf", with_answers(form, None, (), SAMPLED, 256), 64, None)
    assert parse(windowed)["PARAMETER repeat_last_n"] == ["256"]
    served = with_answers(form, "Sois bref\u00a0! 👩\u200d💻")
    assert "SYSTEM" not in parse(modelfile("m.gguf", served, 64, None))
    written = with_contents("suau", ["Sois bref\u00a0! 👩\u200d💻", "a", "b", "c"])
    template = parse(modelfile("m.gguf", served, 64, None))["TEMPLATE"][0]
    assert go.render(template, written[1:]) == go.render(form.template, written)
    assert go.render(template, with_contents("su", ["x", "y"])) == go.render(form.template, with_contents("su", "xy"))


def test_a_system_message_needs_a_place(tmp_path):
    own = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    default = with_default_system(CHATML, "Sois bref.")
    for template, words in ((own, "no place for a system message"), (None, "needs a chat template")):
        with pytest.raises(UserError, match=words):
            with_answers(form_of(folder_with(tmp_path / words, template=template)), "Sois bref.")
    form = form_of(folder_with(tmp_path, template=default))
    assert with_answers(form, "Sois bref.") == form and with_answers(form, "Sois long.").system == "Sois long."
    for name in SAMPLED:
        with pytest.raises(UserError, match=name):
            ConvertOptions(Path("a"), Path("b"), **{name: -1})


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


def test_a_completion_ends_where_a_text_ended_in_training(tmp_path):
    """The stop is the token's text alone: a value ends with its line, and what seems a comment would be part of it."""
    folder = folder_with(tmp_path, {"turns": 0, "options": {"seed": 1}, "schedule": {"window": 8193}})
    sampling = {"temperature": 0.6, "repetition_penalty": 1.1, "max_new_tokens": 2048}
    form = with_answers(form_of(folder), None, (), sampling, 256)
    text = modelfile("hf-q4_k_m.gguf", form, served_context(folder, 8192), "<|end_of_text|>")
    commands = parse(text)
    assert commands == {
        "FROM": ["./hf-q4_k_m.gguf"],
        "PARAMETER num_ctx": ["8192"],
        "PARAMETER temperature": ["0.6"],
        "PARAMETER repeat_penalty": ["1.1"],
        "PARAMETER num_predict": ["2048"],
        "PARAMETER repeat_last_n": ["256"],
        "PARAMETER stop": ["<|end_of_text|>"],
        "TEMPLATE": ["{{ .Prompt }}"],
    }
    original = "PARAMETER stop <|end_of_text|> # Default for Llama3\n"
    assert parse(original) == {"PARAMETER stop": ["<|end_of_text|> # Default for Llama3"]}


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
