"""The plan against real tensors: everything that it foresees is measured here on tiny models."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from litgpt.config import Config

from lit_gpt.model.attention import whole_rows
from lit_gpt.model.building import build_model, empty_model, materialise
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import qlora_layers
from tests.conftest import TINY_MODEL
from utils.run.checkpoint_writer import CheckpointWriter
from utils.run.progress import TrainingProgress
from utils.train.dry_run import advice, needs_text
from utils.train.estimate import GIB, Estimate, estimate
from utils.train.masters import MasterOptimizer
from utils.train.optimizer import make_optimizer
from utils.train.step_trace import trace_step
from utils.train.workload import Workload, count_tensors

CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=97, padded_vocab_size=97)
NEOX = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True, "parallel_residual": True}
GPT2 = {**NEOX, "parallel_residual": False, "rotary_percentage": 0.0}
GEMMA = {"norm_qk": True, "attention_logit_softcapping": 5.0, "sliding_window_size": 16, "rope_local_base_freq": 100.0}
GEMMA |= {"n_layer": 4, "sliding_window_indices": [1, 0, 1, 0], "rope_indices": [1, 0, 1, 0], "name": "Gemma"}
WIDE = dataclasses.replace(CONFIG, n_embd=256, n_head=8, intermediate_size=800)
LORA = LoRASettings(4, 8, 0.1, query=True, key=False, value=True, projection=True, mlp=True, head=False)
WHOLE = dataclasses.replace(LORA, train_embeddings=True, train_head=True)


def workload(config: Config = CONFIG, layers: int = 4, **changes) -> Workload:
    config = dataclasses.replace(config, n_layer=layers)
    values = {
        "lora": None,
        "precision": "32-true",
        "master_weights": False,
        "optimizer": "adamw",
        "base_format": None,
        "activation_checkpointing": "none",
        "micro_batch_size": 2,
        "block_size": 48,
        "processes": 1,
        "processes_per_node": 1,
        "tensor_parallel": 1,
        "samples_per_step": 2,
        "rows": 100,
        "targets_per_row": 40.0,
        "context": 10.0,
        "window_context": 10.0,
        "steps": 50,
    }
    return Workload(config=config, **(values | changes))


def real_model(work: Workload) -> torch.nn.Module:
    dtype = torch.bfloat16 if work.precision == "bf16-true" else torch.float32
    frozen = torch.float32 if work.precision == "32-true" else torch.bfloat16
    model = empty_model(work.config, work.lora, dtype, frozen if work.lora else None)
    materialise(model, None, 1, torch.device("cpu"))
    for block in model.transformer.h:
        block.recompute = work.activation_checkpointing
    return model


def forward(work: Workload, model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 97, (work.micro_batch_size, work.block_size))
    with torch.autocast("cpu", torch.bfloat16) if work.precision == "bf16-mixed" else nullcontext():
        return model(ids, segments=whole_rows(*ids.shape), targets=ids).sum


def saved_bytes(work: Workload) -> int:
    """What autograd keeps of a real forward pass, by storage, without the parameters and what modules hold."""
    model = real_model(work)
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage  # kept alive, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(work, model)
    return sum(storage.nbytes() for storage in saved.values())


def train(work: Workload) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = real_model(work)
    optimizer = make_optimizer(model, 0.1, (0.9, 0.95), work.master_weights, work.optimizer)
    if isinstance(optimizer, MasterOptimizer):
        optimizer.add_up_in_fp32()
    forward(work, model).backward()
    optimizer.step()
    return model, optimizer


# Counts


@pytest.mark.parametrize("lora", [None, LORA, WHOLE])
@pytest.mark.parametrize("changes", [{}, NEOX, GPT2, GEMMA])
def test_parameters_are_those_of_a_real_model(lora, changes):
    work = workload(dataclasses.replace(CONFIG, **changes), lora=lora)
    model, plan = build_model(work.config, None, lora, 1, torch.float32), estimate(work)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "bf16-true", "master_weights": True},
        {"lora": LORA},
        {"lora": LORA, "precision": "bf16-mixed"},
        {"lora": WHOLE, "precision": "bf16-mixed"},
        {"lora": WHOLE, "precision": "bf16-true", "master_weights": True},
        {"optimizer": "adafactor"},
        {"optimizer": "adafactor", "precision": "bf16-true", "master_weights": True},
        {"optimizer": "adamw_8bit", "config": WIDE},
        {"optimizer": "adamw_8bit", "config": WIDE, "precision": "bf16-true"},
        {"optimizer": "adamw_8bit", "lora": LORA, "config": WIDE},
    ],
)
def test_weights_gradients_and_optimiser_are_those_of_a_real_step(changes):
    work = workload(**changes)
    model, optimizer = train(work)
    parts = estimate(work).moments["update"]
    assert parts["weights"] == sum(tensor.nbytes for tensor in (*model.parameters(), model.cos, model.sin))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert parts["gradients"] == sum(gradient.nbytes for gradient in gradients)
    states = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    assert parts["optimiser"] == sum(tensor.nbytes for tensor in states)


def test_an_optimiser_of_one_matrix_at_a_time_needs_one_copy_of_the_largest():
    """AdamW with masters makes fp32 copies of all gradients, Adafactor of one; bitsandbytes updates in place."""
    precision = {"precision": "bf16-true", "master_weights": True}
    for layers in (2, 6):
        traced = {name: estimate(workload(WIDE, layers, optimizer=name)) for name in ("adafactor", "adamw_8bit")}
        temporary = {name: plan.moments["update"]["temporary"] for name, plan in traced.items()}
        largest = 4 * 256 * 800
        assert largest <= temporary["adafactor"] < 1.2 * largest
        assert temporary["adamw_8bit"] == 2 * 4 * 256 * 1024  # a weight and a gradient whose rows are padded
        wide = estimate(workload(WIDE, layers, optimizer="adamw_8bit", **precision))
        assert wide.moments["update"]["optimiser"] > 4 * wide.trained


@pytest.mark.parametrize("kind", ["bnb.nf4", "bnb.int8"])
def test_quantised_weights_are_as_large_as_real_ones(kind):
    pytest.importorskip("bitsandbytes")
    work = workload(lora=LORA, precision="bf16-mixed", base_format=kind)
    model = empty_model(work.config, LORA, torch.float32, torch.bfloat16, kind)
    weights = build_model(work.config, None, None, 1, torch.float32).state_dict()
    materialise(model, weights, 1, torch.device("cpu"))
    layers = [layer for _, layer in qlora_layers(model)]
    assert count_tensors(work).quantised == sum(layer.weight.nbytes + layer.scale_bits.nbytes for layer in layers)
    assert count_tensors(work).sharded == sum(parameter.nbytes for parameter in model.parameters())


# Activations


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"lora": LORA}, {"micro_batch_size": 1}]
)
@pytest.mark.parametrize("shape", [{}, NEOX, GPT2, GEMMA])
def test_a_blocks_activations_are_what_autograd_saves_of_a_real_one(recompute, changes, shape):
    config = dataclasses.replace(CONFIG, **shape)
    three, four = (workload(config, layers, activation_checkpointing=recompute, **changes) for layers in (3, 4))
    if recompute == "none":
        assert trace_step(four).held == saved_bytes(four) - saved_bytes(three)
    else:  # a block keeps its input alone
        residual = 2 if changes.get("precision") == "bf16-true" else 4
        assert trace_step(four).held == four.micro_batch_size * 48 * config.n_embd * residual


def test_selective_recomputation_lies_between():
    none, selective, full = (
        trace_step(workload(precision="bf16-mixed", activation_checkpointing=kind)).kept
        for kind in ("none", "selective", "full")
    )
    assert full < selective < none


def test_a_quantised_base_keeps_no_copy_of_its_weights():
    changes = {"lora": LORA, "precision": "bf16-true"}
    assert trace_step(workload(**changes, base_format="bnb.nf4")).kept <= trace_step(workload(**changes)).kept


# From two blocks to all


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}, {"precision": "bf16-mixed", "block_size": 4}])
def test_more_blocks_are_foreseen_from_two(monkeypatch, samples, recompute, changes):
    """The same step traced with all its blocks has the heights that were worked out from two."""
    work = workload(layers=7, samples_per_step=samples, activation_checkpointing=recompute, **changes)
    foreseen = {moment: sum(parts.values()) for moment, parts in estimate(work).moments.items()}
    monkeypatch.setattr("utils.train.step_trace.TRACED_BLOCKS", 7)
    monkeypatch.setattr("utils.train.step_trace.trace_step", trace_step.__wrapped__)  # not what it remembers of two
    traced = {moment: sum(parts.values()) for moment, parts in estimate(work).moments.items()}
    assert foreseen == pytest.approx(traced, rel=0.01)


# Processes


def test_memory_falls_with_processes():
    plans = [estimate(workload(processes=count, samples_per_step=2 * count)) for count in (2, 4, 8)]
    memories = [plan.memory for plan in plans]
    assert memories == sorted(memories, reverse=True) and len(set(memories)) == 3
    assert plans[0].moments["update"]["optimiser"] == 4 * plans[2].moments["update"]["optimiser"]
    assert len({plan.checkpoint for plan in plans}) == 1


def test_a_quantised_base_is_shared_but_for_two_blocks():
    """How many bytes these are, tests/model/test_shared_base.py has from real ones."""
    four, plain = (estimate(workload(lora=LORA, processes=4, base_format=kind)) for kind in ("bnb.int8", None))
    tensors = count_tensors(four.workload)
    assert 0 < tensors.quantised_block == tensors.quantised // 4, "there are four equal blocks"
    for moment, parts in four.moments.items():
        assert parts["weights"] == (tensors.sharded + tensors.quantised) // 4 + tensors.tables
        assert parts["weights"] < plain.moments[moment]["weights"]
        assert parts["gathered weights"] >= 2 * tensors.quantised_block
    assert four.moments["update"]["gathered weights"] == 2 * tensors.quantised_block


def test_gradients_that_wait_for_the_next_micro_batch_are_whole():
    at_once, in_two = (estimate(workload(processes=4, samples_per_step=samples)) for samples in (8, 16))
    assert in_two.moments["loss"]["gradients"] == 4 * in_two.trained
    assert at_once.moments["loss"]["gradients"] == 0


def test_a_tensor_parallel_process_keeps_less_of_a_block():
    alone, shared = (trace_step(workload(processes=2, tensor_parallel=share)) for share in (1, 2))
    assert shared.kept < alone.kept and shared.block_gradients < alone.block_gradients


# Disk and time


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16-true", "master_weights": True},
        {"lora": LORA},
        {"lora": WHOLE},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "adafactor"},
    ],
)
def test_a_checkpoint_is_as_large_as_a_real_one(tmp_path: Path, changes):
    config = dataclasses.replace(CONFIG, n_embd=512, n_head=8, intermediate_size=1024)
    lora = dataclasses.replace(changes.get("lora", LORA), r=64)
    work = workload(config, 2, **(changes | ({"lora": lora} if "lora" in changes else {})))
    model, optimizer = train(work)
    writer = CheckpointWriter(tmp_path, [], None)
    writer.save(model, optimizer, TrainingProgress(step=1))
    folder = writer.wait().path
    assert estimate(work).checkpoint == pytest.approx(sum(path.stat().st_size for path in folder.iterdir()), rel=0.03)


def test_hours_and_steps():
    plan = estimate(workload(processes=4, samples_per_step=8))
    flops = 50 * 8 * 48 * plan.flops_per_position
    assert plan.hours(1e12, 0.5) == pytest.approx(flops / (4 * 1e12 * 0.5) / 3600)
    assert (plan.positions_per_step, plan.targets_per_step, plan.steps_per_pass) == (384, 320, 12.5)


# What a person reads


def test_the_table_adds_up_and_gives_a_verdict():
    plan = estimate(workload())
    for moment in plan.moments.values():
        assert min(moment.values()) >= 0
    text = needs_text(plan, 1.0, 1e12, 0.4, 3)
    assert f"{plan.parameters:,} parameters" in text and " fits a GPU of 1 GiB" in text
    assert f"{3 * plan.checkpoint / 1e9:,.1f} GB" in text
    assert "does NOT fit" in needs_text(plan, plan.memory / GIB, 1e12, 0.4, 3), "nothing would be left for the rest"


def test_advice_names_only_what_fits():
    work = workload(layers=6, micro_batch_size=8, samples_per_step=8, precision="bf16-mixed")
    plan = estimate(work)
    smaller: Estimate = estimate(dataclasses.replace(work, micro_batch_size=4))
    limit = smaller.memory / GIB / 0.9 * 1.001
    lines = advice(plan, limit)
    assert lines[0].startswith("--micro_batch_size 4: ")
    full = estimate(dataclasses.replace(work, activation_checkpointing="full"))
    assert any(line.startswith("--activation_checkpointing") for line in lines) == full.fits(limit)
    assert advice(plan, 1e-6) == []


def test_advice_names_the_smaller_moments():
    plan = estimate(workload(WIDE, 4, micro_batch_size=1, samples_per_step=1))
    smaller = estimate(dataclasses.replace(plan.workload, optimizer="adamw_8bit"))
    limit = smaller.memory / GIB / 0.9 * 1.001
    assert not plan.fits(limit)
    assert any(line.startswith("--optimizer adamw_8bit: ") for line in advice(plan, limit))
