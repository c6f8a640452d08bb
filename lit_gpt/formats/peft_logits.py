"""The logits of base model and adapter together as peft computes them, in a fresh process."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.formats.programs import require_transformers, run_transformers


def require_peft(instead: str) -> None:
    """Raises a UserError if peft is not installed; `instead` is what else the user can do."""
    require_transformers(instead)
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"peft is needed to compare with, and not installed: pip install peft==0.21.2{instead}")


def ask_peft(folder: Path, base: Path, sequences: list[list[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """float32 [length, vocabulary] of each sequence, of the model in the litgpt directory `base` alone, and with the
    adapter in `folder`; raises what `run_transformers` does."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.npz"
        request = {"sequences": sequences, "base": str(base.resolve())}
        run_transformers("lit_gpt.formats.peft_logits_process", folder, request, answer, "peft")
        with np.load(answer) as values:
            alone = [values[f"base{index}"] for index in range(len(sequences))]
            return alone, [values[f"both{index}"] for index in range(len(sequences))]
