"""The first GGUF file of a model, in its own type, and what the model itself computes, to compare other files with.

`read_model` finds what llama.cpp could not read before anything is written: architecture, tokenizer, weights.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.checksums import Check
from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_files import ANY_WEIGHTS, PICKLE_INDEX, SAFETENSORS_INDEX, matches
from lit_gpt.formats.hf_weights import TensorFiles
from lit_gpt.formats.litgpt_directory import expected_hf
from lit_gpt.formats.programs import require_transformers
from lit_gpt.json_files import read_json
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.export.hf_probabilities import Reference, ask
from utils.export.llama_cpp import LlamaCpp
from utils.export.llama_cpp_support import (
    converter_config,
    unlisted_pre_tokenizer,
    unsupported_features,
    visible_context,
)

VIEWED = (  # files that the converter is shown as they are
    *(*ANY_WEIGHTS, SAFETENSORS_INDEX, PICKLE_INDEX),
    *("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "README.md"),
)


@dataclass(frozen=True)
class SourceModel:
    folder: Path
    name: str
    hf: dict[str, Any]  # config.json, in the keys that llama.cpp's converter reads
    parameters: int
    gguf_type: str  # of the GGUF file that holds its weights as they are
    context: int  # tokens it can see, as llama.cpp runs it
    end_token: str | None
    pre_tokenizer: str | None  # the rules of its tokenizer, if the converter has to be told
    check: Check  # of the folder's files


def read_model(folder: Path) -> SourceModel:
    """Reads and checks the model in `folder`. Raises a UserError if it is not a Hugging Face folder or llama.cpp could
    not read its architecture or tokenizer, a DataError if its files are damaged or incomplete."""
    hf = read_hf_config(folder)
    check = Check(expected_hf(folder))
    tokenizer = Tokenizer(folder)
    if found := unsupported_features(hf, tokenizer):
        raise UserError(f"llama.cpp cannot read this model: {'; '.join(found)}")
    require_transformers()
    files = TensorFiles(folder)
    # f16 cannot hold all that bfloat16 can, and from float32 every smaller type is rounded once only
    types = {"torch.float16": "f16", "torch.bfloat16": "bf16"}
    return SourceModel(
        folder=folder.resolve(),
        name=folder.resolve().name,
        hf=converter_config(hf),
        parameters=sum(spec.numel() for spec in files.specs.values()),
        gguf_type=types.get(str(next(iter(files.specs.values())).dtype), "f32"),
        context=visible_context(hf, config_from_hf(hf)),
        end_token=None if tokenizer.eos_id is None else tokenizer.vocabulary[tokenizer.eos_id],
        pre_tokenizer=unlisted_pre_tokenizer(tokenizer),
        check=check,
    )


def make_source(
    llama: LlamaCpp,
    model: SourceModel,
    text: str,
    windows: int,
    scratch: Path,
    chats: Sequence[dict[str, Any]] = (),
) -> tuple[Path, Reference]:
    """Makes the GGUF file in the model's own type, and asks transformers what the model makes of the text and `chats`.

    Writes the files `probabilities` and `prompt`, which `make_gguf` reads, into `scratch` too. Raises a DataError if
    llama.cpp's token ids are not those that the model was trained with.
    """
    print(f"converting {model.folder} to {model.gguf_type}", flush=True)
    source = scratch / "source.gguf"
    llama.convert(converter_view(model, scratch), source, model.gguf_type, model.pre_tokenizer)
    if model.hf["architectures"][0] == "FalconForCausalLM":
        llama.set_context(source, "falcon", model.context)
    (scratch / "text").write_text(text, encoding="utf-8")
    print(f"asking transformers about {len(text):,} characters of text", flush=True)
    reference = ask(model.folder, text, model.context, windows, scratch / "probabilities", chats)
    (scratch / "prompt").write_text(reference.prompt, encoding="utf-8")
    ids = llama.token_ids(source, scratch / "text")
    if ids != reference.ids:
        pairs = enumerate(zip(ids, reference.ids, strict=False))
        first = next((index for index, (theirs, ours) in pairs if theirs != ours), "end")
        raise DataError(
            f"llama.cpp tokenizes otherwise than the model was trained: {len(ids)} tokens of the text, not "
            f"{len(reference.ids)}, or others from token {first} on; the GGUF files are not written"
        )
    print(f"{len(reference.ids):,} token ids equal; measuring on {reference.predicted:,} of them", flush=True)
    return source, reference


def converter_view(model: SourceModel, scratch: Path) -> Path:
    """The model's folder as the converter is to see it: links to weights, tokenizer and model card, no code."""
    import transformers  # `read_model` has made sure that it is there

    view = scratch / model.name
    view.mkdir()
    for path in model.folder.iterdir():
        if path.is_file() and matches(path.name, VIEWED):
            (view / path.name).symlink_to(path)
    (view / "config.json").write_text(json.dumps(model.hf), encoding="utf-8")
    if (path := model.folder / "tokenizer_config.json").is_file():
        config = {key: value for key, value in read_json(path).items() if key != "auto_map"}
        # for some classes the converter loads a tokenizer with `trust_remote_code`: transformers' own are safe
        if not hasattr(transformers, str(config.get("tokenizer_class", "AutoTokenizer"))):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if (model.folder / "tokenizer.model").is_file():
            config.setdefault("add_prefix_space", True)  # as it is; a name in the file can be set otherwise for chats
        (view / path.name).write_text(json.dumps(config), encoding="utf-8")
    return view
