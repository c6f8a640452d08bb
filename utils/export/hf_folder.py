"""A trained model as a Hugging Face folder, or its adapter as one of peft's, compared with it by verification.py."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_gpt.checksums import SUMS, add_sums, file_sha256, listed_sums
from lit_gpt.errors import UserError
from lit_gpt.formats.config_keys import describing_keys, generating_keys
from lit_gpt.formats.hf_config import config_to_hf, is_tied, read_hf_config, settle_config
from lit_gpt.formats.hf_files import SAFETENSORS_LAYOUT, matches
from lit_gpt.formats.hf_logits import PROBE_TEXT
from lit_gpt.formats.hf_weights import tensors_to_hf
from lit_gpt.formats.peft import write_peft
from lit_gpt.formats.tensor_files import write_safetensors
from lit_gpt.json_files import read_json
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.model.lora import LoRASettings
from lit_gpt.repository import REPOSITORY
from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
from lit_gpt.tokenizer.tokenizer import GENERATION_CONFIG, Tokenizer
from lit_gpt.tokenizer.tokenizer_config import TOKENIZER_CONFIG, litgpt_leaves_spaces_out, settle_tokenizer_config
from utils.export.provenance import PROVENANCE, foundation_facts, write_json
from utils.export.verification import verify_adapter, verify_logits, verify_tensors
from utils.files.staged_folder import carry_over, check_replaceable
from utils.run.merged_model import MergedModel

EDITED = ("README.md", "LICENSE*", "NOTICE*", SUMS)  # no checksums: people edit the card
COMPANIONS = {  # the files that an endpoint runs: the name in the folder, and ours
    "handler.py": "hf_files/handler.py",
    "requirements.txt": "hf_files/requirements.txt",
    "dialogue_text.py": "utils/prepare/dialogue.py",
}

OF_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


def check_output_dir(folder: Path) -> None:
    """Raises a UserError if `folder` holds something other than an earlier conversion or a merged model."""
    check_replaceable(folder)
    if not folder.is_dir() or not any(folder.iterdir()) or (folder / PROVENANCE).is_file():
        return
    has_foreign_weights = any(matches(path.name, ("*.safetensors", "*.bin")) for path in folder.iterdir())
    if has_foreign_weights or not (folder / "lit_model.pth").is_file():
        raise UserError(f"--output_dir {folder} holds something else; give a folder that is new or empty")


def write_folder(
    stage: Path, model: MergedModel, max_shard_bytes: int, verify: str, sampling: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fills `stage` with the merged model and compares it by `verify`, "logits", "tensors" or "none"; returns what is
    in config.json, and what the comparison found. `sampling` is for generation_config.json."""
    tokenizer = Tokenizer(model.tokenizer_dir)
    hf = make_config(model, model.state_dict, tokenizer)
    write_json(stage / "config.json", hf)
    specs = dict(tensors_to_hf(specs_of(model.state_dict), model.config, hf))
    tensors = tensors_to_hf(model.state_dict, model.config, hf)
    write_safetensors(stage, specs, tensors, max_shard_bytes)
    write_tokenizer(stage, model, tokenizer, sampling)
    for name, source in COMPANIONS.items():
        shutil.copyfile(REPOSITORY / source, stage / name)
    if verify == "logits":
        return hf, verify_logits(stage, model, tokenizer)
    if verify == "tensors":
        return hf, verify_tensors(stage, model, hf)
    return hf, "not verified"


def write_tokenizer(stage: Path, model: MergedModel, tokenizer: Tokenizer, sampling: Mapping[str, Any]) -> None:
    """The files by which transformers reads and writes the model's text, with its chat template and its ends."""
    if warning := export_tokenizer(tokenizer, stage, PROBE_TEXT):
        print(f"warning: {warning}")
    sizes = (model.config.block_size, model.config.padded_vocab_size)
    padding, left_out = settle_tokenizer_config(stage, tokenizer, *sizes)
    _say_left_out(TOKENIZER_CONFIG, left_out)
    write_json(stage / GENERATION_CONFIG, with_sampling(generation_config(model, tokenizer, padding), sampling))


def write_adapter(
    stage: Path, model: MergedModel, base: str | None, sampling: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fills `stage` with the adapter for peft; returns its base's config.json and what the comparison found.

    `base` is the base model's name on the Hub, where its folder does not tell it; `sampling` as of `write_folder`.
    """
    tokenizer = Tokenizer(model.tokenizer_dir)
    hf = make_config(model, model.base, tokenizer)
    if model.has_own_tokenizer:  # else all that it changes are weights
        write_tokenizer(stage, model, tokenizer, sampling)
    base = base or foundation_facts(model.foundation_dir)[0]
    if "/" not in base:
        print(f"warning: the adapter names its base {base}, which the Hub does not know: give --base_model ORG/NAME")
    adapter, lora = _adapter_of_base(model)
    modules = write_peft(stage, adapter, model.config, lora, hf, base)
    return hf, verify_adapter(stage, model, hf, modules)


def _adapter_of_base(model: MergedModel) -> tuple[Mapping[str, Tensor], LoRASettings]:
    """The adapter, with its settings, for the base as others have it, whose rows of added tokens are not those that
    ours began with: an adapted head is then written whole, merged."""
    adapter, lora = model.adapter, model.lora
    assert adapter is not None and lora is not None
    if not (model.has_new_tokens and lora.head) or model.peft_dir:
        return adapter, lora
    kept = {name: tensor for name, tensor in adapter.items() if not name.startswith("lm_head.")}
    head = {name: tensor for name, tensor in model.state_dict.items() if name.startswith("lm_head.")}
    return kept | head, replace(lora, head=False, train_head=True)


def make_config(model: MergedModel, state_dict: Mapping[str, Tensor], tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json: the foundation's, made true of the trained weights, or for a model from scratch a new one."""
    dtype = str(specs_of(state_dict)["transformer.wte.weight"].dtype).removeprefix("torch.")
    if model.foundation_dir and (model.foundation_dir / "config.json").is_file():
        found = read_hf_config(model.foundation_dir)
        settled, changes = settle_config(found, model.config, state_dict, dtype)
        for change in changes:
            print(f"config.json: {change}")
        hf, _ = describing_keys(settled)
        _say_left_out("config.json", sorted(found.keys() - hf.keys() - {"dtype"}))  # settled as torch_dtype
        return hf
    return config_to_hf(model.config, tokenizer.bos_id, tokenizer.eos_id, dtype, is_tied(state_dict))


def generation_config(model: MergedModel, tokenizer: Tokenizer, padding: int) -> dict[str, Any]:
    """generation_config.json: the foundation's, or the ids that begin and end a text; and what fills up a batch."""
    for folder in (model.tokenizer_dir, model.foundation_dir):
        if folder and (folder / GENERATION_CONFIG).is_file():
            kept, left_out = generating_keys(read_json(folder / GENERATION_CONFIG))
            _say_left_out(GENERATION_CONFIG, left_out)
            return {**kept, "pad_token_id": padding}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": padding}
    return {name: index for name, index in ids.items() if index is not None}


def with_sampling(values: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json with how answers are sampled: a temperature of 0 takes the likeliest token always."""
    if sampling.get("temperature") == 0:
        kept = {name: value for name, value in {**values, **sampling}.items() if name not in OF_SAMPLING}
        return {**kept, "do_sample": False}
    is_sampled = not OF_SAMPLING.isdisjoint(sampling)
    return {**values, **({"do_sample": True} if is_sampled else {}), **sampling}


def _say_left_out(name: str, keys: Sequence[str]) -> None:
    if keys:
        print(f"{name}: left out what does not describe this model: {', '.join(keys)}")


def keep_the_rest(folder: Path, stage: Path) -> None:
    """Carries over the files in `folder` that are not of an earlier conversion, and says what is kept or replaced.

    The list of checksums then has all that was made, and of what is kept what it had.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    made = [path.name for path in stage.iterdir() if path.is_file() and not matches(path.name, EDITED)]
    sums = listed_sums(stage)
    sums |= {name: file_sha256(stage / name) for name in made if name not in sums}
    replaced = carry_over(folder, stage, [SUMS, *(name for name in names if matches(name, SAFETENSORS_LAYOUT))])
    kept = {name: sha256 for name, sha256 in listed_sums(folder).items() if (stage / name).is_file()}
    add_sums(stage, kept | sums)
    replaced = [name for name in replaced if name != SUMS]
    if (stage / "lit_model.pth").is_file():
        print("kept: lit_model.pth, as it was before this conversion")
        if litgpt_leaves_spaces_out(stage):
            print(
                "warning: beside this tokenizer.json litgpt's own chat leaves spaces out; lit_gpt/chat/base.py does not"
            )
    if replaced:
        print(f"replaced: {', '.join(replaced)}")
