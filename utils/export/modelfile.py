"""The Modelfile with which Ollama runs a GGUF file as the model was trained: its context, stop tokens and template.
Source of the format: https://docs.ollama.com/modelfile; templates are Go's text/template."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.json_files import read_json_if_there
from lit_gpt.tokenizer.chat_template import find_template
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.export.llama_cpp import LlamaCpp
from utils.export.provenance import PROVENANCE
from utils.export.template_battery import CHATS, compare, conversations, with_contents
from utils.export.turns import Turns, learn
from utils.prepare.dialogue import normalise

SPEAKS = "the model's own chat template"
PUT_FIRST = "put before every text"


class Form(NamedTuple):
    description: str
    template: str | None  # None: Ollama takes one by the GGUF file's
    stops: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what a user has to know of it
    turns: Turns | None = None  # what a chat's template was made from
    is_chat: bool = False
    system: str | None = None  # of conversations that have none, where the template writes none
    parameters: tuple[tuple[str, float], ...] = ()  # by Ollama's names


PARAMETERS = {  # https://docs.ollama.com/modelfile
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
}
COMPLETION = Form("completion of text", "{{ .Prompt }}", ())


def form_of(folder: Path) -> Form:
    """How the model in `folder`, a Hugging Face folder, was trained to be spoken to."""
    provenance = read_json_if_there(folder / PROVENANCE)
    if is_chat(folder):
        return _chat(folder)
    languages = list((provenance.get("normalised") or {}).values())
    if languages:
        return _dialogue(Counter(languages).most_common(1)[0][0])
    return _dialogue(None) if provenance.get("turns") else COMPLETION


def is_chat(folder: Path) -> bool:
    """Whether the model was trained on chats, whatever else there was in the data.

    Where a run of this program had no chats, a chat template counts for other models only.
    """
    provenance = read_json_if_there(folder / PROVENANCE)
    if provenance.get("template"):
        return True
    of_other_kind = any(provenance.get(name) for name in ("normalised", "turns", "options"))
    has_template = find_template(folder, read_json_if_there(folder / "tokenizer_config.json")) is not None
    return has_template and not of_other_kind


def _chat(folder: Path) -> Form:
    """The form that says what the folder's chat template says, as transformers renders it, or none."""
    # transformers takes seconds, and only models of others need it here
    from utils.export.hf_chat import HFChat

    chat = HFChat(folder)
    tokenizer = Tokenizer(folder)
    ends = tuple(tokenizer.vocabulary[index] for index in sorted(tokenizer.end_ids))
    if chat.has_date:
        return _left_to_ollama("it writes the day's date, which Ollama's templates cannot", ends)
    turns = learn(chat.render)
    if turns is None:
        return _left_to_ollama("what it writes does not follow from the roles of a message and its neighbour", ends)
    equal, differing = compare(turns.render, chat.render)
    if differing:
        return _left_to_ollama(f"a conversation of {differing} comes out otherwise", ends)
    notes = limits(turns)
    if chat.lacks_begin:
        notes.append(f"The GGUF file has {chat.begin} {PUT_FIRST}; {SPEAKS} writes none.")
    stops = chat.stops(turns.between.get(("assistant", "user"), ""))
    description = f"chat, as {SPEAKS} writes it: equal in {equal} conversations"
    return Form(description, turns.go(), stops, tuple(notes), turns, is_chat=True)


def with_tokens_compared(form: Form, folder: Path, llama: LlamaCpp, gguf: Path) -> Form:
    """`form` with a note where llama.cpp makes other tokens of its text than transformers does of the same chat: with a
    SentencePiece model it may put a space after a special token, say. `gguf` is the model of `folder`."""
    if form.turns is None:
        return form
    # see `_chat`
    from utils.export.hf_chat import HFChat

    chat = HFChat(folder)
    text = gguf.with_name("chat")
    differing, compared = 0, 0
    for messages in (next(conversations(roles)) for roles in CHATS):
        written = form.turns.render(messages)
        if written is None:
            continue
        text.write_text(written, encoding="utf-8")
        compared += 1
        differing += llama.token_ids(gguf, text) != chat.token_ids(messages)
    if not differing:
        return form
    note = f"llama.cpp makes other tokens of it than transformers in {differing} of {compared} chats, of the same text."
    return form._replace(notes=(*form.notes, note))


def limits(turns: Turns) -> list[str]:
    """What the form refuses, as it cannot say it or the model's template refuses it too."""
    kinds = []
    if ("", "system") not in turns.between:
        kinds.append("a system message")
    elif ("assistant", "system") not in turns.between:
        kinds.append("a system message after the first turn")
    if ("assistant", "") not in turns.between:
        kinds.append("an answer to go on with")
    kinds.append("calls of tools" if ("assistant", "tool") in turns.between else "calls of tools and what they gave")
    notes = [f"Ollama answers with an error: {', '.join(kinds)}."]
    if ("", "assistant") not in turns.between:
        notes.append("An answer at the beginning is left out.")
    return notes


def _left_to_ollama(reason: str, ends: tuple[str, ...]) -> Form:
    notes = (
        f"Without TEMPLATE, as no form of this program says what {SPEAKS} says: {reason}.",
        "Ollama takes a template that it knows, by the one in the GGUF file, or the bare prompt: see `ollama show`.",
        "llama.cpp's `llama-server --jinja` renders the model's own.",
    )
    return Form("chat", None, ends, notes, is_chat=True)


def _dialogue(language: str | None) -> Form:
    # Turns are lines, normalised where the data was. The user speaks first; a new line's speaker ends the model's turn.
    turns = "[speaker001:] a\n[speaker002:] a"
    written = normalise(turns, language) if language else turns
    user, model = (line[: line.index("]") + 1] for line in written.splitlines())
    return Form(f"dialogue, {user} with {model}", dialogue_turns(user, model).go(), ("\n[",))


def dialogue_turns(user: str, model: str) -> Turns:
    """A system message is a line before the first turn, of no speaker."""
    between = {("", "system"): "", ("", "user"): f"{user} ", ("", "assistant"): f"{model} ", ("assistant", ""): ""}
    for before, after in (("system", "user"), ("assistant", "user")):
        between[before, after] = f"\n{user} "
    for before in ("system", "user"):
        between[before, "assistant"] = f"\n{model} "
        between[before, ""] = f"\n{model}"
    return Turns(between, trimmed=frozenset({"system", "user", "assistant"}), skips_empty_system=True)


def with_answers(
    form: Form,
    system: str | None,
    stops: Sequence[str] = (),
    sampling: Mapping[str, float] | None = None,
    repetition_window: int | None = None,
) -> Form:
    """`form` with the recipe's system message, further stops and sampling.

    Raises:
        UserError: for a system message that the model was not trained to be given.
    """
    parameters = [(PARAMETERS[name], value) for name, value in (sampling or {}).items()]
    if repetition_window or "repeat_penalty" in dict(parameters):
        # without a window of all tokens, as here; Ollama's default is the last 64
        parameters.append(("repeat_last_n", repetition_window or -1))
    form = form._replace(stops=tuple(dict.fromkeys((*form.stops, *stops))), parameters=tuple(parameters))
    return form if system is None else _with_system(form, system)


def _with_system(form: Form, system: str) -> Form:
    """`form` with a system message for conversations without one: as SYSTEM, or where a Modelfile cannot hold its
    characters, in the template."""
    if not form.is_chat:
        raise UserError(
            f"--system needs a chat template, and the model was trained for another thing: {form.description}"
        )
    turns = form.turns
    if turns is not None:
        asked = with_contents("su", [system, "?"])
        if turns.render(asked) is None:
            raise UserError("--system: the model's chat template has no place for a system message")
        if turns.render(asked) == turns.render(asked[1:]):
            return form  # the template writes it
    if quoted(system) is not None:
        return form._replace(system=system)
    if turns is None or turns.skips_empty_system:
        note = "Without SYSTEM: the system message has characters that Ollama drops from a Modelfile."
        return form._replace(notes=(*form.notes, note))
    turns = turns.with_system(system)
    return form._replace(turns=turns, template=turns.go())


def quoted(value: str) -> str | None:
    """A value as Ollama reads it from a Modelfile; None if it cannot hold it.

    There are no escapes; characters that are not printable are dropped, but for those between lines and tabs; a value
    ends at the first line's end before which its quotes are closed.
    """
    if not all(character.isprintable() or character in "\n\r\t" for character in value):
        return None
    for quotes in ('"', '"""'):
        begins = [quotes + value[: found.start()].rstrip() for found in re.finditer(r"[\n\r]", value)]
        is_ended = any(begin.endswith(quotes) and len(begin) >= 2 * len(quotes) for begin in begins)
        written = f"{quotes}{value}{quotes}"
        is_other = quotes == '"' and written.startswith('"""')
        if not is_ended and not is_other:
            return written
    return None


def served_context(folder: Path, positions: int) -> int:
    """Tokens of context: those of a row in the run that trained the model, else `positions`, all that it can see."""
    schedule = read_json_if_there(folder / PROVENANCE).get("schedule") or {}
    window = schedule.get("window")  # one token more than the model sees: the last is only predicted
    return min(positions, window - 1) if window else positions


def modelfile(gguf: str, form: Form, context: int, end_token: str | None) -> str:
    stops = list(dict.fromkeys([*form.stops, *([end_token] if end_token else [])]))
    written = [(stop, quoted(stop)) for stop in stops]
    notes = [*form.notes, *(f"A Modelfile cannot say the stop {stop!a}." for stop, value in written if value is None)]
    lines = [f"# {line}" for line in (form.description, *notes)]
    lines += [f"FROM ./{gguf}", f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER {name} {value}" for name, value in form.parameters]
    lines += [f"PARAMETER stop {value}" for _, value in written if value is not None]
    for name, text in (("SYSTEM", form.system), ("TEMPLATE", form.template)):
        if text is not None:
            lines.append(f'{name} """{text}"""' if name == "TEMPLATE" else f"{name} {quoted(text)}")
    return "\n".join(lines) + "\n"
