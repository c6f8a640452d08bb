"""Messages as data sets write them → messages as OpenAI writes them.

What is not understood is a `Malformed` that names the message, counted from 1; nothing is guessed.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from utils.prepare.chat.conversation import Message
from utils.prepare.chat.json_values import Malformed, checked_text, checked_value, is_text, kind_of, listed
from utils.prepare.chat.tool_calls import Parameters, read_calls

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""What data sets call the roles. A `function_call` is an assistant's message whose content is a call of a tool."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "train", "training", "trainable")  # OpenAI's, and the names that other trainers have for it
_NOT_TEXT = ("images", "image", "image_url", "audio", "audios", "video", "videos")


def read_messages(
    raw: Any,
    what: str,
    parameters: Mapping[str, Parameters] | None = None,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
) -> list[Message]:
    """The messages of a list, or of columns such as `{role: […], content: […]}`.

    Args:
        what: names the list, for a person.
        parameters: of the tools that the conversation has.
    """
    parameters = parameters or {}
    found: list[Message] = []
    has_answers_of_tools = False
    for number, value in enumerate(rows_of(raw, content_key, what), start=1):
        if not isinstance(value, dict):
            raise Malformed("wrong_type", f"message {number} is {kind_of(value)}, no message")
        name = value.get(role_key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is None:
            role = _role(value, role_key, number, roles)
        if role == "function_call":
            _add_calls(found, value, content_key, parameters, number)
            continue
        content = value.get(content_key)
        if not isinstance(content, str) or not content:
            content = _content(content, value, content_key, role, number)
        if not is_text(content):
            checked_text(content, f"message {number}")
        message: Message = {"role": role, "content": content}
        if len(value) > 2 or content_key not in value:
            _add_others(message, value, parameters, number)
        if role in ("user", "assistant") and not content.strip() and "tool_calls" not in message:
            raise Malformed("empty_turn", f"message {number}, of the {role}, is empty")
        has_answers_of_tools |= role == "tool"
        found.append(message)
    if has_answers_of_tools:
        _match_ids(found)
    return found


def rows_of(raw: Any, column: str, what: str) -> list[Any]:
    """A list itself; of columns, one of which is `column`, their rows."""
    if isinstance(raw, list):
        return raw
    if not isinstance(raw, dict) or column not in raw:
        raise Malformed("wrong_type", f"{what} is {kind_of(raw)}, where a list should be")
    columns = {key: column for key, column in raw.items() if column is not None}
    for key, column in columns.items():
        if not isinstance(column, list):
            raise Malformed("wrong_type", f"the column '{key}' of {what} is {kind_of(column)}, no list")
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{key} {length}" for key, length in islice(lengths.items(), 10))
        raise Malformed("unequal_columns", f"the columns of {what} have unequal lengths: {sizes}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _role(value: dict[str, Any], role_key: str, number: int, roles: Mapping[str, str]) -> str:
    """The role that an unusual name stands for."""
    name = value.get(role_key)
    if not isinstance(name, str):
        if role_key not in value:
            raise Malformed("no_field", f"message {number} has no '{role_key}' among {listed(value)}")
        raise Malformed("wrong_type", f"the '{role_key}' of message {number} is {kind_of(name)}")
    role = roles.get(name[:40].strip().lower())
    if role is None:
        raise Malformed("unknown_role", f"message {number} has the role {name[:40]!r}")
    return role


def _content(content: Any, value: dict[str, Any], content_key: str, role: str, number: int) -> str:
    """The text of a content that is none, or empty; null is an empty text, since templates would write `None`."""
    if content is None:
        if content_key not in value and "tool_calls" not in value and "function_call" not in value:
            raise Malformed("no_field", f"message {number} has no '{content_key}' among {listed(value)}")
        return ""
    if isinstance(content, str):
        return content
    if role == "tool" and isinstance(content, dict | list) and not _has_parts(content):
        return json.dumps(checked_value(content, f"message {number}", None), ensure_ascii=False)
    if isinstance(content, list):
        return _joined(content, number)
    raise Malformed("wrong_type", f"the '{content_key}' of message {number} is {kind_of(content)}, no text")


def _has_parts(content: dict[str, Any] | list[Any]) -> bool:
    """Whether a tool's answer is made of parts such as `{"type": "text", "text": …}`, and not what the tool found."""
    return isinstance(content, list) and any(isinstance(part, dict) and "type" in part for part in content)


def _joined(parts: list[Any], number: int) -> str:
    """The parts of a content, a line each, as vLLM and llama.cpp join them for a template that takes one text."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise Malformed("wrong_type", f"a part of message {number} is {kind_of(part)} without a type")
        if kind not in _TEXT_PARTS:
            raise Malformed("not_text", f"message {number} has a part of the type {kind[:40]!r}")
        if not isinstance(part.get("text"), str):
            raise Malformed("wrong_type", f"a part of message {number} is {kind_of(part.get('text'))}, no text")
        texts.append(part["text"])
    return "\n".join(texts)


def _add_others(message: Message, value: dict[str, Any], parameters: Mapping[str, Parameters], number: int) -> None:
    """Adds what is in a message beside its role and content; a `Malformed` if that is not understood."""
    for key in _NOT_TEXT:
        if value.get(key):
            raise Malformed("not_text", f"message {number} has '{key}'")
    calls = read_calls(value.get("tool_calls") or value.get("function_call"), parameters, number)
    if message["role"] == "assistant":
        _add_reasoning(message, value, number)
    elif calls:
        raise Malformed("wrong_type", f"message {number}, of the {message['role']}, calls a tool")
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if value.get(key):
            message[key] = _text(value[key], f"the '{key}' of message {number}")
    _add_weight(message, value, number)


def _add_reasoning(message: Message, value: dict[str, Any], number: int) -> None:
    for key in _REASONING:
        if value.get(key):
            message["reasoning_content"] = _text(value[key], f"the '{key}' of message {number}")
            return


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Malformed("wrong_type", f"{what} is {kind_of(value)}, no text")
    return checked_text(value, what)


def _add_weight(message: Message, value: dict[str, Any], number: int) -> None:
    given = [(key, value[key]) for key in _WEIGHTS if value.get(key) is not None]
    for key, weight in given:
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise Malformed("wrong_type", f"the '{key}' of message {number} is neither 0 nor 1")
        if message.setdefault("weight", int(weight)) != weight:
            raise Malformed("wrong_type", f"the '{key}' of message {number} is not its '{given[0][0]}'")


def _add_calls(
    found: list[Message],
    value: dict[str, Any],
    content_key: str,
    parameters: Mapping[str, Parameters],
    number: int,
) -> None:
    """Adds the calls in a message's content to the assistant's message before it, or as a message of their own."""
    calls = read_calls(value.get(content_key), parameters, number)
    if not calls:
        raise Malformed("empty_turn", f"message {number}, the call of a tool, is empty")
    message: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    _add_weight(message, value, number)
    before = found[-1] if found else {}
    if before.get("role") == "assistant" and before.get("weight", 1) == message.get("weight", 1):
        before.setdefault("tool_calls", []).extend(calls)
    else:
        found.append(message)


def _match_ids(messages: list[Message]) -> None:
    """Gives a tool's answer the id of the only call it can answer; a `Malformed` if it names one that was not made."""
    calls: list[dict[str, Any]] = []
    ids: set[str | None] = set()
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            ids = {call.get("id") for call in calls}
        elif message["role"] == "tool" and calls:
            answered = message.get("tool_call_id")
            if answered is None and len(calls) == 1 and None not in ids:
                message["tool_call_id"] = calls[0]["id"]
            elif answered is not None and None not in ids and answered not in ids:
                raise Malformed(
                    "unknown_call", f"message {number} answers the call {answered[:40]!r}, which was not made"
                )
