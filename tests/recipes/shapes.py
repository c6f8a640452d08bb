"""config.json of each model that a shipped recipe begins with, in its sizes, and the same architecture in small ones.

What a run needs in memory follows from these figures alone, so that no model has to be here.
"""

from __future__ import annotations

from typing import Any

GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 2048}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiiuae/falcon-7b": {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
    },
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "meta-llama/Meta-Llama-3-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "google/gemma-7b": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "HuggingFaceH4/zephyr-7b-beta": MISTRAL_7B,
    "ai-forever/rugpt3small_based_on_gpt2": {**GPT2, "vocab_size": 50264, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "ai-forever/rugpt3medium_based_on_gpt2": {**GPT2, "vocab_size": 50257, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "ai-forever/rugpt3large_based_on_gpt2": {**GPT2, "vocab_size": 50257, "n_embd": 1536, "n_layer": 24, "n_head": 16},
    "ai-forever/ruGPT-3.5-13B": {**GPT2, "vocab_size": 50272, "n_embd": 5120, "n_layer": 40, "n_head": 40},
    "ai-forever/mGPT-13B": {**GPT2, "vocab_size": 100000, "n_embd": 5120, "n_layer": 40, "n_head": 40},
    "t-tech/T-lite-it-1.0": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "yandex/YandexGPT-5-Lite-8B-pretrain": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 129024,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
}

VOCABULARIES = {
    "ai-forever/rugpt3small_based_on_gpt2": 50264,
    "Vikhrmodels/Vikhr-Llama-3.2-1B-Instruct": 128256,
}
"""Entries of the tokenizers that models are trained from scratch with."""
