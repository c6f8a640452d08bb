"""What holds for every conversation and every shipped template, on random ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gpt.tokenizer.shipped_templates import SHIPPED
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.prepare.chat.chat_tokenizers import with_tokens
from tests.prepare.chat.encoded import encode, samples
from utils.data.parts import PARTS, TARGET

pytestmark = pytest.mark.shared
TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>")
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "saiga": "</s>", "impruver": "</s>", "vicuna": "</s>"}
# what goes wrong: blanks and line ends at borders, names of tokens, headers' words, characters of several bytes
PIECES = ("a", "Hello", " ", "  ", "\n", "\n\n", "\t", "é", "🙂", "👩‍👩‍👧", "你好", "ASSISTANT:", "assistant", "bot\n")
TEXT = st.lists(st.sampled_from((*PIECES, *TOKENS, "<", "|>", "</", ".", "1")), min_size=1, max_size=6).map("".join)


@st.composite
def conversation(draw):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(TEXT)})
        weight = draw(st.sampled_from([None, None, 0, 1]))
        answer = {"role": "assistant", "content": draw(TEXT)}
        messages.append(answer if weight is None else {**answer, "weight": weight})
    return messages


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def folder(request, tmp_path_factory):
    return with_tokens(request.param, tmp_path_factory.mktemp(request.param), TOKENS, "<s>", "</s>")


def bytes_of(tokenizer, ids):
    """The text of tokens by GPT-2's table of bytes alone, without any library's decoder or offsets."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
    found = b""
    for token in ids:
        piece = tokenizer.vocabulary[token]
        found += piece.encode() if piece in TOKENS else bytes(table[character] for character in piece)
    return found.decode()


@pytest.mark.parametrize("template", SHIPPED)
def test_tokens_are_targets_or_named_and_targets_are_the_answers(folder, template):
    tokenizer = Tokenizer(folder)
    end = tokenizer.token_id(END[template])
    kept = 0

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(conversation())
    def check(messages):
        nonlocal kept
        encoded = encode(folder, template, messages)
        answers = [message for message in messages if message["role"] == "assistant"]
        trained = [answer["content"] for answer in answers if answer.get("weight") != 0]
        assert len(encoded.lengths) + len(encoded.left_out) == 1
        if encoded.left_out:
            assert encoded.left_out[0].reason in ("no_answer", "token_over_border", "prompt_tokens")
            assert bool(trained) is (encoded.left_out[0].reason != "no_answer")
            return
        kept += 1
        [(ids, parts)] = samples(encoded)
        counts = {name: int((parts == number).sum()) for number, name in enumerate(PARTS)}
        assert sum(counts.values()) == len(ids)
        targets = ids[parts == TARGET].tolist()
        # the terminator of each answer once, and no other: names in messages are text
        ended = answers if template == "vicuna" else messages
        assert targets.count(end) == len(trained) and ids.tolist().count(end) == len(ended)
        assert bytes_of(tokenizer, targets) == "".join(written(template, content) for content in trained)
        assert not counts["earlier_answer"] and bool(counts["weight_0"]) <= (len(trained) < len(answers))

    check()
    assert kept > 12 or (template == "llama3" and "gpt2" in str(folder))


def written(template, content):
    """What a model writes for an answer, by each template's description."""
    if template == "saiga":
        return f"\n{content}</s>\n"
    content = content.strip()
    if template == "vicuna":
        return f" {content}</s>"
    return content + {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>", "impruver": "</s>"}[template]
