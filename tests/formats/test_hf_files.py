"""hf_files.py: what is written, looked for, downloaded and removed are the same names."""

from __future__ import annotations

import pytest

from lit_gpt.formats.hf_files import (
    ANY_WEIGHTS,
    PICKLE_LAYOUT,
    SAFETENSORS_LAYOUT,
    WEIGHT_FILES,
    is_of_model,
    matches,
    shard_name,
)


@pytest.mark.parametrize(
    "name", [*WEIGHT_FILES, shard_name(1, 1), shard_name(3, 12), "pytorch_model-00001-of-00002.bin"]
)
def test_a_file_of_a_model_is_known_by_all(name):
    assert is_of_model(name)
    assert matches(name, SAFETENSORS_LAYOUT) != matches(name, PICKLE_LAYOUT)
    assert name.endswith(".json") or matches(name, ANY_WEIGHTS)


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "consolidated.safetensors", "model.gguf", "a-model.safetensors"],
)
def test_other_files_are_not_of_the_model(name):
    assert not is_of_model(name)
    assert not matches(name, (*SAFETENSORS_LAYOUT, *PICKLE_LAYOUT))


def test_names_of_shards():
    assert shard_name(1, 1) == "model.safetensors"
    assert shard_name(2, 30) == "model-00002-of-00030.safetensors"
