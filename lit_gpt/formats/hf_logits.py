"""Compares our model with a Hugging Face folder: logits and token ids, theirs from transformers in a fresh process."""

import errno
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from litgpt.config import Config
from torch import Tensor, nn

from lit_gpt.errors import DataError
from lit_gpt.formats.programs import run_transformers
from lit_gpt.model.attention import whole_rows
from lit_gpt.model.gpt import GPT, LoRAGPT
from lit_gpt.model.lazy_tensors import LazyTensors, specs_of
from lit_gpt.model.lora import LoRASettings, base_name, is_adapter

AnswerT = TypeVar("AnswerT")

TOLERANCE = 1e-5  # largest difference of two float32 logits, times the largest logit where that is above 1

_PROGRAM_BYTES = 10**9  # what transformers and torch take beside the weights

PROBE_TEXT = (
    "[speaker001:] Bonjour, ça va ?\n[speaker002:] Très bien…  et « toi » ?\n\n"
    "[Łukasz:]\tAm 12. März 1789 gab's 3,50 € – naïve, isn't it? Привет, 你好 🙂\n  x = {'a': [1, 2]}\n"
)


def probe_sequences(vocab_size: int, block_size: int) -> list[list[int]]:
    """Fixed pseudo-random token ids, the first and the last id of the vocabulary among them, of several lengths."""
    generator = np.random.default_rng(1789)
    lengths = sorted({min(length, block_size) for length in (1, 2, 7, 31, 64)})
    sequences = [generator.integers(0, vocab_size, length).tolist() for length in lengths]
    sequences[-1][0], sequences[-1][-1] = 0, vocab_size - 1
    return sequences


def litgpt_logits(
    config: Config, weights: Mapping[str, Tensor], sequences: list[list[int]], lora: LoRASettings | None = None
) -> list[np.ndarray]:
    """float32 [length, vocabulary] of each sequence, computed by our model from the weights cast to float32.

    A layer's weights are held only while it computes: with `LazyTensors` the model may be larger than the memory. All
    sequences go through at once, filled up to the longest, as training's rows do. With `lora` it computes the base
    model, of which `config` is, and its adapter unmerged, which is held whole.
    """
    with torch.device("meta"):
        model = LoRAGPT(lora.extend(config)) if lora else GPT(config)
    model.max_seq_length = max(map(len, sequences))
    model.cos, model.sin = model.rope_cache()
    model.eval()
    ids = torch.zeros(len(sequences), model.max_seq_length, dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    _take_turns(model, weights)
    with torch.inference_mode():
        logits = model(ids, segments=whole_rows(*ids.shape, ids.device))
    return [row[: len(sequence)].numpy() for row, sequence in zip(logits, sequences, strict=True)]


def _take_turns(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Makes each layer of a model on the meta device fetch its weights when it is called, and let them go after it."""
    # Shared by all layers in turn: to get 4.6 GB anew from the system, cleared, took a third of the time.
    memory: dict[str, Tensor] = {}

    def fetch(module: nn.Module, names: Mapping[str, str]) -> None:
        for own, name in names.items():
            weight = weights[name]
            if own not in memory or memory[own].numel() < weight.numel():
                memory[own] = torch.empty(weight.numel())
            exact = memory[own][: weight.numel()].view(weight.shape).copy_(weight)
            setattr(module, own, nn.Parameter(exact, requires_grad=False))

    def let_go(module: nn.Module, names: Mapping[str, str]) -> None:
        for own in names:
            setattr(module, own, None)

    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        for name in filter(is_adapter, own):  # read outside their layer's call
            setattr(module, name, nn.Parameter(weights[f"{prefix}.{name}"].float(), requires_grad=False))
        if frozen := {name: base_name(f"{prefix}.{name}") for name in own if not is_adapter(name)}:
            module.register_forward_pre_hook(lambda module, _, names=frozen: fetch(module, names))
            module.register_forward_hook(lambda module, *_, names=frozen: let_go(module, names))


class Theirs(NamedTuple):
    """What transformers makes of a folder."""

    logits: list[np.ndarray]  # of each sequence, float32 [length, vocabulary]
    ids: list[int] | None = None  # of the text, without special tokens
    starts_with: int | None = None  # its first id with them
    chats: list[list[int]] | None = None  # of each conversation, up to the answer


def ask_transformers(
    folder: Path,
    sequences: list[list[int]],
    text: str | None,
    chats: Sequence[Sequence[Mapping[str, str]]] = (),
    **loading: Any,
) -> Theirs:
    """Loads `folder` with transformers in a fresh process; raises what `run_transformers` does.

    Without a `text` it is not asked for token ids. `loading` are `spare` and `dtype` of `hf_logits_process.py`.
    """
    request = {"sequences": sequences, "text": text, "chats": chats, **loading}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.npz"
        run_transformers("lit_gpt.formats.hf_logits_process", folder, request, answer)
        with np.load(answer) as values:
            logits = [values[f"logits{index}"] for index in range(len(sequences))]
            if text is None:
                return Theirs(logits)
            ids_of_chats = [values[f"chat{index}"].tolist() for index in range(len(chats))]
            return Theirs(logits, values["ids"].tolist(), int(values["starts_with"]), ids_of_chats)


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[float, float]:
    """The largest difference of two lists of logits, and the same divided by max(1, largest logit), for `TOLERANCE`."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf"), float("inf")
    difference = float(np.max([np.abs(a - b).max() for a, b in pairs]))
    scale = float(np.max([np.abs(a).max() for a, _ in pairs]))
    return difference, difference / max(1.0, scale)


def agreement(ours: list[np.ndarray], theirs: list[np.ndarray], files: str) -> str:
    """How well our logits agree with those that transformers computes from `files`; a DataError if they do not."""
    difference, relative = largest_difference(ours, theirs)
    figures = f"largest difference of logits {difference:.2g}, relative to max(1, largest logit) {relative:.2g}"
    if not relative <= TOLERANCE:  # written so that a NaN does not count as agreement
        raise DataError(f"transformers computes another model from {files}: {figures}, allowed {TOLERANCE}")
    return f"verified: {figures}, on {sum(map(len, ours))} tokens in float32"


def verify_conversion(folder: Path, config: Config, weights: LazyTensors, spare: list[str]) -> str:
    """Compares the converted `weights` with what transformers computes from `folder`; returns a line about it.

    A DataError says that the two differ. Where the memory does not suffice, the line says so instead. `spare` are
    tensors of the folder that are no part of the model.
    """
    sequences = probe_sequences(config.padded_vocab_size, config.block_size)
    dtypes = {spec.dtype for spec in weights.specs.values()}
    dtype = str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else None
    asking = partial(ask_transformers, folder, sequences, None, spare=spare, dtype=dtype)
    answer, lack = where_memory_suffices(asking, "transformers", weights, bytes_each=4)
    if answer is None:
        return f"not verified: {lack}; convert again where there is more memory, or trust the files"
    ours = litgpt_logits(config, weights, sequences)
    return agreement(ours, answer.logits, str(folder))


def where_memory_suffices(
    ask: Callable[[], AnswerT], program: str, weights: Mapping[str, Tensor], bytes_each: int
) -> tuple[AnswerT | None, str]:
    """What `ask` returns, which starts a `program` that holds so many bytes of each weight; or None, and why not."""
    parameters = sum(spec.numel() for spec in specs_of(weights).values())
    needed, free = bytes_each * parameters + _PROGRAM_BYTES, free_memory()
    if free is not None and needed > free:
        return None, f"{program} needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
    try:
        return ask(), ""
    except OSError as e:
        if e.errno != errno.ENOMEM:
            raise
        return None, e.strerror


def free_memory() -> int | None:
    """The bytes that this process and its children may still take; None where the system does not say it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
    limits = [int(available[1]) * 1024] if available else []
    groups = Path("/proc/self/cgroup")
    own = re.search(r"^0::(.*)$", groups.read_text(encoding="utf-8") if groups.is_file() else "", re.MULTILINE)
    group = Path(f"/sys/fs/cgroup{own[1]}") if own else None  # Slurm and containers limit it, or a group above it
    while group and group.is_relative_to("/sys/fs/cgroup"):
        limit, usage = group / "memory.max", group / "memory.stat"
        if limit.is_file() and usage.is_file() and (most := limit.read_text(encoding="utf-8").strip()).isdigit():
            anonymous = re.search(
                r"^anon (\d+)$", usage.read_text(encoding="utf-8"), re.MULTILINE
            )  # cached files give way
            limits.append(int(most) - int(anonymous[1] if anonymous else 0))
        group = group.parent
    return min(limits, default=None)
