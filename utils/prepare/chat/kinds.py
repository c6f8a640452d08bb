"""The shipped converters: the fields of a record → a conversation.

Each reads its fields by names of its own; which fields of the record have these, the user may say. What a message may
be, `messages.py` alone decides.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from utils.prepare.chat.conversation import Message
from utils.prepare.chat.json_values import Malformed, checked_text, decoded, kind_of, listed, read_json
from utils.prepare.chat.messages import ROLES, read_messages, rows_of
from utils.prepare.chat.tool_calls import parameters_of, read_tools

MessagesAndTools = tuple[list[Message], list[dict[str, Any]] | None]

MISSING = object()
SHARE = 5  # one of so many dialogues of role play shows the greeting, and one the example, as in Saiga's data
_ROLE_PLAY = {**ROLES, "char": "assistant", "character": "assistant", "operator": "user"}
_CYRILLIC = re.compile("[а-яё]", re.IGNORECASE)


class Record:
    """The fields of a record by the names that a converter has for them."""

    def __init__(self, values: dict[str, Any], paths: dict[str, tuple[str, ...]]) -> None:
        self.values, self._paths = values, paths

    def with_field(self, name: str, value: Any) -> "Record":
        return Record({**self.values, name: value}, self._paths)

    def value(self, name: str) -> Any:
        """The field; null if there is none, a text that is empty if all that it may be in are."""
        found = None
        for path in self._paths.get(name, (name,)):
            value = look_up(self.values, path)
            if value is not MISSING and value is not None:
                found = value
                if value != "":
                    break
        return found

    def required(self, name: str) -> Any:
        value = self.value(name)
        if value is None:
            raise Malformed("no_field", f"no field '{self._field(name)}' among {listed(self.values)}")
        return value

    def _field(self, name: str) -> str:
        return " or ".join(self._paths.get(name, (name,)))

    def text(self, name: str) -> str:
        """The field's text, empty if there is none."""
        value = self.value(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Malformed("wrong_type", f"the field '{self._field(name)}' is {kind_of(value)}, no text")
        return value

    def required_text(self, name: str) -> str:
        self.required(name)
        return self.text(name)

    def decoded(self, name: str) -> Any:
        """The required field; of a text, what it is JSON of."""
        return decoded(self.required(name), f"the field '{self._field(name)}'")


def look_up(values: dict[str, Any], path: str) -> Any:
    """The field of this name, or that within others which the dots in it lead to."""
    while path not in values:
        outer, _, path = path.partition(".")
        inner = values.get(outer)
        if not path or not isinstance(inner, dict):
            return MISSING
        values = inner
    return values[path]


def _tools(record: Record, name: str = "tools") -> list[dict[str, Any]] | None:
    return read_tools(record.value(name), f"the field '{name}'")


def _messages(record: Record, tools_name: str = "tools") -> MessagesAndTools:
    tools = _tools(record, tools_name)
    return read_messages(record.decoded("messages"), "the field 'messages'", parameters_of(tools)), tools


def _conversations(record: Record) -> MessagesAndTools:
    tools = _tools(record)
    raw, what = record.decoded("conversations"), "the field 'conversations'"
    turns = read_messages(raw, what, parameters_of(tools), role_key="from", content_key="value")
    return _introduced(record, turns), tools


def _instruction(record: Record) -> MessagesAndTools:
    return [*_question(record), _answer(record)], None


def _reasoning(record: Record) -> MessagesAndTools:
    answer = _answer(record)
    reasoning = record.required_text("reasoning")
    if reasoning.strip():
        answer["reasoning_content"] = checked_text(reasoning, "the reasoning")
    return [*_question(record), answer], None


def _reasoning_as_text(record: Record) -> MessagesAndTools:
    """The reasoning before the answer, as Impruver writes it: for templates that know no `reasoning_content`."""
    messages, tools = _reasoning(record)
    reasoning = messages[-1].pop("reasoning_content", "")
    if reasoning:
        messages[-1]["content"] = f"<think>\n{reasoning}\n</think>\n\n{messages[-1]['content']}"
    return messages, tools


def _prompt_completion(record: Record) -> MessagesAndTools:
    """Answers within the prompt are not trained, unless their weight says so."""
    tools = _tools(record)
    prompt = _side(record, "prompt", "user", tools)
    for message in prompt:
        if message["role"] == "assistant":
            message.setdefault("weight", 0)
    return _introduced(record, prompt) + _side(record, "completion", "assistant", tools), tools


def _side(record: Record, name: str, role: str, tools: list[dict[str, Any]] | None) -> list[Message]:
    raw = _messages_in(record.required(name))
    if isinstance(raw, str):
        raw = [{"role": role, "content": raw}]
    return read_messages(raw, f"the field '{name}'", parameters_of(tools))


def _messages_in(value: Any) -> Any:
    """The messages that a text is JSON of, as a CSV file has them; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = read_json(value)
    except ValueError:
        return value
    are_messages = found and all(isinstance(message, dict) and "role" in message for message in found)
    return found if are_messages else value


def _question(record: Record) -> list[Message]:
    texts = record.required_text("instruction"), record.text("input")
    question = "\n".join(text for text in texts if text.strip())
    if not question:
        raise Malformed("empty_turn", "the instruction is empty")
    return [*_system(record), {"role": "user", "content": checked_text(question, "the instruction")}]


def _answer(record: Record) -> Message:
    output = record.required_text("output")
    if not output.strip():
        raise Malformed("empty_turn", "the output is empty")
    return {"role": "assistant", "content": checked_text(output, "the output")}


def _system(record: Record) -> list[Message]:
    system = record.text("system")
    if not system.strip():
        return []
    return [{"role": "system", "content": checked_text(system, "the system message")}]


def _introduced(record: Record, turns: list[Message]) -> list[Message]:
    """The turns after the record's system message; a `Malformed` if they begin with another one."""
    system = _system(record)
    if not system or not turns or turns[0]["role"] not in ("system", "developer"):
        return system + turns
    if turns[0]["content"] != system[0]["content"]:
        raise Malformed("two_systems", "the field 'system' and the first message are different system messages")
    return turns


def _dialogues(record: Record) -> list[Record]:
    """A record for each dialogue of a character."""
    raw = record.decoded("dialogues")
    dialogues = rows_of(raw, "chat", "the field 'dialogues'")
    if not dialogues:
        raise Malformed("no_answer", "the character has no dialogue")
    return [record.with_field("dialogue", dialogue) for dialogue in dialogues]


def _roleplay(record: Record) -> MessagesAndTools:
    """A dialogue with the character, who is introduced; a hash of both decides what else the introduction shows."""
    dialogue = record.value("dialogue")
    raw = dialogue.get("chat") if isinstance(dialogue, dict) else dialogue
    turns = read_messages(raw, "the dialogue", roles=_ROLE_PLAY)
    name, context, greeting = record.required_text("name"), record.required_text("context"), record.text("greeting")
    phrases = _RUSSIAN if _CYRILLIC.search(context) else _ENGLISH
    system = phrases.introduction.format(name=name, context=context)
    identity = json.dumps([name, context, greeting, turns], ensure_ascii=False)
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if greeting.strip() and int.from_bytes(digest[:8], "big") % SHARE == 0:
        system += f"\n{phrases.greeting}: {greeting}"
        turns.insert(0, {"role": "assistant", "content": checked_text(greeting, "the greeting")})
    example = record.value("example_dialogue")
    if example and int.from_bytes(digest[8:], "big") % SHARE == 0:
        system += f"\n{phrases.example}:" + _lines(example, phrases)
    return [{"role": "system", "content": checked_text(system, "the introduction")}, *turns], None


class _Phrases(NamedTuple):
    """How the introduction of a character is put."""

    introduction: str
    greeting: str
    example: str
    user: str
    character: str


_RUSSIAN = _Phrases("Ты {name}. {context}", "Приветствие", "Пример диалога", "Пользователь", "Персонаж")
_ENGLISH = _Phrases("You are {name}. {context}", "Greeting", "Example of a dialogue", "User", "Character")


def _lines(example: Any, phrases: _Phrases) -> str:
    example = _messages_in(example)
    if isinstance(example, str):
        return f"\n{example}"
    speakers = {"user": phrases.user, "assistant": phrases.character}
    messages = read_messages(example, "the field 'example_dialogue'", roles=_ROLE_PLAY)
    return "".join(f"\n{speakers.get(message['role'], phrases.user)}: {message['content']}" for message in messages)


def _itself(record: Record) -> list[Record]:
    return [record]


class Kind(NamedTuple):
    convert: Callable[[Record], MessagesAndTools]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    split: Callable[[Record], list[Record]] = _itself  # into those of one conversation each


KINDS = {
    "messages": Kind(_messages, ("messages",), ("tools",)),
    "instruction": Kind(_instruction, ("instruction", "output"), ("input", "system")),
    "conversations": Kind(_conversations, ("conversations",), ("system", "tools")),
    "prompt_completion": Kind(_prompt_completion, ("prompt", "completion"), ("system", "tools")),
    "reasoning": Kind(_reasoning, ("instruction", "reasoning", "output"), ("input", "system")),
    "reasoning_as_text": Kind(_reasoning_as_text, ("instruction", "reasoning", "output"), ("input", "system")),
    "roleplay": Kind(_roleplay, ("name", "context", "dialogues"), ("greeting", "example_dialogue"), _dialogues),
    "function_calls": Kind(partial(_messages, tools_name="functions"), ("messages", "functions")),
}
"""By their names, with the fields that they read."""


def reader_of(names: Iterable[str]) -> str | None:
    """The converter that reads records with these fields without a mapping: that of the most of them."""
    names = set(names)
    fitting = [name for name, kind in KINDS.items() if names.issuperset(kind.required)]
    return max(fitting, key=lambda name: len(KINDS[name].required), default=None)


def reader_hint(names: Iterable[str]) -> str:
    """Names that converter, at the end of a message about a field that is missing; empty if there is none."""
    reader = reader_of(names)
    return f"; --converter {reader} reads these as they are" if reader else ""
