"""The logits and token ids that transformers computes from a Hugging Face folder.

`python -m lit_gpt.formats.hf_logits_process FOLDER REQUEST.json ANSWER.npz` is started by `hf_logits.py`. It knows of
the model only what the folder holds, and imports nothing of litgpt.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from lit_gpt.formats.hf_loading import FROM_FOLDER, load_model


def answer(folder: Path, request: dict[str, Any], path: Path) -> None:
    """Writes an .npz file of `logits0`, `logits1`, … and, where a text is given, of its token ids.

    Args:
        folder: holds the model and its tokenizer.
        request: `sequences`, lists of token ids, and `text`, a text or None.
        path: gets `logits` i, float32 [length, vocabulary], for sequence i; `ids`, the text's tokens without special
            ones; and `starts_with`, its first token with special ones.
    """
    model = load_model(folder)
    values = {}
    with torch.inference_mode():
        for index, ids in enumerate(request["sequences"]):
            values[f"logits{index}"] = model(torch.tensor([ids])).logits[0].numpy()
    text = request["text"]
    if text is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_FOLDER)
        values["ids"] = np.array(tokenizer.encode(text, add_special_tokens=False))
        values["starts_with"] = np.array(tokenizer.encode(text)[0])
    np.savez(path, **values)


if __name__ == "__main__":
    answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
