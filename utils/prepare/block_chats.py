"""A block of chats in, rows out, as `block_rows.py` does for texts: records, conversations, tokens, rows.

What is malformed, a duplicate, or cannot be proven is left out and named, so that every record is accounted for.
"""

from dataclasses import replace
from functools import cache, cached_property

import numpy as np

from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.shards import token_dtype
from utils.prepare.block_rows import GIVEN_BACK, BlockRows, Pieces, Recipe, Work, packed_rows
from utils.prepare.chat.conversation import Conversation, LeftOut
from utils.prepare.chat.converters import convert_records, make_converter
from utils.prepare.chat.encoding import ChatEncoder
from utils.prepare.chat.texts import beginning, texts_of
from utils.prepare.contamination import screen
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
        conversations, left_out = self.convert(work)
        conversations, contaminated, hits = screen(conversations, self._recipe.test_runs, texts_of, beginning)
        encoded = self._encoder(conversations)
        left_out += contaminated + encoded.left_out
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
            left_out=left_out,
            conversations=len(np.unique(encoded.made_from)),
            messages=encoded.messages,
            shortened=encoded.shortened,
            turns_left_out=encoded.turns_left_out,
            hits=hits,
        )

    def convert(self, work: Work) -> tuple[list[Conversation], list[LeftOut]]:
        """The conversations of a block that stay, and what does not."""
        assert work.converter is not None
        convert = self._converter(work.converter)
        records, bad = parse_records(work.block)
        found, malformed = convert_records(convert, records, str(work.block.file.path))
        left_out = [LeftOut(one.reason, one.at, one.problem) for one in bad] + malformed
        if work.is_shared:
            left_out.clear()
        others = set() if work.others is None else set(work.others.tolist())
        conversations = []
        for number, conversation in enumerate(found):
            if number in others:
                continue
            if number in work.duplicates:
                repeated = work.duplicates[number]
                left_out.append(LeftOut("duplicate", conversation.at, repeated, beginning(conversation)))
            else:
                conversations.append(conversation)
        return conversations, left_out
