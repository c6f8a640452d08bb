"""The card of a published model, filled from its run: base, data, hyper-parameters, curves, losses, use, licence.

The template is hf_files/README.md; a line whose value is not known is left out, and so is a section without a line.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lit_gpt.formats.peft import ADAPTER_CONFIG
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.repository import REPOSITORY
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.mixture import MIXTURE
from utils.export.provenance import foundation_facts
from utils.prepare.dialogue import normalise
from utils.report.before_and_after import endings, sample_before_and_after, validations
from utils.report.markdown import cell, table
from utils.run.csv_log import ALL, read_csv
from utils.run.merged_model import MergedModel

# Beginnings of conversations, by the language in which the data was normalised.
PROMPTS = {"fr": "[speaker001:] Bonjour, vous m'entendez ?\n[speaker002:]", "en": "[speaker001:] Hello!\n[speaker002:]"}
HYPERPARAMETERS = (  # a name, and fields of run.yaml and of the checkpoint's counters as they are written
    ("Optimiser steps", "{step:,} of {steps:,} planned"),
    ("Tokens predicted", "{tokens:,}"),
    ("Samples per step", "{samples_per_step:,} of {window:,} tokens"),
    ("Learning rate", "{learning_rate} at most, {lr_schedule} schedule, {warmup_steps} steps of warm-up"),
    ("Optimiser", "AdamW, betas {beta1} and {beta2}, weight decay {weight_decay} on matrices"),
    ("Largest gradient norm", "{grad_clip} (0: not clipped)"),
    ("Precision", "{precision}"),
    ("LoRA", "rank {r}, alpha {alpha}, dropout {dropout}; on {adapted}"),
    ("Trained whole beside LoRA's adapters", "{whole}"),
    ("Tokens added to the vocabulary", "{added}"),
    ("Base quantised in training", "{quantize}"),
    ("Documents masked from each other", "{mask_documents}"),
    ("Seed", "{seed}"),
    ("Software", "torch {torch}, litgpt {litgpt}"),
)


def write_card(
    folder: Path,
    model: MergedModel,
    hf: dict[str, Any],
    provenance: dict[str, Any],
    model_id: str,
    licence: str | None,
    base: str | None = None,
) -> None:
    """Writes README.md and, where the run of the model can be read, convergence.png.

    `model_id` is how transformers finds the model, most often ORG/NAME, and `base` how it finds the base model, where
    that is not its folder's name; a `licence` of None means the base model's.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    named, base_card = foundation_facts(model.foundation_dir) if model.provenance or is_adapter else (None, {})
    base = base or named
    values = model_values(model, hf, provenance, model_id) | origin_values(model, base, base_card, licence, is_adapter)
    if is_adapter:
        values |= adapter_values(model, model_id, base)
    values["data_fingerprint"] = provenance.get("data")
    values["hyperparameters"] = table(("Hyper-parameter", "Value"), hyperparameters(provenance))
    if model.run_dir:
        # imported where there are curves: at its first import on a machine matplotlib writes a cache of fonts
        from utils.report.figures import draw_for_card

        step = provenance["step"]
        values["data"] = data_table(read_csv(model.run_dir / MIXTURE))
        if evaluation := evaluation_table(model.run_dir, step):
            values |= {"evaluation": evaluation, "evaluated_step": f"{step:,}"}
        values["endings"] = table(("", "Before training", f"At step {step:,}"), endings(model.run_dir, 0, step))
        values["sample"] = sample_before_and_after(model.run_dir, step)
        if figure := draw_for_card(model.run_dir, step):
            values["curves"] = "convergence.png"
            figure.savefig(folder / values["curves"], metadata={"Software": None})
    template = (REPOSITORY / "hf_files" / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(fill_card(template, values), encoding="utf-8")


def fill_card(template: str, values: dict[str, Any]) -> str:
    """Puts `values` in place of `$name`; lines that lack a value go, and then headings with nothing under them."""
    known = {name: str(value) for name, value in values.items() if value not in (None, "")}
    placeholder = re.compile(r"\$(\w+)")
    lines = [line for line in template.splitlines() if known.keys() >= set(placeholder.findall(line))]
    start, *sections = re.split(r"(?m)^(?=## )", "\n".join(lines))
    kept = [section for section in sections if section.partition("\n")[2].strip()]
    text = re.sub(r"\n{3,}", "\n\n", "".join([start, *kept])).rstrip() + "\n"
    # last of all: a value may hold what looks like a heading
    return placeholder.sub(lambda match: known[match[1]], text)


def model_values(model: MergedModel, hf: dict[str, Any], provenance: dict[str, Any], model_id: str) -> dict[str, Any]:
    """What the model is, and how it is used."""
    normalised = provenance.get("normalised") or {}  # the language of each dataset of conversations
    languages = sorted(PROMPTS.keys() & normalised.values())
    prompt = "Once upon a time"
    if languages:
        prompt = normalise(PROMPTS[languages[0]], languages[0], open_end=True)
    uses = {"prompt": json.dumps(prompt, ensure_ascii=False), "goes_on": "goes on with a text"}
    if model.is_chat:
        ends = end_of_answers(Tokenizer(model.tokenizer_dir))
        uses = {"messages": json.dumps([{"role": "user", "content": "Hello!"}]), "ends": ends}
    return {
        "kind": "A causal language model",
        "name": cell(model_id.rpartition("/")[2]),
        "model_id": json.dumps(model_id, ensure_ascii=False),
        "architecture": hf["architectures"][0],
        "parameters": f"{sum(spec.numel() for spec in specs_of(model.state_dict).values()):,}",
        "context": f"{model.config.block_size:,}",
        "dtype": hf["torch_dtype"],
        "tokenizer_id": json.dumps(model_id, ensure_ascii=False),
        **uses,
        "normalised": " and ".join(f"`{language}`" for language in languages),
        "verification": provenance["conversion"]["verification"],
    }


def end_of_answers(tokenizer: Tokenizer) -> str:
    """The tokens by which who generates knows that an answer has ended; the text, where the template ends it by one."""
    if end := ChatTemplate(tokenizer).end_text:
        return f"the text `{end}`, which is no token: `generate(…, stop_strings={end!r}, tokenizer=tokenizer)`"
    return " or ".join(f"`{tokenizer.vocabulary[index]}`" for index in sorted(tokenizer.end_ids))


def adapter_values(model: MergedModel, model_id: str, base: str | None) -> dict[str, Any]:
    """What is different of an adapter: transformers loads its base, and peft the adapter, which has the tokenizer
    where it was trained on chats, or tokens were added."""
    tokenizer_id = model_id if model.has_own_tokenizer else base
    lora = model.lora
    outer = {"embeddings": lora.train_embeddings, "output layer": lora.head or lora.train_head}
    return {
        "kind": "A LoRA adapter of a causal language model",
        "peft_import": "from peft import PeftModel",
        "adapter_id": json.dumps(model_id, ensure_ascii=False),
        "model_id": json.dumps(base, ensure_ascii=False),
        "tokenizer_id": json.dumps(tokenizer_id, ensure_ascii=False),
        "ending_id": json.dumps(model_id, ensure_ascii=False) if model.is_chat else None,
        "ending_import": "from transformers import GenerationConfig" if model.is_chat else None,
        "normalised": None,  # beside an adapter there are no programs that bring text into that form
        "adapted_head": " and ".join(name for name, is_changed in outer.items() if is_changed),
        "rows": model.config.padded_vocab_size if model.has_new_tokens else None,
    }


def origin_values(
    model: MergedModel, base: str | None, base_card: dict[str, Any], licence: str | None, is_adapter: bool
) -> dict[str, Any]:
    """The base model, both licences, and the metadata that the Hub reads."""
    on_hub = base is not None and "/" in base
    kind = "continual-pretraining" if base else "pretraining"
    if model.is_chat:
        kind = "conversational"
    named = {key: base_card.get(key) for key in ("license", "license_name", "license_link")}
    front = {
        **({"license": licence} if licence else named),
        "language": language_codes(model.run_dir),
        "base_model": base if on_hub else None,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [kind, *(["lora"] if is_adapter else [])],
    }
    front = {key: value for key, value in front.items() if value}
    link = base and cell(base)
    if on_hub:
        link = f"[{base}](https://huggingface.co/{base})"
    merged = "not merged" if is_adapter else "merged"
    training = "training on chats" if model.is_chat else "continuing the pretraining"
    return {
        "front_matter": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "base_model": link,
        "training": training,
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


def data_table(rows: Sequence[dict[str, str]]) -> str | None:
    """The datasets in mixture.csv and their sum; shares and passes as made if the run has ended, else as planned."""
    if not rows:
        return None
    mixture = pd.DataFrame(rows)
    counted = ["documents", "words", "tokens"]
    if "targets" in mixture:  # runs of older versions have no such column, and knew no chats
        masked = mixture["tokens"].astype(int) - mixture["documents"].astype(int) - mixture["targets"].astype(int)
        counted += ["targets"] if masked.any() else []
    counts = mixture[[*counted, "rows"]].astype(int)
    for made, planned in (("achieved_share", "share"), ("passes", "planned_passes"), ("samples", "planned_samples")):
        mixture[made] = mixture[made].where(mixture[made] != "", mixture[planned]).astype(float)
    shown = pd.DataFrame({"Dataset": mixture["dataset"], "Language": mixture["language"]})
    for name in counted:
        shown[name.capitalize()] = counts[name].map("{:,}".format)
    shown["Share of samples"] = mixture["achieved_share"].map("{:.2%}".format)
    shown["Passes"] = mixture["passes"].map("{:.2f}".format)
    lines = shown.to_numpy().tolist()
    if len(rows) > 1:
        sums = counts.sum()
        words = [f"{sums[name]:,}" for name in counted]
        lines.append(["all", "", *words, "100.00%", f"{mixture['samples'].sum() / sums['rows']:.2f}"])
    return table(list(shown), lines)


def hyperparameters(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of `HYPERPARAMETERS` whose values are known; the provenance has all of the options."""
    values = dict(provenance)
    for name in ("options", "schedule", "versions", "lora"):
        values |= provenance.get(name) or {}
    values = {name: value for name, value in values.items() if value is not None}
    if lora := provenance.get("lora"):
        names = [name for name, value in lora.items() if value is True]
        whole = [name.removeprefix("train_") for name in names if name.startswith("train_")]
        values["adapted"] = ", ".join(name for name in names if not name.startswith("train_"))
        if whole:
            values["whole"] = " and ".join(whole)
    if added := provenance.get("added_tokens"):
        values["added"] = ", ".join(added)
    rows = []
    for name, form in HYPERPARAMETERS:
        fields = re.findall(r"\{(\w+)", form)
        if all(field in values for field in fields):
            rows.append((name, form.format_map(values)))
    return rows


def evaluation_table(run_dir: Path, step: int) -> str | None:
    """The validation losses of `step` per dataset, beside those before the training where they were measured."""
    rows = validations(run_dir, step)
    before = rows[rows["step"] == 0].set_index("dataset")["loss"].astype(float)
    after = rows[(rows["step"] == step) & (rows["targets"] != "0")].set_index("dataset")
    names = sorted(after.index, key=lambda name: (name == ALL, name))
    if len(names) == 2:  # one dataset and, of the same loss, all
        names.remove(ALL)
    lines = []
    for name in names:
        loss, targets = float(after["loss"][name]), int(after["targets"][name])
        first = f"{before[name]:.4f}" if step and name in before else ""
        perplexity = math.exp(min(loss, 700))  # a float64 does not hold more
        lines.append((name, first, f"{loss:.4f}", f"{perplexity:,.2f}", f"{targets:,}"))
    return table(("Dataset", "Loss before training", "Loss", "Perplexity", "Tokens predicted"), lines)
