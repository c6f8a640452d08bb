"""What of a message is in the characters that a template wrote for it."""

import json
from collections.abc import Iterator
from typing import Any

from lit_gpt.tokenizer.chat_template import strings_of
from utils.prepare.chat.conversation import Message

OPENING = "<think>"


def what_is_missing(message: Message, run: str, prompt: str = "") -> tuple[str, str] | None:
    """What of an answer is not in its run: a reason and a sentence; None if all is there.

    The prompt may have opened the thoughts with which the content begins.
    """
    squeezed = None
    for reason, wanted in _wanted(message):
        if wanted in run:
            continue
        if squeezed is None:
            opening = OPENING if prompt.rstrip().endswith(OPENING) else ""
            squeezed = "".join((opening + run).split())
        if "".join(wanted.split()) not in squeezed:
            return reason, f"the chat template writes {short(run)} for an answer with {short(wanted)}"
    if message.get("content") is None and run.lstrip().startswith("None"):
        return "content_missing", "the chat template writes None for an answer without text"
    return None


def _wanted(message: Message) -> Iterator[tuple[str, str]]:
    for text in texts_in(message.get("content")):
        yield "content_missing", text.strip()
    if reasoning := message.get("reasoning_content"):
        yield "reasoning_missing", reasoning.strip()
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        yield "tool_calls_missing", str(function.get("name", ""))
        if isinstance(arguments := function.get("arguments"), dict):
            for text in strings_of(arguments):
                yield "tool_calls_missing", json.dumps(text, ensure_ascii=False)[1:-1] if '"' in text else text


def texts_in(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def is_closed(message: Message, run: str, rest: str, closing: str) -> bool:
    """Whether something in the run follows the message's last words, or nothing follows them in the text either.

    `closing` is what usually does, for messages that end as it does: `>` before `<|im_end|>`.
    """
    return not rest.strip() or (own_text(message) != "" and not ends_open(message, run, closing))


def ends_open(message: Message, run: str, closing: str) -> bool:
    """Whether nothing but white space follows the message's last words in the run."""
    own, run = own_text(message), run.rstrip()
    if not own or not run.endswith(own):
        return False
    return not closing or not run.endswith(closing) or len(run) < len(own) + len(closing)


def own_text(message: Message) -> str:
    """The last words of a message that can be looked for: of its content, or the name of what it calls."""
    texts = [*texts_in(message.get("content")), *_names_of_calls(message)]
    return next((text.strip() for text in reversed(texts) if text.strip()), "")


def _names_of_calls(message: Message) -> list[str]:
    calls = message.get("tool_calls") or []
    return [str(call.get("function", call).get("name", "")) for call in calls]


def is_lost(content: str, text: str) -> bool:
    """Whether most words of a message are not in the text: some templates take single ones out, such as `/think`."""
    words, there = set(content.split()), set(text.split())
    missing = [word for word in words if word not in there and word not in text]
    return 2 * len(missing) >= len(words)


def short(text: str) -> str:
    """A text for a message of one line, cut in its middle."""
    return repr(text if len(text) <= 60 else f"{text[:40]}…{text[-15:]}")
