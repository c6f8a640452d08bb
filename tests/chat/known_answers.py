"""A model whose answers are known: each token has one successor, and the question's last character is the prompt's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from litgpt.config import Config
from safetensors.torch import save_file

from lit_gpt.formats.hf_weights import tensors_to_hf
from lit_gpt.formats.litgpt_directory import write_litgpt_directory
from lit_gpt.model.gpt import GPT
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import END_OF_TEXT, END_OF_TURN, make_chat_tokenizer

TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + messages[-1].content[-1] }}{% endif %}"""

ANSWERS = {"?": "世界🙂", "!": "ab"}
"""The answer by a question's last character: the first one ends by itself, the second one is said again and again."""


def make_known_model(
    folder: Path, context: int = 256, answers: dict[str, str] = ANSWERS, template: str | None = TEMPLATE
) -> Path:
    """A litgpt directory with Hugging Face's files. A token is a byte; of an answer's bytes none comes twice."""
    made = make_chat_tokenizer(folder, words=["zz"])
    tokenizer = Tokenizer(made)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    size = tokenizer.vocab_size
    end = tokenizer.token_id(END_OF_TURN)
    successors = dict.fromkeys(range(size), end)
    known: set[int] = set()
    for last, answer in answers.items():
        ids = [*tokenizer.encode(last), *tokenizer.encode(answer)]
        ends_itself = answer == answers.get("?")
        following = [*ids[1:], end if ends_itself else ids[1]]
        assert len(set(ids)) == len(ids) and not set(ids) & known, "a token has one successor"
        known |= set(ids)
        successors |= dict(zip(ids, following, strict=True))
    config = Config(
        name="known",
        block_size=context,
        n_layer=1,
        n_embd=size + size % 2,
        n_head=1,
        vocab_size=size,
        padded_vocab_size=size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=8,
    )
    weights = {name: torch.zeros(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    for name in weights:
        if ".norm" in name or "ln_f" in name:
            weights[name] += 1.0
    weights["transformer.wte.weight"][:, :size] = torch.eye(size)
    for token, following in successors.items():
        weights["lm_head.weight"][following, token] = 1.0
    write_litgpt_directory(folder, config, weights, [])
    hf = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "vocab_size": size,
        "rms_norm_eps": config.norm_eps,
        "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(hf))
    save_file(dict(tensors_to_hf(weights, config, hf)), folder / "model.safetensors", {"format": "pt"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.token_id(END_OF_TEXT), end]}))
    return folder
