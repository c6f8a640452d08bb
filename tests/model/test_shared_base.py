"""QLoRA's base on several processes: the losses of one, and the bytes that each process really has."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests import warm_start
from tests.model import shared_base_worker
from tests.model.gradient_worker import LORA
from tests.train.test_estimate import workload
from utils.train.workload import count_tensors

CASES = {
    1: [(kind, shape, "none") for kind in ("bnb.nf4", "bnb.int8") for shape in shared_base_worker.CONFIGS],
    2: [
        ("bnb.nf4", "llama", "none"),
        ("bnb.nf4", "gpt2", "full"),
        ("bnb.nf4", "odd", "compile"),
        ("bnb.int8", "llama", "selective"),
        ("bnb.int8", "gpt2", "none"),
        ("bnb.int8", "odd", "none"),
    ],
    4: [
        ("bnb.nf4", "odd", "none"),
        ("bnb.nf4", "gpt2", "none"),
        ("bnb.int8", "odd", "full"),
        ("bnb.int8", "llama", "none"),
    ],
}
"""Processes → format, shape, and how the blocks compute."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of a number of processes."""
    folder = tmp_path_factory.mktemp("shared_base")

    @cache
    def results(processes: int) -> dict[tuple[str, str, str], dict[str, Any]]:
        launch = {"devices": processes, "num_nodes": 1, "precision": "32-true"}
        output = folder / f"{processes}.pt"
        done = warm_start.run(shared_base_worker.main, [launch, CASES[processes], output], processes, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output, weights_only=True)

    return results


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_are_those_of_one_process(processes: int, trained: Any) -> None:
    for (kind, shape, variant), result in trained(processes).items():
        alone = trained(1)[kind, shape, "none"]["losses"]
        assert alone[2] < alone[0] - 0.1, "something is learned"
        assert result["losses"] == pytest.approx(alone, rel=1e-6), (kind, shape, variant)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_has_its_part_and_two_blocks(processes: int, trained: Any) -> None:
    """By the real tensors of whole numbers: those of the matrices, and some of where documents begin."""
    for (kind, shape, variant), result in trained(processes).items():
        [alone] = trained(1)[kind, shape, "none"]["bytes"]
        whole, others = alone["held"], alone["highest"] - alone["held"]
        config = shared_base_worker.CONFIGS[shape]
        plan = count_tensors(workload(config, config.n_layer, lora=LORA, base_format=kind))
        for own in result["bytes"]:
            assert own["held"] <= whole * (1 / processes + 0.02), (kind, shape, variant)
            if variant == "compile":  # was not watched
                continue
            gathered = own["highest"] - others - own["held"]
            assert gathered == pytest.approx(2 * whole / config.n_layer, rel=0.02), (kind, shape, variant)
            assert gathered == pytest.approx(2 * plan.quantised_block, rel=0.02), "as is foreseen"
        assert sum(own["held"] for own in result["bytes"]) >= whole
