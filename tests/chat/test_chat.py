"""Chatting: turns and chat templates as transformers renders them, answers' ends, dropped turns, a terminal, a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_gpt.chat.base import main
from lit_gpt.inference.generation import TextModel
from lit_gpt.inference.sampling import Sampling
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.hf_tokenizer import tokenizer_json
from lit_gpt.tokenizer.shipped_templates import template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import run_command
from tests.formats.hf_models import make_litgpt
from utils.chat.conversation import fit
from utils.chat.models import load_speakers
from utils.chat.speaker import dialogue
from utils.run.chat_options import ChatOptions
from utils.run.merged_model import load_text_model
from utils.run.model_options import ModelOptions

SCRIPT = Path(__file__).resolve().parents[2] / "lit_gpt" / "chat" / "base.py"
MARKS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
MARKS += ("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]")
# Written for these tests in the manner of published ones: indented blocks, macros, filters, refusals, training marks.
TEMPLATES = {
    "<|im_end|>": """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content | trim + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "<|eot_id|>": """{{ bos_token }}
{%- set ns = namespace(system='') %}
{%- macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}{% endmacro %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- head('system') + 'Today: ' + strftime_now('%d %b %Y') + '\\n' + ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not message.content %}{% continue %}{% endif %}
    {{- head(message['role']) + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{- raise_exception('no tools here') }}{%- endif %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}""",
    "<end_of_turn>": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "</s>": """{{ bos_token }}{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message.role == 'user' %}
{{ '[INST] ' + message.content + ' [/INST]' }}{{ {'é<': 1} | tojson if 'json' in message.content }}
{% else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}{% endfor %}""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has no chat template, with a context long enough to be interrupted in."""
    folder = tmp_path_factory.mktemp("litgpt")
    make_litgpt(folder, config={"vocab_size": 440, "max_position_embeddings": 4096})
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model with a context of 128 tokens."""
    folder = tmp_path_factory.mktemp("litgpt")
    make_litgpt(folder)
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def with_template(request, folder, tmp_path_factory):
    """The model with a chat template; and the token that ends a turn."""
    copy = tmp_path_factory.mktemp("template")
    add_template(folder, copy, TEMPLATES[request.param], as_file=request.param == "</s>")
    return copy, request.param


def add_template(source, folder, template, as_file=False):
    shutil.copytree(source, folder, dirs_exist_ok=True)
    made = tokenizer_json(Tokenizer(source))
    made.add_special_tokens(list(MARKS))
    made.save(str(folder / "tokenizer.json"))
    eos = {"__type": "AddedToken", "content": "</s>", "normalized": False, "special": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
    if as_file:
        (folder / "chat_template.jinja").write_text(template)
        template = "not this one"
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))


def conversation(*contents, system=None):
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


# Templates


def test_a_conversation_is_encoded_as_transformers_does(with_template):
    from transformers import AutoTokenizer

    path, end = with_template
    ours, theirs = ChatTemplate(Tokenizer(path)), AutoTokenizer.from_pretrained(path)
    systems = [None] if end in ("<end_of_turn>", "</s>") else [None, "  Réponds en vers. "]
    for system in systems:
        for contents in (["Ça va ?"], ["Bonjour\n", " Très bien <b>", "json & co"], ["a", "", "b", " c\n\nd ", "e"]):
            messages = conversation(*contents, system=system)
            expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert ours.encode(messages) == expected, contents
            text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert ours.render(messages) == text and len(text) > 10
    assert ours.end_of_turn == theirs.convert_tokens_to_ids(end) and not ours.end_text


def test_an_answer_that_ends_with_text_ends_there(small, tmp_path):
    """A template whose `<|im_end|>` the tokenizer has no token for was trained as text."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template_source("chatml", Tokenizer(small)))
    template = ChatTemplate(Tokenizer(tmp_path))
    assert template.end_of_turn is None and template.end_text == "<|im_end|>"
    (speaker,) = load_speakers(ChatOptions(model=tmp_path, accelerator="cpu"))
    assert speaker.form.stop == ("<|im_end|>",)


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        ("{% for m in messages %}", 65, "cannot be read"),
        ("{% break %}", 65, "cannot be read"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", 65, "cannot be read"),
        (TEMPLATES["<end_of_turn>"], 2, "System role not supported"),
        ("{{ messages[0]['content'] + 1 }}", 2, "refuses"),
        ("{{ messages.append(1) }}", 2, "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 2, "refuses"),
        ("{% for i in range(10**9) %}{% endfor %}", 2, "refuses"),
    ],
)
def test_bad_templates_are_one_line(folder, tmp_path, capsys, monkeypatch, template, code, message):
    monkeypatch.setattr("utils.chat.reading.read_line", lambda _: "Bonjour")
    add_template(folder, tmp_path, template)
    words = ["--checkpoint_dir", str(tmp_path), "--system", "Be kind", "--accelerator", "cpu"]
    assert run_command(ChatOptions, main, words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_system_message_that_is_not_utf8_is_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.chat.reading.read_line", lambda _: "Bonjour")
    add_template(folder, tmp_path, TEMPLATES["<|im_end|>"])
    words = ["--checkpoint_dir", str(tmp_path), "--system", "caf\udce9", "--accelerator", "cpu"]
    assert run_command(ChatOptions, main, words) == 2
    assert "error: the text is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--template", "chat"], ["--system", "Be kind"]])
def test_what_needs_a_template_is_refused_without(small, capsys, words):
    assert run_command(ChatOptions, main, ["--checkpoint_dir", str(small), *words]) == 2
    assert "chat template" in capsys.readouterr().err


def test_sentencepiece_alone_takes_special_tokens_in_a_template(small, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("<s>{{ messages[0].content }}</s>")
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.library == "sentencepiece"
    ids = ChatTemplate(tokenizer).encode(conversation("Bonjour"))
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids[1:-1]) == "Bonjour"


def test_of_several_templates_the_default_is_taken(folder, tmp_path):
    add_template(folder, tmp_path, [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])
    assert ChatTemplate(Tokenizer(tmp_path)).render(conversation("a")) == "d"


# Conversations


def test_turns_of_a_dialogue():
    messages = conversation("Bonjour", "Salut", "Ça va ?")
    expected = "[speaker001:] Bonjour\n[speaker002:] Salut\n[speaker001:] Ça va ?\n[speaker002:]"
    assert dialogue(messages, "[speaker001:]", "[speaker002:]") == expected


def test_the_oldest_turns_are_dropped():
    def encode(messages):
        return list("".join(message["content"] for message in messages))

    def kept(block_size, max_new_tokens, system=None):
        messages = conversation("aaaa", "AAA", "bbb", "BB", "c", system=system)
        found, ids = fit(messages, encode, block_size, max_new_tokens)
        assert (ids or []) == encode(found)
        return "".join(ids or [])

    assert kept(100, 10) == "aaaaAAAbbbBBc"
    assert kept(22, 10) == "bbbBBc"
    assert kept(15, 10) == "bbbBBc"  # the answer gets 7 at most
    assert kept(9, 4) == "c"
    assert kept(15, 10, "SSS") == "SSSc"
    assert kept(8, 7, "SSSSSS") == ""


def ask(monkeypatch, *questions):
    """What the model reads at each question, as token ids, while `main` runs."""
    lines, read, real = iter([*questions, ""]), [], TextModel.stream
    monkeypatch.setattr("utils.chat.reading.read_line", lambda _: next(lines))

    def stream(self, prompts, *arguments, **options):
        read.append(list(prompts[0]))
        return real(self, prompts, *arguments, **options)

    monkeypatch.setattr(TextModel, "stream", stream)
    return read


def answer_of(model, ids, count, end_ids=(), **options):
    sampling = Sampling(max_new_tokens=count, temperature=0.0, **options)
    return "".join(piece for _, piece in model.stream([ids], sampling, end_ids=end_ids))


def test_a_dialogue_is_kept_and_ends_at_the_users_turn(small, monkeypatch, capsys):
    """The second question is asked with the first one and its answer before it."""
    model = load_text_model(ModelOptions(checkpoint_dir=small, accelerator="cpu"))
    first = model.encode("[speaker001:] Bonjour\n[speaker002:]")
    whole = answer_of(model, first, 30)
    user = whole[10:13]
    read = ask(monkeypatch, "Bonjour", "Et toi ?")
    main(ChatOptions(checkpoint_dir=small, max_new_tokens=8, temperature=0.0, accelerator="cpu"))
    read = list(read)
    answer = answer_of(model, first, 8).strip()
    expected = f"[speaker001:] Bonjour\n[speaker002:] {answer}\n[speaker001:] Et toi ?\n[speaker002:]"
    assert read == [first, model.encode(expected)]
    assert f"[speaker002:]{answer_of(model, first, 8)}" in capsys.readouterr().out
    assert answer_of(model, first, 30, stop=(user,)) == whole[: whole.index(user)]


def test_a_templates_conversation_equals_transformers(with_template, monkeypatch, capsys):
    from transformers import AutoTokenizer

    path, end = with_template
    read = ask(monkeypatch, "Bonjour", "Et toi ?", "la mer")
    fed = []
    forward = TextModel._forward
    monkeypatch.setattr(TextModel, "_forward", lambda self, ids, *a: fed.append(ids.numel()) or forward(self, ids, *a))
    main(ChatOptions(checkpoint_dir=path, max_new_tokens=12, temperature=0.0, accelerator="cpu"))
    monkeypatch.undo()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = load_text_model(ModelOptions(checkpoint_dir=path, accelerator="cpu"))
    ends, messages, shown = tokenizer.convert_tokens_to_ids(end), [], ""
    for ids, question in zip(read, ("Bonjour", "Et toi ?", "la mer"), strict=True):
        messages.append({"role": "user", "content": question})
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        model._cached = []  # each answer is what a model says that reads all of the conversation anew
        answer = answer_of(model, ids, 12, [ends])
        messages.append({"role": "assistant", "content": answer.strip()})
        shown += answer + ("" if answer.endswith("\n") else "\n")
    assert capsys.readouterr().out == shown
    prefills = [count for count in fed if count > 1]
    assert prefills[0] == len(read[0]) and prefills[1] < len(read[1]) and prefills[2] < len(read[2]) / 2


def test_a_longer_conversation_gets_more_room(folder, capsys):
    """The cache for 256 positions is given up for a larger one."""
    grown, fresh = (load_text_model(ModelOptions(checkpoint_dir=folder, accelerator="cpu")) for _ in range(2))
    ids = [1 + index % 300 for index in range(300)]
    answer_of(grown, ids[:100], 5)
    assert answer_of(grown, ids, 9) == answer_of(fresh, ids, 9) != ""
    assert capsys.readouterr().out == ""


def test_the_end_of_a_turn_ends_an_answer(folder, tmp_path, monkeypatch, capsys):
    """Also where neither the tokenizer nor generation_config.json say that the token ends a text."""
    add_template(folder, tmp_path, TEMPLATES["<|im_end|>"])
    tokenizer = Tokenizer(tmp_path)
    end = tokenizer.token_id("<|im_end|>")
    choose, calls = iter([tokenizer.encode("oui")[-1], end]), []
    monkeypatch.setattr("lit_gpt.inference.generation.choose", lambda *_: calls.append(1) or [next(choose)])
    ask(monkeypatch, "Bonjour")
    main(ChatOptions(checkpoint_dir=tmp_path, accelerator="cpu"))
    assert len(calls) == 2 and capsys.readouterr().out.count("\n") == 1


# A terminal and a pipe


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "TERM": "dumb"}


def test_conversation_through_a_pipe(small):
    words = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(small), "--max_new_tokens", "8"]
    words += ["--accelerator", "cpu", "--bot_name", "Zoé"]
    too_long = "x" * 400
    typed = f"Bonjour, ça va ?\n{too_long}\nEt toi ?\n\nnot read\n"
    done = subprocess.run(words, input=typed, capture_output=True, env=environment(), encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[Zoé:]") == 2
    assert "too long for a context of 128 tokens" in done.stderr


def test_input_that_is_no_text_is_one_line(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert run_command(ChatOptions, main, ["--checkpoint_dir", str(small), "--accelerator", "cpu"]) == 2
    assert capsys.readouterr().err == "error: the input is not UTF-8 text\n"


def read_until(terminal, words, seconds=600):
    """What comes out of the terminal up to `words`."""
    found, deadline = b"", time.monotonic() + seconds
    while words.encode() not in found:
        assert time.monotonic() < deadline, found
        found += os.read(terminal, 4096)
    return found.decode(errors="replace")


def test_conversation_in_a_terminal(folder):
    """A question is corrected before it is sent, an answer of 2,000 tokens interrupted, and Ctrl-D is the end."""
    words = [sys.executable, str(SCRIPT), "--checkpoint_dir", str(folder), "--accelerator", "cpu"]
    words += ["--max_new_tokens", "2000", "--temperature", "0"]
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environment(),
        start_new_session=True,
        # a program that was started in the background ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(inner)
    try:
        read_until(terminal, "[speaker001:] ")
        os.write(terminal, b"x\x01Bonjour \x05\x7fZoe\n")  # to the beginning, to the end, one back
        assert "Bonjour x\b \bZoe" in read_until(terminal, "[speaker002:]")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        read_until(terminal, "[speaker001:] ")
        assert process.poll() is None
        os.write(terminal, b"\x04")
        assert process.wait(600) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
