"""A compiled block of the model."""

from __future__ import annotations

import yaml
from litgpt.config import Config

from lit_gpt.model.building import build_model
from tests.conftest import TINY_MODEL

CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=97, padded_vocab_size=97)


def test_no_layout_of_documents_is_compiled_for_anew() -> None:
    import torch._dynamo

    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["stats"]
    model = build_model(CONFIG, None, None, seed=1, dtype=torch.float32)
    for block in model.transformer.h:
        block.forward = torch.compile(block.forward)
    torch.manual_seed(0)
    compiled = []
    for documents in (3, 5, 1, 7, 2, 30, 4):
        cuts = torch.randperm(79)[: documents - 1].sort().values + 1
        bounds = torch.cat([torch.tensor([0]), cuts, torch.tensor([80])]).unique().int()
        bounds = torch.cat([bounds, torch.tensor([40], dtype=torch.int32)]).unique()
        ids = torch.randint(0, 97, (2, 40))
        model(ids, segments=bounds, targets=ids).sum.backward()
        compiled.append(counter["unique_graphs"])
    assert compiled[0] > 0
    assert compiled[2:] == [compiled[1]] * 5, "the second batch may differ in the number of documents, none after it"
