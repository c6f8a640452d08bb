"""What a Hugging Face Inference Endpoint runs: this folder's model, loaded once, continuing texts.

https://huggingface.co/docs/inference-endpoints/guides/custom_handler

A model that was trained on normalised conversations gets them in that form, `[speaker001:]` as `[Intervenant 1:]`, and
its answer comes back with the speakers named as in the request. dialogue_text.py is the file that prepared the training
data; training_provenance.json says whether, and in which languages.
"""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFAULTS = {"max_new_tokens": 100, "do_sample": True, "temperature": 0.8, "top_p": 0.95}


class EndpointHandler:
    """Loads the model of the folder `path`; a call continues the text or texts of one request."""

    def __init__(self, path: str = "") -> None:
        folder = Path(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(self.device).eval()
        self.dialogue_text = load_module(folder / "dialogue_text.py")
        provenance = json.loads((folder / "training_provenance.json").read_text(encoding="utf-8"))
        languages = Counter((provenance.get("normalised") or {}).values())
        self.language = languages.most_common(1)[0][0] if languages else None

    def __call__(self, data: dict[str, Any]) -> list[dict[str, str]]:
        """`{"inputs": text or list of texts, "parameters": {…}}` → `[{"generated_text": …}, …]`, one per text.

        Parameters are those of transformers' `generate`, over `DEFAULTS`; `return_full_text` (true) says whether the
        input stands before its continuation, `language` in which one conversations are normalised, null that they are
        not. Default: that of most datasets of the training.

        Raises:
            ValueError: for inputs that are no texts, are too long, or in a language that cannot be normalised.
        """
        inputs = data.get("inputs")
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("inputs must be a text or a list of texts")
        parameters = {**DEFAULTS, **(data.get("parameters") or {})}
        full_text = parameters.pop("return_full_text", True)
        language = parameters.pop("language", self.language)
        if not parameters["do_sample"]:
            parameters.pop("temperature"), parameters.pop("top_p")  # generate() warns of them
        answers = []
        for text in texts:
            text = text.rstrip() if language else text
            prompt = self.dialogue_text.normalise(text, language, open_end=True) if language else text
            answer = self._continue(prompt, parameters)
            answer = self.dialogue_text.restore_names(answer, text, language) if language else answer
            answers.append({"generated_text": text + answer if full_text else answer})
        return answers

    def _continue(self, prompt: str, parameters: dict[str, Any]) -> str:
        """What the model writes after `prompt`."""
        # one text at a time: many base models have no padding token to make a batch with
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids.long().to(self.device)
        context = self.model.config.max_position_embeddings
        if not 0 < ids.shape[1] < context:
            raise ValueError(f"the text has {ids.shape[1]} tokens; it must have 1 to {context - 1}")
        parameters = {"pad_token_id": self.tokenizer.eos_token_id, **parameters}
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **parameters)[0]
        # decoded as a whole, for the space between the two
        whole = self.tokenizer.decode(output, skip_special_tokens=True)
        return whole[len(self.tokenizer.decode(ids[0], skip_special_tokens=True)) :]


def load_module(path: Path) -> ModuleType:
    """The module in the file `path`, wherever the endpoint was started."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
