"""The texts of a conversation, to compare and to name it by."""

import json

from utils.prepare.chat.conversation import Conversation


def prompt_of(conversation: Conversation) -> str:
    """What the user asks first; where no user asks, all that is said.

    Without the system message: one question under two system messages is one prompt, and two questions under one long
    system message are two.
    """
    for message in conversation.messages:
        if message["role"] == "user" and message["content"].strip():
            return message["content"]
    return "\n".join(texts_of(conversation))


def texts_of(conversation: Conversation) -> list[str]:
    """All that is said: of every message its reasoning, its text, and the arguments of the tools that it calls."""
    texts = []
    for message in conversation.messages:
        texts += [message.get("reasoning_content") or "", message["content"]]
        for call in message.get("tool_calls") or ():
            texts.append(json.dumps(call, ensure_ascii=False, sort_keys=True))
    return [text for text in texts if text]


def content_of(conversation: Conversation) -> str:
    """What two conversations are equal by: who says what, and the tools there are; not which answers are trained."""
    said = []
    for message in conversation.messages:
        others = [message.get(name) for name in ("reasoning_content", "tool_calls", "name")]
        said.append([message["role"], message["content"].strip(), *others])
    return json.dumps([said, conversation.tools], sort_keys=True)


def beginning(conversation: Conversation) -> str:
    return printable(prompt_of(conversation)[:80])


def printable(text: str) -> str:
    """Text that a report can hold: one line of valid Unicode."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
