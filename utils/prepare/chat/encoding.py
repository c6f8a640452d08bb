"""Conversations to tokens, each a target or not, for a reason; what is not proven is left out by name.

A conversation's text is rendered and tokenised once, whole; targets.py finds the runs of characters that are targets,
and proving.py proves the runs of tokens.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.special_tokens import HIDDEN
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.parts import TARGET
from utils.prepare.chat.alignment import Alignment
from utils.prepare.chat.conversation import ChatRecipe, Conversation, LeftOut
from utils.prepare.chat.proving import FastTokens, ProvingTokenizer
from utils.prepare.chat.targets import Chat, Sample, Unproven, find_samples, is_answer
from utils.prepare.chat.texts import printable

DATE = datetime(2024, 7, 26)
"""What templates that write today's date are told, so that the same input gives the same tokens on any day: the date
that Llama 3.1's template has where it is told none."""

MOST_MESSAGES = 1_000  # of a conversation: proving the runs of n messages renders n² / 2 of them


class EncodedChats(NamedTuple):
    tokens: np.ndarray  # [tokens] uint32
    parts: np.ndarray | None  # [tokens] uint8, numbers of PARTS; None where all are targets
    lengths: np.ndarray  # [samples] int64, 2 to `window`
    made_from: np.ndarray  # [samples] int64: number of the conversation of each sample, ascending
    left_out: list[LeftOut]  # conversations of which no sample was made
    messages: int  # messages of the conversations kept
    words: int  # what white space separates in the samples' text
    shortened: int  # conversations from whose end turns were left out
    turns_left_out: int  # answers in what was left out there
    named: Counter[str]  # names of control tokens in messages: they stay text
    text_bytes: int  # of the samples' text in UTF-8
    target_bytes: int  # of the text that is predicted


class _Made(NamedTuple):
    """What one conversation became."""

    ids: list[np.ndarray]  # of each sample
    parts: list[np.ndarray]
    chat: Chat  # what of it is in the samples
    answers_left_out: int
    words: int
    text_bytes: int
    target_bytes: int


class ChatEncoder:
    """Conversations to `EncodedChats`, by the tokenizer of `checkpoint_dir`, in samples of at most `window` tokens.

    A DataError for a template or tokenizer that cannot be used.
    """

    def __init__(self, checkpoint_dir: Path, recipe: ChatRecipe, window: int, fast: FastTokens | None = None) -> None:
        self._tokenizer, self._fast = Tokenizer(checkpoint_dir), fast
        self._template = ChatTemplate(self._tokenizer, recipe.template, now=lambda: DATE)
        self._recipe, self._window = recipe, window
        self._by_hidden: dict[bool, ProvingTokenizer] = {}

    def __call__(self, conversations: list[Conversation]) -> EncodedChats:
        """The samples of a block's conversations, in their order."""
        outcomes: list[_Made | Unproven | None] = [None] * len(conversations)
        chats: dict[int, Chat] = {}
        for number, conversation in enumerate(conversations):
            try:
                chat = Chat(self._template, conversation, self._recipe)
                chat.whole  # noqa: B018  rendered here, to be tokenised with the others
                chats[number] = chat
            except Unproven as e:
                outcomes[number] = e
        for number, alignment in self._encode_all(chats):
            try:
                outcomes[number] = self._make(chats[number], alignment)
            except Unproven as e:
                outcomes[number] = e
        return _gathered(conversations, outcomes)

    def _tokens(self, hidden: bool) -> ProvingTokenizer:
        if hidden not in self._by_hidden:
            self._by_hidden[hidden] = ProvingTokenizer(self._tokenizer, hidden, None if hidden else self._fast)
        return self._by_hidden[hidden]

    def _encode_all(self, chats: dict[int, Chat]) -> Iterator[tuple[int, Alignment]]:
        for hidden in (False, True):
            numbers = [number for number, chat in chats.items() if chat.hidden == hidden]
            if numbers:
                texts = [chats[number].whole[0] for number in numbers]
                yield from zip(numbers, self._tokens(hidden).encode_block(texts), strict=True)

    def _encode(self, text: str, hidden: bool) -> Alignment:
        return self._tokens(hidden).encode_batch([text])[0]

    def _make(self, given: Chat, alignment: Alignment) -> _Made:
        chat, alignment = self._shortened(given, alignment)
        samples = find_samples(chat)
        kept, ids, parts = [], [], []
        for sample in samples:
            tokens = self._tokens(chat.hidden)
            found = alignment if sample.text is chat.whole[0] else tokens.encode_batch([sample.text])[0]
            if len(found.ids) > self._window:
                if self._recipe.too_long == "drop":
                    raise self._too_long(len(found.ids), "an answer and what is before it have")
                continue
            own_parts = np.full(len(found.ids), sample.rest, np.uint8)
            for span in sample.others:
                first, end = tokens.tokens_of(found, span.begin, span.end)
                own_parts[first:end] = span.part
            for run in sample.runs:
                first, end = tokens.prove(found, sample.text, run)
                own_parts[first:end] = run.part
            kept.append(sample)
            ids.append(found.ids)
            parts.append(own_parts)
        if not kept:
            raise self._too_long(len(alignment.ids), "the first answer and what is before it have")
        last = max(sample.count for sample in kept)
        texts = [sample.text.replace(HIDDEN, "") if chat.hidden else sample.text for sample in kept]
        return _Made(
            ids,
            parts,
            chat.beginning(last),
            answers_left_out=sum(map(is_answer, given.messages[last:])),
            words=sum(len(text.split()) for text in texts),
            text_bytes=sum(len(text.encode()) for text in texts),
            target_bytes=sum(map(target_bytes, kept)),
        )

    def _shortened(self, chat: Chat, alignment: Alignment) -> tuple[Chat, Alignment]:
        """The longest beginning that ends with an answer and fits; raises Unproven if there is none."""
        if len(alignment.ids) <= self._window and len(chat.messages) <= MOST_MESSAGES:
            return chat, alignment
        if self._recipe.too_long == "drop":
            if len(chat.messages) > MOST_MESSAGES:
                raise Unproven("too_long", f"{len(chat.messages):,} messages, {MOST_MESSAGES:,} are allowed")
            raise self._too_long(len(alignment.ids), "it has")
        counts = [count for count in chat.ends_of_answers() if count <= MOST_MESSAGES]
        low, found = 0, None  # so many of `counts` fit
        high = len(counts)
        while low < high:
            middle = (low + high + 1) // 2
            shorter = chat.beginning(counts[middle - 1])
            tried = self._encode(shorter.whole[0], shorter.hidden)
            if len(tried.ids) <= self._window:
                low, found = middle, (shorter, tried)
            else:
                high, alignment = middle - 1, tried
        if found is None:
            raise self._too_long(len(alignment.ids), "the first answer and what is before it have")
        return found

    def _too_long(self, tokens: int, what: str) -> Unproven:
        return Unproven("too_long", f"{what} {tokens:,} tokens, {self._window:,} are allowed")


def target_bytes(sample: Sample) -> int:
    """Bytes of the text that is predicted."""
    runs = (sample.text[run.begin : run.end].replace(HIDDEN, "") for run in sample.runs)
    size = sum(len(run.encode()) for run in runs)
    return size if sample.rest != TARGET else len(sample.text.replace(HIDDEN, "").encode()) - size


def _gathered(conversations: list[Conversation], outcomes: list[_Made | Unproven | None]) -> EncodedChats:
    left_out, named = [], Counter[str]()
    made: list[_Made] = []
    made_from: list[int] = []
    for number, (conversation, outcome) in enumerate(zip(conversations, outcomes, strict=True)):
        assert outcome is not None
        if isinstance(outcome, Unproven):
            beginning = _beginning(conversation)
            left_out.append(LeftOut(outcome.reason, conversation.at, outcome.detail, beginning))
            continue
        made.append(outcome)
        made_from += [number] * len(outcome.ids)
        named.update(outcome.chat.names())
    ids = [own for outcome in made for own in outcome.ids]
    parts = [own for outcome in made for own in outcome.parts]
    all_parts = np.concatenate([np.zeros(0, np.uint8), *parts])
    return EncodedChats(
        tokens=np.concatenate([np.zeros(0, np.uint32), *ids]),
        parts=all_parts if all_parts.any() else None,
        lengths=np.array([len(own) for own in ids], np.int64),
        made_from=np.array(made_from, np.int64),
        left_out=left_out,
        messages=sum(len(outcome.chat.messages) for outcome in made),
        words=sum(outcome.words for outcome in made),
        shortened=sum(outcome.answers_left_out > 0 for outcome in made),
        turns_left_out=sum(outcome.answers_left_out for outcome in made),
        named=named,
        text_bytes=sum(outcome.text_bytes for outcome in made),
        target_bytes=sum(outcome.target_bytes for outcome in made),
    )


def _beginning(conversation: Conversation) -> str:
    texts = (message.get("content") for message in conversation.messages)
    first = next((text for text in texts if isinstance(text, str) and text.strip()), "")
    return printable(first[:200])[:80]
