"""Text out of a model: many prompts at once, each token's keys and values kept, and text shown as it comes.

Rows of different lengths share a batch without masks of their own. They are aligned to the left, and each continues at
its own position. What the padding left in the cache beyond a row's end is overwritten before that row can see it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import torch
from litgpt.config import Config
from torch import Tensor

from lit_gpt.checksums import Check
from lit_gpt.errors import DataError, UserError
from lit_gpt.inference.sampling import choose
from lit_gpt.inference.sampling_options import Sampling
from lit_gpt.model.building import empty_model, materialise
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.tokenizer.hf_tokenizer import Encode, encoder_of_special_tokens
from lit_gpt.tokenizer.tokenizer import Tokenizer, require_utf8

Precision = Literal["auto", "32-true", "16-true", "bf16-true"]
Accelerator = Literal["auto", "cpu", "cuda"]

_DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
_PREFILL = 2048  # tokens of the prompts in one pass, which bounds its activations


class TextModel:
    """A model and its tokenizer; by "auto" in the type of `weights`, and on the GPU if there is one.

    A text is complete when the `check` of the files they came from has found them as they should be.
    A UserError says that there is no such device, a DataError that config and weights do not belong together.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        precision: Precision = "auto",
        accelerator: Accelerator = "auto",
        check: Check | None = None,
    ) -> None:
        if accelerator == "cuda" and not torch.cuda.is_available():
            raise UserError("--accelerator cuda: torch finds no GPU here")
        cuda = accelerator != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.tokenizer = tokenizer
        self.config = config
        dtype = _DTYPES.get(precision) or next(iter(specs_of(weights).values())).dtype
        self.model = empty_model(config, None, dtype).eval()
        materialise(self.model, weights, 0, self.device)
        # a model's vocabulary may be padded, and ids without text cannot be shown
        self._vocab_size = min(config.padded_vocab_size, tokenizer.vocab_size)
        self._room = (0, 0)
        self._cached: list[int] = []
        self._check = check or Check()
        self.continued: list[Row] = []
        """The rows of the last `stream`: how long each is, and whether its text ended by itself."""

    def encode(self, text: str, special_tokens_in_text: bool = False) -> list[int]:
        """Token ids of `text`, with the begin-of-text token where the model was trained with one."""
        require_utf8(text)
        begin = [self.tokenizer.bos_id] if self.tokenizer.adds_bos else []
        if special_tokens_in_text:
            return begin + self._encode_special([text])[0]
        return begin + self.tokenizer.encode(text)

    @cached_property
    def _encode_special(self) -> Encode:
        return encoder_of_special_tokens(self.tokenizer)

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        samples: range = range(1),
        end_ids: Collection[int] = (),
        shown: Mapping[int, str] | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Continues all `prompts` at once; yields pieces of text as they come, each with its row: prompt by prompt.

        Each text has random numbers of its own (sample i has `sampling.seed` + i), and its logits are those of the
        prompt alone, up to rounding. A prompt that begins as the last one and its continuation did, in a conversation,
        is read from there on only. `end_ids` end a text, beside the tokenizer's; `continued` says afterwards which
        texts ended so. `shown` are special tokens that are not left out, with their text. Raises what `check` does, and
        a DataError if the files are damaged, at the latest at the end.
        """
        self.check(prompts)
        ends = self.tokenizer.end_ids | set(end_ids)
        rows = []
        for prompt, sample in product(prompts, samples):
            generator = torch.Generator(self.device).manual_seed(sampling.seed + sample)
            text = Continuation(self.tokenizer, prompt, sampling.stop, shown)
            limit = min(len(prompt) + sampling.max_new_tokens, self.config.block_size)
            rows.append(Row(len(rows), len(prompt), limit, generator, text))
        self.continued = list(rows)
        logits = self._prefill(prompts, len(rows), max(row.limit for row in rows))
        seen = self._seen(prompts, sampling)
        if len(samples) > 1:
            prompt_of_row = [row.number // len(samples) for row in rows]
            self._select(prompt_of_row)
            logits = logits[prompt_of_row]
            if seen is not None:
                seen = seen[prompt_of_row]
        while True:
            if seen is not None and sampling.repetition_window:
                seen = self._marked([row.text.ids[-sampling.repetition_window :] for row in rows])
            tokens = choose(logits, seen, sampling, [row.generator for row in rows])
            for row, token in zip(rows, tokens, strict=True):
                if piece := row.push(token, ends):
                    yield row.number, piece
            open_rows = [index for index, row in enumerate(rows) if not row.text.ended]
            if not open_rows or self._check.has_failed():
                self.require_undamaged()
                return
            if len(open_rows) < len(rows):
                self._select(open_rows)
                rows = [rows[index] for index in open_rows]
                tokens = [tokens[index] for index in open_rows]
                if seen is not None:
                    seen = seen[open_rows]
            logits = self._decode(tokens, [row.length - 1 for row in rows])

    def require_undamaged(self) -> None:
        """Waits for the check of the files, where texts were left before their end; raises its DataError."""
        self._check.finish()

    def check(self, prompts: Sequence[list[int]]) -> None:
        """Raises a UserError or DataError for prompts that cannot be continued; of several it says which one."""
        for number, ids in enumerate(prompts, 1):
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            if not ids:
                raise UserError(f"nothing to continue: {which} is empty, and the model has no begin-of-text token")
            if len(ids) >= self.config.block_size:
                raise UserError(f"{which} has {len(ids)} tokens, the model's context {self.config.block_size}")
            if max(ids) >= self.config.padded_vocab_size:
                raise DataError(f"the tokenizer of {self.tokenizer.directory} is of another model: it has more tokens")

    def _seen(self, prompts: Sequence[list[int]], sampling: Sampling) -> Tensor | None:
        """bool [prompts, vocabulary]: the tokens of each prompt; None if nobody asks."""
        return None if sampling.repetition_penalty == 1 else self._marked(prompts)

    def _marked(self, texts: Sequence[list[int]]) -> Tensor:
        """bool [texts, vocabulary]: the tokens of each text."""
        marked = torch.zeros(len(texts), self._vocab_size, dtype=torch.bool, device=self.device)
        for row, ids in zip(marked, texts, strict=True):
            row[ids] = True
        return marked

    def _prefill(self, prompts: Sequence[list[int]], rows: int, positions: int) -> Tensor:
        """[prompts, vocabulary], the logits after each prompt; makes room for `rows` of `positions`."""
        self._reserve(rows, positions)
        lengths = torch.tensor([len(ids) for ids in prompts], device=self.device)
        longest = int(lengths.max())
        start = 0
        if rows == 1:  # a conversation: what the cache has of it is not computed again
            known = min(len(self._cached), longest - 1)
            while start < known and self._cached[start] == prompts[0][start]:
                start += 1
        self._cached = prompts[0][:start]
        padded = [ids + [0] * (longest - len(ids)) for ids in prompts]
        ids = torch.tensor(padded, device=self.device)
        logits = torch.empty(0)
        step = max(1, _PREFILL // len(prompts))
        for begin in range(start, longest, step):
            end = min(begin + step, longest)
            last = (lengths - 1).clamp(begin, end - 1) - begin
            found = self._forward(ids[:, begin:end], torch.arange(begin, end, device=self.device), end, last)
            if begin > start:  # prompts that ended before this part keep their logits
                found = found.where((lengths > begin).unsqueeze(-1), logits)
            logits = found
        self._cached = list(prompts[0]) if rows == 1 else []
        return logits

    def _decode(self, tokens: list[int], positions: list[int]) -> Tensor:
        """[rows, vocabulary], the logits after each row's next token, which has a position of its own."""
        ids = torch.tensor(tokens, device=self.device).unsqueeze(-1)
        own_positions = torch.tensor(positions, device=self.device).unsqueeze(-1)
        last = torch.zeros(len(tokens), dtype=torch.long, device=self.device)
        logits = self._forward(ids, own_positions, max(positions) + 1, last)
        if self._cached:
            self._cached += tokens
        return logits

    def _forward(self, ids: Tensor, positions: Tensor, end: int, last: Tensor) -> Tensor:
        """fp32 [B, vocabulary], the logits after one token of each row, number `last` [B] among its T.

        `ids` are [B, T], their `positions` [T] or [B, T], all below `end`.
        """
        # all logits of a prompt of 4,096 tokens would take 2 GiB with a vocabulary of 128,000
        rows = torch.arange(len(ids), device=self.device)
        hook = self.model.lm_head.register_forward_pre_hook(lambda _module, args: args[0][rows, last].unsqueeze(1))
        try:
            with torch.inference_mode():
                return self.model(ids, positions, input_pos_maxp1=end)[:, 0, : self._vocab_size].float()
        finally:
            hook.remove()

    def _select(self, rows: list[int]) -> None:
        for block in self.model.transformer.h:
            for kept in block.attn.kv_cache.buffers():
                kept[: len(rows)] = kept[rows]

    def _reserve(self, rows: int, positions: int) -> None:
        """Makes room for keys and values, in steps of powers of two so that a chat seldom makes it anew."""
        if rows <= self._room[0] and positions <= self._room[1]:
            return
        context = min(self.config.block_size, max(256, 1 << (positions - 1).bit_length()))
        self._room, self._cached = (0, 0), []
        self.model.clear_kv_cache()  # else both would lie in memory, and litgpt would print a warning on stdout
        self.model.max_seq_length = context
        if self.model.cos.numel() == 0:  # nothing rotates; litgpt cannot look up each row's own position there
            self.model.cos = self.model.sin = torch.ones(context, 1, device=self.device)
        dtype = self.model.transformer.wte.weight.dtype
        self.model.set_kv_cache(rows, context, device=self.device, dtype=dtype)
        self._room = (rows, context)


class TextStream:
    """Turns token ids into text as they come; bytes of a character that is not complete yet are held back.

    Special tokens are left out, but for those that are in `shown` with their text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._names = shown or {}
        self.ids = list(prompt)
        # decoding begins with the piece shown last: spaces depend on it, and there no character is cut in two
        self._start, self._shown = 0, len(prompt)

    def push(self, token: int) -> str:
        if token in self._names:
            text = self.rest() + self._names[token]
            self.ids.append(token)
            self._start, self._shown = self._shown, len(self.ids)
            return text
        self.ids.append(token)
        text = self._unshown()
        if text.endswith("\ufffd"):  # what the bytes of half a character decode to
            return ""
        self._start, self._shown = self._shown, len(self.ids)
        return text

    def rest(self) -> str:
        text = self._unshown()
        self._shown = len(self.ids)
        return text

    def _unshown(self) -> str:
        shown = self._tokenizer.decode(self.ids[self._start : self._shown])
        return self._tokenizer.decode(self.ids[self._start :])[len(shown) :]


class UpTo:
    """A text up to the first of the texts `stop`; what may be one's beginning is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.ended = False

    def push(self, piece: str) -> str:
        """The text that is decided by `piece`; `ended` says whether a stop was found."""
        self._held += piece
        found = [self._held.find(stop) for stop in self._stop if stop in self._held]
        if found:
            self.ended = True
            return self._held[: min(found)]
        decided = len(self._held) - max((begun(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[:decided], self._held[decided:]
        return text

    def finish(self) -> str:
        return "" if self.ended else self._held


class Continuation:
    """A prompt's continuation up to the first of the texts `stop`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        stop: Sequence[str] = (),
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._stream = TextStream(tokenizer, prompt, shown)
        self._text = UpTo(stop)
        self.ended = False

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens and those of the continuation so far."""
        return self._stream.ids

    def push(self, token: int) -> str:
        """The text that is decided by `token`; `ended` says whether it is the last."""
        return self._decided(self._stream.push(token))

    def finish(self) -> str:
        text = self._decided(self._stream.rest())
        self.ended = True
        return text + self._text.finish()

    def _decided(self, piece: str) -> str:
        text = self._text.push(piece)
        self.ended = self._text.ended
        return text


def begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    sizes = range(len(stop) - 1, 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


@dataclass
class Row:
    """One continuation among those that are computed together."""

    number: int  # prompt by prompt, sample by sample
    length: int  # tokens so far, the prompt's too
    limit: int  # the greatest length
    generator: torch.Generator | None  # None where nothing is drawn
    text: Continuation
    by_itself: bool = False  # ended by an end token or a stop text; others are cut at the limit

    def push(self, token: int, ends: Collection[int]) -> str:
        """The text that `token` completes; the rest of it all if it is the last one."""
        if token in ends:
            self.by_itself = True
            return self.text.finish()
        self.length += 1
        piece = self.text.push(token)
        self.by_itself = self.text.ended
        if self.length == self.limit and not self.text.ended:
            piece += self.text.finish()
        return piece
