"""Training's result → a Hugging Face folder, compared with ours before it gets its name.

1. The trained weights, LoRA merged in, get Hugging Face's names and go into safetensors, sharded.
2. config.json, the tokenizer, a model card, an endpoint handler and the training's provenance come beside them.
3. A fresh process loads the folder with transformers; its logits and token ids must be ours (`--verify`).
4. Only then is the folder renamed to --output_dir, and uploaded if --repo_id is given.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.errors import DataError, UserError, raise_problems
from lit_gpt.formats.hf_files import SAFETENSORS_LAYOUT, matches
from lit_gpt.repository import REPOSITORY
from utils import cli
from utils.files.staged_folder import carry_over, check_replaceable, recover, staged

if TYPE_CHECKING:
    import torch

    from utils.run.trained import TrainedModel

PROVENANCE = "training_provenance.json"
COMPANIONS = {
    "handler.py": "hf_files/handler.py",
    "requirements.txt": "hf_files/requirements.txt",
    "dialogue_text.py": "utils/prepare/dialogue.py",
}
"""What an endpoint runs, by its name in the folder: our file."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a trained model to a Hugging Face folder, check it, and upload it if asked to."""

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
    repo_id: str | None = None
    """Upload the folder to this repository of the Hugging Face Hub, as ORG/NAME."""
    private: bool = True
    """Whether the repository is private, if it has to be made."""
    license: str | None = None
    """Licence of the model as the Hub names it, such as cc-by-sa-4.0. Default: the base model's, as its card says."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        problems = []
        if not parse_size(self.max_shard_size):
            problems.append(f"--max_shard_size must be a size like 5GB, not '{self.max_shard_size}'")
        if self.as_adapter and self.dtype:
            problems.append("--as_adapter keeps the adapter's own type: leave --dtype out")
        if self.repo_id is not None:
            from lit_gpt.formats.hub import check_repo_id

            problems += check_repo_id(self.repo_id, "--repo_id")
        if self.license is not None and not re.fullmatch(r"[a-z0-9.-]+", self.license):
            problems.append(f"--license must be a name such as apache-2.0, not {self.license!r}")
        raise_problems(problems)


def main(options: ConvertOptions) -> None:
    import torch

    from lit_gpt.formats.hf_process import require_transformers
    from lit_gpt.formats.tensor_files import lay_out_memory
    from utils.run.trained import load_trained

    lay_out_memory()
    output_dir = options.output_dir.resolve()
    recover(output_dir)  # before it is looked into
    check_output_dir(output_dir)
    if options.verify == "logits" and not options.as_adapter:
        require_transformers(", or give --verify tensors")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    trained = load_trained(options.input_path, options.checkpoint_dir, dtype=dtype)
    if options.as_adapter and trained.lora is None:
        raise UserError(f"--as_adapter: {options.input_path} holds all weights, not an adapter")
    with staged(output_dir) as stage:
        write = write_adapter if options.as_adapter else write_folder
        write(stage, trained, options)
        keep_the_rest(output_dir, stage)
    report(output_dir)
    if options.repo_id:
        from lit_gpt.formats.hub import files_to_send, upload

        names = files_to_send(output_dir, ignore=("*.gguf",))  # made from an earlier conversion
        address = upload(output_dir, names, options.repo_id, options.private, "Upload model", print)
        print(f"on the Hub: {len(names)} files with the hashes of those here, {address}")


def check_output_dir(folder: Path) -> None:
    """Raises a UserError if `folder` holds something that the conversion would overwrite without being asked to."""
    check_replaceable(folder)
    if not folder.is_dir() or not any(folder.iterdir()) or (folder / PROVENANCE).is_file():
        return
    has_foreign_weights = any(matches(path.name, ("*.safetensors", "*.bin")) for path in folder.iterdir())
    if has_foreign_weights or not (folder / "lit_model.pth").is_file():
        raise UserError(f"--output_dir {folder} holds something else; give a folder that is new or empty")


def write_folder(stage: Path, trained: TrainedModel, options: ConvertOptions) -> None:
    """Fills `stage` and compares it with `trained`.

    Raises:
        DataError: if the folder does not hold the same model.
    """
    from lit_gpt.formats.hf_logits import PROBE_TEXT
    from lit_gpt.formats.hf_weights import tensors_to_hf
    from lit_gpt.formats.tensor_files import write_safetensors
    from lit_gpt.model.lazy_tensors import specs_of
    from lit_gpt.tokenizer.hf_tokenizer import export_tokenizer
    from lit_gpt.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(trained.tokenizer_dir)
    hf = make_config(trained, trained.state_dict, tokenizer)
    write_json(stage / "config.json", hf)
    write_json(stage / "generation_config.json", generation_config(trained, tokenizer))
    specs = dict(tensors_to_hf(specs_of(trained.state_dict), trained.config, hf))
    tensors = tensors_to_hf(trained.state_dict, trained.config, hf)
    write_safetensors(stage, specs, tensors, parse_size(options.max_shard_size))
    if warning := export_tokenizer(tokenizer, stage, PROBE_TEXT):
        print(f"warning: {warning}")
    for name, source in COMPANIONS.items():
        shutil.copyfile(REPOSITORY / source, stage / name)
    checks = {"logits": verify_logits, "tensors": verify_tensors, "none": lambda *_: "not verified"}
    describe(stage, trained, hf, options, checks[options.verify](stage, trained, hf, tokenizer))


def write_adapter(stage: Path, trained: TrainedModel, options: ConvertOptions) -> None:
    """Fills `stage` with the adapter for peft, and reads it back: merged again it must be the same model.

    Raises:
        DataError: if it is not.
    """
    import torch

    from lit_gpt.formats.peft import read_peft, write_peft
    from lit_gpt.model.lora import merge_adapter
    from lit_gpt.tokenizer.tokenizer import Tokenizer
    from utils.report.model_card import foundation_facts

    hf = make_config(trained, trained.base, Tokenizer(trained.tokenizer_dir))
    name, _ = foundation_facts(trained.foundation_dir)
    modules = write_peft(stage, trained.adapter, trained.config, trained.lora, hf, name)
    again, settings = read_peft(stage, trained.config, hf)
    merged = merge_adapter(trained.base, again, trained.config, settings)
    for name, tensor in trained.state_dict.items():
        # the scale is multiplied in another place: a rounding of the weights' type apart at most
        tolerance = 4 * torch.finfo(tensor.dtype).eps * float(tensor.abs().max())
        if not torch.allclose(merged[name].float(), tensor.float(), atol=tolerance, rtol=0):
            raise DataError(f"the adapter as it was written makes another {name}")
    describe(stage, trained, hf, options, f"verified: {modules} modules read back, merged again the same model")


# ------------------------------------------------------------------------------------------------ what the folder holds


def describe(stage: Path, trained: TrainedModel, hf: dict[str, Any], options: ConvertOptions, checked: str) -> None:
    """Writes the provenance and the card, with `checked`, what was verified, and copies the licences."""
    from utils.report.model_card import publishable, write_card

    print(checked)
    for path in licence_files(trained):
        shutil.copyfile(path, stage / path.name)
    provenance = {**publishable(trained.provenance), "conversion": conversion_record(hf, checked)}
    write_json(stage / PROVENANCE, provenance)
    model_id = options.repo_id or options.output_dir.resolve().name
    write_card(stage, trained, hf, provenance, model_id, options.license)


def licence_files(trained: TrainedModel) -> list[Path]:
    """The foundation's licence and notices, which most licences ask to be passed on."""
    folder = trained.foundation_dir
    found = [*folder.glob("LICENSE*"), *folder.glob("NOTICE*")] if folder else []
    return [path for path in found if path.is_file()]


def make_config(trained: TrainedModel, state_dict: Mapping[str, torch.Tensor], tokenizer: Any) -> dict[str, Any]:
    """config.json: the foundation's, made true of the trained weights, or for a model from scratch a new one."""
    from lit_gpt.formats.hf_config import config_to_hf, is_tied, read_hf_config, settle_config
    from lit_gpt.model.lazy_tensors import specs_of

    dtype = str(specs_of(state_dict)["transformer.wte.weight"].dtype).removeprefix("torch.")
    if trained.foundation_dir and (trained.foundation_dir / "config.json").is_file():
        hf, changes = settle_config(read_hf_config(trained.foundation_dir), trained.config, state_dict, dtype)
        for change in changes:
            print(f"config.json: {change}")
        return hf
    return config_to_hf(trained.config, tokenizer.bos_id, tokenizer.eos_id, dtype, is_tied(state_dict))


def generation_config(trained: TrainedModel, tokenizer: Any) -> dict[str, Any]:
    """generation_config.json: the foundation's, or the ids that begin and end a text."""
    from lit_gpt.formats.hf_files import read_json

    for folder in (trained.foundation_dir, trained.tokenizer_dir):
        if folder and (folder / "generation_config.json").is_file():
            return read_json(folder / "generation_config.json")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {name: index for name, index in ids.items() if index is not None}


def parse_size(text: str) -> int:
    """Bytes of '5GB' or '500MiB'; 0 if it is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.strip().upper())
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- verification


def verify_logits(stage: Path, trained: TrainedModel, hf: dict[str, Any], tokenizer: Any) -> str:
    """Compares logits and token ids with what transformers computes from `stage` in a fresh process; says the result.

    Raises:
        DataError: if they differ.
    """
    from lit_gpt.formats.hf_logits import (
        PROBE_TEXT,
        TOLERANCE,
        ask_transformers,
        largest_difference,
        litgpt_logits,
        probe_sequences,
    )

    sequences = probe_sequences(trained.config.padded_vocab_size, trained.config.block_size)
    ours = litgpt_logits(trained.config, trained.state_dict, sequences)
    text = PROBE_TEXT if (stage / "tokenizer.json").is_file() else None
    answer = ask_transformers(stage, sequences, text)
    difference, relative = largest_difference(ours, answer.logits)
    figures = f"largest difference of logits {difference:.2g}, relative to max(1, largest logit) {relative:.2g}"
    if not relative <= TOLERANCE:  # a NaN is no agreement
        raise DataError(f"transformers computes another model from the converted files: {figures}, allowed {TOLERANCE}")
    ids = tokenizer.encode(PROBE_TEXT)
    other_start = (answer.starts_with == tokenizer.bos_id) != tokenizer.adds_bos
    if answer.ids is not None and (answer.ids != ids or other_start):
        raise DataError("transformers' AutoTokenizer gives other token ids than the model was trained with")
    tokens = sum(map(len, sequences))
    equal_ids = "" if answer.ids is None else f"; {len(ids)} token ids equal"
    return f"verified: {figures}, on {tokens} tokens in float32{equal_ids}"


def verify_tensors(stage: Path, trained: TrainedModel, hf: dict[str, Any], tokenizer: Any) -> str:
    """Reads the weights files again and compares every tensor bit for bit with what was to be written; says the result.

    Raises:
        DataError: naming a tensor that differs.
    """
    import torch

    from lit_gpt.formats.hf_weights import TensorFiles, tensors_to_hf

    files = TensorFiles(stage)
    names = set()
    for name, tensor in tensors_to_hf(trained.state_dict, trained.config, hf):
        names.add(name)
        if name not in files.names:
            raise DataError(f"{name} was not written")
        written = files.read(name, tuple(tensor.shape))
        same_bits = torch.equal(written.view(torch.uint8), tensor.contiguous().view(torch.uint8))
        if written.dtype != tensor.dtype or not same_bits:
            raise DataError(f"{name} was not written as it is")
    if left_over := files.names - names:
        raise DataError(f"the files hold tensors that were not to be written: {', '.join(sorted(left_over))}")
    return f"verified: {len(names)} tensors read back, equal bit for bit"


# ----------------------------------------------------------------------------------------------------------- publishing


def conversion_record(hf: dict[str, Any], checked: str) -> dict[str, Any]:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "litgpt", "safetensors")}
    return {"architecture": hf["architectures"][0], "verification": checked, "versions": versions}


def keep_the_rest(folder: Path, stage: Path) -> None:
    """Carries over what lies in `folder` and is not of an earlier conversion, and says what happens to which."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    replaced = carry_over(folder, stage, [name for name in names if matches(name, SAFETENSORS_LAYOUT)])
    if (stage / "lit_model.pth").is_file():
        print("kept: lit_model.pth, as it was before this conversion")
    if replaced:
        print(f"replaced: {', '.join(replaced)}")


def report(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:12,.3f} MB  {path.name}")
    print(f"wrote {folder}")


if __name__ == "__main__":
    sys.exit(cli.run(main, cli.parse_or_exit(ConvertOptions)))
