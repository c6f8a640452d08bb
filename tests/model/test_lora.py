"""Adapters and their merging."""

from __future__ import annotations

import litgpt.lora
import litgpt.model
import torch

from lit_gpt.model.lora import merge_adapter
from tests.model.gradient_worker import CONFIG, LORA, VOCABULARY, make_model


def test_merged_adapter_gives_the_unmerged_models_logits() -> None:
    ours = make_model("lora")
    state = ours.state_dict()
    base = {name.replace(".linear.", "."): tensor for name, tensor in state.items() if "lora_" not in name}
    adapter = {name: tensor for name, tensor in state.items() if "lora_" in name}
    merged = litgpt.model.GPT(CONFIG)
    merged.load_state_dict(merge_adapter(base, adapter, CONFIG, LORA))
    ids = torch.randint(0, VOCABULARY, (2, 40))
    torch.testing.assert_close(merged(ids), ours(ids), atol=1e-5, rtol=0)
