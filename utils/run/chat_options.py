"""Options of the chat. Nothing heavy is imported here: `--help` answers at once, and recipes are checked by them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.errors import raise_problems
from lit_gpt.inference.sampling_options import Sampling
from utils.recipe.sections import SERVED
from utils.run.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ModelOptions):
    """Talk with a model, or with two. Ctrl-C ends an answer; an empty line or the end of the input (Ctrl-D) the
    conversation. /help lists what else can be said."""

    SECTION = "chat"

    model: Path | None = None
    """What answers: a run folder (its best checkpoint, else its newest), a training checkpoint, a litgpt directory, a
    Hugging Face folder, peft's adapter (on --checkpoint_dir) or a GGUF file. Adapters are merged in memory."""
    compare: tuple[str, ...] = ()
    """Two models, each as --model takes it, that answer the same: side by side where the terminal is wide."""
    once: Path | None = None
    """Answer the prompts of this file, each by itself, and end: a line each, or in a *.jsonl file objects with the key
    "prompt", or with "messages" (and "tools"), up to the last question."""
    answers: Path | None = None
    """File to write with --once: a JSON object a line, "messages" with the answer, "model", and "ended_by_itself"."""
    template: Literal["auto", "dialogue", "chat", "text"] = "auto"
    """dialogue: turns as [speaker001:]; chat: the model's chat template; text: what you write is gone on with, as a
    text; auto: the template if there is one, else dialogue."""
    user_name: str = "speaker001"
    """How your turns begin: [speaker001:]"""
    bot_name: str = "speaker002"
    """How the model's turns begin: [speaker002:]"""
    system: str | None = None
    """What a chat template gets as system message."""
    tools: Path | None = None
    """JSON file with the tools that a chat template tells the model of, a list as OpenAI writes it."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens. Default: what the model's generation_config.json says, else 256."""
    temperature: float | None = None
    """Below 1 the likely tokens become likelier; 0 takes the likeliest one always. Default: likewise, else 0.8."""
    top_k: int | None = None
    """Choose among this many likeliest tokens. Default: likewise, else 200."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability. Default: likewise, else 1."""
    repetition_penalty: float | None = None
    """Above 1 the tokens of the prompt and of the answer so far become less likely to come again. Default: likewise,
    else 1."""
    repetition_window: int | None = None
    """How many of the last tokens --repetition_penalty looks at. Default: all."""
    llama_cpp_dir: Path | None = None
    """For GGUF files: where llama.cpp is. Default: where utils/install_llama_cpp.py puts it."""

    def __post_init__(self) -> None:
        self.sampling({})  # a UserError for what cannot be
        problems = []
        if self.compare and len(self.compare) != 2:
            problems.append(f"--compare takes two models, not {len(self.compare)}")
        if self.model is not None and self.lora_path is not None:
            problems.append("--lora_path beside --model: give the adapter by --model, its base by --checkpoint_dir")
        if self.compare and self.lora_path is not None:
            problems.append("--lora_path beside --compare: give the adapter as one of its two models")
        if self.answers is not None and self.once is None:
            problems.append("--answers is written with --once")
        raise_problems(problems)

    def sampling(self, own: Mapping[str, float | int]) -> Sampling:
        """How answers are sampled: as given, else by the model's `own` values, else by defaults."""
        given = {name: getattr(self, name) for name in SERVED if getattr(self, name) is not None}
        others = {"repetition_window": self.repetition_window, "stop": self.stop, "seed": self.seed}
        return Sampling(**{"max_new_tokens": 256, **own, **given, **others})
