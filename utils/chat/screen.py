"""What is shown of answers: in a terminal with colours and in columns, in a file plainly."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from utils.chat.cells import next_row, width_of
from utils.chat.conversation import Conversation
from utils.chat.parts import SAID, Part

WIDE = 100  # cells, from which on two answers stand side by side
_BAR = " │ "
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# a model may write what would move the cursor, or colour the screen
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal() -> bool:
    return sys.stdout.isatty()


def columns() -> int:
    """The terminal's width now: it may have been resized since."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stdout.fileno()).columns
    return 80


def dimmed(text: str) -> str:
    has_colours = is_terminal() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"{_DIM}{text}{_PLAIN}" if has_colours and text else text


def note(text: str) -> None:
    """Says something that no model said: in a terminal between the answers, else on stderr."""
    print(dimmed(f"  {text}"), file=sys.stdout if is_terminal() else sys.stderr, flush=True)


class Labels:
    """Writes the parts of an answer one after the other: what is not said gets its kind as a label."""

    def __init__(self) -> None:
        self._kind = SAID
        self._changed = False
        self._at_line_start = True

    def push(self, part: Part) -> str:
        text = part.text
        before = ""
        if part.kind != self._kind:
            self._kind, self._changed = part.kind, True
            before = ("" if self._at_line_start else "\n") + (f"[{part.kind}] " if part.kind else "")
            self._at_line_start = False
        if self._changed:  # what the marks had around them
            text = text.lstrip()
            self._changed = not text
        if text:
            self._at_line_start = text.endswith("\n")
        return before + text


def show_answer(conversation: Conversation) -> None:
    """Prints an answer as it comes."""
    labels, shown = Labels(), ""
    try:
        for part in conversation.parts():
            text = labels.push(part)
            if is_terminal():
                text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
            shown += text
            print(dimmed(text) if part.kind else text, end="", flush=True)
    except KeyboardInterrupt:
        print()  # after the ^C that a terminal writes
        raise
    print(end="" if shown.endswith("\n") else "\n", flush=True)


def show_answers(conversations: Sequence[Conversation]) -> None:
    """Prints what each model answers: side by side if the terminal is wide, else one under the other."""
    if len(conversations) == 1:
        bot = conversations[0].speaker.form.names[1]
        print(bot, end="", flush=True)
        show_answer(conversations[0])
    elif is_terminal() and columns() >= WIDE:
        show_columns(conversations)
    else:
        for conversation in conversations:
            print(dimmed(f"── {conversation.speaker.label}"), flush=True)
            show_answer(conversation)


def show_columns(conversations: Sequence[Conversation]) -> None:
    """Prints answers beside each other, row by row, as soon as all of a row is there."""
    labels = [Labels() for _ in conversations]
    streams: list[Iterator[Part] | None] = [conversation.parts() for conversation in conversations]
    texts = [""] * len(streams)
    header = [f"── {conversation.speaker.label}" for conversation in conversations]
    _print_row([_shortened(label, _column_width(len(streams))) for label in header])
    try:
        while any(streams):
            for index, stream in enumerate(streams):
                part = next(stream, None) if stream else None
                if part is None:
                    streams[index] = None
                else:
                    text = labels[index].push(part).expandtabs(4)
                    texts[index] += _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
            texts = _print_decided(texts, [stream is None for stream in streams])
    except KeyboardInterrupt:
        print()
        _print_decided(texts, [True] * len(texts))
        raise
    _print_decided(texts, [True] * len(texts))


def _print_decided(texts: list[str], ended: list[bool]) -> list[str]:
    """Prints the rows of which every column is known; returns what is left of the texts."""
    while any(texts):
        width = _column_width(len(texts))
        rows = [next_row(text, width, is_whole) for text, is_whole in zip(texts, ended, strict=True)]
        undecided = [row is None and not is_whole for row, is_whole in zip(rows, ended, strict=True)]
        if any(undecided):
            break
        _print_row([row[0] if row else "" for row in rows])
        texts = [row[1] if row else "" for row in rows]
    return texts


def _column_width(count: int) -> int:
    return max(10, (columns() - 1 - len(_BAR) * (count - 1)) // count)


def _print_row(texts: list[str]) -> None:
    width = _column_width(len(texts))
    padded = [text + " " * (width - width_of(text)) for text in texts]
    print(_BAR.join(padded).rstrip(), flush=True)


def _shortened(text: str, width: int) -> str:
    """The end of a text that is too long: paths differ there."""
    while width_of(text) > width:
        text = "…" + text[2:]
    return text
