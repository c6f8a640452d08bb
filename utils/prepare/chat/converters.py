"""A record of a dataset → its conversation, by the converter's name; or what is wrong with it.

A converter reads fields by names of its own, which `Converter.mapping` leads to the record's. All go through
`messages.py`, which alone decides what a message may be.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lit_gpt.errors import UserError
from utils.prepare.chat.conversation import Conversation, Converter, Fields, LeftOut, Message
from utils.prepare.chat.json_values import Malformed, kind_of, listed, read_json
from utils.prepare.chat.messages import read_messages
from utils.prepare.chat.tool_calls import parameters_of, read_tools

Convert = Callable[[Any, int], list[Conversation | LeftOut]]
"""A record and the byte or row of the file where it is → its conversations: one, but for `roleplay`."""

_Chat = tuple[list[Message], list[dict[str, Any]] | None]
_MISSING = object()


class Record:
    """The fields of a record by the names that a converter has for them."""

    def __init__(self, values: dict[str, Any], paths: dict[str, tuple[str, ...]]) -> None:
        self._values, self._paths = values, paths

    def value(self, name: str) -> Any:
        """The field; null if there is none, a text that is empty if all that it may be in are."""
        found = None
        for path in self._paths.get(name, (name,)):
            value = look_up(self._values, path)
            if value is not _MISSING and value is not None:
                found = value
                if value != "":
                    break
        return found

    def required(self, name: str) -> Any:
        value = self.value(name)
        if value is None:
            path = " or ".join(self._paths.get(name, (name,)))
            raise Malformed("no_field", f"no field '{path}' among {listed(self._values)}")
        return value

    def text(self, name: str) -> str:
        """The field's text, empty if there is none."""
        value = self.value(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Malformed("wrong_type", f"the field '{name}' is {kind_of(value)}, no text")
        return value

    def required_text(self, name: str) -> str:
        self.required(name)
        return self.text(name)

    def decoded(self, name: str) -> Any:
        """The required field; of a text, what it is JSON of."""
        value = self.required(name)
        if not isinstance(value, str):
            return value
        try:
            return read_json(value)
        except ValueError as e:
            raise Malformed("broken_json", f"the field '{name}' is no JSON: {str(e)[:80]}") from None


def look_up(values: dict[str, Any], path: str) -> Any:
    """The field of this name, or that within others which the dots in it lead to."""
    while path not in values:
        outer, _, path = path.partition(".")
        inner = values.get(outer)
        if not path or not isinstance(inner, dict):
            return _MISSING
        values = inner
    return values[path]


class _Kind(NamedTuple):
    convert: Callable[[Record], _Chat]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def _messages(record: Record) -> _Chat:
    tools = read_tools(record.value("tools"), "the field 'tools'")
    return read_messages(record.decoded("messages"), "the field 'messages'", parameters_of(tools)), tools


def _instruction(record: Record) -> _Chat:
    question = _joined(record.required_text("instruction"), record.text("input"))
    answer = {"role": "assistant", "content": record.required_text("output")}
    return _with_system(record, [{"role": "user", "content": question}, answer]), None


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text.strip())


def _with_system(record: Record, turns: list[Message]) -> list[Message]:
    system = record.text("system")
    first = [{"role": "system", "content": system}] if system.strip() else []
    return read_messages(first + turns, "the conversation")


_KINDS = {
    "messages": _Kind(_messages, ("messages",), ("tools",)),
    "instruction": _Kind(_instruction, ("instruction", "output"), ("input", "system")),
}


def fields_of(converter: Converter) -> Fields:
    """What a converter reads: what it must have and what is mapped is required, and what a filter looks at."""
    kind = _kind_of(converter)
    paths = _paths_of(converter)
    required, optional = [field for field, _ in converter.keep], []
    for name in kind.required + kind.optional:
        candidates = paths.get(name, (name,))
        is_required = len(candidates) == 1 and (name in kind.required or name in paths)
        (required if is_required else optional).extend(candidates)
    return Fields(tuple(dict.fromkeys(required)), tuple(dict.fromkeys(optional)))


def _kind_of(converter: Converter) -> _Kind:
    if converter.name not in _KINDS:
        raise UserError(f"there is no converter '{converter.name}' but {', '.join(_KINDS)}, text, and module:function")
    return _KINDS[converter.name]


def _paths_of(converter: Converter) -> dict[str, tuple[str, ...]]:
    """The fields that each mapped name may be in; a UserError if the converter reads no such name."""
    kind = _kind_of(converter)
    known = kind.required + kind.optional
    paths: dict[str, tuple[str, ...]] = {}
    for name, path in converter.mapping:
        if name not in known:
            raise UserError(f"mapping: the converter '{converter.name}' reads {', '.join(known)}, not '{name}'")
        paths[name] = (*paths.get(name, ()), path)
    return paths


def make_converter(converter: Converter) -> Convert:
    """A UserError if there is no such converter, or its mapping names what it does not read."""
    kind = _kind_of(converter)
    paths = _paths_of(converter)
    unwanted = tuple(text.lower() for text in converter.without)

    def convert(values: Any, at: int) -> list[Conversation | LeftOut]:
        try:
            if not isinstance(values, dict):
                raise Malformed("wrong_type", f"{kind_of(values)}, where a record should be")
            _require_kept(values, converter)
            messages, tools = kind.convert(Record(values, paths))
            _require_answer(messages, unwanted)
        except Malformed as problem:
            return [LeftOut(problem.reason, at, _printable(problem.detail), _beginning(values))]
        return [Conversation(messages, tools, at)]

    return convert


def convert_records(convert: Convert, records: Iterable[tuple[Any, int]]) -> tuple[list[Conversation], list[LeftOut]]:
    """The conversations of records, and what was left out: each record is in one of them."""
    conversations, left_out = [], []
    for record, at in records:
        for found in convert(record, at):
            if isinstance(found, Conversation):
                conversations.append(found)
            else:
                left_out.append(found)
    return conversations, left_out


def _require_kept(values: dict[str, Any], converter: Converter) -> None:
    for field, wanted in converter.keep:
        value = look_up(values, field)
        if value is _MISSING:
            raise Malformed("no_field", f"no field '{field}' among {listed(values)}, which a filter looks at")
        if not isinstance(value, str):
            value = json.dumps(value) if isinstance(value, bool | int | float | None) else kind_of(value)
        if value not in wanted:
            raise Malformed("filtered", f"the field '{field}' is {value[:40]!r}")


def _require_answer(messages: list[Message], unwanted: tuple[str, ...]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message.get("weight", 1) for message in answers):
        raise Malformed("no_answer", "no answer of the assistant to train on")
    if not unwanted:
        return
    for message in answers:
        answer = f"{message.get('reasoning_content', '')}\n{message['content']}".lower()
        found = next((text for text in unwanted if text in answer), None)
        if found is not None:
            raise Malformed("unwanted_text", f"an answer holds {found[:40]!r}")


def _beginning(value: Any) -> str:
    """The first 80 characters of the first text in a record."""
    for _ in range(20):
        if isinstance(value, dict):
            texts = [value[key] for key in ("content", "value") if isinstance(value.get(key), str)]
            inner = [item for item in value.values() if isinstance(item, list | dict)]
            others = [item for item in value.values() if isinstance(item, str) and item]
            value = (texts or inner or others or [""])[0]
        elif isinstance(value, list):
            value = value[0] if value else ""
    return _printable(value[:80]) if isinstance(value, str) else ""


def _printable(text: str) -> str:
    """Text that a report can hold: one line of valid Unicode."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
