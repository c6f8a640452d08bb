"""What is published about a model's origin: the record of its training, its foundation and the licences."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.checksums import listed_sums
from utils.run.merged_model import PROVENANCE, MergedModel


def write_provenance(folder: Path, model: MergedModel, hf: dict[str, Any], verified: str) -> dict[str, Any]:
    """Writes the record of training and conversion, copies the foundation's licences, and returns the record."""
    if model.foundation_dir is not None:
        # most licences ask that they and the notices are passed on
        for path in [*model.foundation_dir.glob("LICENSE*"), *model.foundation_dir.glob("NOTICE*")]:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    versions = {name: version(name) for name in ("torch", "litgpt", "safetensors")}
    conversion = {"architecture": hf["architectures"][0], "verification": verified, "versions": versions}
    conversion["sha256"] = listed_sums(folder)
    provenance = {**publishable(model.provenance), "conversion": conversion}
    write_json(folder / PROVENANCE, provenance)
    return provenance


def publishable(value: Any) -> Any:
    """`value` without what names a machine or its folders: the last part of absolute paths, no host names."""
    if isinstance(value, dict):
        return {key: publishable(item) for key, item in value.items() if key not in ("host", "hostname")}
    if isinstance(value, list):
        return [publishable(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def foundation_facts(foundation_dir: Path | None) -> tuple[str | None, dict[str, Any]]:
    """The foundation's name, ORG/NAME where its folder is as download.py makes it, and the metadata of its card."""
    if foundation_dir is None:
        return None, {}
    folder = foundation_dir.resolve()
    name = f"{folder.parent.name}/{folder.name}" if folder.parent.parent.name == "checkpoints" else folder.name
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        front_matter = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        front_matter = {}
    return name, front_matter if isinstance(front_matter, dict) else {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
