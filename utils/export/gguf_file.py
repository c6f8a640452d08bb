"""One GGUF file of a type: made from the file in the model's own type, measured against the model, and judged.

Its perplexity over the same tokens, its most probable tokens and its greedy continuation are compared.
"""

import math
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError
from utils.export.gguf_source import SourceModel
from utils.export.gguf_types import EXACT_TYPES, GGUF_TYPES
from utils.export.hf_probabilities import Reference
from utils.export.llama_cpp import LlamaCpp

CONTEXT = 256
"""Tokens for a prompt of 32 and its continuation: the memory of all that a model can see may be large."""


def make_gguf(
    llama: LlamaCpp, model: SourceModel, gguf_type: str, source: Path, reference: Reference, folder: Path
) -> dict[str, Any]:
    """Makes and measures one file; returns its line of the table.

    Args:
        llama: the programs.
        model: the model.
        gguf_type: one of `GGUF_TYPES`.
        source: the file in the model's own type, with `probabilities` and `prompt` beside it (see `make_source`).
        reference: what the model itself says.
        folder: where the file is written.

    Raises:
        DataError: if it is too far from the model.
    """
    file = folder / f"{model.name}-{gguf_type}.gguf"
    made = llama.quantize(source, file, gguf_type.upper())
    measured = llama.compare(file, source.with_name("probabilities"), reference.window)
    context = min(model.context, CONTEXT)
    continuation = llama.complete(file, source.with_name("prompt"), len(reference.ends), context)
    change = math.log(measured.perplexity / reference.perplexity)
    row = {
        "method": gguf_type,
        "file": file.name,
        "bytes": file.stat().st_size,
        "bits_per_weight": made.bits_per_weight,
        "perplexity_hf": round(reference.perplexity, 6),
        "perplexity": measured.perplexity,
        "change_percent": round(100 * math.expm1(change), 4),
        "bound_percent": round(100 * GGUF_TYPES[gguf_type].bound, 4),
        "divergence": measured.divergence,
        "same_top_percent": round(100 * measured.same_top, 3),
        "greedy_equal": equal_tokens(continuation, reference),
        "greedy_tokens": len(reference.ends),
        "fallback_tensors": made.fallback,
    }
    check(row, reference)
    return row


def equal_tokens(continuation: str, reference: Reference) -> int:
    """How many of the reference's tokens `continuation` begins with; they are compared as text."""
    return sum(continuation.startswith(reference.continuation[:end]) for end in reference.ends)


def check(row: dict[str, Any], reference: Reference) -> None:
    """Raises a DataError if a file is further from the model than its type explains."""
    bound = GGUF_TYPES[row["method"]].bound
    change = math.log(row["perplexity"] / row["perplexity_hf"])
    # written so that a NaN does not count as agreement
    if not (abs(change) <= bound and row["divergence"] <= bound):
        figures = f"perplexity {row['perplexity']:.4f}, the model's {row['perplexity_hf']:.4f}"
        figures += f", divergence {row['divergence']:.4f} nats"
        raise DataError(f"{row['file']} is another model: {figures}; {bound:.1%} is allowed for {row['method']}")
    if row["method"] in EXACT_TYPES and row["greedy_equal"] < reference.decided:
        raise DataError(
            f"{row['file']} goes on otherwise than the model: {row['greedy_equal']} of {reference.decided} tokens equal"
        )


def report_line(row: dict[str, Any]) -> str:
    """What is printed of a file: its size, its perplexity beside the model's, and how often both say the same."""
    notes = f", {row['fallback_tensors']} matrices in a larger type" if row["fallback_tensors"] else ""
    return (
        f"{row['method']:>7} {row['bytes'] / 1e6:12,.3f} MB {row['bits_per_weight']:6.2f} bits  "
        f"perplexity {row['perplexity']:.4f} ({row['change_percent']:+.2f} %, model {row['perplexity_hf']:.4f}; "
        f"bound {row['bound_percent']:g} %)  same top {row['same_top_percent']:.1f} %  "
        f"greedy {row['greedy_equal']}/{row['greedy_tokens']}{notes}"
    )
