"""A conversation, and what decides its tokens."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Message = dict[str, Any]
"""As OpenAI writes it: `role` (system, developer, user, assistant, tool) and `content`, always text; where there are
any, `tool_calls` (`arguments` a dict), `tool_call_id`, `name`, `reasoning_content`, and `weight` 0 or 1 (0: an answer
that is not trained)."""

Targets = Literal["assistant", "last", "all"]
TooLong = Literal["turns", "drop"]


class Conversation(NamedTuple):
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    at: int  # the byte or row of the file where its record begins


class LeftOut(NamedTuple):
    """A record that becomes no conversation, a conversation that becomes no sample, or a text that is not wanted."""

    reason: str  # one word for counting, such as `no_answer`
    at: int  # the byte or row of the file where it begins
    detail: str  # for a person: what is wrong, or which document it repeats
    text: str = ""  # how it begins


def remedy(reason: str) -> str:
    """What to do where all conversations are left out for this reason, at the end of a message; empty if it is clear
    from what is wrong."""
    return f"; {_REMEDIES[reason]}" if reason in _REMEDIES else ""


_REMEDIES = {
    "too_long": "raise --max_length",
    "template_refuses": "another --template may take it",
    "token_over_border": "take a --template of this tokenizer, which has the tokens that end its answers",
    "reasoning_missing": "take a --template that writes reasoning (the converter reasoning_as_text does without)",
    "tool_calls_missing": "take a --template that writes the calls of tools",
}


@dataclass(frozen=True)
class ChatRecipe:
    """What decides the tokens of a conversation, beside the tokenizer."""

    template: str  # the Jinja source
    targets: Targets
    too_long: TooLong
    system: str | None  # the system message of conversations that have none


@dataclass(frozen=True)
class Converter:
    """How the records of a dataset become conversations."""

    name: str  # of a shipped one (`messages`, `instruction`, …), or `module:function` of the user's own
    # what the converter reads → the record's field that has it, `a.b` for one within another; of several for one, the
    # first that holds something
    mapping: tuple[tuple[str, str], ...] = ()
    keep: tuple[tuple[str, tuple[str, ...]], ...] = ()  # a field → its values to keep; other records are left out
    without: tuple[str, ...] = ()  # lower-case texts: a conversation with an answer that holds one is left out


class Fields(NamedTuple):
    """The fields of records that a converter reads; those within others by their path, `a.b`."""

    required: tuple[str, ...]
    optional: tuple[str, ...] | None = ()  # read where a file has them; None: every field is read
