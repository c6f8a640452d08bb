"""Which model is meant by a path that a user gives: --input_path, --lora_path."""

from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.formats.litgpt_directory import WEIGHTS
from utils.files.checksums import SUMS
from utils.run.checkpoint_folders import best_checkpoint, list_checkpoints
from utils.run.progress import STATE
from utils.run.record import RUN


def find_input(path: Path) -> Path:
    """Finds what `path` means: a training checkpoint (of a run folder the best, else the newest) or a `lit_model.pth`.

    Raises:
        UserError: if it is none of these.
    """
    if path.is_file() and path.suffix == ".pth":
        return path
    if (path / STATE).is_file() or (path / SUMS).is_file():
        return path
    if (path / RUN).is_file():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise UserError(f"the run in {path} has no complete checkpoint yet")
        return best_checkpoint(path, checkpoints)
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    raise UserError(f"{path} is neither a run folder, nor a training checkpoint, nor a {WEIGHTS}")
