"""The logits and token ids that transformers computes from a Hugging Face folder, without litgpt.

`hf_logits.py` starts `python -m lit_gpt.formats.hf_logits_process FOLDER REQUEST.json ANSWER.npz`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

FROM_FOLDER = {"local_files_only": True, "trust_remote_code": False}  # else a folder with Python files asks on stdin


def load_model(folder: Path, spare: Sequence[str] = ()) -> PreTrainedModel:
    """Loads the model in float32; ends the process if the weights, but for those in `spare`, do not fit config.json."""
    # its other kinds of attention leave out Gemma 2's soft cap
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager", **FROM_FOLDER
    )
    loading["unexpected_keys"] = set(loading["unexpected_keys"]) - set(spare)
    if problems := {kind: names for kind, names in loading.items() if names}:
        sys.exit(f"the weights do not fit the configuration: {problems}")
    return model.eval()


def answer(folder: Path, request: dict[str, Any], path: Path) -> None:
    """Writes an .npz file of `logits0`, … (float32 [length, vocabulary] of each of `sequences`) and, where there is a
    `text`, of its token ids: `ids` without special tokens, and `starts_with`, the first one with them; and `chat0`, …,
    those of each of `chats` up to the answer. With a `dtype` the weights are rounded to it, and computed with in
    float32 all the same."""
    model = load_model(folder, request.get("spare", ()))
    values = {}
    with torch.inference_mode():
        if dtype := request.get("dtype"):
            for parameter in model.parameters():
                parameter.copy_(parameter.to(getattr(torch, dtype)))
        for index, ids in enumerate(request["sequences"]):
            values[f"logits{index}"] = model(torch.tensor([ids])).logits[0].numpy()
    text = request["text"]
    if text is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_FOLDER)
        values["ids"] = np.array(tokenizer.encode(text, add_special_tokens=False))
        values["starts_with"] = np.array(tokenizer.encode(text)[0])
        for index, messages in enumerate(request["chats"]):
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            values[f"chat{index}"] = np.array(ids)
    np.savez(path, **values)


if __name__ == "__main__":
    answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3]))
