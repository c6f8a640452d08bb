"""Where answers end, of rows whose tokens are written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from utils.data.batches import collate
from utils.data.ends import places_of_ends
from utils.data.parts import PARTS
from utils.data.shards import Row

END, EOS = 7, 8


def row(*documents: str, window: int = 32) -> Row:
    """Documents in letters: `t` template, `u` user, `w` weight 0, `a` target; `T`, `W` and `A` are END, `E` is EOS.

    Each document's first letter is its first token, which is never a target.
    """
    kinds = {"t": "template", "T": "template", "u": "user", "w": "weight_0", "W": "weight_0"}
    letters = "".join(documents)
    tokens = np.zeros(window, np.uint16)
    for place, letter in enumerate(letters):
        tokens[place] = {"T": END, "A": END, "W": END, "E": EOS}.get(letter, 20 + place)
    parts = np.array([PARTS.index(kinds.get(letter, "target")) for letter in letters], np.uint8)
    lengths = np.array([len(document) for document in documents], np.int32)
    return Row(tokens, lengths, np.ones(len(documents), np.int32), parts if parts.any() else None)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["tuTtaaA"], "0000221"),
        (["tuTtaaAa"], "00002210"),  # a line's end behind it belongs to no answer
        (["tuTtAuTtaA"], "0000100021"),  # an empty answer
        (["tuTtaaTtuTtaE"], "0000221000021"),  # an end that is no target, another kind of end
        (["tuTtaat"], "0000220"),  # no end at all
        (["tuTtaAaA"], "00002021"),  # two in one run: the last is the end, the first is neither
        (["tuTtwWtaA"], "000000021"),
        (["tuTta", "TuTtaA"], "00002000021"),  # the next document's first token ends nothing
        (["aaaE", "tuTtaA"], "0000000021"),  # a text beside a chat
        (["aaaA", "aE"], "000000"),  # texts alone
    ],
)
def test_where_answers_end(documents: list[str], expected: str) -> None:
    found = places_of_ends(row(*documents), [END, EOS])
    assert "".join(map(str, found)) == expected


def test_a_batch_says_of_each_target_where_it_is() -> None:
    rows = [row("tuTtaaA"), None, row("tuTtaat", "tuTtaA")]
    batch = collate(rows, 32, end_ids=[END])
    assert batch.ends is not None and batch.ends.shape == batch.targets.shape
    for index, written in ((0, "0000221"), (2, "0000220000021")):
        expected = np.zeros(32, np.uint8)
        expected[: len(written)] = [int(digit) for digit in written]
        assert batch.ends[index].tolist() == expected[1:].tolist()
        assert (batch.targets[index][batch.ends[index] == 1] == END).all()
    assert not batch.ends[1].any() and collate(rows, 32).ends is None
