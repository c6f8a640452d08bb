"""Adafactor against transformers' and torch's, AdamW in 8 bits against bitsandbytes' own: alone, sharded, resumed."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lit_gpt.errors import UserError
from tests.conftest import TINY_MODEL, assert_error, run
from utils.run.checkpoint_reader import CheckpointReader
from utils.train import adamw_8bit
from utils.train.adafactor import Adafactor
from utils.train.adamw_8bit import AdamW8bit, check_adamw_8bit, in_8_bits
from utils.train.optimizer import make_optimizer, rate_warnings
from utils.train.options import PretrainOptions

# whole blocks; rows that must be padded; too short for 8 bits; too small; a vector
SHAPES = ((64, 512), (20, 1000), (640, 8), (2, 256), (300,))


def weights_of(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape) * 0.02) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    """Rows and columns of different sizes, one row without any gradient, as of a token that did not come up."""
    generator = torch.Generator().manual_seed(step)
    found = []
    for shape in SHAPES:
        gradient = torch.randn(shape, generator=generator)
        gradient *= torch.logspace(0, -1, shape[-1])
        if len(shape) > 1:
            gradient *= torch.rand(shape[0], 1, generator=generator)
            gradient[1] = 0
        found.append(gradient)
    return found


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = 30, scale: float = 1.0) -> None:
    for step in range(steps):
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = (gradient * scale).to(weight.dtype)
        optimizer.step()


def test_adafactor_takes_the_steps_of_transformers() -> None:
    """Gradients as small as those of a large model, too, where torch's Adafactor takes others (its epsilon is 1e-7)."""
    from transformers.optimization import Adafactor as Theirs

    for scale in (1.0, 1e-6):
        ours, theirs = weights_of(), weights_of()
        optimizer = Adafactor([{"params": ours, "lr": 1e-2}])
        train(optimizer, ours, scale=scale)
        train(Theirs(theirs, lr=1e-2, relative_step=False, scale_parameter=True), theirs, scale=scale)
        for one, other, start in zip(ours, theirs, weights_of(), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-7)
            assert (one - start).abs().max() > 1e-3


def test_adafactor_decays_weights_as_torchs_does() -> None:
    ours, theirs = weights_of(), weights_of()
    train(Adafactor([{"params": ours, "lr": 1e-2, "weight_decay": 0.5}]), ours, scale=100)
    train(torch.optim.Adafactor(theirs, lr=1e-2, weight_decay=0.5), theirs, scale=100)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-7)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix() -> None:
    weights = weights_of()
    optimizer = Adafactor(weights)
    train(optimizer, weights, 1)
    for weight in weights:
        kept = sum(tensor.numel() for name, tensor in optimizer.state[weight].items() if name != "step")
        assert kept == (sum(weight.shape) if weight.dim() == 2 else weight.numel())


def test_adamw_in_8_bits_is_that_of_bitsandbytes() -> None:
    """To the last bit where rows are whole blocks, or moments in fp32."""
    from bitsandbytes.optim import AdamW8bit as Theirs

    ours, theirs = weights_of(), weights_of()
    optimizer = AdamW8bit([{"params": ours, "lr": 1e-3, "weight_decay": 0.1}], (0.9, 0.95))
    train(optimizer, ours)
    train(Theirs(theirs, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1), theirs)
    assert [in_8_bits(weight) for weight in ours] == [True, True, False, False, False]
    assert optimizer.state[ours[0]]["exp_avg"].dtype == torch.uint8
    for index in (0, 3, 4):
        assert torch.equal(ours[index], theirs[index])


def test_padded_rows_are_those_of_a_padded_matrix() -> None:
    """bitsandbytes' own optimiser on the matrix with 24 columns of zeros beside its 1,000."""
    from bitsandbytes.optim import AdamW8bit as Theirs

    ours = weights_of()
    padded = nn.Parameter(nn.functional.pad(ours[1].detach(), (0, 24)))
    theirs = Theirs([padded], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = AdamW8bit([{"params": ours, "lr": 1e-3, "weight_decay": 0.1}], (0.9, 0.95))
    for step in range(10):
        for weight, gradient in zip(ours, gradients(step), strict=True):
            weight.grad = gradient
        padded.grad = nn.functional.pad(gradients(step)[1], (0, 24))
        optimizer.step()
        theirs.step()
    assert torch.equal(ours[1], padded[:, :1000])


def test_adamw_in_8_bits_stays_near_adamw() -> None:
    """A moment's level is off by 6 % at most, of a block's largest by much less: so are 30 steps of 1e-3."""
    ours, theirs = weights_of(), weights_of()
    train(AdamW8bit([{"params": ours, "lr": 1e-3, "weight_decay": 0.1}], (0.9, 0.95)), ours)
    train(torch.optim.AdamW(theirs, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1), theirs)
    for one, other, start in zip(ours, theirs, weights_of(), strict=True):
        assert (one - other).norm() < 0.05 * (other - start).norm()
        if not in_8_bits(one):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_pieces_of_a_matrix_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = weights_of(), weights_of()
    train(AdamW8bit(whole, (0.9, 0.95)), whole, 5)
    monkeypatch.setattr(adamw_8bit, "_PIECE", 3 * 1000)
    train(AdamW8bit(pieces, (0.9, 0.95)), pieces, 5)
    assert all(map(torch.equal, whole, pieces))


@pytest.mark.parametrize("name", ["adamw_8bit", "adafactor"])
@pytest.mark.parametrize("masters", [True, False])
def test_bf16_weights_have_masters_or_are_rounded(name: str, masters: bool) -> None:
    """Masters take the steps of fp32 weights, from the same gradients."""
    module = nn.ParameterList([nn.Parameter(weight.detach().bfloat16()) for weight in weights_of()])
    exact = nn.ParameterList([nn.Parameter(weight.detach().float()) for weight in module])
    optimizers = [
        make_optimizer(module, 0.1, (0.9, 0.95), masters, name),
        make_optimizer(exact, 0.1, (0.9, 0.95), False, name),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
    for step in range(5):
        for weight, twin, gradient in zip(module, exact, gradients(step), strict=True):
            weight.grad = gradient.bfloat16()
            twin.grad = weight.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for weight, twin in zip(module, exact, strict=True):
        if masters:
            torch.testing.assert_close(optimizers[0].state[weight]["master"], twin.detach(), rtol=1e-5, atol=1e-7)
            assert torch.equal(weight, optimizers[0].state[weight]["master"].bfloat16())
        else:
            assert "master" not in optimizers[0].state[weight]
            torch.testing.assert_close(weight.float(), twin, rtol=0.05, atol=5e-4)


@pytest.mark.parametrize("name", ["adamw_8bit", "adafactor"])
@pytest.mark.parametrize("masters", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, masters: bool) -> None:
    dtype = torch.bfloat16 if masters else torch.float32
    module = nn.ParameterList([nn.Parameter(weight.detach().to(dtype)) for weight in weights_of()])
    optimizer = make_optimizer(module, 0.1, (0.9, 0.95), masters, name)

    def step(factor: float) -> list[Tensor]:
        for weight, gradient in zip(module, gradients(0), strict=True):
            weight.grad = (gradient * factor).to(dtype)
        optimizer.found_inf = (~torch.tensor(factor).isfinite()).float()
        optimizer.step()
        states = [tensor.clone() for weight in module for tensor in optimizer.state[weight].values()]
        return states + [weight.detach().clone() for weight in module]

    before, after = step(0.5), step(float("nan"))
    assert all(map(torch.equal, before, after))
    assert not all(map(torch.equal, step(0.5), before))


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError("no kernel for this device\nand a second line")

    check_adamw_8bit()
    monkeypatch.setattr(AdamW8bit, "update", missing)
    with pytest.raises(UserError, match=r"adamw_8bit: bitsandbytes cannot run on \w+ \(no kernel for this device\)$"):
        check_adamw_8bit()


def test_adamws_learning_rate_is_warned_of() -> None:
    assert rate_warnings("adamw", 1e-4) == rate_warnings("adafactor", 1e-2) == []
    assert "0.0008 is a share of the weights' size" in rate_warnings("adafactor", 8e-4)[0]


def test_shared_matrices_are_refused() -> None:
    with pytest.raises(UserError, match="--optimizer adafactor does not work with --tensor_parallel"):
        PretrainOptions(Path("d"), Path("c"), Path("o"), optimizer="adafactor", tensor_parallel=2)


# Runs


@pytest.fixture(scope="module")
def wide_arguments(pretrain_arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The small training with a model of which some matrices have moments in 8 bits."""
    path = tmp_path_factory.mktemp("config") / "wide.yaml"
    config = yaml.safe_load(TINY_MODEL) | {"name": "wide", "n_embd": 256, "intermediate_size": 800}
    path.write_text(yaml.safe_dump(config))
    return [*pretrain_arguments, "--model_config", path, "--max_steps", 8, "--save_interval", 4, "--eval_interval", 8]


def losses(run_dir: Path) -> list[list[str]]:
    columns = ("step", "split", "dataset", "loss", "targets", "grad_norm")
    with (run_dir / "metrics.csv").open() as file:
        return [[row[name] for name in columns] for row in csv.DictReader(file)]


@pytest.mark.parametrize(("name", "rate", "other"), [("adamw_8bit", 1e-3, 1), ("adafactor", 1e-2, 3)])
def test_a_run_goes_on_as_if_it_had_not_stopped(
    wide_arguments: list[object], tmp_path: Path, name: str, rate: float, other: int
) -> None:
    """On two processes to the last bit; on one or three within fp32's error."""
    arguments = [*wide_arguments, "--optimizer", name, "--learning_rate", rate]
    if name == "adafactor":  # the noise, too, is the same on any number of processes
        arguments += ["--neftune_alpha", 5]
    whole = tmp_path / "whole"
    run("pretrain.py", *arguments, "--batch_size", 6, "--micro_batch_size", 2, "--out_dir", whole, processes=2)
    found = losses(whole)
    kept = CheckpointReader(whole / "checkpoints" / "step-00000004").read_metadata().state_dict_metadata
    types = {entry.properties.dtype for entry in kept.values() if isinstance(entry, TensorStorageMetadata)}
    assert (torch.uint8 in types) == (name == "adamw_8bit")
    train = [float(row[3]) for row in found if row[1] == "train" and not row[2]]
    assert train[-1] < train[0]
    for processes in (2, other):
        again = shutil.copytree(whole, tmp_path / f"again-{processes}")
        shutil.rmtree(again / "checkpoints" / "step-00000008")
        batch = ["--batch_size", 12 // processes, "--micro_batch_size", 2]
        out = run("pretrain.py", *arguments, *batch, "--out_dir", again, processes=processes).stdout
        assert "going on from" in out and "step-00000004" in out
        if processes == 2:
            assert losses(again) == found
        for one, twin in zip(losses(again), found, strict=True):
            assert one[:3] == twin[:3] and float(one[3]) == pytest.approx(float(twin[3]), rel=1e-5)


def test_another_optimiser_is_another_run(trained_run: Path, pretrain_arguments: list[object]) -> None:
    arguments = [*pretrain_arguments, "--batch_size", 8, "--micro_batch_size", 4, "--out_dir", trained_run]
    done = run("pretrain.py", *arguments, "--optimizer", "adafactor", check=False)
    assert_error(done, 2, "optimizer was adamw, now adafactor")
