"""The card of a published model, filled from its run: base, data, hyper-parameters, curves, losses, use, licence.

`write_card` puts README.md and convergence.png into a Hugging Face folder, or into that of an adapter for peft. The
template is hf_files/README.md; a line of it whose value is not known is left out, and so is a section without a line.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.formats.peft import ADAPTER_CONFIG
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.repository import REPOSITORY
from utils.data.mixture import MIXTURE
from utils.export.provenance import foundation_facts
from utils.prepare.dialogue import normalise
from utils.report.card_tables import cell, data_table, evaluation_table, hyperparameters, table
from utils.run.csv_log import read_csv
from utils.run.merged_model import MergedModel

HF_FILES = REPOSITORY / "hf_files"
CURVES = "convergence.png"
# A beginning that is in the form the model knows: of a conversation in a language that was normalised, or of a text.
PROMPTS = {"fr": "[speaker001:] Bonjour, vous m'entendez ?\n[speaker002:]", "en": "[speaker001:] Hello!\n[speaker002:]"}
PLAIN_PROMPT = "Once upon a time"


def write_card(
    folder: Path,
    model: MergedModel,
    hf: dict[str, Any],
    provenance: dict[str, Any],
    model_id: str,
    licence: str | None,
) -> None:
    """Writes the card of the model in `folder` and, where its run can be read, its curves.

    Args:
        folder: the Hugging Face folder.
        model: the model.
        hf: its config.json.
        provenance: what is published of `model.provenance`, and of the conversion.
        model_id: how transformers is told to find it, most often ORG/NAME.
        licence: as the Hub names it; None for the base model's.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    values = {
        **model_values(model, hf, provenance, model_id, is_adapter),
        **origin_values(model, licence, is_adapter),
        **training_values(model.run_dir, provenance),
    }
    if model.run_dir:
        # imported where there are curves: at its first import on a machine matplotlib writes a cache of fonts
        from utils.report.figures import draw_for_card

        if figure := draw_for_card(model.run_dir, provenance.get("step")):
            figure.savefig(folder / CURVES, metadata={"Software": None})
            values["curves"] = CURVES
    card = fill_card((HF_FILES / "README.md").read_text(encoding="utf-8"), values)
    (folder / "README.md").write_text(card, encoding="utf-8")


def fill_card(template: str, values: dict[str, Any]) -> str:
    """Puts `values` in place of `$name`; lines that lack a value go, and then headings with nothing under them."""
    known = {name: str(value) for name, value in values.items() if value not in (None, "")}
    placeholder = re.compile(r"\$(\w+)")
    lines = [line for line in template.splitlines() if known.keys() >= set(placeholder.findall(line))]
    text = placeholder.sub(lambda match: known[match[1]], "\n".join(lines))
    start, *sections = re.split(r"(?m)^(?=## )", text)
    kept = [section for section in sections if section.partition("\n")[2].strip()]
    return re.sub(r"\n{3,}", "\n\n", "".join([start, *kept])).rstrip() + "\n"


def model_values(
    model: MergedModel, hf: dict[str, Any], provenance: dict[str, Any], model_id: str, is_adapter: bool
) -> dict[str, Any]:
    """What it is and how it is used: of an adapter, transformers is told to load the base, and peft the adapter."""
    normalised = provenance.get("normalised") or {}  # of each dataset of conversations the language
    languages = sorted(PROMPTS.keys() & normalised.values())
    prompt = PLAIN_PROMPT
    if languages:
        prompt = normalise(PROMPTS[languages[0]], languages[0], open_end=True)
    if is_adapter:
        languages = []  # beside an adapter there are no programs that bring text into that form
    loaded_id = foundation_facts(model.foundation_dir)[0] if is_adapter else model_id
    return {
        "kind": "A LoRA adapter of a causal language model" if is_adapter else "A causal language model",
        "name": cell(model_id.rpartition("/")[2]),
        "peft_import": "from peft import PeftModel" if is_adapter else None,
        "model_id": json.dumps(loaded_id, ensure_ascii=False),
        "adapter_id": json.dumps(model_id, ensure_ascii=False) if is_adapter else None,
        "architecture": hf["architectures"][0],
        "parameters": f"{sum(spec.numel() for spec in specs_of(model.state_dict).values()):,}",
        "context": f"{model.config.block_size:,}",
        "dtype": hf["torch_dtype"],
        "prompt": json.dumps(prompt, ensure_ascii=False),
        "normalised": " and ".join(f"`{language}`" for language in languages),
        "verification": provenance["conversion"]["verification"],
    }


def origin_values(model: MergedModel, licence: str | None, is_adapter: bool) -> dict[str, Any]:
    """The base model, both licences, and the metadata that the Hub reads."""
    base, base_card = foundation_facts(model.foundation_dir) if model.provenance else (None, {})
    on_hub = base is not None and "/" in base
    named = {key: base_card.get(key) for key in ("license", "license_name", "license_link")}
    front = {
        **({"license": licence} if licence else named),
        "language": language_codes(model.run_dir),
        "base_model": base if on_hub else None,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continual-pretraining" if base else "pretraining"],
    }
    front = {key: value for key, value in front.items() if value}
    link = base and cell(base)
    if on_hub:
        link = f"[{base}](https://huggingface.co/{base})"
    merged = "not merged" if is_adapter else "merged"
    return {
        "front_matter": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "base_model": link,
        "method": f"LoRA, {merged} into its weights" if model.lora else "training of all its weights",
        "license": cell(front["license"]) if "license" in front else None,
        "base_license": cell(base_card["license"]) if base_card.get("license") else None,
    }


def language_codes(run_dir: Path | None) -> list[str]:
    """The languages of the data, those of most tokens first."""
    tokens: Counter[str] = Counter()
    for row in read_csv(run_dir / MIXTURE) if run_dir else []:
        tokens[row["language"]] += int(row["tokens"])
    return sorted(filter(None, tokens), key=lambda language: (-tokens[language], language))


def training_values(run_dir: Path | None, provenance: dict[str, Any]) -> dict[str, Any]:
    """The tables of the data, the hyper-parameters and the losses."""
    step = provenance.get("step")
    evaluation = evaluation_table(run_dir, step) if run_dir and step is not None else None
    return {
        "data": data_table(read_csv(run_dir / MIXTURE)) if run_dir else None,
        "data_fingerprint": provenance.get("data"),
        "hyperparameters": table(("Hyper-parameter", "Value"), hyperparameters(provenance)),
        "evaluation": evaluation,
        "evaluated_step": f"{step:,}" if evaluation else None,
    }
