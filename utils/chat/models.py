"""From a path to a model that answers."""

from collections.abc import Mapping
from pathlib import Path

from litgpt.config import Config
from torch import Tensor

from lit_gpt.checksums import Check
from lit_gpt.errors import UserError
from lit_gpt.formats.hf_config import config_from_hf, read_hf_config
from lit_gpt.formats.hf_files import ADAPTER_CONFIG
from lit_gpt.formats.hf_weights import ForeignWeights
from lit_gpt.formats.litgpt_directory import WEIGHTS, expected_hf
from lit_gpt.inference.generation import TextModel
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.chat.gguf_speaker import gguf_speaker
from utils.chat.speaker import Speaker, litgpt_speaker
from utils.run.chat_options import ChatOptions
from utils.run.foundation import begin_check
from utils.run.merged_model import load_merged_model, load_text_model
from utils.run.progress import STATE
from utils.run.record import RUN

_HF_CONFIG = "config.json"
# one of them is in whatever load_merged_model reads; the last one is of torch's distributed checkpoints
_OURS = (WEIGHTS, ADAPTER_CONFIG, RUN, STATE, ".metadata")


def load_speakers(options: ChatOptions) -> list[Speaker]:
    """The models that the options name: one, or the two of --compare."""
    if options.compare:
        paths = [Path(text) for text in options.compare]
        labels = distinct_labels(*paths)
        return [load_speaker(path, label, options) for path, label in zip(paths, labels, strict=True)]
    if options.model is not None:
        return [load_speaker(options.model, str(options.model), options)]
    if options.lora_path is None and options.checkpoint_dir is None:
        raise UserError("--model (or --compare, or --checkpoint_dir) is required; see --help")
    label = str(options.lora_path or options.checkpoint_dir)
    return [litgpt_speaker(label, load_text_model(options), options)]


def distinct_labels(first: Path, second: Path) -> tuple[str, str]:
    """The ends of two paths, as long as it takes to tell them apart."""
    one, other = first.absolute().parts, second.absolute().parts
    for count in range(1, max(len(one), len(other)) + 1):
        if one[-count:] != other[-count:]:
            return "/".join(one[-count:]), "/".join(other[-count:])
    return f"{first.name} (1)", f"{second.name} (2)"


def load_speaker(path: Path, label: str, options: ChatOptions) -> Speaker:
    """The model at `path`, whichever of the kinds that --model takes it is; a UserError if it is none."""
    if not path.exists():
        raise UserError(f"there is no {path}")
    if path.is_file() and path.suffix == ".gguf":
        return gguf_speaker(path, label, options)
    if path.is_dir():
        is_ours = any((path / name).is_file() for name in _OURS)
        if not is_ours and (path / _HF_CONFIG).is_file():
            return litgpt_speaker(label, _load_hf(path, options), options)
        if not is_ours:
            return gguf_speaker(_only_gguf(path), label, options)
    trained = load_merged_model(path, options.checkpoint_dir)
    model = _text_model(trained.config, trained.state_dict, trained.tokenizer_dir, trained.check, options)
    return litgpt_speaker(label, model, options)


def _only_gguf(folder: Path) -> Path:
    """The GGUF file of a folder that is no model of another kind."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} has {len(files)} GGUF files ({names}): name one of them")
    raise UserError(
        f"{folder} is no model: neither a run folder, a training checkpoint, a litgpt directory ({WEIGHTS}), a Hugging"
        f" Face folder ({_HF_CONFIG}), peft's adapter ({ADAPTER_CONFIG}) nor a GGUF file"
    )


def _load_hf(folder: Path, options: ChatOptions) -> TextModel:
    """A Hugging Face folder's model; its weights are read in litgpt's layout, and nothing is written."""
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    weights = ForeignWeights(folder, config, hf)
    return _text_model(config, weights.lazy(), folder, begin_check(expected_hf(folder)), options)


def _text_model(
    config: Config, weights: Mapping[str, Tensor], tokenizer_dir: Path, check: Check, options: ChatOptions
) -> TextModel:
    return TextModel(config, weights, Tokenizer(tokenizer_dir), options.precision, options.accelerator, check)
