"""A model as transformers loads it from a Hugging Face folder, for the fresh processes that `hf_process.py` starts."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

FROM_FOLDER = {"local_files_only": True, "trust_remote_code": False}
"""For `from_pretrained`: without the second a folder with Python files asks on stdin."""


def load_model(folder: Path) -> PreTrainedModel:
    """Loads the model in float32; ends the process if the weights do not fit config.json."""
    # its other kinds of attention leave out Gemma 2's soft cap
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager", **FROM_FOLDER
    )
    if problems := {kind: names for kind, names in loading.items() if names}:
        sys.exit(f"the weights do not fit the configuration: {problems}")
    return model.eval()
