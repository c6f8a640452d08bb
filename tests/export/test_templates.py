"""Modelfiles' templates: what Go makes of them is what transformers makes of the models' own chat templates."""

from __future__ import annotations

import functools
import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.export.go_templates import DATED, FORMS, real_templates, tokenizer_folder
from tests.export.test_modelfile import parse
from utils.export.modelfile import dialogue_turns, form_of, modelfile
from utils.export.template_battery import CHATS, CONTENTS, OTHERS, conversations, with_contents
from utils.export.turns import REFUSED, learn
from utils.prepare.dialogue import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.go

KINDS = (*CHATS, *itertools.chain(*OTHERS))


@functools.cache
def own_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def transformers_text(folder: Path, messages: list[dict[str, str]]) -> str | None:
    """What the model is sent after these messages, or None if its template refuses them."""
    from jinja2 import TemplateError

    own = own_tokenizer(folder)
    begun = messages[-1]["role"] == "assistant"
    try:
        return own.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except (TemplateError, TypeError):
        return None


def more_conversations(seed: int) -> list[list[dict[str, str]]]:
    """Longer ones than the battery has, with its contents and others put together from pieces."""
    draw = random.Random(seed)
    pieces = [*CONTENTS, " ", "\t", "\x0b", "\x1f", "\x85", "\u2003", "\u3000x", '"', "\\", "{{", "}}", "<|im_end|>"]
    chats = []
    for _ in range(20):
        roles = draw.choice(("", "s")) + "ua" * draw.randrange(4) + "u"
        chats.append(with_contents(roles, ["".join(draw.choices(pieces, k=draw.randrange(4))) for _ in roles]))
    return chats


@pytest.mark.parametrize("name", real_templates())
def test_go_says_what_the_models_own_template_says_or_nothing(name, go, tmp_path):
    """And what a form cannot say is refused, in words that say why; and Go and this program's renderer are one."""
    from utils.export.hf_chat import HFChat

    folder = tokenizer_folder(tmp_path, real_templates()[name].read_text(encoding="utf-8"))
    form = form_of(folder)
    assert (form.template is not None) == (name in FORMS)
    if form.template is None:
        text = modelfile("m.gguf", form, 64, None)
        assert 'TEMPLATE "' not in text and "ollama show" in text
        assert ("the day's date" in text) == (name in DATED)
        return
    turns = learn(HFChat(folder).render)
    chats = [messages for roles in KINDS for messages in conversations(roles)]
    more = more_conversations(len(name))
    equal = 0
    for messages, answer in zip([*chats, *more], go.answers(form.template, [*chats, *more]), strict=True):
        expected = transformers_text(folder, messages)
        roles = "".join(message["role"][0] for message in messages)
        if "error" in answer:
            assert REFUSED in answer["error"] and turns.render(messages) is None
            assert expected is None or (roles not in CHATS and messages in chats)
            continue
        assert answer["text"] == turns.render(messages)
        if expected is None:  # an answer that leads is left out
            assert roles.lstrip("s").startswith("a") and "left out" in "\n".join(form.notes)
        else:
            assert answer["text"] == expected
            equal += 1
    assert equal >= 36


def test_calls_of_tools_are_refused(go, tmp_path):
    folder = tokenizer_folder(tmp_path, real_templates()["qwen2_5"].read_text(encoding="utf-8"))
    call = {"function": {"name": "weather", "arguments": {"city": "Nantes"}}}
    chat = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
    ]
    (answer,) = go.answers(form_of(folder).template, [chat])
    assert REFUSED in answer["error"]
    chat[1] = {"role": "assistant", "content": "I look it up."}
    assert go.render(form_of(folder).template, chat) == transformers_text(folder, chat)
    assert "<tool_response>\nrain\n</tool_response>" in transformers_text(folder, chat)


def test_what_was_wrong_is_right(go, tmp_path):
    """By name: Qwen 2.5's own system message, Llama 3.1's date, white space that Llama 3 and Gemma take away."""
    said = {}
    for name in ("qwen2_5", "llama3_1", "llama3", "gemma"):
        folder = tokenizer_folder(tmp_path / name, real_templates()[name].read_text(encoding="utf-8"))
        said[name] = go.render(form_of(folder).template, with_contents("u", ["\u3000 x\x85\n"]))
    assert said["qwen2_5"].startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert "Today Date: 26 Jul 2024" in said["llama3_1"]
    assert said["llama3"].startswith("<bos><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>")
    assert said["gemma"] == "<bos><start_of_turn>user\nx<end_of_turn>\n<start_of_turn>model\n"


def test_a_token_that_llama_cpp_puts_first_is_not_written_twice(go, tmp_path):
    chat = with_contents("u", ["x"])
    for name, begin in (("llama3", "<bos>"), ("qwen2_5", "")):
        template = real_templates()[name].read_text(encoding="utf-8")
        form = form_of(tokenizer_folder(tmp_path / name, template, adds_begin=True))
        whole = transformers_text(tmp_path / name, chat)
        assert begin + go.render(form.template, chat) == whole
        assert any("<bos> put before every text" in note for note in form.notes) == (not begin)


@pytest.mark.parametrize(
    "template",
    [
        '{% for m in messages %}{{ m.role }}\u00a0{{ \'{{\' }}\u200b"\\{{ m.content }}"""}}\n{% endfor %}assistant:',
        "{% for m in messages %}{{ '### ' + m.role + ':\\r\\n' + m.content }}\t{% endfor %}### assistant:\r\n",
        "{% for m in messages %}{{ m.content if m.role != 'user' else m.content | trim }}\n\n{% endfor %}",
    ],
)
def test_any_text_may_stand_between_messages(go, tmp_path, template):
    form = form_of(tokenizer_folder(tmp_path, template))
    text = modelfile("m.gguf", form, 64, None)
    # as Ollama reads the file, characters that are not printable get lost
    assert all(character.isprintable() or character == "\n" for character in text.partition('TEMPLATE """')[2])
    commands = parse(text)
    for messages in more_conversations(3):
        assert go.render(commands["TEMPLATE"][0], messages) == transformers_text(tmp_path, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",  # counts
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | replace('</think>', '') }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim(' ') }}\n{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% if m.content %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ strftime_now('%d') }}",
        "{% for m in messages %}{{ m.role }",
        "{{ raise_exception('no') }}",
    ],
)
def test_templates_that_do_more_are_left_to_ollama(tmp_path, template):
    form = form_of(tokenizer_folder(tmp_path, template))
    assert form.template is None and form.stops == ("</s>",) and "ollama show" in " ".join(form.notes)


def test_dialogue_gives_system_messages_a_place_of_their_own(go):
    turns = dialogue_turns("[Intervenant 1:]", "[Intervenant 2:]")
    template = turns.go()
    chat = with_contents("suau", ["Sois bref. \n", "Bonjour ?", " Oui.", "Bien ?\n"])
    turns_expected = "[Intervenant 1:] Bonjour ?\n[Intervenant 2:] Oui.\n[Intervenant 1:] Bien ?\n[Intervenant 2:]"
    assert go.render(template, chat) == f"Sois bref.\n{turns_expected}"
    assert normalise(f"Sois bref. \n\n{turns_expected}", "fr", open_end=True) == f"Sois bref.\n{turns_expected}"
    assert go.render(template, with_contents("su", ["", "a"])) == "[Intervenant 1:] a\n[Intervenant 2:]"
    begun = with_contents("uua", ["a", "b", "c"])  # what neighbours of one role say is joined by Ollama
    assert go.render(template, begun) == "[Intervenant 1:] a\n\nb\n[Intervenant 2:] c"
    chats = [messages for roles in KINDS for messages in conversations(roles)]
    for messages, answer in zip(chats, go.answers(template, chats), strict=True):
        assert turns.render(messages) == (None if "error" in answer else answer["text"])
    (later,) = go.answers(template, [with_contents("usu", ["a", "b", "c"])])
    assert REFUSED in later["error"]
