"""Whether merged weights are what base model and adapter make together."""

from collections import ChainMap
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lit_gpt.errors import DataError
from lit_gpt.formats.hf_logits import TOLERANCE, largest_difference, litgpt_logits, probe_sequences
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.model.lora import check_merged
from utils.run.merged_model import MergedModel


def compare_merged(trained: MergedModel, merged: Mapping[str, Tensor]) -> str:
    """Compares `merged` weights with base model and adapter, matrix by matrix and by logits; says what was found.

    A `DataError` if the merged weights are something else, or most of the adapter's effect is lost.
    """
    assert trained.base is not None and trained.adapter is not None and trained.lora is not None
    config = trained.config
    check_merged(trained.base, trained.adapter, merged, config, trained.lora)
    sequences = probe_sequences(config.padded_vocab_size, config.block_size)[-1:]
    both = ChainMap(dict(trained.adapter), trained.base)
    wanted = litgpt_logits(config, both, sequences, trained.lora)
    found = litgpt_logits(config, merged, sequences)
    effect = wanted[0] - litgpt_logits(config, trained.base, sequences)[0]
    if not effect.any():
        raise DataError("the adapter changes no logits: it is untrained, or not of this model")
    # Merging in 16 bits loses changes smaller than the last place: at most half of the adapter's effect on the logits
    # may be lost, both as root mean squares.
    lost = float(np.sqrt(np.mean((found[0] - wanted[0]) ** 2) / np.mean(effect**2)))
    in_fp32 = {spec.dtype for spec in specs_of(merged).values()} == {torch.float32}
    equal = largest_difference(found, wanted)[1] <= TOLERANCE if in_fp32 else lost <= 0.5
    if not equal:
        advice = "" if in_fp32 else "; give --dtype float32"
        raise DataError(f"merged, the model differs from base + adapter by {lost:.2g} of the adapter's effect{advice}")
    return f"verified: each matrix, and the logits of base + adapter but for {lost:.2g} of the adapter's effect on them"
