"""run.yaml: all that is needed to repeat a run, and to tell whether it is the same run that goes on."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import DataError, UserError
from lit_gpt.repository import REPOSITORY
from utils.files.atomic import write_atomically

RUN = "run.yaml"


PACKAGES = ("torch", "lightning", "litgpt", "numpy", "safetensors", "sentencepiece", "tokenizers")


@dataclass(frozen=True)
class RunRecord:
    """run.yaml. `identity` is what a resumed run must share with its beginning; the rest may change between starts."""

    identity: dict[str, Any]
    """Model, adapter, data, mixture, seed and samples per step, as plain values."""
    options: dict[str, Any]
    """The resolved options of the newest start."""
    schedule: dict[str, Any]
    """Steps, samples and tokens the run plans."""
    versions: dict[str, str]
    commit: str | None
    history: list[dict[str, Any]]
    """One entry per start: when, where, on how many processes, from which step."""
    normalised: dict[str, str] = field(default_factory=dict)
    """Datasets whose conversations have the one form that dialogue.py gives them, and in which language."""

    def save(self, run_dir: Path) -> None:
        text = yaml.safe_dump(vars(self), sort_keys=False, allow_unicode=True, width=120)
        write_atomically(run_dir / RUN, text)

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Reads the run.yaml of a run folder or of a checkpoint.

        Raises:
            UserError: if there is none.
            DataError: if it is not one.
        """
        path = folder / RUN
        if not path.is_file():
            raise UserError(f"{path} is missing: not a run's folder or checkpoint")
        try:
            return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as e:
            raise DataError(f"{path} is no run.yaml of this program ({e})") from None

    def check_same_run(self, identity: dict[str, Any], out_dir: Path) -> None:
        """Raises unless `identity` is this run's: a DataError for another model, a UserError for other data or seed."""
        differing = [key for key in identity if identity[key] != self.identity.get(key)]
        if "model" in differing or "lora" in differing:
            raise DataError(f"{out_dir} holds the run of another model; give another --out_dir")
        if differing:
            changes = "; ".join(
                f"{key} was {_short(self.identity.get(key))}, now {_short(identity[key])}" for key in differing
            )
            raise UserError(
                f"{out_dir} holds another run ({changes}); give another --out_dir, or the options it began with"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def software_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def source_commit() -> str | None:
    """The commit of this program's checkout, with `+` when files differ from it; None outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
