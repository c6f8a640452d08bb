"""Whether merged weights are what base model and adapter make together."""

from collections import ChainMap
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lit_gpt.errors import DataError
from lit_gpt.formats.hf_logits import (
    TOLERANCE,
    agreement,
    largest_difference,
    litgpt_logits,
    probe_sequences,
    where_memory_suffices,
)
from lit_gpt.formats.peft_logits import ask_peft
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.model.lora import check_merged
from utils.run.merged_model import MergedModel

# How much of the adapter's effect on the logits may be lost, both as root mean squares. Merging in 16 bits loses the
# changes that are smaller than the last place. In float32 nothing is lost but by rounding: 1.7e-6 was seen with an
# adapter of large random weights, whose logits differ by more than TOLERANCE.
MOST_LOST = 0.5
MOST_LOST_IN_FP32 = 1e-3


def compare_merged(trained: MergedModel, merged: Mapping[str, Tensor]) -> str:
    """Compares `merged` weights with base model and adapter, matrix by matrix and by logits; says what was found.

    The logits of base and adapter are peft's where the adapter is, from a fresh process, else litgpt's; so they are
    where the memory does not suffice for peft, which is said. A `DataError` if the merged weights are something else,
    or most of the adapter's effect is lost.
    """
    assert trained.base is not None and trained.adapter is not None and trained.lora is not None
    config = trained.config
    check_merged(trained.base, trained.adapter, merged, config, trained.lora)
    sequences = probe_sequences(config.padded_vocab_size, config.block_size)[-1:]
    base = litgpt_logits(config, trained.base, sequences)
    wanted, other, lack = None, "peft's base + adapter", ""
    if trained.peft_dir:
        wanted, lack = _peft_logits(trained, sequences, base)
    if wanted is None:
        both = ChainMap(dict(trained.adapter), trained.base)
        wanted, other = litgpt_logits(config, both, sequences, trained.lora), "base + adapter"
    found = litgpt_logits(config, merged, sequences)
    effect = wanted[0] - base[0]
    if not effect.any():
        raise DataError("the adapter changes no logits: it is untrained, or not of this model")
    lost = float(np.sqrt(np.mean((found[0] - wanted[0]) ** 2) / np.mean(effect**2)))
    in_fp32 = {spec.dtype for spec in specs_of(merged).values()} == {torch.float32}
    limit = MOST_LOST_IN_FP32 if in_fp32 else MOST_LOST
    relative = largest_difference(found, wanted)[1]
    # an effect so small that rounding covers it cannot be told from none
    in_rounding = in_fp32 and relative <= TOLERANCE
    if not (lost <= limit or in_rounding):
        figures = f"by {lost:.2g} of the adapter's effect on the logits, allowed {limit:g}"
        if in_fp32:
            figures += f", and by {relative:.2g} of max(1, largest logit), allowed {TOLERANCE:g}"
        advice = "" if in_fp32 else "; give --dtype float32"
        raise DataError(f"merged, the model differs from {other} {figures}{advice}")
    found_equal = f"each matrix, and the logits of {other} but for {lost:.2g} of the adapter's effect on them"
    if lack:
        return f"not verified by peft ({lack}), only as this program reads the adapter: {found_equal}"
    return f"verified: {found_equal}"


def _peft_logits(
    trained: MergedModel, sequences: list[list[int]], base: list[np.ndarray]
) -> tuple[list[np.ndarray] | None, str]:
    """peft's logits of base and adapter; or None, and why the memory does not suffice for them."""
    assert trained.peft_dir is not None and trained.foundation_dir is not None and trained.base is not None
    asking = partial(ask_peft, trained.peft_dir, trained.foundation_dir, sequences)
    # 8: in float32, beside the weights as they are
    answer, lack = where_memory_suffices(asking, "it", trained.base, bytes_each=8)
    if answer is None:
        return None, lack
    alone, both = answer
    agreement(base, alone, str(trained.foundation_dir))
    return both, ""
