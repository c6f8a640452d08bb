"""Every kind of adapter that peft can save, made and loaded in processes of their own, for test_peft_zoo.py.

`python -m tests.formats.peft_zoo make BASE OUT` writes a folder for each kind and the logits of the model that was
"trained", `load BASE OUT` those of the model that peft makes of the folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

IDS = [[5, 9, 200, 31, 7, 77, 340, 12, 1, 419, 0, 3, 18, 64, 255, 256]]
SOME = ["q_proj", "v_proj", "down_proj"]
EVA_ROUNDS = 4

# options of LoraConfig beside r=4, lora_alpha=8 and target_modules SOME
LORA: dict[str, dict[str, Any]] = {
    "default": {},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r"model\.layers\.1\..*(gate|o)_proj"},
    "head": {"target_modules": [*SOME, "lm_head"]},
    "whole names": {"target_modules": ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj"]},
    "init false": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, alpha and rslora": {"init_lora_weights": "pissa", "lora_alpha": 3, "use_rslora": True},
    "pissa with a head": {"init_lora_weights": "pissa", "target_modules": [*SOME, "lm_head"]},
    "pissa converted": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "olora converted": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"down_proj": 5, "model.layers.0.self_attn.v_proj": 1},
    },
    "rslora, patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "layers_to_transform, a number": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "exclude_modules": {"exclude_modules": ["layers.0.self_attn.v_proj"]},
    "exclude_modules, regex": {"exclude_modules": r".*layers\.1\..*"},
    "dropout": {"lora_dropout": 0.3},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "dora": {"use_dora": True},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "modules_to_save, both": {"modules_to_save": ["model.embed_tokens", "lm_head"]},
    "modules_to_save, more rows": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "modules_to_save, others": {"modules_to_save": ["lm_head", "norm"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 5]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "target_parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
    "alora": {"alora_invocation_tokens": [7, 77]},
    "velora": {"velora_config": "VeloraConfig"},
    "kasa": {"kasa_config": "KasaConfig"},
    "monteclora": {"monteclora_config": "MontecloraConfig"},
    "bdlora": {"use_bdlora": "BdLoraConfig"},
    "ensure_weight_tying": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
}
# options of the other kinds, beside target_modules SOME where they have that
OTHERS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "P_TUNING": {"num_virtual_tokens": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [3, 5], "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}


def _base(folder: Path, name: str) -> Any:
    """The base model, for some adapters with rows for two tokens more."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if name.endswith("more rows"):
        model.resize_token_embeddings(model.config.vocab_size + 2)
    return model


def _logits(model: Any, **inputs: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS), **inputs).logits[0, -len(IDS[0]) :].numpy()


def _lora_config(name: str) -> Any:
    import peft
    from peft.tuners.lora import config as lora_configs

    values = {"r": 4, "lora_alpha": 8, "target_modules": SOME, "task_type": "CAUSAL_LM", **LORA[name]}
    for key, value in values.items():
        if isinstance(value, str) and value.endswith("Config"):
            own = {"target_modules_bd_b": ["q_proj"], "match_strict": False, "nblocks": 2} if "Bd" in value else {}
            values[key] = getattr(lora_configs, value)(**own)
    return peft.LoraConfig(**values)


def _prepared(name: str, model: Any, config: Any) -> Any:
    """The model with an untrained adapter; some initialisations look at data first."""
    import torch
    from peft import get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora.config import LoraGAConfig

    ids = torch.tensor(IDS)
    if name == "corda":
        from peft.tuners.lora.corda import preprocess_corda

        preprocess_corda(model, config, run_model=lambda: model(ids))
    if name == "lora_ga":
        from peft.tuners.lora.loraga import preprocess_loraga

        config.lora_ga_config = LoraGAConfig()
        preprocess_loraga(model, config, train_step=lambda: model(ids, labels=ids).loss.backward())
    made = get_peft_model(model, config)
    if name == "eva":
        batches = [{"input_ids": torch.randint(0, 420, (2, 16))} for _ in range(EVA_ROUNDS)]
        initialize_lora_eva_weights(made, dataloader=batches, show_progress_bar=False)
    return made


def _trained(model: Any) -> Any:
    """Moves every weight that training would, by enough to be seen."""
    import torch

    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.2 * noise.to(parameter.dtype)
    return model.eval()


def _other_config(kind: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    values = {"task_type": "CAUSAL_LM", "target_modules": SOME, **OTHERS.get(kind, {})}
    return config_class(**{key: value for key, value in values.items() if key in config_class.__dataclass_fields__})


def make(base: Path, out: Path) -> dict[str, Any]:
    """Writes all adapters and their logits; returns why there are none, by name."""
    import numpy as np
    import torch
    from peft import PeftType

    found: dict[str, Any] = {}
    reasons = {}
    for name in [*LORA, *(kind.value for kind in PeftType if kind != PeftType.LORA)]:
        torch.manual_seed(0)
        config = _lora_config(name) if name in LORA else _other_config(name)
        config.save_pretrained(out / name)  # at least this, where the rest needs more than a model
        options = {}
        try:
            made = _prepared(name, _base(base, name), config)
            if name.endswith("converted"):
                options = {"path_initial_model_for_weight_conversion": str(out / f"{name} initial")}
                made.save_pretrained(out / f"{name} initial")
            logits = _logits(_trained(made))
            made.save_pretrained(out / name, **options)
            if name.endswith("more rows"):  # of which the adapter's tokenizer knows the names
                shutil.copyfile(base / "tokenizer.model", out / name / "tokenizer.model")
            found[name] = logits
        except Exception as e:  # some need a GPU, other adapters or packages
            reasons[name] = f"{type(e).__name__}: {e}"
    np.savez(out / "made.npz", **found)
    return reasons


def load(base: Path, out: Path) -> dict[str, Any]:
    """The logits of the LoRA adapters in `out` as peft loads them; why it does not, by name."""
    import numpy as np
    from peft import PeftModel

    found, reasons = {}, {}
    for folder in (out / name for name in LORA):
        try:
            found[folder.name] = _logits(PeftModel.from_pretrained(_base(base, folder.name), str(folder)).eval())
        except Exception as e:  # what peft raises is its answer
            reasons[folder.name] = f"{type(e).__name__}: {e}"
    np.savez(out / "loaded.npz", **found)
    return reasons


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _, action, *folders = sys.argv
    print(json.dumps({"make": make, "load": load}[action](*map(Path, folders)), indent=1))
