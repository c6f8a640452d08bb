"""adapter_config.json of the peft library: which of its fields are understood, and what they mean.

Every field that peft 0.21's `LoraConfig` can have is in one of three tables: understood; understood at its neutral
value only; without effect on what a loaded adapter computes. Whatever else is there is refused by its name, since peft
adds fields with every version, and an adapter without the one that changes it is another model.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_files import ADAPTER_CONFIG
from lit_gpt.json_files import read_json

# Initialisations that leave the base model as it is: what was trained is base + adapter.
_PLAIN = (True, False, "gaussian", "orthogonal", "eva", "mica")
# Those that take a part out of it, which follows from the base model alone. (pissa_niter_N guesses at random.)
_TAKING_OUT = ("pissa", "olora")
WAY_OUT = (
    "only plain LoRA adapters are supported; where peft can merge it (merge_and_unload, save_pretrained),"
    " lit_gpt/scripts/convert_hf_checkpoint.py reads the whole model"
)
CHANGED_BASE = (
    "changes the base model, which the adapter's weights alone do not tell: save it as plain LoRA by peft's"
    " save_pretrained(path_initial_model_for_weight_conversion=…), with the adapter as it was before training"
)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _are_names(value: Any) -> bool:
    """A list of names, or a regular expression."""
    if isinstance(value, str):
        return _is_regex(value)
    return _are_plain_names(value)


def _are_plain_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_patterns(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return _is_regex(_after(value or ""))
    return _are_plain_names(value) and all(_is_regex(_after(name)) for name in value)


def _are_layers(value: Any) -> bool:
    return value is None or _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value)))


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _by_module(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(_is_regex(_end(key)) and is_value(values) for key, values in value.items())

    return accepts


# peft's own expressions, of which the file's values are parts
def _end(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _after(pattern: str) -> str:
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


def _is_initialisation(value: Any) -> bool:
    return isinstance(value, bool | str)


# What a value has to be, and in words.
_UNDERSTOOD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: isinstance(value, str), "a name"),
    "task_type": (_is_text, "a name"),
    "r": (_is_rank, "a whole number above 0"),
    "lora_alpha": (_is_number, "a number"),
    "use_rslora": (_is_bool, "true or false"),
    "rank_pattern": (_by_module(_is_rank), "ranks by module"),
    "alpha_pattern": (_by_module(_is_number), "numbers by module"),
    "target_modules": (lambda value: value is None or _are_names(value), "a list of names, or a regular expression"),
    "exclude_modules": (lambda value: value is None or _are_names(value), "a list of names, or a regular expression"),
    "layers_to_transform": (_are_layers, "a list of whole numbers"),
    "layers_pattern": (_are_patterns, "a list of names"),
    "modules_to_save": (lambda value: value is None or _are_plain_names(value), "a list of names"),
    "init_lora_weights": (_is_initialisation, "true, false or a name"),
}
# The values of fields whose others make something else than plain LoRA.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "ensure_weight_tying": (False,),
    "enable_lora": (None,),  # of peft 0.2, one matrix for queries, keys and values
}
# Without effect once an adapter is loaded: where it comes from, how it was trained, how it is held.
_WITHOUT_EFFECT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "auto_mapping": (_is_mapping, "a mapping"),
    "base_model_name_or_path": (_is_text, "a name"),
    "revision": (_is_text, "a name"),
    "peft_version": (_is_text, "a version"),
    "inference_mode": (_is_bool, "true or false"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "fan_in_fan_out": (_is_bool, "true or false"),  # peft sets it by the class of each layer
    "megatron_core": (_is_text, "a name"),  # only beside megatron_config
    "qalora_group_size": (_is_integer, "a whole number"),  # only beside use_qalora
    "loftq_config": (_is_mapping, "a mapping"),  # this one and the next three: only beside their init_lora_weights
    "eva_config": (_is_mapping, "a mapping"),
    "corda_config": (_is_mapping, "a mapping"),
    "lora_ga_config": (_is_mapping, "a mapping"),
    "runtime_config": (lambda value: True, "anything"),  # peft itself passes it over
    "merge_weights": (_is_bool, "true or false"),  # of peft 0.2
}


@dataclass(frozen=True)
class PeftConfig:
    """A plain LoRA adapter's scales and places; `described` has passed the tables above."""

    described: Mapping[str, Any]

    @property
    def base(self) -> str | None:
        """The model that it was made for, by name or path."""
        return self.described.get("base_model_name_or_path")

    @property
    def saved(self) -> list[str]:
        """The names of modules that were trained whole."""
        return self.described.get("modules_to_save") or []

    @property
    def takes_out(self) -> str | None:
        """The initialisation, where it takes a part out of the base model that is found again from the base model."""
        name = self.described.get("init_lora_weights")
        return name if name in _TAKING_OUT else None

    def rank(self, module: str) -> int:
        return _of_pattern(self.described.get("rank_pattern"), module, self.described.get("r", 8))

    def scale(self, module: str) -> float:
        rank = self.rank(module)
        alpha = _of_pattern(self.described.get("alpha_pattern"), module, self.described.get("lora_alpha", 8))
        return alpha / (math.sqrt(rank) if self.described.get("use_rslora") else rank)

    def targets(self, module: str) -> bool:
        """Whether peft puts an adapter on the module of this name, if it has weights that can have one."""
        excluded = self.described.get("exclude_modules")
        if excluded and _is_named(module, excluded):
            return False
        targets = self.described["target_modules"]
        if not _is_named(module, targets):
            return False
        layers = self.described.get("layers_to_transform")
        if layers is None or layers == [] or (isinstance(targets, list) and module in targets):
            return True
        layer = self._layer(module)
        return layer in (layers if isinstance(layers, list) else [layers])

    def _layer(self, module: str) -> int | None:
        """The first number in a module's name, where there are `layers_pattern` after one of them."""
        patterns = self.described.get("layers_pattern") or []
        expressions = [_after(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
        for expression in expressions or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            if match := re.match(expression, module):
                return None if match["idx"] is None else int(match["idx"])
        return None


def _is_named(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the value of the first key that is the module's name or, after a dot, its end."""
    matching = (value for key, value in (pattern or {}).items() if re.match(_end(key), module))
    return next(matching, default)


def read_peft_config(folder: Path) -> PeftConfig:
    """The adapter_config.json in `folder`.

    A UserError names what makes it another thing than plain LoRA, a DataError a value that is none of its field's.
    """
    path = folder / ADAPTER_CONFIG
    described = read_json(path)
    kind = described.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path} has peft_type {kind}; {WAY_OUT}")
    if refused := [_in_words(name, value) for name, value in described.items() if _is_refused(name, value)]:
        raise UserError(f"{path} has {', '.join(refused)}; {WAY_OUT}")
    for name, value in described.items():
        accepts, what = {**_UNDERSTOOD, **_WITHOUT_EFFECT}.get(name, (None, ""))
        if accepts is not None and not accepts(value):
            raise DataError(f"{path}: {name} is {value!r}; it has to be {what}")
    initialisation = described.get("init_lora_weights", True)
    if initialisation not in (*_PLAIN, *_TAKING_OUT):
        raise UserError(f"{path}: init_lora_weights {initialisation} {CHANGED_BASE}")
    if described.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{path} has task_type {described['task_type']}; only adapters of language models are supported"
        )
    _check_targets(path, described)
    return PeftConfig(described)


def _check_targets(path: Path, described: Mapping[str, Any]) -> None:
    targets = described.get("target_modules")
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        raise UserError(f"{path}: target_modules {targets} leaves the modules open; list those that have an adapter")
    layers, patterns = described.get("layers_to_transform"), described.get("layers_pattern")
    if isinstance(targets, str) and (layers is not None or patterns is not None):
        raise DataError(f"{path}: layers_to_transform and layers_pattern need a list of target_modules")
    if patterns and layers is None:
        raise DataError(f"{path}: layers_pattern needs layers_to_transform")


def _is_refused(name: str, value: Any) -> bool:
    if name in _NEUTRAL:
        return not any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL[name])
    return name not in _UNDERSTOOD and name not in _WITHOUT_EFFECT


def _in_words(name: str, value: Any) -> str:
    if name not in _NEUTRAL:
        return f"{name}, a field that is not known here"
    return f"{name} {value}" if isinstance(value, str) else name
