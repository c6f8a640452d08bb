"""Real chat templates, and folders with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOKENS = (  # of the templates that are rendered here, some
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"),
)

# of trl's templates; why the others are left to Ollama
FORMS = (
    *("cohere", "diffusion_gemma", "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"),
    *("lfm2", "lfm2_v2", "llama3", "llama3_1", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507"),
    "qwen3_vl",
)
DATED = ("gptoss", "llama3_2", "muse_glimmer")


def real_templates() -> dict[str, Path]:
    """Chat templates of published models, as the package trl carries them, by name."""
    package = importlib.util.find_spec("trl")
    assert package and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "chat_templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training")}


def tokenizer_folder(folder: Path, template: str | None, adds_begin: bool = False) -> Path:
    """A folder with a tokenizer of no words, as transformers saves one, and this chat template."""
    from tokenizers import AddedToken, Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE({"x": 0}, []))
    own.add_special_tokens([AddedToken(token, special=True) for token in ("<bos>", "</s>", *TOKENS)])
    if adds_begin:
        begin = ("<bos>", own.token_to_id("<bos>"))
        own.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [begin])
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, chat_template=template, bos_token="<bos>", eos_token="</s>", unk_token="</s>"
    )
    made.save_pretrained(folder)
    return folder
