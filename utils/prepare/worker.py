"""What a process of a preparation needs, made when the first block asks for it: for texts, and for chats."""

from functools import cached_property
from typing import TYPE_CHECKING

from utils.prepare.block_rows import BlockRows, BlockWorker, Recipe, Work, start_worker
from utils.prepare.gigatoken_proof import Proof

if TYPE_CHECKING:
    from utils.prepare.block_chats import ChatBlocks


class Worker:
    """`sample` and `proof` are those of `start_worker`."""

    def __init__(self, recipe: Recipe, sample: list[str] | None, proof: Proof | None) -> None:
        self.recipe = recipe
        self._sample, self._proof = sample, proof

    def rows(self, work: Work) -> BlockRows:
        return self.chats(work) if work.converter else self._texts(work)

    @cached_property
    def chats(self) -> "ChatBlocks":
        # with Jinja, 0.1 s a process that plain text does not pay
        from utils.prepare.block_chats import ChatBlocks

        return ChatBlocks(self.recipe, self._proof)

    @cached_property
    def _texts(self) -> BlockWorker:
        return start_worker(self.recipe, self._sample, self._proof)
