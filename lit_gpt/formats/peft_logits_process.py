"""The logits that peft computes with an adapter, and those of its base model alone, in transformers.

`peft_logits.py` starts `python -m lit_gpt.formats.peft_logits_process FOLDER REQUEST.json ANSWER.npz` with the
adapter's folder. The base model is a litgpt directory's, since the adapter is merged into those weights.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from torch import nn

from lit_gpt.formats.hf_config import read_hf_config, settle_config
from lit_gpt.formats.hf_weights import tensors_to_hf
from lit_gpt.formats.litgpt_directory import lazy_weights, read_config
from lit_gpt.formats.peft_whole import with_rows_for


def load_base(directory: Path, adapter: Path) -> nn.Module:
    """transformers' model of a litgpt directory, in float32, with as many rows as the adapter has; ends the process if
    the weights do not fit it."""
    config, weights, found = read_config(directory), lazy_weights(directory), read_hf_config(directory)
    config, weights = with_rows_for(adapter, config, weights, found)
    hf, _ = settle_config(found, config, weights, "float32")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(hf), encoding="utf-8")
        theirs = transformers.AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
    model_class = transformers.AutoModelForCausalLM._model_mapping[type(theirs)]
    model, loading = model_class.from_pretrained(
        None,
        config=theirs,
        state_dict=dict(tensors_to_hf(weights, config, hf)),
        dtype=torch.float32,
        output_loading_info=True,
        attn_implementation="eager",  # its other kinds of attention leave out Gemma 2's soft cap
    )
    if problems := {kind: names for kind, names in loading.items() if names}:
        sys.exit(f"the weights do not fit the configuration: {problems}")
    return model.eval()


def answer(folder: Path, request: dict[str, Any], path: Path) -> None:
    """Writes an .npz file of `base0`, … and `both0`, …: float32 [length, vocabulary] of each of `sequences`."""
    sequences = [torch.tensor([ids]) for ids in request["sequences"]]
    values = {}
    model = load_base(Path(request["base"]), folder)
    with torch.inference_mode():
        for index, ids in enumerate(sequences):
            values[f"base{index}"] = model(ids).logits[0].numpy()
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.inference_mode():
        for index, ids in enumerate(sequences):
            values[f"both{index}"] = model(ids).logits[0].numpy()
    np.savez(path, **values)


if __name__ == "__main__":
    answer(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3]))
