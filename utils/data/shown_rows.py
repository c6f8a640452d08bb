"""Rows for a person to read: every token's text, with what it is, special tokens by their names."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.parts import PARTS, TARGET
from utils.data.shards import Row

FIRST, REPEATED = "first", "repeated"
REASONS = {
    "target": "predicted, so it is trained",
    FIRST: "a text's first token: nothing is before it to predict it from",
    REPEATED: "left context, which is predicted in another row",
    "template": "written by the chat template",
    "system": "a system message",
    "user": "a user's message",
    "tool": "a tool's message",
    "weight_0": "an answer whose message has the weight 0",
    "earlier_answer": "an earlier answer, which another sample is for",
}
"""Why a token is a target or not, for the legend."""
MARKS = "Targets are between ⟦ and ⟧, and ↵ is a line feed. What a token is:"

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # they would change the order of all that follows them
_UNSEEN = {code: f"\\x{code:02x}" for code in (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0))}
_UNSEEN |= {code: f"\\u{code:04x}" for code in _BIDI}
_BROKEN = "\ufffd"  # what a part of a character is decoded to
_MOST_OF_CHARACTER = 4  # tokens: each has at least one of its bytes


def visible(text: str) -> str:
    """Control characters, but for tabs and line feeds, as their numbers: a terminal would obey them."""
    return text.translate(_UNSEEN)


class Mark(NamedTuple):
    """Tokens that follow each other and are the same."""

    label: str  # a key of REASONS
    text: str

    @property
    def marked(self) -> str:
        text = self.text.replace("\n", "↵\n").removesuffix("\n")
        return f"⟦{text}⟧" if self.label == "target" else text


class ShownSegment(NamedTuple):
    number: int  # in its row, from 1 on
    tokens: int
    counts: Counter[str]  # its tokens by label
    marks: list[Mark]

    @property
    def title(self) -> str:
        others = [f"{count:,} {label}" for label, count in self.counts.items() if label != "target"]
        title = f"segment {self.number:,}: {self.tokens:,} tokens, {self.counts['target']:,} of them targets"
        return f"{title}; others: {', '.join(others)}" if others else title


class Shown(NamedTuple):
    """A row, one segment of it, or what a report names."""

    title: str
    text: str
    segments: list[ShownSegment]
    rest: list[str]  # lines that follow the segments


class RowShower:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = {tokenizer.token_id(name): name for name in tokenizer.control_tokens}
        self._letter = tokenizer.encode("a")[-1:]

    def segments(self, row: Row) -> Iterator[ShownSegment]:
        begin = 0
        for number, (length, overlap) in enumerate(zip(row.segment_lengths, row.segment_overlaps, strict=True), 1):
            labels = (
                np.full(length, TARGET) if row.parts is None else row.parts[begin : begin + length].astype(np.int64)
            )
            labels[: overlap - 1] = len(PARTS)
            labels[overlap - 1] = len(PARTS) + (overlap == 1)
            tokens = row.tokens[begin : begin + length].tolist()
            yield self._segment(number, tokens, labels)
            begin += length

    def _segment(self, number: int, tokens: list[int], labels: np.ndarray) -> ShownSegment:
        names = (*PARTS, REPEATED, FIRST)
        edges = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist(), len(tokens)]
        counts = Counter({names[label]: count for label, count in enumerate(np.bincount(labels).tolist()) if count})
        marks = []
        begin = 0
        for edge in edges[1:]:
            end = max(edge, begin)
            while end < min(edge + _MOST_OF_CHARACTER, len(tokens)) and self._cuts_character(tokens, begin, end):
                end += 1
            if end > begin:
                pieces = [self._tokenizer.vocabulary[token] for token in tokens[begin:end]]
                text = self._text(tokens, begin, end) or "".join(pieces)  # a blank at the text's begin has no text
                marks.append(Mark(names[labels[edge - 1]], text))
            begin = end
        return ShownSegment(number, len(tokens), counts, marks)

    def _cuts_character(self, tokens: list[int], begin: int, end: int) -> bool:
        """Whether a character has tokens before `end` and from it on; it is then shown with those before."""
        before = self._text(tokens, begin, end)
        if not before.endswith(_BROKEN):
            return False
        more = self._text(tokens, begin, min(end + _MOST_OF_CHARACTER, len(tokens)))
        return not more.startswith(before)

    def _text(self, tokens: list[int], begin: int, end: int) -> str:
        """The text of tokens `begin` to `end` as it is in the text of all."""
        texts = []
        plain: list[int] = []
        follows = any(token not in self._names for token in tokens[:begin])
        for token in tokens[begin:end]:
            if token not in self._names:
                plain.append(token)
                continue
            texts += [self._decode(plain, follows), self._names[token]]
            follows = follows or bool(plain)
            plain = []
        return visible("".join([*texts, self._decode(plain, follows)]))

    def _decode(self, tokens: list[int], follows: bool) -> str:
        """The text of tokens; after others, where a leading blank is one, and none at the text's begin."""
        if not follows:
            return self._tokenizer.decode(tokens)
        letter = self._tokenizer.decode(self._letter)
        text = self._tokenizer.decode([*self._letter, *tokens])
        return text.removeprefix(letter) if text.startswith(letter) else self._tokenizer.decode(tokens)


def segment_text(segment: ShownSegment) -> str:
    """A title with the counts, and each mark's text beside its label; targets are between ⟦ and ⟧."""
    lines = [f"── {segment.title}"]
    width = max(map(len, REASONS))
    for mark in segment.marks:
        label = mark.label
        for line in mark.marked.split("\n"):
            lines.append(f"{label:<{width}} │{line}")
            label = ""
    return "\n".join(lines)


def legend() -> str:
    lines = [MARKS]
    width = max(map(len, REASONS))
    lines += [f"  {label:<{width}}  {reason}" for label, reason in REASONS.items()]
    return "\n".join(lines)
