"""A Hugging Face folder → GGUF files for llama.cpp and Ollama, in several types, each measured against the original.

1. What llama.cpp could not read is found before anything is written: architecture, tokenizer, damaged weights.
2. transformers, in a fresh process, says what the model makes of a text, in float32.
3. llama.cpp's converter writes one file in the model's own type (f16 cannot hold all that bfloat16 can, and float32
   would be rounded twice), and llama-quantize makes every other from it.
4. Each file's perplexity over the same tokens, its most probable tokens and its greedy continuation are held against
   the model's; the token ids of the text have to be equal. A file outside its bound is not published, nor the others.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_gpt.formats.hf_files import ANY_WEIGHTS, PICKLE_INDEX, SAFETENSORS_INDEX

if TYPE_CHECKING:
    from utils.export.hf_probabilities import Reference
    from utils.export.llama_cpp import LlamaCpp

TABLE = "quantization.csv"
TEXTS = ("data/sample/french/FR/Marche/test.txt", "data/sample/english/EN/Station/test.txt")
CHARACTERS = 1_000_000
"""Of a text, at most: measured are a few thousand tokens, spread over it."""

VIEWED = (
    *(*ANY_WEIGHTS, SAFETENSORS_INDEX, PICKLE_INDEX),
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "README.md"),
)
"""Files that the converter is shown as they are."""

CONTEXT = 256
"""Tokens for a prompt of 32 and its continuation: the memory of all that a model can see may be large."""


class Method(NamedTuple):
    """A type of weights."""

    bits: float
    """Per weight, about."""
    bound: float
    """How much the logarithm of the perplexity may change, either way; and the mean Kullback-Leibler divergence."""


# For Llama 3 8B llama-quantize's help states, of a perplexity of 6.2, +7.5 % (q4_0), +7.2 % (q4_1), +2.8 % (q4_k_m),
# +2.1 % (q5_0), +1.7 % (q5_1) and +0.04 % (q8_0). The bounds are some four times as wide: small models lose more, and
# over few tokens the figure is uncertain (1,016 tokens of the sample's model of 1.1 M parameters: q4_1 +4.4 %,
# q8_0 -0.1 %, f16 +0.01 %). What is wrong in a conversion, heads, positions or norms, changes it by far more.
METHODS = {
    "f32": Method(32, 0.001),
    "bf16": Method(16, 0.02),
    "f16": Method(16, 0.001),
    "q8_0": Method(8.5, 0.01),
    "q6_k": Method(6.6, 0.05),
    "q5_1": Method(6, 0.1),
    "q5_0": Method(5.5, 0.1),
    "q5_k_m": Method(5.7, 0.1),
    "q4_1": Method(5, 0.3),
    "q4_0": Method(4.5, 0.3),
    "q4_k_m": Method(4.9, 0.2),
}
DEFAULT_METHODS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "f16")


@dataclass(frozen=True)
class QuantizeOptions:
    """Make GGUF files of a Hugging Face folder, measure each against it, and write Modelfiles for Ollama."""

    model_dir: Path
    """Hugging Face folder, as convert_litgpt_to_transformers.py makes it."""
    output_dir: Path
    """Folder to make. In the folder of an earlier result GGUF files of the same model, measured on the same windows
    of the same text, stay beside the new ones; those of another model or measure are removed, which is said. All else
    in it stays."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """Types to make: q4_0 q4_1 q5_0 q5_1 q8_0 q4_k_m f16, which are the default, q5_k_m q6_k bf16 f32."""
    llama_cpp_dir: Path | None = None
    """llama.cpp, built. Default: where utils/install_llama_cpp.py puts it."""
    text: Path | None = None
    """UTF-8 text to measure on, best of the kind the model was trained on. Default: some of the embedded sample."""
    windows: int = 8
    """How many windows of the text are measured, each of 512 tokens where the text and the model have as many."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        from lit_gpt.errors import raise_problems

        object.__setattr__(self, "methods", tuple(dict.fromkeys(method.lower() for method in self.methods)))
        unknown = [method for method in self.methods if method not in METHODS]
        problems = [f"--methods {name} is none of {' '.join(METHODS)}" for name in unknown]
        if not self.methods:
            problems.append("--methods names none")
        if self.windows < 1:
            problems.append("--windows must be above 0")
        raise_problems(problems)


@dataclass(frozen=True)
class Model:
    """What has to be known of the model to be exported."""

    folder: Path
    name: str
    hf: dict[str, Any]
    """config.json, in the keys that llama.cpp's converter reads."""
    parameters: int
    dtype: str
    """The type its own GGUF file has."""
    context: int
    """Tokens it can see, as llama.cpp runs it."""
    end_token: str | None


def main(options: QuantizeOptions) -> None:
    from utils.export.llama_cpp import FOLDER, LlamaCpp
    from utils.export.modelfile import form_of, modelfile, served_context
    from utils.files.staged_folder import staged

    llama = LlamaCpp.find(options.llama_cpp_dir or FOLDER)
    check_output_dir(options)
    text = read_text(options.text)
    model = examine(options.model_dir)
    check_space(model, options)
    form, context = form_of(model.folder), served_context(model.folder, model.context)
    folder = options.output_dir
    with staged(folder) as stage:
        scratch = stage / "scratch"
        scratch.mkdir()
        source, reference = prepare(llama, model, text, options.windows, scratch)
        rows = []
        for method in options.methods:
            row = export(llama, model, method, source, reference, stage)
            lines = modelfile(row["file"], form, context, model.end_token)
            (stage / f"Modelfile.{method}").write_text(lines, encoding="utf-8")
            rows.append(row)
            print(describe(row), flush=True)
        shutil.rmtree(scratch)
        write_table(stage / TABLE, [*keep_earlier(folder, stage, rows), *rows])
    print(f"wrote {len(rows)} GGUF files, each with a Modelfile, and {TABLE} to {options.output_dir}")


def check_output_dir(options: QuantizeOptions) -> None:
    """Raises a UserError if the folder holds something that is not an earlier result, or what is to be read.

    What a killed process had renamed away is put back before it is looked into.
    """
    from lit_gpt.errors import UserError
    from utils.files.staged_folder import check_replaceable, recover

    folder = options.output_dir
    check_replaceable(folder)
    recover(folder)
    for name, path in (("--model_dir", options.model_dir), ("--text", options.text)):
        if path and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{name} {path} lies in --output_dir {folder}, which is replaced; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TABLE).is_file():
        raise UserError(f"--output_dir {folder} holds something else; give a folder that is new or empty")
    read_table(folder)


def examine(folder: Path) -> Model:
    """Reads and checks the model.

    Raises:
        UserError: if it is no Hugging Face folder, or llama.cpp could not read its architecture or tokenizer.
        DataError: if its files are damaged or incomplete.
    """
    from lit_gpt.errors import UserError
    from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
    from lit_gpt.formats.hf_process import require_transformers
    from lit_gpt.formats.hf_weights import TensorFiles
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.export.gguf import converter_config, obstacles, visible_context

    hf = read_hf_config(folder)
    tokenizer = Tokenizer(folder)
    if found := obstacles(hf, tokenizer):
        raise UserError(f"llama.cpp cannot read this model: {'; '.join(found)}")
    require_transformers()
    config = config_from_hf(hf)
    files = TensorFiles(folder)
    dtypes = {"torch.float16": "f16", "torch.bfloat16": "bf16"}
    return Model(
        folder=folder.resolve(),
        name=folder.resolve().name,
        hf=converter_config(hf),
        parameters=files.parameters,
        dtype=dtypes.get(str(files.dtype), "f32"),
        context=visible_context(hf, config),
        end_token=None if tokenizer.eos_id is None else tokenizer.vocabulary[tokenizer.eos_id],
    )


def read_text(path: Path | None) -> str:
    """The text to measure on, without white space around it.

    Raises:
        UserError: if there is none.
    """
    from lit_gpt.errors import UserError
    from lit_gpt.repository import REPOSITORY

    if path and not path.is_file():
        raise UserError(f"--text {path} is {'a folder' if path.is_dir() else 'missing'}; give a file of UTF-8 text")
    paths = [path] if path else [REPOSITORY / name for name in TEXTS]
    try:
        texts = [path.read_text(encoding="utf-8")[:CHARACTERS].strip() for path in paths]
    except UnicodeDecodeError as e:
        raise UserError(f"--text {path} is not UTF-8 text: {e}") from None
    if not any(texts):
        raise UserError(f"--text {path} has no text in it")
    return "\n\n".join(texts)


def check_space(model: Model, options: QuantizeOptions) -> None:
    """Raises an OSError unless the disk has room for all files at once, and what is compared."""
    from utils.export.hf_probabilities import WINDOW

    bits = sum(METHODS[method].bits for method in [*options.methods, model.dtype])
    needed = model.parameters * bits / 8 + options.windows * WINDOW * model.hf["vocab_size"]
    place = next(path for path in options.output_dir.resolve().parents if path.is_dir())
    if (free := shutil.disk_usage(place).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", str(place))


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier result's table; none if there is none.

    Raises:
        UserError: if it is another program's.
    """
    from lit_gpt.errors import UserError

    if not (folder / TABLE).is_file():
        return []
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            return [{**row, "perplexity_hf": float(row["perplexity_hf"])} for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--output_dir {folder}: its {TABLE} was not written by this program") from None


def keep_earlier(folder: Path, stage: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Carries over what stays of `folder`, and says what does not; returns the lines of the table that stay.

    A line stays if it is of another type and the model's own perplexity stands in it: of another model, or over other
    windows or another text, that differs in its sixth digit.
    """
    from utils.files.staged_folder import carry_over

    kept, gone, made = [], {TABLE}, {row["method"] for row in rows}
    for row in read_table(folder):
        same = math.isclose(row["perplexity_hf"], rows[0]["perplexity_hf"], rel_tol=1e-5)
        if same and row["method"] not in made and (folder / row["file"]).is_file():
            kept.append(row)
        else:
            gone |= {row["file"], f"Modelfile.{row['method']}"}
    if names := ", ".join(name for name in carry_over(folder, stage, gone) if name != TABLE):
        print(f"not kept, as made anew, of another model or measured on other text: {names}", flush=True)
    return kept


def prepare(llama: LlamaCpp, model: Model, text: str, windows: int, scratch: Path) -> tuple[Path, Reference]:
    """The GGUF file in the model's own type, and what the model itself makes of the text.

    Raises:
        DataError: if the file's tokenizer gives other token ids.
    """
    from lit_gpt.errors import DataError
    from utils.export.hf_probabilities import ask

    print(f"converting {model.folder} to {model.dtype}", flush=True)
    source = scratch / "source.gguf"
    llama.convert(converter_view(model, scratch), source, model.dtype)
    if model.hf["architectures"][0] == "FalconForCausalLM":
        llama.set_context(source, "falcon", model.context)
    (scratch / "text").write_text(text, encoding="utf-8")
    print(f"asking transformers about {len(text):,} characters of text", flush=True)
    reference = ask(model.folder, text, model.context, windows, scratch / "probabilities")
    (scratch / "prompt").write_text(reference.prompt, encoding="utf-8")
    ids = llama.token_ids(source, scratch / "text")
    if ids != reference.ids:
        place = next((i for i, pair in enumerate(zip(ids, reference.ids, strict=False)) if pair[0] != pair[1]), "end")
        raise DataError(
            f"llama.cpp tokenizes otherwise than the model was trained: {len(ids)} tokens of the text, not "
            f"{len(reference.ids)}, or others from token {place} on; the GGUF files are not written"
        )
    print(f"{len(ids):,} token ids equal; measuring on {reference.predicted:,} of them", flush=True)
    return source, reference


def converter_view(model: Model, scratch: Path) -> Path:
    """The model's folder as the converter is to see it: links to weights, tokenizer and model card, no code.

    config.json has the keys that it reads. Some of its classes, which tokenizer_config.json may choose, load a
    tokenizer with `trust_remote_code`: what is no tokenizer of transformers is not named to it.
    """
    import transformers

    from lit_gpt.formats.hf_files import read_json

    view = scratch / model.name
    view.mkdir()
    for path in model.folder.iterdir():
        if path.is_file() and any(path.match(pattern) for pattern in VIEWED):
            (view / path.name).symlink_to(path)
    (view / "config.json").write_text(json.dumps(model.hf), encoding="utf-8")
    if (path := model.folder / "tokenizer_config.json").is_file():
        config = {key: value for key, value in read_json(path).items() if key != "auto_map"}
        if not hasattr(transformers, str(config.get("tokenizer_class", "AutoTokenizer"))):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (view / path.name).write_text(json.dumps(config), encoding="utf-8")
    return view


def export(
    llama: LlamaCpp, model: Model, method: str, source: Path, reference: Reference, stage: Path
) -> dict[str, Any]:
    """Makes and measures one file; returns its line of the table.

    Raises:
        DataError: if it is too far from the model.
    """
    file = stage / f"{model.name}-{method}.gguf"
    made = llama.quantize(source, file, method.upper())
    measured = llama.compare(file, source.with_name("probabilities"), reference.window)
    context = min(model.context, CONTEXT)
    continuation = llama.complete(file, source.with_name("prompt"), len(reference.ends), context)
    equal = equal_tokens(continuation, reference)
    change = math.log(measured.perplexity / reference.perplexity)
    row = {
        "method": method,
        "file": file.name,
        "bytes": file.stat().st_size,
        "bits_per_weight": made.bits_per_weight,
        "perplexity_hf": round(reference.perplexity, 6),
        "perplexity": measured.perplexity,
        "change_percent": round(100 * math.expm1(change), 4),
        "bound_percent": round(100 * METHODS[method].bound, 4),
        "divergence": measured.divergence,
        "same_top_percent": round(100 * measured.same_top, 3),
        "greedy_equal": equal,
        "greedy_tokens": len(reference.ends),
        "fallback_tensors": made.fallback,
    }
    check(row, reference)
    return row


def equal_tokens(continuation: str, reference: Reference) -> int:
    """How many of the reference's tokens `continuation` begins with; their text stands for them."""
    return sum(continuation.startswith(reference.continuation[:end]) for end in reference.ends)


def check(row: dict[str, Any], reference: Reference) -> None:
    """Raises a DataError if a file is further from the model than its method explains."""
    from lit_gpt.errors import DataError

    method = METHODS[row["method"]]
    figures = f"perplexity {row['perplexity']:.4f}, the model's {row['perplexity_hf']:.4f}"
    figures += f", divergence {row['divergence']:.4f} nats"
    change = math.log(row["perplexity"] / row["perplexity_hf"])
    if not (abs(change) <= method.bound and row["divergence"] <= method.bound):  # a NaN is no agreement
        raise DataError(f"{row['file']} is another model: {figures}; {method.bound:.1%} is allowed for {row['method']}")
    if row["method"] in ("f16", "f32") and row["greedy_equal"] < reference.decided:
        raise DataError(
            f"{row['file']} goes on otherwise than the model: {row['greedy_equal']} of {reference.decided} tokens equal"
        )


def describe(row: dict[str, Any]) -> str:
    notes = f", {row['fallback_tensors']} matrices in a larger type" if row["fallback_tensors"] else ""
    return (
        f"{row['method']:>7} {row['bytes'] / 1e6:12,.3f} MB {row['bits_per_weight']:6.2f} bits  "
        f"perplexity {row['perplexity']:.4f} ({row['change_percent']:+.2f} %, model {row['perplexity_hf']:.4f}; "
        f"bound {row['bound_percent']:g} %)  same top {row['same_top_percent']:.1f} %  "
        f"greedy {row['greedy_equal']}/{row['greedy_tokens']}{notes}"
    )


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[-1], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from utils import cli

    sys.exit(cli.run(main, cli.parse_or_exit(QuantizeOptions)))
