"""Types of weights that a GGUF file can have, as llama-quantize names them, and how far each may be from the model.

Nothing heavy is imported here: the options of utils/quantize_gguf.py name these types.
"""

from typing import NamedTuple


class GgufType(NamedTuple):
    """A type of weights."""

    bits: float
    """Per weight, about."""
    bound: float
    """How much the logarithm of the perplexity may change, either way; and the mean Kullback-Leibler divergence."""


# For Llama 3 8B llama-quantize's help states, of a perplexity of 6.2, +7.5 % (q4_0), +7.2 % (q4_1), +2.8 % (q4_k_m),
# +2.1 % (q5_0), +1.7 % (q5_1) and +0.04 % (q8_0). The bounds are some four times as wide: small models lose more, and
# over few tokens the figure is uncertain (1,016 tokens of the sample's model of 1.1 M parameters: q4_1 +4.4 %,
# q8_0 -0.1 %, f16 +0.01 %). What is wrong in a conversion, heads, positions or norms, changes it by far more.
GGUF_TYPES = {
    "f32": GgufType(32, 0.001),
    "bf16": GgufType(16, 0.02),
    "f16": GgufType(16, 0.001),
    "q8_0": GgufType(8.5, 0.01),
    "q6_k": GgufType(6.6, 0.05),
    "q5_1": GgufType(6, 0.1),
    "q5_0": GgufType(5.5, 0.1),
    "q5_k_m": GgufType(5.7, 0.1),
    "q4_1": GgufType(5, 0.3),
    "q4_0": GgufType(4.5, 0.3),
    "q4_k_m": GgufType(4.9, 0.2),
}
DEFAULT_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "f16")
EXACT_TYPES = ("f16", "f32")
"""Types so close to the model that a greedy continuation has to be the same."""
