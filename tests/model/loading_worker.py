"""Started by test_foundation_loading.py: models filled while sharded over 2 and over 3 processes.

The processes are forked from one that has imported everything, which takes longest.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from litgpt.config import Config
from torch.distributed.fsdp import fully_shard

from lit_gpt.formats.litgpt_directory import read_weights
from lit_gpt.model.building import empty_model, materialise
from lit_gpt.model.lora import LoRASettings
from lit_gpt.model.qlora import import_bitsandbytes
from tests.conftest import TINY_MODEL
from utils.run.checkpoint_reader import trained_tensors

SEED, VOCABULARY = 5, 97
CONFIG = Config(**yaml.safe_load(TINY_MODEL), vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY)
LORA = LoRASettings(4, 8, 0.0, query=True, key=False, value=True, projection=True, mlp=True, head=True)
BF16, FP32 = torch.bfloat16, torch.float32
# name: whether from weights, whether with adapters, dtype, the base's dtype, quantisation
CASES = {
    "random": (False, False, FP32, None, None),
    "random adapters": (False, True, FP32, BF16, None),
    "fp32": (True, False, FP32, None, None),
    "bf16": (True, False, BF16, None, None),
    "adapters": (True, True, FP32, BF16, None),
    "nf4": (True, True, FP32, BF16, "bnb.nf4"),
    "int8": (True, True, FP32, BF16, "bnb.int8"),
}
# 600 MB in fp32, nearly all of it in two matrices: whoever takes more than his part of one is found out.
LARGE = Config(**yaml.safe_load(TINY_MODEL) | {"n_embd": 1024, "n_layer": 1}, vocab_size=72000, padded_vocab_size=72000)


def ids() -> torch.Tensor:
    """[4, 33] token ids."""
    return torch.randint(0, VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(1))


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    logits = model(ids()[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), ids()[:, 1:].flatten())


@contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """Fills a list with the bytes of anonymous memory (what is not a clean page of a file) that were added at most."""

    def now() -> int:
        status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
        return int(status.split()[0]) * 1024

    over = threading.Event()
    start, grown = now(), [0]

    def watch() -> None:
        while not over.wait(0.002):
            grown[0] = max(grown[0], now() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        over.set()
        thread.join()


def start_fabric(rank: int, processes: int, port: int) -> Fabric:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    strategy = ModelParallelStrategy(lambda model, mesh: model, processes, 1, process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy, precision="bf16-mixed")
    fabric.launch()
    return fabric


def sharded(fabric: Fabric, config: Config, weights: Mapping[str, torch.Tensor] | None, *how: Any) -> torch.nn.Module:
    """An FSDP2 model, sharded while it is empty and filled thereafter."""
    model = empty_model(config, *how)
    mesh = fabric.strategy.device_mesh["data_parallel"]
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    materialise(model, weights, SEED, fabric.device)
    return model


def gathered(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.full_tensor().detach().clone() for name, tensor in tensors.items()}


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    fabric = start_fabric(rank, processes, port)
    results = {}
    for case, (given, adapted, *how) in CASES.items():
        weights = read_weights(folder / "tiny") if given else None
        model = sharded(fabric, CONFIG, weights, LORA if adapted else None, *how)
        values = gathered(dict(model.named_parameters()))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model = fabric.setup(model)
        dtypes = {name: parameter.dtype for name, parameter in model.module.named_parameters()}
        loss = loss_of(model)
        fabric.backward(loss)
        gradients = gathered({name: p.grad for name, p in model.module.named_parameters() if p.requires_grad})
        saved = gathered(trained_tensors(model.module))
        results[case] = {"values": values, "buffers": buffers, "dtypes": dtypes, "loss": loss.detach()}
        results[case] |= {"gradients": gradients, "saved": saved}
    if processes == 2:
        large = read_weights(folder / "large")
        for case, how in {"full": (None, FP32), "adapters": (LORA, FP32, BF16)}.items():
            with anonymous_memory() as grown:
                model = sharded(fabric, LARGE, large, *how)
            results[f"bytes of {case}"] = grown[0]
    if rank == 0:
        torch.save(results, folder / f"{processes}.pt")
    torch.distributed.barrier()
    os._exit(0)  # a fork must not run its parent's exit handlers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(folder: Path) -> None:
    """Writes 2.pt and 3.pt into `folder`, which holds the models `tiny` and `large`."""
    assert "bitsandbytes" not in sys.modules, "who does not quantise must not wait for it"
    import_bitsandbytes()
    context = multiprocessing.get_context("fork")
    for processes in (2, 3):
        port = free_port()
        arguments = [(rank, processes, port, folder) for rank in range(processes)]
        started = [context.Process(target=work, args=own) for own in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            sys.exit(f"exit codes {[process.exitcode for process in started]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
