"""The tokens that end an answer by a template, in the generation_config.json of what is trained by it."""

from __future__ import annotations

import json

import pytest

from lit_gpt.tokenizer.chat_files import chat_files
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import make_chat_tokenizer
from tests.export.go_templates import real_templates


@pytest.mark.parametrize(
    ("name", "tokens", "ends"),
    [
        ("llama3", ("<|end_of_text|>", "<|eot_id|>"), ["<|end_of_text|>", "<|eot_id|>"]),
        ("qwen2_5", ("<|endoftext|>", "<tool_call>", "</tool_call>", "<|im_end|>"), ["<|endoftext|>", "<|im_end|>"]),
        # calls of tools end otherwise than answers; `<|end|>` stands behind thoughts, too, which an answer follows
        ("gptoss", ("<|endoftext|>", "<|return|>", "<|call|>", "<|end|>"), ["<|endoftext|>", "<|return|>", "<|call|>"]),
        ("gemma4", ("<eos>", "<turn|>", "<|tool_response>"), ["<eos>", "<turn|>", "<|tool_response>"]),
        # no token of its own ends an answer: the next message's begin does
        ("glm4moe", ("<|endoftext|>", "<|user|>", "</arg_value>", "</tool_call>"), ["<|endoftext|>"]),
    ],
)
def test_ends_are_those_of_answers_and_calls(tmp_path, name, tokens, ends):
    tokenizer = Tokenizer(make_chat_tokenizer(tmp_path, names=tokens, bos_token=tokens[0]))
    files = chat_files(tokenizer, real_templates()[name].read_text(encoding="utf-8"))
    found = json.loads(files["generation_config.json"])["eos_token_id"]
    assert [tokenizer.vocabulary[index] for index in ([found] if isinstance(found, int) else found)] == ends
