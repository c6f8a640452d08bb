"""run.yaml: all that is needed to repeat a run, and to tell whether a start continues the same run."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import DataError, UserError
from lit_gpt.repository import REPOSITORY
from utils.files.atomic import write_atomically

RUN = "run.yaml"
PROVENANCE = "training_provenance.json"  # beside an exported model: how it was trained; hf_files/handler.py reads it


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a resumed run must share with its beginning, as plain values, in the order of run.yaml."""

    model: dict[str, Any]
    """litgpt's fields of the model's config."""
    lora: dict[str, Any] | None
    """The fields of `LoRASettings`; None for a full training."""
    base: str | None
    """The foundation model's weights, see foundation.py; None if the training began from random ones."""
    added_tokens: list[str] | None = None
    """Tokens that the foundation's vocabulary grew by, its last ones; None: it did not. Older versions: None."""
    quantize: str | None = None
    """How the base's matrices are kept (QLoRA, `bnb.nf4`); None: as they are. Older versions did not write it."""
    data: str
    """Fingerprint of the manifest's entries that are trained on."""
    template: str | None = None
    """SHA-256 of the data's chat template; None without chats. Older versions did not write it."""
    mixture: dict[str, int]
    """Weight of each dataset."""
    samples_per_step: int
    """Samples of an optimiser step, over all processes."""
    mask_documents: bool
    """Whether a token attends only to its own document."""
    master_weights: bool | None = None
    """Whether fp32 copies of bf16 weights are updated. Older versions did not write it: None."""
    optimizer: str = "adamw"
    """The optimiser, whose state is in the checkpoints. Older versions did not write it."""
    seed: int
    """Seed of the sample order, the random weights and dropout."""


@dataclass(frozen=True)
class RunRecord:
    """What run.yaml holds. Everything but `identity` may change between starts."""

    identity: RunIdentity
    options: dict[str, Any]
    """The resolved options of the newest start."""
    schedule: dict[str, Any]
    """Steps, samples and tokens the run plans."""
    versions: dict[str, str]
    """Versions of Python and of the packages that may change numbers."""
    commit: str | None
    """Commit of this program; None outside of a checkout."""
    history: list[dict[str, Any]]
    """One entry per start: when, where, on how many processes, from which step."""
    normalised: dict[str, str] = field(default_factory=dict)
    """Datasets whose conversations have the one form that dialogue.py gives them, and in which language."""

    def save(self, run_dir: Path) -> None:
        values = vars(self) | {"identity": vars(self.identity)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
        write_atomically(run_dir / RUN, text)

    def note_divergence(self, run_dir: Path, step: int) -> None:
        """Writes down that the newest start ended as no step after `step` had a finite gradient."""
        self.history[-1]["diverged"] = step
        self.save(run_dir)

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Reads a run folder's or a checkpoint's run.yaml; a `UserError` if there is none, a `DataError` if damaged."""
        path = folder / RUN
        if not path.is_file():
            raise UserError(f"{path} is missing: not a run's folder or checkpoint")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(RunIdentity)}  # a later version may have written more
            identity = {name: value for name, value in values["identity"].items() if name in known}
            return cls(**values | {"identity": RunIdentity(**identity)})
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as e:
            raise DataError(f"{path} is no run.yaml of this program ({e})") from None

    def check_same_run(self, identity: RunIdentity, out_dir: Path) -> None:
        """Raises unless `identity` is this run's: a DataError for another model, a UserError for other data or seed."""
        begun, now = vars(self.identity), vars(identity)
        differing = [name for name in now if now[name] != begun[name]]
        if "model" in differing or "lora" in differing:
            raise DataError(f"{out_dir} holds the run of another model; give another --out_dir")
        if differing:
            changes = "; ".join(f"{name} was {_short(begun[name])}, now {_short(now[name])}" for name in differing)
            raise UserError(
                f"{out_dir} holds another run ({changes}); give another --out_dir, or the options it began with"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def software_versions() -> dict[str, str]:
    """The versions of Python and of the packages that may change a training's numbers."""
    packages = ("torch", "lightning", "litgpt", "numpy", "safetensors", "sentencepiece", "tokenizers")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def source_commit() -> str | None:
    """The commit of this program's checkout, with `+` when files differ from it; None outside of git."""
    # describe --dirty would write the index, and killed while it does leave a lock that ends every later commit
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY)]
    try:
        answers = [
            subprocess.run([*git, *words], capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    commit, changes = answers
    return commit + "+" * bool(changes)
