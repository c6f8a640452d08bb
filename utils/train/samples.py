"""What a model in training goes on with: the prompts of --sample_prompts, each token the likeliest one.

Every token is a pass over the prompts and what followed so far, as the training makes it, without a cache of keys and
values: so it works for whatever is trained, sharded and compiled as it is. The prompts are divided among the processes,
which make as many passes each: those of a sharded model need all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.errors import DataError, UserError
from lit_gpt.inference.generation import Continuation, Row
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer, require_utf8
from utils.cluster.collectives import any_process, together
from utils.cluster.launch import data_parallel_part
from utils.prepare.chat.prompt_files import Asked, read_prompts
from utils.run.samples_file import readable_json

_MULTIPLE = 64  # of the lengths of passes: memory is taken, and kernels are made, for few lengths
_SHOWN, _CHARACTERS = 20, 300  # samples in the log, and the most characters of each


class Sample(NamedTuple):
    text: str
    tokens: int
    ended: bool
    """By itself, and not because it was as long as it may be."""


@dataclass(frozen=True)
class SamplePlan:
    """The prompts, and what ends a continuation."""

    asked: list[Any]
    """What is recorded of each prompt: a text, or messages."""
    prompts: list[list[int]]
    tokenizer: Tokenizer
    end_ids: set[int]
    stop: tuple[str, ...]
    """Texts that end one, where the chat template has no token for it."""
    longest: int
    """Tokens of a continuation."""
    config: Config
    positions: int
    """Those of a micro-batch: a pass on one process takes no more, unless a single prompt does."""

    @property
    def rows_at_once(self) -> int:
        """Prompts in a pass on one process."""
        width = max(map(len, self.prompts)) + self.longest
        return max(1, self.positions // min(self.config.block_size, _rounded_up(width)))

    def records(self, step: int, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        found = []
        for number, (asked, sample) in enumerate(zip(self.asked, samples, strict=True), start=1):
            found.append({"step": step, "number": number, "asked": asked} | sample._asdict())
        return found


def make_sample_plan(
    path: Path,
    longest: int,
    positions: int,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    begins: bool,
    config: Config,
) -> SamplePlan:
    """Reads the prompts of a file: questions to the data's chat template, or without one beginnings of texts, which
    start with the begin-of-text token if `begins`.

    A UserError or a DataError names a line that cannot be read, or is too long for the model.
    """
    if not path.is_file():
        raise UserError(f"--sample_prompts {path} is no file")
    asked, prompts = [], []
    for one in read_prompts(path):
        try:
            ids = _encode(one, tokenizer, template, begins)
        except (UserError, DataError) as e:
            raise type(e)(f"{one.where}: {e}") from None
        if len(ids) >= config.block_size:
            raise UserError(f"{one.where}: the prompt has {len(ids)} tokens, the model's context {config.block_size}")
        prompts.append(ids)
        asked.append(one.messages if template else one.messages[0]["content"])
    ends, stop = (template.end_ids, template.stop) if template else (tokenizer.end_ids, ())
    return SamplePlan(asked, prompts, tokenizer, ends, stop, longest, config, positions)


def _encode(asked: Asked, tokenizer: Tokenizer, template: ChatTemplate | None, begins: bool) -> list[int]:
    if template:
        return template.encode(asked.messages, asked.tools)
    if len(asked.messages) > 1 or asked.tools:
        raise UserError("this is a conversation, and the data have no chat template")
    require_utf8(text := asked.messages[0]["content"])
    return ([tokenizer.bos_id] if begins else []) + tokenizer.encode(text)


@torch.no_grad()
def continue_prompts(
    fabric: Fabric, model: nn.Module, plan: SamplePlan, cut_short: Callable[[], bool]
) -> list[Sample] | None:
    """The continuation of each prompt, on every process; None if it was cut short.

    Every process asks `cut_short` before each pass, which must answer the same on all.
    """
    part, parts = data_parallel_part(fabric)
    found: dict[int, Sample] = {}
    model.eval()
    for first in range(0, len(plan.prompts), parts * plan.rows_at_once):
        group = range(first, min(first + parts * plan.rows_at_once, len(plan.prompts)))
        own = _continue(fabric, model, plan, group[part::parts], cut_short)
        if own is None:
            model.train()
            return None
        found |= own
    model.train()
    every: dict[int, Sample] = {}
    for others in together(lambda: found):
        every |= others
    return [every[number] for number in range(len(plan.prompts))]


def _continue(
    fabric: Fabric, model: nn.Module, plan: SamplePlan, numbers: range, cut_short: Callable[[], bool]
) -> dict[int, Sample] | None:
    """This process's share of the prompts that are continued at once."""
    texts = {number: list(plan.prompts[number]) for number in numbers}
    pieces = dict.fromkeys(numbers, "")
    rows = []
    for number, ids in texts.items():
        limit = min(len(ids) + plan.longest, plan.config.block_size)
        rows.append(Row(number, len(ids), limit, None, Continuation(plan.tokenizer, ids, plan.stop)))
    going_on = list(rows)
    while any_process(bool(going_on)):
        if cut_short():
            return None
        # a process that has nothing to go on with makes the pass for the others
        tokens = _next_tokens(fabric, model, plan, [texts[row.number] for row in going_on] or [[0]])
        for row, token in zip(going_on, tokens, strict=False):
            if token is None:
                pieces[row.number] += row.text.finish()
                continue
            pieces[row.number] += row.push(token, plan.end_ids)
            texts[row.number].append(token)
        going_on = [row for row in going_on if not row.text.ended]
    found = {}
    for row in rows:
        added = row.length - len(plan.prompts[row.number])
        found[row.number] = Sample(pieces[row.number], added, row.by_itself)
    return found


def _next_tokens(fabric: Fabric, model: nn.Module, plan: SamplePlan, texts: list[list[int]]) -> list[int | None]:
    """The likeliest token after each text; None where a logit is not finite."""
    length = min(plan.config.block_size, _rounded_up(max(map(len, texts))))
    count, sharing = len(texts), fabric.world_size // data_parallel_part(fabric)[1]
    while len(texts) * length % sharing:  # processes that share the model take as many positions each
        texts = [*texts, [0]]
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    bounds, last = [], []
    for index, text in enumerate(texts):
        ids[index, : len(text)] = torch.tensor(text)
        begin = index * length
        # what is left of a row is a document of its own
        bounds += [begin] if len(text) == length else [begin, begin + len(text)]
        last.append(begin + len(text) - 1)
    segments = torch.tensor([*bounds, ids.numel()], dtype=torch.int32)
    given: list[Tensor] = [tensor.to(fabric.device) for tensor in (ids, segments, torch.tensor(last))]
    logits = model(given[0], segments=given[1], last=given[2])[:count]
    # a model's vocabulary may be padded, and ids without text cannot be shown
    logits = logits[:, : min(plan.config.padded_vocab_size, plan.tokenizer.vocab_size)]
    tokens = torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1).tolist()
    return [None if token < 0 else token for token in tokens]


def _rounded_up(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def told_samples(samples: Sequence[Sample]) -> list[str]:
    """The samples as lines for a log, which hold nothing that a terminal would act on."""
    ended = sum(sample.ended for sample in samples)
    lines = [f"{ended} of {len(samples)} samples ended by themselves"]
    for number, sample in enumerate(samples[:_SHOWN], start=1):
        shown = readable_json(sample.text[:_CHARACTERS]) + " …" * (len(sample.text) > _CHARACTERS)
        lines.append(f"sample {number} ({'ended' if sample.ended else 'cut'} after {sample.tokens} tokens): {shown}")
    return lines
