"""A record of a dataset → its conversation, by the converter's name; or what is wrong with it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from lit_gpt.errors import DataError, UserError
from utils.prepare.chat.conversation import Conversation, Converter, Fields, LeftOut, Message
from utils.prepare.chat.json_values import Malformed, kind_of, listed, plain_text
from utils.prepare.chat.kinds import KINDS, MISSING, Kind, MessagesAndTools, Record, look_up
from utils.prepare.chat.own_converter import convert_own, is_own, load_own, own_source
from utils.prepare.chat.texts import printable

Convert = Callable[[Any, int], list[Conversation | LeftOut]]
"""A record and the byte or row of the file where it is → its conversations: one, but for `roleplay`."""

MOST_FAILURES = 20  # of a converter of the user's own, on the first records of a block


def fields_of(converter: Converter) -> Fields:
    """What a converter reads: what it must have and what is mapped is required, and what a filter looks at."""
    paths = _paths_of(converter)
    required = [field for field, _ in converter.keep]
    if is_own(converter.name):
        return Fields(tuple(required), None)
    optional = []
    kind = _kind_of(converter)
    for name in kind.required + kind.optional:
        candidates = paths.get(name, (name,))
        is_required = len(candidates) == 1 and (name in kind.required or name in paths)
        (required if is_required else optional).extend(candidates)
    return Fields(tuple(dict.fromkeys(required)), tuple(dict.fromkeys(optional)))


def _kind_of(converter: Converter) -> Kind:
    if converter.name not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"there is no converter '{converter.name}' but {known}, text, and module:function of your own")
    return KINDS[converter.name]


def _paths_of(converter: Converter) -> dict[str, tuple[str, ...]]:
    """The fields that each mapped name may be in; a UserError if the converter reads no such name."""
    if is_own(converter.name):
        if converter.mapping:
            raise UserError(f"mapping: the converter '{converter.name}' gets the whole record; it needs none")
        return {}
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
    paths = _paths_of(converter)
    if is_own(converter.name):
        kind = Kind(partial(convert_own, load_own(converter.name)), required=())
    else:
        kind = _kind_of(converter)
    return partial(_converted, converter, kind, paths)


def identity_of(converter: Converter) -> dict[str, Any]:
    """All that decides what a converter makes, for a fingerprint: the code of the user's own too."""
    code = own_source(converter.name) if is_own(converter.name) else ""
    return {**asdict(converter), "code": code}


def _converted(
    converter: Converter, kind: Kind, paths: dict[str, tuple[str, ...]], values: Any, at: int
) -> list[Conversation | LeftOut]:
    try:
        _require_kept(values, converter)
        parts = kind.split(Record(values, paths))
    except Malformed as problem:
        return [_left_out(problem, values, at)]
    return [_conversation(kind.convert, part, converter, values, at) for part in parts]


def _conversation(
    convert: Callable[[Any], MessagesAndTools], part: Any, converter: Converter, values: Any, at: int
) -> Conversation | LeftOut:
    try:
        messages, tools = convert(part)
        _require_answer(messages, converter.without)
    except Malformed as problem:
        return _left_out(problem, values, at)
    return Conversation(messages, tools, at)


def convert_records(
    convert: Convert, records: Iterable[tuple[Any, int]], where: str
) -> tuple[list[Conversation], list[LeftOut]]:
    """The conversations of a block's records, and what was left out: each record is in one of them.

    A DataError, which names `where` they are, if a converter of the user's own fails on each of a block's first ones.
    """
    conversations: list[Conversation] = []
    left_out: list[LeftOut] = []
    failures = 0
    for number, (record, at) in enumerate(records):
        for found in convert(record, at):
            if isinstance(found, Conversation):
                conversations.append(found)
                continue
            left_out.append(found)
            failures += number < MOST_FAILURES and found.reason == "converter_failed"
        if failures == MOST_FAILURES:
            detail = left_out[-1].detail
            raise DataError(f"{where}: the converter fails on {MOST_FAILURES} records, one after the other: {detail}")
    return conversations, left_out


def _require_kept(values: Any, converter: Converter) -> None:
    if not isinstance(values, dict):
        raise Malformed("wrong_type", f"{kind_of(values)}, where a record should be")
    for field, wanted in converter.keep:
        value = look_up(values, field)
        if value is MISSING:
            raise Malformed("no_field", f"no field '{field}' among {listed(values)}, which a filter looks at")
        text = plain_text(value)
        if text not in wanted:
            raise Malformed("filtered", f"the field '{field}' is {text[:40]!r}")


def _require_answer(messages: list[Message], unwanted: tuple[str, ...]) -> None:
    for message in messages:
        if message["role"] == "assistant" and message.get("weight", 1):
            break
    else:
        raise Malformed("no_answer", "no answer of the assistant to train on")
    for message in messages if unwanted else ():
        if message["role"] != "assistant":
            continue
        answer = f"{message.get('reasoning_content', '')}\n{message['content']}".lower()
        found = next((text for text in unwanted if text in answer), None)
        if found is not None:
            raise Malformed("unwanted_text", f"an answer holds {found[:40]!r}")


def _left_out(problem: Malformed, values: Any, at: int) -> LeftOut:
    return LeftOut(problem.reason, at, printable(problem.detail[:300]), _beginning(values))


def _beginning(value: Any) -> str:
    """The first 80 characters of the first text in a record."""
    for _ in range(20):
        if isinstance(value, dict):
            texts = [value[key] for key in ("content", "value", "text") if isinstance(value.get(key), str)]
            inner = [item for item in value.values() if isinstance(item, list | dict)]
            others = [item for item in value.values() if isinstance(item, str) and item]
            value = (texts or inner or others or [""])[0]
        elif isinstance(value, list):
            value = value[0] if value else ""
    return printable(value[:80]) if isinstance(value, str) else ""
