"""What a Hugging Face Inference Endpoint runs: this folder's model, loaded once, continuing texts.

https://huggingface.co/docs/inference-endpoints/guides/custom_handler
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFAULTS = {"max_new_tokens": 100, "do_sample": True, "temperature": 0.8, "top_p": 0.95}


class EndpointHandler:
    """Loads the model of the folder `path`; a call continues the text or texts of one request."""

    def __init__(self, path: str = "") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(self.device).eval()

    def __call__(self, data: dict[str, Any]) -> list[dict[str, str]]:
        """`{"inputs": text or list of texts, "parameters": {…}}` → `[{"generated_text": …}, …]`, one per text.

        Parameters are those of transformers' `generate`, over `DEFAULTS`; `return_full_text` (true) says whether the
        input stands before its continuation.
        """
        inputs = data["inputs"]
        texts = [inputs] if isinstance(inputs, str) else inputs
        parameters = {**DEFAULTS, **(data.get("parameters") or {})}
        full_text = parameters.pop("return_full_text", True)
        if not parameters["do_sample"]:
            parameters.pop("temperature"), parameters.pop("top_p")  # generate() warns of them
        return [{"generated_text": self._continue(text, parameters, full_text)} for text in texts]

    def _continue(self, text: str, parameters: dict[str, Any], full_text: bool) -> str:
        # one text at a time: many base models have no padding token to make a batch with
        ids = self.tokenizer(text, return_tensors="pt").input_ids.to(self.device)
        parameters = {"pad_token_id": self.tokenizer.eos_token_id, **parameters}
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **parameters)[0]
        whole = self.tokenizer.decode(output, skip_special_tokens=True)
        prompt = self.tokenizer.decode(ids[0], skip_special_tokens=True)
        return whole if full_text else whole[len(prompt) :]
