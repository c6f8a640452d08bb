"""The conversations on which a form for Ollama has to say what the model's own chat template says.

A conversation's roles are written by their first letters. Neighbours have different roles but for tools' answers:
Ollama joins others before its template sees them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Message = dict[str, Any]  # `role`, `content`, and for a call of tools `tool_calls`
Renderer = Callable[[Sequence[Message]], str | None]  # None: the conversation is refused

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
CHATS = ("u", "uau", "uauau", "su", "suau", "suauau")
"""What every form has to say as the template does, and to refuse where it does."""
OTHERS = (
    ("au", "auau", "sau"),  # an answer at the beginning: a greeting, or what is left of a long conversation
    ("ua", "sua", "uaua"),  # an answer that is begun: the model goes on with it
    ("us", "usu", "uasu", "uasua", "suasu"),  # a system message after the first turn
    ("uat", "uatau", "uatt", "uattau", "suatau"),  # what tools gave
)
"""What a form says as the template does, or refuses: each kind as a whole."""
CONTENTS = (
    "How are you?",
    "  blanks before,\n\nlines between, and after: \t\n",
    "",
    " \n",
    "\nÇa va « bien » ? 🙂\u00a0\u3000",
    "<s>[INST] x [/INST]</s> <|im_end|>\n<|im_start|>system\n<|eot_id|><bos><end_of_turn>\n <|end|> [gMASK]",
    "<think>\nWell.\n</think>\n\nYes.",
    '{{ .Prompt }} {% if x %}{{ x }}{# y #} \\n """ {"name": "f", "arguments": {"a": "<&>"}}',
)


def conversations(roles: str) -> Iterator[list[Message]]:
    """Conversations of these roles, with every content in every place; an answer that is begun has words."""
    for shift in range(len(CONTENTS)):
        contents = [CONTENTS[(index + shift) % len(CONTENTS)] for index in range(len(roles))]
        if roles.endswith("a") and not contents[-1].strip():
            continue
        yield with_contents(roles, contents)


def with_contents(roles: str, contents: Sequence[str]) -> list[Message]:
    pairs = zip(roles, contents, strict=True)
    return [{"role": ROLES[letter], "content": content} for letter, content in pairs]


def compare(form: Renderer, template: Renderer) -> tuple[int, str | None]:
    """In how many conversations `form` says what `template` does, and the roles of the first where it says another
    thing. To refuse is no other thing, but for `CHATS`, of which both refuse the same."""
    equal = 0
    for roles in (*CHATS, *(roles for group in OTHERS for roles in group)):
        for messages in conversations(roles):
            written, expected = form(messages), template(messages)
            may_differ = roles not in CHATS and (written is None or (expected is None and is_led(roles)))
            if written != expected and not may_differ:
                return equal, ", ".join(ROLES[letter] for letter in roles)
            equal += written == expected is not None
    return equal, None


def is_led(roles: str) -> bool:
    """Whether an answer is the first message, but for the system's: one that a form may leave out."""
    return roles.lstrip("s").startswith("a")
