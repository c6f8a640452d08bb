"""Options of the commands that bring a trained model to other programs, and the GGUF types that they can name.
Nothing heavy is imported here, so that `--help` answers at once."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from lit_gpt.errors import raise_problems
from lit_gpt.formats.repo_id import check_repo_id
from lit_gpt.inference.sampling_options import Sampling

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class GgufType(NamedTuple):
    bits: float  # per weight, about
    bound: float  # of the change of log perplexity, either way, and of the mean Kullback-Leibler divergence, in nats


# For Llama 3 8B llama-quantize's help states, of a perplexity of 6.2, +7.5 % (q4_0), +7.2 % (q4_1), +2.8 % (q4_k_m),
# +2.1 % (q5_0), +1.7 % (q5_1) and +0.04 % (q8_0). The bounds are some four times as wide: small models lose more, and
# over few tokens the figure is uncertain (1,016 tokens of the sample's model of 1.1 M parameters: q4_1 +4.4 %,
# q8_0 -0.1 %, f16 +0.01 %). An error in a conversion, of heads, positions or norms, changes it by far more.
GGUF_TYPES = {
    "f32": GgufType(32, 0.001),
    "bf16": GgufType(16, 0.02),
    "f16": GgufType(16, 0.001),
    "q8_0": GgufType(8.5, 0.01),
    "q6_k": GgufType(6.6, 0.05),
    "q5_1": GgufType(6, 0.1),
    "q5_0": GgufType(5.5, 0.1),
    "q5_k_m": GgufType(5.7, 0.1),
    "q4_1": GgufType(5, 0.3),
    "q4_0": GgufType(4.5, 0.3),
    "q4_k_m": GgufType(4.9, 0.2),
}
DEFAULT_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "f16")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How answers are sampled where nobody says otherwise. Default: as the recipe's section chat says, else nothing."""

    temperature: float | None = None
    """Below 1 the likely tokens become likelier; 0 takes the likeliest one always."""
    top_k: int | None = None
    """Choose among this many likeliest tokens."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    repetition_penalty: float | None = None
    """Above 1 the tokens of the prompt and of the answer so far become less likely to come again."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        Sampling(**self.sampling())  # a UserError for what cannot be

    def sampling(self) -> dict[str, float | int]:
        """Those that are given."""
        values = {field.name: getattr(self, field.name) for field in fields(Answers)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ConvertOptions(Answers):
    """Convert a trained model to a Hugging Face folder, check it, and upload it if asked to."""

    SECTION = "convert"

    input_path: Path
    """Run folder (its best checkpoint, else its newest), training checkpoint, or lit_model.pth."""
    output_dir: Path
    """Folder to make. It may hold an earlier conversion, which is replaced, or a merged lit_model.pth, which stays."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the one in the run's run.yaml."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the weights. Default: as trained."""
    max_shard_size: str = "5GB"
    """Largest size of one weights file."""
    verify: Literal["logits", "tensors", "none"] = "logits"
    """logits: transformers, in a fresh process, computes what litgpt does (needs the model in memory in float32).
    tensors: the files hold what was to be written, bit for bit."""
    as_adapter: bool = False
    """Write LoRA's adapter for the peft library instead of the merged model, to be loaded on the same base."""
    base_model: str | None = None
    """The foundation model's name on the Hub, ORG/NAME, for the card and the adapter. Default: its folder's, if that
    is ORG/NAME in a folder `checkpoints`."""
    repo_id: str | None = None
    """Upload the folder to this repository of the Hugging Face Hub, as ORG/NAME."""
    private: bool = True
    """Whether the repository is private, if it has to be made."""
    license: str | None = None
    """Licence of the model as the Hub names it, such as cc-by-sa-4.0. Default: the base model's, as its card says."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if not parse_size(self.max_shard_size):
            problems.append(f"--max_shard_size must be a size like 5GB, not '{self.max_shard_size}'")
        if self.as_adapter and self.dtype:
            problems.append("--as_adapter keeps the adapter's own type: leave --dtype out")
        if self.repo_id is not None:
            problems += check_repo_id(self.repo_id, "--repo_id")
        if self.base_model is not None:
            problems += check_repo_id(self.base_model, "--base_model")
        if self.license is not None and not re.fullmatch(r"[a-z0-9.-]+", self.license):
            problems.append(f"--license must be a name such as apache-2.0, not {self.license!r}")
        raise_problems(problems)


def parse_size(text: str) -> int:
    """Bytes of '5GB' or '500MiB'; 0 for a text that is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.strip().upper())
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


@dataclass(frozen=True)
class MergeOptions:
    """Merge a LoRA checkpoint, or an adapter of peft, into the foundation model it was trained on."""

    SECTION = "merge"

    lora_path: Path
    """Run folder (its best checkpoint, else its newest), a training checkpoint's directory, or peft's folder."""
    save_path: Path
    """The merged lit_model.pth, or the directory to write it in; config and tokenizer are put beside it."""
    checkpoint_dir: Path | None = None
    """Foundation model. Default: the one in the run's run.yaml; peft's folder names none."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of the merged weights. Default: the foundation model's. The sum is computed in float32 always."""
    verify: Literal["logits", "none"] = "logits"
    """logits: those of the written model, computed layer by layer in float32, are those of base and adapter; of peft's
    folder as peft computes them in a fresh process, which needs peft, and the base model in memory in float32."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class ToHub:
    """Which folder goes to which repository of the Hub, and how."""

    repo: str
    """The repository, as ORG/NAME; it is made if there is none."""
    input_dir: Path
    """Folder whose files are sent."""
    message: str = "Upload"
    """The commit's message."""
    private: bool = True
    """Whether the repository is private, if it has to be made."""
    dry_run: bool = False
    """Show what would be sent, and end."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = check_repo_id(self.repo, "REPO")
        if not self.message.strip():
            problems.append("--message must not be empty")
        raise_problems(problems)


@dataclass(frozen=True)
class UploadOptions(ToHub):
    """Upload a Hugging Face folder, or a new card for a model that is there; a second call sends only what is missing.

    The Hub needs a token that may write: run `hf auth login`, or set HF_TOKEN.
    """

    input_dir: Path
    """Folder whose files are sent, as convert_litgpt_to_transformers.py makes it; litgpt's and hidden ones stay."""
    message: str = "Upload model"
    """The commit's message."""


@dataclass(frozen=True)
class UploadDatasetOptions(ToHub):
    """Upload a folder of chunks of books as a dataset, with its card; a second call sends only what is missing.

    The Hub needs a token that may write: run `hf auth login`, or set HF_TOKEN.
    """

    input_dir: Path
    """Folder whose files are sent, as data/chunk_books.py makes it: Parquet files, card, list of books, licences."""
    message: str = "Upload dataset"
    """The commit's message."""


@dataclass(frozen=True)
class QuantizeOptions(Answers):
    """Make GGUF files of a Hugging Face folder, measure each against it, and write Modelfiles for Ollama."""

    SECTION = "quantize"

    model_dir: Path
    """Hugging Face folder, as convert_litgpt_to_transformers.py makes it."""
    output_dir: Path
    """Folder to make. In the folder of an earlier result GGUF files of the same model, measured on the same windows
    of the same text, stay beside the new ones; those of another model or measure are removed, which is said. All else
    in it stays."""
    methods: tuple[str, ...] = DEFAULT_TYPES
    """Types to make: q4_0 q4_1 q5_0 q5_1 q8_0 q4_k_m f16, which are the default, q5_k_m q6_k bf16 f32."""
    llama_cpp_dir: Path | None = None
    """llama.cpp, built. Default: where utils/install_llama_cpp.py puts it."""
    text: Path | None = None
    """UTF-8 text to measure on, best of the kind the model was trained on. Default: some of the embedded sample."""
    windows: int = 8
    """How many windows of the text are measured, each of 512 tokens where the text and the model have as many."""
    system: str | None = None
    """What the Modelfile gives as system message where a chat has none. Default: the recipe's chat.system, if any."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, beside what was trained to end it. Default: the recipe's chat.stop."""
    repetition_window: int | None = None
    """How many of the last tokens --repetition_penalty looks at. Default: the recipe's, else all."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        Sampling(**self.sampling(), repetition_window=self.repetition_window)  # a UserError for what cannot be
        methods = tuple(dict.fromkeys(method.lower() for method in self.methods))
        object.__setattr__(self, "methods", methods)
        problems = [f"--methods {name} is none of {' '.join(GGUF_TYPES)}" for name in methods if name not in GGUF_TYPES]
        if not methods:
            problems.append("--methods names none")
        if self.windows < 1:
            problems.append("--windows must be above 0")
        raise_problems(problems)
