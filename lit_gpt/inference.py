"""Text out of a litgpt directory: the model on its device, and tokens turned into text as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from litgpt.generate.base import generate_fn

from lit_gpt.command import DataError, UserError, raise_problems
from lit_gpt.foundation import read_config, read_weights
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

Precision = Literal["auto", "32-true", "16-true", "bf16-true"]
Accelerator = Literal["auto", "cpu", "cuda"]

_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}


def check_sampling(temperature: float, top_k: int | None, top_p: float, max_new_tokens: int) -> None:
    """Raises a `UserError` that names all values that cannot be."""
    problems = []
    if temperature < 0:
        problems.append(f"--temperature must be 0 (always the likeliest token) or more, not {temperature}")
    if top_k is not None and top_k < 1:
        problems.append(f"--top_k must be 1 or more, not {top_k}")
    if not 0 < top_p <= 1:
        problems.append(f"--top_p must be above 0 and at most 1, not {top_p}")
    if max_new_tokens < 1:
        problems.append(f"--max_new_tokens must be 1 or more, not {max_new_tokens}")
    raise_problems(problems)


class TextModel:
    """A model and its tokenizer.

    Raises:
        UserError: if `checkpoint_dir` is no litgpt directory, or there is no such device.
        DataError: if its files are damaged or do not belong together.
    """

    def __init__(self, checkpoint_dir: Path, precision: Precision = "auto", accelerator: Accelerator = "auto") -> None:
        if accelerator == "cuda" and not torch.cuda.is_available():
            raise UserError("--accelerator cuda: torch finds no GPU here")
        cuda = accelerator != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.tokenizer = Tokenizer(checkpoint_dir)
        self.config = read_config(checkpoint_dir)
        weights = read_weights(checkpoint_dir)
        dtype = _DTYPES.get(precision)
        with torch.device("meta"):
            self.model = GPT(self.config)
        try:
            placed = {name: tensor.to(self.device, dtype) for name, tensor in weights.items()}
            self.model.load_state_dict(placed, assign=True)
        except RuntimeError as e:
            if "Error(s) in loading state_dict" not in str(e):
                raise
            reason = str(e).splitlines()[1].strip()
            raise DataError(f"{checkpoint_dir}: lit_model.pth does not fit model_config.yaml: {reason}") from None
        self.model.eval()
        self._context = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the begin-of-text token where the model was trained with one."""
        begin = [self.tokenizer.bos_id] if self.tokenizer.adds_bos else []
        return begin + self.tokenizer.encode(text)

    def stream(
        self, ids: list[int], max_new_tokens: int, temperature: float, top_k: int | None, top_p: float
    ) -> Iterator[str]:
        """The continuation of `ids`, piece by piece, until the end-of-text token, `max_new_tokens` or a full context.

        Raises:
            UserError: if `ids` are empty or leave no room in the context.
        """
        if not ids:
            raise UserError("nothing to continue: the prompt is empty, and the model has no begin-of-text token")
        if len(ids) >= self.config.block_size:
            raise UserError(f"the prompt has {len(ids)} tokens, the model's context {self.config.block_size}")
        limit = min(len(ids) + max_new_tokens, self.config.block_size)
        self._reserve(limit)
        eos = self.tokenizer.eos_id
        tokens = generate_fn(
            self.model,
            torch.tensor(ids, device=self.device),
            limit,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_tokens=() if eos is None else ([eos],),
            include_prompt=False,
            include_eos=False,
        )
        text = TextStream(self.tokenizer, ids)
        for token in tokens:
            if piece := text.push(int(token)):
                yield piece
        if rest := text.rest():
            yield rest

    def _reserve(self, positions: int) -> None:
        """Room for keys and values of `positions`, in steps of powers of two so that a chat seldom makes it anew."""
        if positions <= self._context:
            return
        self._context = min(self.config.block_size, max(256, 1 << (positions - 1).bit_length()))
        self.model.max_seq_length = self._context
        # a model that was built without memory has no rotary table yet, and float32 keeps far positions apart
        self.model.cos, self.model.sin = self.model.rope_cache(self.device)
        dtype = self.model.transformer.wte.weight.dtype
        self.model.set_kv_cache(batch_size=1, max_seq_length=self._context, device=self.device, dtype=dtype)


class TextStream:
    """Turns token ids into text as they come; bytes of a character that is not complete yet are held back."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        # decoding begins with the piece shown last: spaces depend on it, and there no character is cut in two
        self._start, self._shown = 0, len(prompt)

    def push(self, token: int) -> str:
        """The text that `token` completes, if any."""
        self._ids.append(token)
        text = self._unshown()
        if text.endswith("\ufffd"):  # what the bytes of half a character decode to
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def rest(self) -> str:
        """What was held back and never became complete."""
        text = self._unshown()
        self._shown = len(self._ids)
        return text

    def _unshown(self) -> str:
        shown = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(shown) :]
