"""A battery of conversations, and what a model is sent for each by whoever serves it: text and token ids must be ours.

Ours are those of lit_gpt/tokenizer/chat_template.py, by which the model was trained. Theirs are transformers', from a
fresh process, llama.cpp's, whose server renders the template in the GGUF file by an engine of its own, and those of
Ollama's template, rendered by Go where it is installed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer.chat_template import ChatTemplate, Message
from lit_gpt.tokenizer.hf_tokenizer import encoder_of_special_tokens
from utils.export.llama_cpp import LlamaCpp

PLAIN = ("no system", "system", "three turns", "system, three turns", "blanks")
"""What everybody has to write as we do."""
SPECIAL = "special tokens"
UNSET = ("enable_thinking", "date_string", "datetime")
"""What llama.cpp's server gives each template, which transformers leaves to who asks. Source: its common/chat.cpp."""

BEGIN, SPACE = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"
"""Of a GGUF file: whether a token, or a space, is put before every text; a space behind every special token, too."""
_NOT_PUT = {BEGIN: "no begin token before a text", SPACE: "no space before a text or behind a special token"}

_CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Nantes"}}}
_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}, "required": ["city"]}
_WEATHER = {"name": "weather", "description": "The weather of a city.", "parameters": _CITY}
_TOOLS = [{"type": "function", "function": _WEATHER}]


class Case(NamedTuple):
    name: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class Sent(NamedTuple):
    """What a model is sent; ids as of who finds the names of special tokens in a message too."""

    text: str
    ids: list[int]


def cases(names: Sequence[str]) -> list[Case]:
    """The battery; `names` are of special tokens, some of which stand in a message."""
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."), ("user", "Five?")]
    chat = [{"role": role, "content": content} for role, content in turns]
    question = {"role": "user", "content": "How are you?"}
    system, empty = ({"role": "system", "content": content} for content in ("Be brief.", ""))
    blanks = [(" \n How are you?\t \n", "user"), ("\n  Well. \n", "assistant"), ("  \n", "user")]
    called = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "name": "weather", "content": "rain", "tool_call_id": "call00001"}
    special = f"What is {', '.join(names[:8])} or <|im_end|>?"
    thought = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nTwo."}
    return [
        Case("no system", [question]),
        Case("system", [system, question]),
        Case("empty system", [empty, question]),
        Case("three turns", chat),
        Case("system, three turns", [system, *chat]),
        Case("blanks", [{"role": role, "content": content} for content, role in blanks]),
        Case(SPECIAL, [{"role": "user", "content": special}, chat[1], {"role": "user", "content": special}]),
        Case("thinking", [chat[0], thought, chat[2]]),
        Case("tools", [question], _TOOLS),
        Case("tool call", [question, called, result], _TOOLS),
    ]


def battery_of(template: ChatTemplate) -> list[Case]:
    return cases([name for name in template.tokenizer.chat_control_tokens if name.strip()])


def render_ours(template: ChatTemplate, battery: Sequence[Case]) -> list[Sent | None]:
    """None for what the template refuses."""
    encode = encoder_of_special_tokens(template.tokenizer)
    found: list[Sent | None] = []
    for case in battery:
        try:
            text = template.render(case.messages, case.tools)
        except UserError:
            found.append(None)
            continue
        found.append(Sent(text, encode([text])[0]))
    return found


def request_of(case: Case, template: str | None = None) -> dict[str, Any]:
    """For llama.cpp: arguments are a text there, as in OpenAI's form."""
    messages = []
    for message in case.messages:
        if "tool_calls" in message:
            function = {**_CALL["function"], "arguments": json.dumps(_CALL["function"]["arguments"])}
            message = {**message, "tool_calls": [{**_CALL, "function": function}]}
        messages.append(message)
    own = {} if template is None else {"template": template}
    return {"messages": messages, "tools": case.tools, **own}


def read_answers(answers: Sequence[Mapping[str, Any]]) -> list[Sent | None]:
    return [None if "error" in found else Sent(found["text"], found["ids"]) for found in answers]


def with_unset(source: str) -> tuple[str, list[str]]:
    """The template with the names of `UNSET` that it reads unset: it renders as if nobody had given them; and these
    names. The line that does so ends with the newline that Jinja's trim_blocks takes away."""
    names = [name for name in UNSET if name in source]
    return "".join(f"{{% set {name} = nothing_of_that_name %}}" for name in names) + "\n" + source, names


def differing(
    template: ChatTemplate, battery: Sequence[Case], ours: Sequence[Sent | None], theirs: Sequence[Sent | None]
) -> list[str]:
    """The names of cases of which the text is another one, but for those that our template refuses.

    llama.cpp takes a begin token from a text, if it puts one before every text.
    """
    begin = template.tokenizer.bos_id
    name = "" if begin is None else template.tokenizer.vocabulary[begin]
    pairs = zip(battery, ours, theirs, strict=True)
    return [
        case.name
        for case, own, other in pairs
        if own and (other is None or own.text.removeprefix(name) != other.text.removeprefix(name))
    ]


class Served(NamedTuple):
    notes: list[str]
    """What a user has to know of who serves the model."""
    flags: tuple[str, ...] = ()
    """`BEGIN`, `SPACE`: not to be set in the files, so that chats have the training's tokens."""


def compare_chats(
    llama: LlamaCpp,
    file: Path,
    template: ChatTemplate,
    battery: Sequence[Case],
    theirs: Sequence[Mapping[str, Any] | None],
) -> Served:
    """Compares what a model is sent; `theirs` is what transformers makes of the battery, for the model in `file`.

    Raises what `check_transformers` and `check_llama_cpp` do.
    """
    ours = render_ours(template, battery)
    check_transformers(battery, ours, [None if found is None else Sent(**found) for found in theirs])
    equal = sum(found is not None for found in ours)
    print(f"{equal} conversations have the token ids of the training in transformers", flush=True)
    notes, flags = check_llama_cpp(llama, file, template, battery, ours)
    for case, own in zip(battery, ours, strict=True):
        if case.name == SPECIAL and own and not _is_encoded_alike(template, case, own):
            notes.append("The names of special tokens in a message become tokens there; in the training they are text.")
    return Served(notes, flags)


def _is_encoded_alike(template: ChatTemplate, case: Case, own: Sent) -> bool:
    """Whether the training's token ids are those of who finds the names of special tokens in messages, too."""
    try:
        return template.encode(case.messages) == own.ids
    except UserError:  # a template that changes such a name
        return False


def check_transformers(battery: Sequence[Case], ours: Sequence[Sent | None], theirs: Sequence[Sent | None]) -> None:
    """Raises a DataError for a conversation of which transformers makes other text or tokens, or that it refuses."""
    wrong = [case.name for case, own, other in zip(battery, ours, theirs, strict=True) if own != other]
    if wrong:
        raise DataError(
            f"transformers sends the model something else than it was trained on: {', '.join(wrong)}; "
            "the GGUF files are not written"
        )


def check_llama_cpp(
    llama: LlamaCpp, file: Path, template: ChatTemplate, battery: Sequence[Case], ours: Sequence[Sent | None]
) -> Served:
    """Compares how llama.cpp's server renders and tokenizes the template in `file`.

    Where it only so comes out as in the training, the template in `file` is changed, and flags are unset: for other
    texts than chats they have to be set again. A DataError where plain chats come out otherwise all the same.
    """
    found = llama.chats(file, [request_of(case) for case in battery])
    if found is None:
        return Served(
            ["What llama.cpp's server writes was not compared: utils/install_llama_cpp.py builds the program."]
        )
    notes = []
    theirs = read_answers(found)
    wrong = differing(template, battery, ours, theirs)
    source, names = with_unset(template.source)
    if wrong and names:
        again = read_answers(llama.chats(file, [request_of(case, source) for case in battery]) or [])
        if len(differing(template, battery, ours, again)) < len(wrong):
            (changed := file.with_name("changed.jinja")).write_text(source, encoding="utf-8")
            llama.set_template(file, changed)
            theirs, wrong = again, differing(template, battery, ours, again)
            note = f"what llama.cpp's server sets of its own, and the training did not: {', '.join(names)}."
            notes.append(f"The template in the GGUF file leaves out {note}")
    if plain := [name for name in wrong if name in PLAIN]:
        raise DataError(
            f"llama.cpp's server sends the model something else than it was trained on: {', '.join(plain)}; "
            "the GGUF files are not written"
        )
    theirs, flags = _without_flags(llama, file, template, battery, ours, theirs)
    notes += [f"The GGUF file puts {_NOT_PUT[name]}: the chats of the training had none." for name in flags]
    pairs = list(zip(battery, ours, theirs, strict=True))
    answered = [case.name for case, own, other in pairs if own is None and other is not None]
    tokens = [name for name in other_tokens(battery, ours, theirs) if name not in wrong]
    for names, what in (
        (wrong, "writes otherwise"),
        (answered, "answers, where the model's own template refuses"),
        (tokens, "makes other tokens of the same text"),
    ):
        if names:
            notes.append(f"llama.cpp's server {what}: {', '.join(names)}.")
    return Served(notes, flags)


def other_tokens(battery: Sequence[Case], ours: Sequence[Sent | None], theirs: Sequence[Sent | None]) -> list[str]:
    """The names of cases that both render, and of which the token ids differ."""
    pairs = zip(battery, ours, theirs, strict=True)
    return [case.name for case, own, other in pairs if own and other and own.ids != other.ids]


def _without_flags(
    llama: LlamaCpp,
    file: Path,
    template: ChatTemplate,
    battery: Sequence[Case],
    ours: Sequence[Sent | None],
    theirs: Sequence[Sent | None],
) -> tuple[Sequence[Sent | None], tuple[str, ...]]:
    """Unsets what would make fewer token ids differ, in `file`; returns what is sent then, and what was unset."""
    begin = template.tokenizer.bos_id
    fewest, unset = len(other_tokens(battery, ours, theirs)), ()
    if not fewest:
        return theirs, ()
    pairs = zip(ours, theirs, strict=True)
    puts_begin = any(own and other and other.ids[:1] == [begin] != own.ids[:1] for own, other in pairs)
    for name in (BEGIN, SPACE) if puts_begin else (SPACE,):
        if not llama.set_flag(file, name, False):
            continue
        again = read_answers(llama.chats(file, [request_of(case) for case in battery]) or [])
        differ = len(other_tokens(battery, ours, again))
        # without the begin token as many may differ still, but it is one less to each
        if differ < fewest or name == BEGIN:
            theirs, fewest, unset = again, differ, (*unset, name)
        else:
            llama.set_flag(file, name, True)
    return theirs, unset
