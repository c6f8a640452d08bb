"""Ids and masks beside a peer's: trl's real chat templates, and their twins that mark what an assistant writes.

transformers renders, tokenises and reads the marks. Where its mask and ours differ, the reason stands in `DIFFERENT`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.prepare.chat.chat_tokenizers import tokens_named, with_tokens
from tests.prepare.chat.conversations import all_conversations
from utils.data.parts import TARGET
from utils.prepare.chat import proving
from utils.prepare.chat.conversation import ChatRecipe, Conversation
from utils.prepare.chat.encoding import DATE, ChatEncoder

pytestmark = pytest.mark.shared
_trl = importlib.util.find_spec("trl")
FOLDER = Path(_trl.origin).parent / "chat_templates" if _trl and _trl.origin else Path("trl is not installed")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
PAIRS = [name for name in NAMES if (FOLDER / f"{name}_training.jinja").is_file()]
WITH_PARTS = ("idefics3", "smolvlm", "llava_next")  # their contents are lists of parts

HEADER = "the twin's marks hold the header, which serving gives"
THINK = "the twin's marks hold the opening of the thoughts, which serving gives"
END = "only the text's end has it, which trl trains"
DIFFERENT = {
    "diffusion_gemma": (
        "the prompt after a tool's result has no header, so it is generated; and of a mark's last character, if it has "
        "several tokens, transformers' mask has the first",
        {"<|tool_response>", "<|turn>", "model", "\n", "�"},
    ),
    "gptoss": (HEADER, {"<|start|>", "ass", "istant"}),
    "llava_next": ("the blank after each answer's </s> is written with it", {" "}),
    "muse_glimmer": (HEADER, {"<|start|>", "ass", "istant"}),
    "nemotron_3_5_lightning": (THINK, {"<", "think", ">", "\n"}),
    "nemotron_3_nano": (THINK, {"<", "think", ">", "\n"}),
    "nemotron_3_super": (THINK, {"<", "think", ">", "\n"}),
    "nemotron_3_ultra": (THINK, {"<", "think", ">", "\n"}),
    "phi3": (END, {"<eos>"}),
    "phi3_5": (END, {"<eos>"}),
    "qwen2_5": ("the twin's marks hold the header's line end, which serving gives", {"\n"}),
    "qwen3_5_nothink": (THINK, {"<", "think", ">", "\n\n", "</"}),
    "qwen3_5_think": (THINK, {"<", "think", ">", "\n"}),
    "qwen3_6": (THINK, {"<", "think", ">", "\n"}),
    "qwen3_8": (THINK, {"<", "think", ">", "\n"}),
}
"""Why a mask differs, and the tokens in which it does."""

NO_THOUGHTS, NO_CALLS = "reasoning_missing", "tool_calls_missing"  # the template does not write them
MERGED = "token_over_border"  # an answer's line ends and its header's are one token
PROMPT = "prefix"  # the prompt for the answer opens thoughts that the text does not have
_NEMOTRON = {PROMPT}
EXCLUDED = {
    "cohere": {NO_THOUGHTS},
    "cohere2": {NO_THOUGHTS},
    "deepseek_r1_distill": {PROMPT},
    "deepseekv3": {PROMPT},
    "diffusion_gemma": {PROMPT},
    "gemma": {NO_THOUGHTS},
    "gemma3": {NO_THOUGHTS},
    "gptoss": {NO_THOUGHTS, PROMPT},
    "idefics3": {NO_THOUGHTS, NO_CALLS},
    "lfm2": {NO_THOUGHTS, NO_CALLS, MERGED},
    "lfm2_v2": {NO_THOUGHTS, MERGED},
    "llama3": {NO_THOUGHTS, NO_CALLS},
    "llava_next": {NO_THOUGHTS},
    "muse_glimmer": {"content_missing"},
    "nemotron_3_5_lightning": _NEMOTRON,
    "nemotron_3_nano": _NEMOTRON,
    "nemotron_3_super": _NEMOTRON,
    "nemotron_3_ultra": _NEMOTRON,
    "phi3": {NO_THOUGHTS, NO_CALLS, MERGED},
    "phi3_5": {NO_THOUGHTS, NO_CALLS, MERGED},
    "qwen2_5": {NO_THOUGHTS, MERGED},
    "qwen2_5_vl": {NO_THOUGHTS, NO_CALLS, MERGED},
    "qwen3_5_nothink": {PROMPT},
    "qwen3_5_think": {MERGED},
    "qwen3_6": {MERGED},
    "qwen3_8": {MERGED},
    "qwen3_instruct_2507": {NO_THOUGHTS, MERGED},
    "qwen3_vl": {NO_THOUGHTS, MERGED},
    "smolvlm": {NO_THOUGHTS, NO_CALLS},
}
"""Why conversations are left out, beside those that a template refuses (transformers gives its error then too)."""

NO_ORACLE = {"deepseek_r1_distill", "deepseekv3"}  # every conversation is left out
TWIN_DIFFERS = {"glm4moe"}  # renders other text than the original in every conversation


class Peer:
    """transformers' side, and the one tokenizer of all templates: Llama 3's splits, all their special tokens."""

    def __init__(self, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        sources = "".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja")))
        self.folder = with_tokens("llama3", folder, tokens_named(sources), "<bos>", "<eos>")
        path = str(self.folder / "tokenizer.json")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<bos>", eos_token="<eos>")

    def ids(self, template: str, messages: list, tools: list | None) -> list[int] | None:
        """None if the template refuses."""
        wanted = {"chat_template": template, "tools": tools, "return_dict": False}
        try:
            return self.tokenizer.apply_chat_template(messages, **wanted)
        except Exception:  # whatever the template's expressions raise
            return None

    def mask(self, template: str, messages: list, tools: list | None) -> tuple[list[int], list[int]]:
        wanted = {"chat_template": template, "tools": tools, "return_assistant_tokens_mask": True}
        try:
            found = self.tokenizer.apply_chat_template(messages, return_dict=True, **wanted)
        except Exception:
            return [], []
        return found["input_ids"], found["assistant_masks"]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    # one tokenizer serves all templates: reading it takes most of the time
    with pytest.MonkeyPatch.context() as patch:
        made = {}
        read = proving.tokenizer_with_offsets
        patch.setattr(
            proving,
            "tokenizer_with_offsets",
            lambda t, hidden: made.get(hidden) or made.setdefault(hidden, read(t, hidden)),
        )
        patch.setattr("transformers.utils.chat_template_utils.datetime", type("", (), {"now": lambda: DATE}))
        yield Peer(tmp_path_factory.mktemp("tokenizer"))


def conversations(name):
    found = all_conversations()
    if name in WITH_PARTS:
        for _, messages, _ in found:
            for message in messages:
                message["content"] = [{"type": "text", "text": message["content"] or ""}]
    return found


def source(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAIRS)
def test_ids_and_targets_are_the_peers(peer, name):
    given = conversations(name)
    assert len(given) >= 60
    encoder = ChatEncoder(peer.folder, ChatRecipe(source(name), "assistant", "drop", None), 100_000)
    encoded = encoder([Conversation(messages, tools, at) for at, (_, messages, tools) in enumerate(given)])
    assert encoded.parts is not None or not len(encoded.tokens)
    left_out = {left.at: left for left in encoded.left_out}
    ends = np.cumsum(encoded.lengths)
    twin, counts, reasons = source(f"{name}_training"), Counter(), set()
    allowed = DIFFERENT.get(name, ("", set()))[1]
    for at, (what, messages, tools) in enumerate(given):
        if at in left_out:
            refused = left_out[at].reason == "template_refuses"
            assert not refused or any_refused(peer, source(name), messages, tools), what
            reasons |= set() if refused else {left_out[at].reason}
            counts["left out"] += 1
            continue
        own = np.flatnonzero(encoded.made_from == at)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(own) in (1, len(answers)), what
        lasts = [len(messages)] if len(own) == 1 else [number + 1 for number in answers]
        pairs = list(zip(own.tolist(), lasts, strict=True))
        for sample, last in {pairs[0], pairs[-1]}:  # of samples of one answer each, the first and the last
            span = slice(ends[sample] - encoded.lengths[sample], ends[sample])
            ids, targets = encoded.tokens[span].tolist(), encoded.parts[span] == TARGET
            if "special-token" in what:  # text to us, tokens to transformers
                continue
            assert ids == peer.ids(source(name), messages[:last], tools), what
            twin_ids, mask = peer.mask(twin, messages[:last], tools)
            if twin_ids != ids:
                continue
            expected = np.array(mask, bool)
            if len(own) > 1:  # one answer alone is trained
                expected[: np.flatnonzero(targets)[0]] &= False
            differs = {peer.tokenizer.decode([ids[index]]) for index in np.flatnonzero(targets != expected)}
            assert differs <= allowed, (what, differs)
            counts["equal"] += 1
            counts["different"] += bool(differs)
    assert reasons == EXCLUDED.get(name, set())
    assert (counts["equal"] > 5) is (name not in NO_ORACLE | TWIN_DIFFERS), counts
    assert bool(counts["different"]) is (name in DIFFERENT)


def any_refused(peer, template, messages, tools):
    """Whether the template refuses the conversation or a beginning of it."""
    return any(peer.ids(template, messages[:count], tools) is None for count in range(1, len(messages) + 1))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PAIRS])
def test_templates_without_a_twin_give_the_peers_ids(peer, name):
    given = conversations(name)[::3]
    encoder = ChatEncoder(peer.folder, ChatRecipe(source(name), "assistant", "drop", None), 100_000)
    encoded = encoder([Conversation(messages, tools, at) for at, (_, messages, tools) in enumerate(given)])
    ends, made_from = np.cumsum(encoded.lengths), encoded.made_from.tolist()
    for sample, at in enumerate(made_from):
        what, messages, tools = given[at]
        if made_from.count(at) == 1 and "special-token" not in what:
            ids = encoded.tokens[ends[sample] - encoded.lengths[sample] : ends[sample]].tolist()
            assert ids == peer.ids(source(name), messages, tools), what


@pytest.mark.parametrize("name", NAMES)
def test_our_sandbox_renders_as_transformers_does(peer, name):
    ours = ChatTemplate(Tokenizer(peer.folder), source(name), now=lambda: DATE)
    for what, messages, tools in conversations(name)[::7]:
        for prompt in (False, True):
            try:
                text = peer.tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=source(name), tokenize=False, add_generation_prompt=prompt
                )
            except Exception:
                continue
            assert ours.render(messages, tools, prompt) == text, what
