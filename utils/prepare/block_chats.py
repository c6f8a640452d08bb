"""A block of chats in, rows out, as `block_rows.py` does for texts: records, conversations, tokens, rows.

What is malformed, a duplicate, or cannot be proven is left out and named, so that every record is accounted for.
"""

from dataclasses import replace
from functools import cache, cached_property
from itertools import chain, islice

import numpy as np

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.shards import token_dtype
from utils.prepare.block_rows import GIVEN_BACK, BlockRows, Pieces, Recipe, Removed, Work, as_contaminated, packed_rows
from utils.prepare.chat.conversation import Conversation, LeftOut
from utils.prepare.chat.converters import convert_records, make_converter
from utils.prepare.chat.encoding import ChatEncoder
from utils.prepare.chat.texts import beginning, texts_of
from utils.prepare.fast_chats import FastChats
from utils.prepare.gigatoken_proof import Proof
from utils.prepare.records import parse_records


class ChatBlocks:
    """What a process needs to make rows of blocks of chats."""

    def __init__(self, recipe: Recipe, proof: Proof | None = None) -> None:
        """With what is known of gigatoken; None if it is not to be used."""
        self._recipe, self._proof = recipe, proof
        self._converter = cache(make_converter)

    @cached_property
    def _encoder(self) -> ChatEncoder:
        assert self._recipe.chat is not None
        return ChatEncoder(self._recipe.checkpoint_dir, self._recipe.chat, self._recipe.window, self._fast)

    @cached_property
    def _fast(self) -> FastChats:
        return FastChats(Tokenizer(self._recipe.checkpoint_dir), self._proof)

    def __call__(self, work: Work) -> BlockRows:
        conversations, removed = self.convert(work)
        conversations, contaminated, hits = self._screen(conversations)
        removed += contaminated
        encoded = self._encoder(conversations)
        removed += map(as_removed, encoded.left_out)
        tokens = encoded.tokens.astype(token_dtype(self._recipe.vocab_size))
        documents = Pieces(tokens, encoded.lengths, encoded.parts)
        no_turns = np.zeros(0, np.int64)  # a conversation is never longer than a row
        rows, rest = packed_rows(documents, no_turns, self._recipe, GIVEN_BACK)
        return BlockRows(
            rows,
            rest,
            documents=len(encoded.lengths),
            variants=0,
            turns=0,
            words=encoded.words,
            tokens=len(tokens),
            text_bytes=encoded.text_bytes,
            target_bytes=encoded.target_bytes,
            named=encoded.named,
            library=replace(self._fast.library, avoid=()),  # to be said, block by block
            bad=[],
            removed=removed,
            conversations=len(np.unique(encoded.made_from)),
            messages=encoded.messages,
            shortened=encoded.shortened,
            turns_left_out=encoded.turns_left_out,
            hits=hits,
        )

    def _screen(self, conversations: list[Conversation]) -> tuple[list[Conversation], list[Removed], list[Removed]]:
        """What stays, what is left out because test files have some of it, too, and all of which they have some."""
        test_runs = self._recipe.test_runs
        if test_runs is None:
            return conversations, [], []
        texts = [texts_of(conversation) for conversation in conversations]
        hits_of_texts = iter(test_runs.find(list(chain.from_iterable(texts))))
        kept, hits = [], []
        for conversation, of_conversation in zip(conversations, texts, strict=True):
            found = [hit for hit in islice(hits_of_texts, len(of_conversation)) if hit]
            if found:
                hits.append(Removed(found[0].file, conversation.at, found[0].words, beginning(conversation)))
            else:
                kept.append(conversation)
        return (kept, list(map(as_contaminated, hits)), hits) if test_runs.leave_out else (conversations, [], hits)

    def convert(self, work: Work) -> tuple[list[Conversation], list[Removed]]:
        """The conversations of a block that stay, and what does not."""
        assert work.converter is not None
        convert = self._converter(work.converter)
        records, bad = parse_records(work.block)
        removed = [Removed(found.reason, found.at, found.problem, "") for found in bad]
        found, left_out = convert_records(convert, records, str(work.block.file.path))
        removed += map(as_removed, left_out)
        if work.is_shared:
            removed.clear()
        others = set() if work.others is None else set(work.others.tolist())
        conversations = []
        for number, conversation in enumerate(found):
            if number in others:
                continue
            if number in work.duplicates:
                detail = work.duplicates[number]
                removed.append(Removed("duplicate", conversation.at, detail, beginning(conversation)))
            else:
                conversations.append(conversation)
        return conversations, removed


def as_removed(left_out: LeftOut) -> Removed:
    return Removed(left_out.reason, left_out.at, left_out.detail, left_out.text)
