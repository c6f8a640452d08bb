"""Does a Hugging Face folder say what our model says? Its logits and token ids from transformers, in a fresh process.

`python -m lit_gpt.hf_logits FOLDER REQUEST.json ANSWER.npz` is that process: it knows of the model only what the folder
holds, and imports nothing of litgpt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_gpt.command import DataError, UserError

if TYPE_CHECKING:
    import torch
    from litgpt import Config

TOLERANCE = 1e-5
"""Largest difference of two float32 logits, times the largest logit where that is above 1 (rounding grows with it)."""

PROBE_LENGTHS = (1, 2, 7, 31, 64)
PROBE_TEXT = (
    "[speaker001:] Bonjour, ça va ?\n[speaker002:] Très bien…  et « toi » ?\n\n"
    "[Łukasz:]\tAm 12. März 1789 gab's 3,50 € – naïve, isn't it? Привет, 你好 🙂\n  x = {'a': [1, 2]}\n"
)


@dataclass(frozen=True)
class Answer:
    """What transformers makes of a folder."""

    logits: list[np.ndarray]
    """float32 [length, vocabulary] of each sequence."""
    ids: list[int] | None
    """Token ids of the text, without special tokens; None if none was given."""
    starts_with: int | None
    """The first id of the text with special tokens."""


def probe_sequences(vocab_size: int, block_size: int) -> list[list[int]]:
    """Fixed pseudo-random token ids, the first and the last id of the vocabulary among them, of several lengths."""
    generator = np.random.default_rng(1789)
    lengths = sorted({min(length, block_size) for length in PROBE_LENGTHS})
    sequences = [generator.integers(0, vocab_size, length).tolist() for length in lengths]
    sequences[-1][0], sequences[-1][-1] = 0, vocab_size - 1
    return sequences


def litgpt_logits(config: Config, state_dict: dict[str, torch.Tensor], sequences: list[list[int]]) -> list[np.ndarray]:
    """float32 [length, vocabulary] of each sequence, computed by our model from the weights cast to float32."""
    import torch

    from lit_gpt.model import GPT

    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state_dict.items()}, assign=True)
    model.max_seq_length = min(config.block_size, max(PROBE_LENGTHS))
    model.cos, model.sin = model.rope_cache()
    model.eval()
    with torch.inference_mode():
        return [model(torch.tensor([ids]))[0].numpy() for ids in sequences]


def ask_transformers(folder: Path, sequences: list[list[int]], text: str | None) -> Answer:
    """Loads `folder` with transformers in a fresh process.

    Raises:
        UserError: if transformers is not installed.
        DataError: if it cannot load the folder.
    """
    require_transformers()
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch) / "request.json", Path(scratch) / "answer.npz"
        request.write_text(json.dumps({"sequences": sequences, "text": text}))
        command = [sys.executable, "-m", "lit_gpt.hf_logits", str(folder.resolve()), str(request), str(answer)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DataError(f"transformers does not load {folder}: {lines[-1]}")
        with np.load(answer) as values:
            logits = [values[f"logits{index}"] for index in range(len(sequences))]
            ids = values["ids"].tolist() if text is not None else None
            return Answer(logits, ids, int(values["starts_with"]) if text is not None else None)


def require_transformers() -> None:
    """Raises a UserError if transformers is not installed."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        how = "pip install transformers==5.3.0, or give --verify tensors"
        raise UserError(f"comparing logits needs transformers, which is not installed: {how}")


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[float, float]:
    """The largest absolute difference of two lists of logits, and that difference relative to the largest logit.

    Relative means divided by max(1, largest logit): `TOLERANCE` is for this second number. NaN where either has NaN.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf"), float("inf")
    difference = float(np.max([np.abs(a - b).max() for a, b in pairs]))
    scale = float(np.max([np.abs(a).max() for a, _ in pairs]))
    return difference, difference / max(1.0, scale)


def _answer(folder: Path, request: dict[str, Any], path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # its other kinds of attention leave out Gemma 2's soft cap
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, attn_implementation="eager"
    )
    if problems := {kind: names for kind, names in loading.items() if names}:
        sys.exit(f"the weights do not fit the configuration: {problems}")
    model.eval()
    with torch.inference_mode():
        logits = [model(torch.tensor([ids])).logits[0].numpy() for ids in request["sequences"]]
    answer = {f"logits{index}": values for index, values in enumerate(logits)}
    if (text := request["text"]) is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        answer["ids"] = np.array(tokenizer.encode(text, add_special_tokens=False))
        answer["starts_with"] = np.array(tokenizer.encode(text)[0])
    np.savez(path, **answer)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
