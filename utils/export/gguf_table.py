"""quantization.csv: a line per GGUF file of a folder, with what was measured; it says which files may stay."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lit_gpt.errors import UserError
from utils.files.staged_folder import carry_over

TABLE = "quantization.csv"


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier result's table as texts, `perplexity_hf` as a number; none if there is no table.

    Raises:
        UserError: if it is another program's.
    """
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
    """Carries over into `stage` what stays of `folder`, and says what does not; returns the table's lines that stay.

    A line stays if its file is there, is not made anew in `rows`, and has the same perplexity of the model itself: for
    another model, or over other windows or another text, that differs in its sixth digit.
    """
    made = {row["method"] for row in rows}
    kept = []
    gone = {TABLE}
    for row in read_table(folder):
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
    """Writes the table with the columns of its last line."""
    columns = list(rows[-1])
    # as objects: a column of texts and numbers keeps each as it is
    pd.DataFrame(rows, columns=columns, dtype=object).to_csv(path, index=False, na_rep="nan", lineterminator="\n")
