"""The texts of a conversation, to compare conversations by."""

import json

from utils.prepare.chat.conversation import Conversation

_REMEDIES = {
    "too_long": "raise --max_length",
    "template_refuses": "another --template may take it",
    "token_over_border": "take a --template of this tokenizer, which has the tokens that end its answers",
    "reasoning_missing": "take a --template that writes reasoning (the converter reasoning_as_text does without)",
    "tool_calls_missing": "take a --template that writes the calls of tools",
}


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
    """The first 80 characters of the prompt, in one line of valid Unicode."""
    return " ".join(prompt_of(conversation)[:80].encode("utf-8", "replace").decode().split())


def remedy(reason: str) -> str:
    """What to do where all conversations are left out for this reason, at the end of a message; empty if it is clear
    from what is wrong."""
    return f"; {_REMEDIES[reason]}" if reason in _REMEDIES else ""
