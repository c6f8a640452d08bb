"""The card of a published model, filled from its run: base, data, hyper-parameters, curves, losses, use, licence.

`write_card` puts README.md and convergence.png into a Hugging Face folder, or into that of an adapter for peft. The
template is hf_files/README.md; a line of it whose value is not known is left out, and so is a section without a line.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.formats.peft import ADAPTER_CONFIG
from lit_gpt.model.lazy_tensors import specs_of
from lit_gpt.repository import REPOSITORY
from utils.data.mixture import MIXTURE
from utils.export.provenance import foundation_facts
from utils.prepare.dialogue import normalise
from utils.run.csv_log import ALL, METRICS, VALIDATION, read_csv
from utils.run.merged_model import MergedModel

HF_FILES = REPOSITORY / "hf_files"
CURVES = "convergence.png"
# A beginning that is in the form the model knows: of a conversation in a language that was normalised, or of a text.
PROMPTS = {"fr": "[speaker001:] Bonjour, vous m'entendez ?\n[speaker002:]", "en": "[speaker001:] Hello!\n[speaker002:]"}
PLAIN_PROMPT = "Once upon a time"
HYPERPARAMETERS = (
    ("Optimiser steps", "{step:,} of {steps:,} planned"),
    ("Tokens predicted", "{tokens:,}"),
    ("Samples per step", "{samples_per_step:,} of {window:,} tokens"),
    ("Learning rate", "{learning_rate} at most, {lr_schedule} schedule, {warmup_steps} steps of warm-up"),
    ("Optimiser", "AdamW, betas {beta1} and {beta2}, weight decay {weight_decay} on matrices"),
    ("Largest gradient norm", "{grad_clip} (0: not clipped)"),
    ("Precision", "{precision}"),
    ("LoRA", "rank {r}, alpha {alpha}, dropout {dropout}; on {adapted}"),
    ("Base quantised in training", "{quantize}"),
    ("Documents masked from each other", "{mask_documents}"),
    ("Seed", "{seed}"),
    ("Software", "torch {torch}, litgpt {litgpt}"),
)
"""The table's lines: fields of run.yaml and of the checkpoint's counters, and how they are put."""


def write_card(
    folder: Path,
    trained: MergedModel,
    hf: dict[str, Any],
    provenance: dict[str, Any],
    model_id: str,
    licence: str | None,
) -> None:
    """Writes the card of the model in `folder` and, where its run can be read, its curves.

    Args:
        folder: the Hugging Face folder.
        trained: the model.
        hf: its config.json.
        provenance: what is published of `trained.provenance`, and of the conversion.
        model_id: how transformers is told to find it, most often ORG/NAME.
        licence: as the Hub names it; None for the base model's.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    values = {
        **describe_model(trained, hf, provenance, model_id, is_adapter),
        **describe_origin(trained, licence, is_adapter),
        **describe_training(trained.run_dir, provenance),
    }
    # Only a model with a run has curves; at its first import on a machine matplotlib writes a cache of fonts.
    from utils.report.figures import draw_for_card

    if trained.run_dir and (figure := draw_for_card(trained.run_dir, provenance.get("step"))):
        figure.savefig(folder / CURVES, metadata={"Software": None})
        values["curves"] = CURVES
    card = fill_card((HF_FILES / "README.md").read_text(encoding="utf-8"), values)
    (folder / "README.md").write_text(card, encoding="utf-8")


def fill_card(template: str, values: dict[str, Any]) -> str:
    """Puts `values` in place of `$name`; lines that lack a value go, and then headings with nothing under them."""
    known = {name: str(value) for name, value in values.items() if value not in (None, "")}
    placeholder = re.compile(r"\$(\w+)")
    lines = [line for line in template.splitlines() if all(name in known for name in placeholder.findall(line))]
    text = placeholder.sub(lambda match: known[match[1]], "\n".join(lines))
    blocks = re.split(r"(?m)^(?=## )", text)
    blocks = [block for block in blocks if not block.startswith("## ") or block.partition("\n")[2].strip()]
    return re.sub(r"\n{3,}", "\n\n", "".join(blocks)).rstrip() + "\n"


# ------------------------------------------------------------------------------------------------ the model and its use


def describe_model(
    trained: MergedModel, hf: dict[str, Any], provenance: dict[str, Any], model_id: str, is_adapter: bool
) -> dict[str, Any]:
    """What it is and how it is used: of an adapter, transformers is told to load the base, and peft the adapter."""
    languages = sorted(set((provenance.get("normalised") or {}).values()) & PROMPTS.keys())
    prompt = normalise(PROMPTS[languages[0]], languages[0], open_end=True) if languages else PLAIN_PROMPT
    loaded_id = foundation_facts(trained.foundation_dir)[0] if is_adapter else model_id
    # of the programs that bring text into the form known, none lies beside an adapter
    normalised = [] if is_adapter else languages
    return {
        "kind": "A LoRA adapter of a causal language model" if is_adapter else "A causal language model",
        "name": cell(model_id.rpartition("/")[2]),
        "peft_import": "from peft import PeftModel" if is_adapter else None,
        "model_id": json.dumps(loaded_id, ensure_ascii=False),
        "adapter_id": json.dumps(model_id, ensure_ascii=False) if is_adapter else None,
        "architecture": hf["architectures"][0],
        "parameters": f"{sum(spec.numel() for spec in specs_of(trained.state_dict).values()):,}",
        "context": f"{trained.config.block_size:,}",
        "dtype": hf["torch_dtype"],
        "prompt": json.dumps(prompt, ensure_ascii=False),
        "normalised": " and ".join(f"`{language}`" for language in normalised),
        "verification": provenance["conversion"]["verification"],
    }


def describe_origin(trained: MergedModel, licence: str | None, is_adapter: bool) -> dict[str, Any]:
    """The base model, both licences, and the metadata that the Hub reads."""
    base, base_card = foundation_facts(trained.foundation_dir) if trained.provenance else (None, {})
    on_hub = base is not None and "/" in base
    named = {key: base_card.get(key) for key in ("license", "license_name", "license_link")}
    front = {
        **({"license": licence} if licence else named),
        "language": language_codes(trained.run_dir),
        "base_model": base if on_hub else None,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continual-pretraining" if base else "pretraining"],
    }
    front = {key: value for key, value in front.items() if value}
    merged = "not merged" if is_adapter else "merged"
    return {
        "front_matter": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "base_model": f"[{base}](https://huggingface.co/{base})" if on_hub else base and cell(base),
        "method": f"LoRA, {merged} into its weights" if trained.lora else "training of all its weights",
        "license": cell(front["license"]) if "license" in front else None,
        "base_license": cell(base_card["license"]) if base_card.get("license") else None,
    }


def language_codes(run_dir: Path | None) -> list[str]:
    """The languages of the data, those of most tokens first."""
    tokens: Counter[str] = Counter()
    for row in read_csv(run_dir / MIXTURE) if run_dir else []:
        tokens[row["language"]] += int(row["tokens"])
    return sorted(filter(None, tokens), key=lambda language: (-tokens[language], language))


# --------------------------------------------------------------------------------------------------------- the training


def describe_training(run_dir: Path | None, provenance: dict[str, Any]) -> dict[str, Any]:
    step = provenance.get("step")
    evaluation = evaluation_table(run_dir, step) if run_dir and step is not None else None
    return {
        "data": data_table(read_csv(run_dir / MIXTURE)) if run_dir else None,
        "data_fingerprint": provenance.get("data"),
        "hyperparameters": table(("Hyper-parameter", "Value"), hyperparameters(provenance)),
        "evaluation": evaluation,
        "evaluated_step": f"{step:,}" if evaluation else None,
    }


def data_table(rows: Sequence[dict[str, str]]) -> str | None:
    """What mixture.py wrote of the datasets, and their sum; shares and passes as made, if the run has ended."""
    counts = ("documents", "words", "tokens")
    lines = []
    for row in rows:
        share, passes = row["achieved_share"] or row["share"], row["passes"] or row["planned_passes"]
        numbers = [f"{int(row[name]):,}" for name in counts]
        lines.append((row["dataset"], row["language"], *numbers, f"{float(share):.2%}", f"{float(passes):.2f}"))
    if len(rows) > 1:
        samples = sum(int(row["samples"] or row["planned_samples"]) for row in rows)
        sums = [f"{sum(int(row[name]) for row in rows):,}" for name in counts]
        lines.append(("all", "", *sums, "100.00%", f"{samples / sum(int(row['rows']) for row in rows):.2f}"))
    return table(("Dataset", "Language", "Documents", "Words", "Tokens", "Share of samples", "Passes"), lines)


def hyperparameters(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """What makes the training what it is, with units, as far as it is known; the provenance has all of the options."""
    lora = provenance.get("lora") or {}
    parts = [provenance.get(name) or {} for name in ("options", "schedule", "versions")]
    values = {**provenance, **{name: value for part in (*parts, lora) for name, value in part.items()}}
    values = {name: value for name, value in values.items() if value is not None}
    if lora:
        values["adapted"] = ", ".join(name for name, value in lora.items() if value is True)
    rows = []
    for name, form in HYPERPARAMETERS:
        fields = re.findall(r"\{(\w+)", form)
        if all(field in values for field in fields):
            rows.append((name, form.format_map(values)))
    return rows


def evaluation_table(run_dir: Path, step: int) -> str | None:
    """The validation losses of `step` per dataset, beside those before the training where they were measured.

    They are those of metrics.csv; where it has none at this step, the newest of validation.csv.
    """
    rows = [row for row in read_csv(run_dir / METRICS) if row["split"] == "valid"]
    if not any(int(row["step"]) == step for row in rows):
        rows = read_csv(run_dir / VALIDATION)
    before, after = ({row["dataset"]: row for row in rows if int(row["step"]) == at} for at in (0, step))
    names = sorted(after, key=lambda name: (name == ALL, name))
    if len(names) == 2:  # one dataset and, of the same loss, all
        names.remove(ALL)
    lines = []
    for name in names:
        loss = float(after[name]["loss"])
        first = f"{float(before[name]['loss']):.4f}" if step and name in before else ""
        lines.append(
            (name, first, f"{loss:.4f}", f"{math.exp(min(loss, 700)):,.2f}", f"{int(after[name]['targets']):,}")
        )
    return table(("Dataset", "Loss before training", "Loss", "Perplexity", "Tokens predicted"), lines)


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str | None:
    """A Markdown table; None without rows. Columns in which every cell is empty are left out."""
    rows = [[cell(value) for value in row] for row in rows]
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    lines = [[titles[index] for index in kept], ["---"] * len(kept), *([row[index] for index in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if kept else None


def cell(value: Any) -> str:
    """A value as text of one line that neither ends a table's cell nor is HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
