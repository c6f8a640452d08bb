"""A fuzz over adapter_config.json: whatever is in it, what is merged is peft's own model, else it is refused."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.hf_files import ADAPTER_CONFIG
from lit_gpt.formats.hf_logits import TOLERANCE, litgpt_logits
from lit_gpt.formats.peft_config import _NEUTRAL, _UNDERSTOOD, _WITHOUT_EFFECT
from tests.formats.hf_models import make_litgpt
from utils.run.merged_model import load_merged_model

IDS = [[5, 9, 200, 31, 7, 77, 340, 12, 1, 419, 0, 3]]
TARGETS = ["q_proj", "v_proj", "model.layers.1.mlp.down_proj", "lm_head"]

MODULES = ["down_proj", "k_proj", "self_attn", "model.layers.0.self_attn.q_proj", "layers.1", "norm", "embed_tokens"]
ODD = [
    "proj",
    "x",
    "",
    "0",
    r".*\.q_proj",
    r"layers\.\d+\.self_attn\.v_proj",
    r".*(q|v|down)_proj|lm_head",
    ".*",
    "(",
    "(?i)Q_PROJ",
    "h|layers",
]
INITIALISATIONS = [True, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica", "olora", "pissa", "loftq", ""]
names = st.sampled_from([*TARGETS, *MODULES, *ODD])
numbers = st.one_of(st.integers(-2, 9), st.floats(), st.booleans(), st.sampled_from(["4", None, 4.0, 8, 16, 1e300]))
scalars = st.one_of(st.none(), st.booleans(), numbers, names, st.sampled_from(["none", "all", "gaussian", "pissa"]))
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
name_lists = st.one_of(st.lists(names, max_size=5), names, st.just(TARGETS), st.permutations(TARGETS))
layers = st.one_of(st.lists(st.integers(-1, 3), max_size=3), st.integers(0, 2))
LIKELY = {
    "r": st.integers(1, 8),
    "lora_alpha": numbers,
    "use_rslora": st.booleans(),
    "rank_pattern": st.dictionaries(names, st.integers(1, 8), max_size=2),
    "alpha_pattern": st.dictionaries(names, numbers, max_size=2),
    "target_modules": name_lists,
    "exclude_modules": name_lists,
    "layers_to_transform": layers,
    "layers_pattern": st.one_of(st.lists(names, max_size=2), st.sampled_from(["layers", ["h", "layers"], ["layers"]])),
    "init_lora_weights": st.sampled_from(INITIALISATIONS),
    "bias": st.sampled_from(["none", "all", "lora_only", None]),
    "task_type": st.sampled_from([None, "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION", "causal_lm"]),
    "peft_type": st.sampled_from(["LORA", "LOHA", "lora", None]),
}
KNOWN = sorted({*_UNDERSTOOD, *_NEUTRAL, *_WITHOUT_EFFECT})


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Some fields' values; `...` takes a field out."""
    fields = draw(st.lists(st.sampled_from([*LIKELY, *LIKELY, *KNOWN, "use_new", "scale"]), min_size=1, max_size=3))
    changed = {}
    for field in fields:
        likely = LIKELY.get(field, anything)
        changed[field] = draw(st.one_of(likely, likely, likely, anything, st.just(...)))
    return changed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("fuzz")
    base = make_litgpt(folder)
    for name, targets in (("with a head", TARGETS), ("without", TARGETS[:-1])):
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
        made = get_peft_model(copy.deepcopy(base), lora)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        made.save_pretrained(folder / name)
    return SimpleNamespace(folder=folder, base=base)


def logits_of_peft(base: torch.nn.Module, folder: Path) -> torch.Tensor:
    from peft import PeftModel

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()(torch.tensor(IDS)).logits[0]


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(["with a head", "without"]), changed=changes())
def test_what_is_merged_is_pefts_model_whatever_the_configuration_says(
    trained: SimpleNamespace, name: str, changed: dict[str, Any]
) -> None:
    described = {**json.loads((trained.folder / name / ADAPTER_CONFIG).read_text()), **changed}
    described = {field: value for field, value in described.items() if value is not ...}
    folder = trained.folder / "changed"
    shutil.copytree(trained.folder / name, folder, dirs_exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described))
    try:
        model = load_merged_model(folder, trained.folder)
    except (UserError, DataError) as e:
        assert "\n" not in str(e)
        event("refused")
        return
    event("merged")
    expected = logits_of_peft(trained.base, folder)
    found = torch.from_numpy(litgpt_logits(model.config, model.state_dict, IDS)[0])
    assert (found - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())
