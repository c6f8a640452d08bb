"""Makes the GGUF files of a folder, measures them against the model, and keeps the results in quantization.csv.

The table also says which files of an earlier result may stay.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lit_gpt.errors import DataError, UserError
from utils.export.gguf_source import SourceModel
from utils.export.hf_probabilities import Reference
from utils.export.llama_cpp import LlamaCpp
from utils.export.options import GGUF_TYPES
from utils.files.staged_folder import carry_over

TABLE = "quantization.csv"


def make_gguf(
    llama: LlamaCpp, model: SourceModel, gguf_type: str, source: Path, reference: Reference, folder: Path
) -> dict[str, Any]:
    """Makes one file in `folder` from that of `make_source`, measures and checks it; returns its line of the table."""
    file = folder / f"{model.name}-{gguf_type}.gguf"
    bits_per_weight, fallback_tensors = llama.quantize(source, file, gguf_type.upper())
    probabilities = source.with_name("probabilities")
    perplexity, divergence, same_top = llama.compare(file, probabilities, reference.window)
    # for a prompt of 32 tokens and its continuation: the memory of all that a model can see may be large
    context = min(model.context, 256)
    continuation = ""  # of a model that ends every text at once, as one of chats may: its probabilities are compared
    if reference.ends:
        continuation = llama.complete(file, source.with_name("prompt"), len(reference.ends), context)
    change = math.log(perplexity / reference.perplexity)
    row = {
        "method": gguf_type,
        "file": file.name,
        "bytes": file.stat().st_size,
        "bits_per_weight": bits_per_weight,
        "perplexity_hf": round(reference.perplexity, 6),
        "perplexity": perplexity,
        "change_percent": round(100 * math.expm1(change), 4),
        "bound_percent": round(100 * GGUF_TYPES[gguf_type].bound, 4),
        "divergence": divergence,
        "same_top_percent": round(100 * same_top, 3),
        "greedy_equal": equal_tokens(continuation, reference),
        "greedy_tokens": len(reference.ends),
        "fallback_tensors": fallback_tensors,
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
    if not (abs(change) <= bound and row["divergence"] <= bound):  # a NaN does not count as agreement
        figures = f"perplexity {row['perplexity']:.4f}, the model's {row['perplexity_hf']:.4f}"
        figures += f", divergence {row['divergence']:.4f} nats"
        raise DataError(f"{row['file']} is another model: {figures}; {bound:.1%} is allowed for {row['method']}")
    # these types are so close to the model that a greedy continuation has to be the same
    if row["method"] in ("f16", "f32") and row["greedy_equal"] < reference.decided:
        raise DataError(
            f"{row['file']} goes on otherwise than the model: {row['greedy_equal']} of {reference.decided} tokens equal"
        )


def report_line(row: dict[str, Any]) -> str:
    notes = f", {row['fallback_tensors']} matrices in a larger type" if row["fallback_tensors"] else ""
    return (
        f"{row['method']:>7} {row['bytes'] / 1e6:12,.3f} MB {row['bits_per_weight']:6.2f} bits  "
        f"perplexity {row['perplexity']:.4f} ({row['change_percent']:+.2f} %, model {row['perplexity_hf']:.4f}; "
        f"bound {row['bound_percent']:g} %)  same top {row['same_top_percent']:.1f} %  "
        f"greedy {row['greedy_equal']}/{row['greedy_tokens']}{notes}"
    )


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier result's table as texts, `perplexity_hf` as a number; none if there is no table."""
    path = folder / TABLE
    if not path.is_file():
        return []
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table["perplexity_hf"] = table["perplexity_hf"].astype(float)
    except (KeyError, ValueError):  # a table that pandas cannot parse is a ValueError too
        raise UserError(f"--output_dir {folder}: its {TABLE} was not written by this program") from None
    return table.to_dict("records")


def keep_earlier(folder: Path, stage: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Carries over into `stage` what stays of `folder`, prints what does not, and returns the table's lines that stay:
    those whose file is there, is not made anew in `rows`, and was measured against the same model."""
    made = {row["method"] for row in rows}
    kept = []
    gone = {TABLE}
    for row in read_table(folder):
        # for another model, or over other windows or another text, it differs in its sixth digit
        same_measure = math.isclose(row["perplexity_hf"], rows[0]["perplexity_hf"], rel_tol=1e-5)
        if same_measure and row["method"] not in made and (folder / row["file"]).is_file():
            kept.append(row)
        else:
            gone |= {row["file"], f"Modelfile.{row['method']}"}
    not_kept = [name for name in carry_over(folder, stage, gone) if name != TABLE]
    if not_kept:
        print(f"not kept, as made anew, of another model or measured on other text: {', '.join(not_kept)}", flush=True)
    return kept


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(rows[-1])
    # as objects: a column of texts and numbers keeps each as it is
    pd.DataFrame(rows, columns=columns, dtype=object).to_csv(path, index=False, na_rep="nan", lineterminator="\n")
