"""Tokens per second and memory of one optimiser step: this program's beside litgpt's, transformers' and others.

    python benchmarks/step.py [--shape 20m --positions 2048 --batch 4 --rounds 7] [--candidates ours litgpt trainer]
    python benchmarks/step.py --device cuda --shape 7b --precision bf16-true --compile [--lora]
    python benchmarks/step.py --loss_memory

1. prepare_data.py prepares the corpus (--data_dir takes what it made before). All candidates train random weights of
   one shape on the same packed rows in the same order; only `padded` has rows of its own.
   - ours: the functions that pretrain.py calls. unmasked: the same, each row one document.
   - litgpt: the step of litgpt/pretrain.py, full logits, no document masks. Its command compiles the model, this script
     does for it and for ours with --compile. dense: the same with a [T, T] mask of documents in every attention.
   - trainer: transformers' Trainer with no logging, saving or evaluation, timed from a turn's first step's beginning to
     its last one's end. peft: the same with peft's adapters on the matrices that ours adapts (--lora).
   - padded: ours on rows of one document each, longer ones cut, shorter ones padded.
2. Each candidate has a process of its own, which is warmed up first and collects no garbage while it is timed. On the
   CPU these processes take turns; on a GPU, whose memory they could not share, one candidate's turns follow another's.
3. Positions count whether they are targets or not; targets/s are positions/s times the share of targets over all
   training rows, padding and documents' first tokens being none. Ratios are medians over the turns' ratios.
4. Memory is the process' peak of resident memory (VmHWM), on a GPU that of torch's allocations. MFU leaves out what is
   computed twice (lit_gpt/model/flops.py). Recompilations are graphs that torch.compile made after the warm-up.

--loss_memory measures, instead, the peak memory of the loss and its gradients, given the last hidden states, above what
was there before: ours, and F.cross_entropy of all logits. Prints a table and appends it to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from lightning.fabric import Fabric
    from litgpt.config import Config
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from benchmarks.results import Figure
    from lit_gpt.model.lora import LoRASettings
    from utils.data.batches import StepData
    from utils.data.shards import Row

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SAMPLE = ROOT / "data" / "sample"
SHAPES = {
    "tiny": (2, 32, 4, 2, 96, 2048),
    "20m": (6, 256, 4, 2, 688, 32000),
    "1b": (22, 2048, 32, 4, 5632, 32000),
    "7b": (32, 4096, 32, 32, 11008, 32000),
}
"""Layers, width, heads, groups of keys and values, width of the feed-forward layer, vocabulary; 1b is TinyLlama's,
7b Llama 2's."""
FULL, ADAPTED = ("ours", "unmasked", "padded", "litgpt", "dense", "trainer"), ("ours", "unmasked", "peft")
PACKAGES = {"trainer": ("transformers", "accelerate"), "peft": ("transformers", "accelerate", "peft")}
LORA_R, LORA_ALPHA, LORA_DROPOUT = 16, 32, 0.05
LEARNING_RATE, WEIGHT_DECAY, BETAS, GRAD_CLIP = 1e-4, 0.01, (0.9, 0.95), 1.0
WARM_UP = 2  # turns: the optimizer's state is made in the first step, and compiled code for other lengths in the second
SEED = 1


class Rows(NamedTuple):
    """What a candidate trains on."""

    steps: Iterator[StepData]
    """One micro-batch each, without end."""
    targets: float
    """The share of positions that are targets, over all training rows."""
    context: float
    """Keys that a position attends to on average."""


class Facts(NamedTuple):
    """What a candidate's process says of itself when it ends."""

    parameters: int
    targets: float
    """As in `Rows`."""
    flops: float
    """Per position, forward and backward pass together."""
    peak: int
    """Bytes."""
    recompilations: int


class Result(NamedTuple):
    """A candidate's positions per second in each turn."""

    speeds: list[float]
    facts: Facts


def main() -> None:
    arguments = parse_arguments()
    # processes that wait for their turn must not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = first_gpu if arguments.device == "cuda" else ""
    if arguments.loss_memory:
        figures, complete = compare_losses(arguments), True
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work_dir = Path(folder)
            source = (arguments.source, arguments.tokenizer, arguments.positions)
            arguments.data_dir = arguments.data_dir or prepare(*source, arguments.work_dir / "data")
            results = compare(arguments)
        figures, complete = print_results(results, arguments), results.keys() >= set(arguments.candidates)
    if not arguments.no_record:
        from benchmarks.results import record

        record("step", figures)
    sys.exit(0 if complete else 1)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    source, tokenizer = SHARED / "data" / "claire", SHARED / "tokenizers" / "mistral-7b-v0.1"
    if not SHARED.is_dir():
        source, tokenizer = SAMPLE, SAMPLE / "tokenizer"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="20m")
    parser.add_argument("--positions", type=int, default=2048, help="of a row")
    parser.add_argument("--batch", type=int, help="rows of a step; default: 4, with --loss_memory 8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="of a turn; default: 1, on a GPU 8, as hosts run ahead of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "bf16-true"), default="bf16-mixed")
    parser.add_argument("--candidates", nargs="+", choices=sorted({*FULL, *ADAPTED}), help="default: all that apply")
    parser.add_argument("--lora", action="store_true", help="train adapters of all matrices but the head")
    parser.add_argument("--compile", action="store_true", help="ours and litgpt's")
    parser.add_argument("--activation_checkpointing", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--source", type=Path, default=source, help="the corpus")
    parser.add_argument("--tokenizer", type=Path, default=tokenizer)
    parser.add_argument("--data_dir", type=Path, help="--source as prepare_data.py prepared it for --positions")
    parser.add_argument("--loss_memory", action="store_true")
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args(argv)
    arguments.batch = arguments.batch or (8 if arguments.loss_memory else 4)
    arguments.steps = arguments.steps or (8 if arguments.device == "cuda" else 1)
    candidates = arguments.candidates or (ADAPTED if arguments.lora else FULL)
    if foreign := set(candidates) - set(ADAPTED if arguments.lora else FULL):
        parser.error(f"{', '.join(sorted(foreign))}: not {'with' if arguments.lora else 'without'} --lora")
    missing = {name for name in candidates for package in PACKAGES.get(name, ()) if not is_installed(package)}
    for name in sorted(missing):
        print(f"{name} left out: it needs {', '.join(PACKAGES[name])}")
    arguments.candidates = [name for name in candidates if name not in missing]
    return arguments


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def prepare(source: Path, tokenizer: Path, positions: int, data_dir: Path) -> Path:
    """Makes `data_dir` of rows of so many positions."""
    command = [sys.executable, ROOT / "prepare_data.py", "--source_path", source, "--checkpoint_dir", tokenizer]
    command += ["--destination_path", data_dir, "--max_length", str(positions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: prepare_data.py exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return data_dir


# Turns, in this process


class Worker:
    """A candidate in a process of its own."""

    def __init__(self, who: str, arguments: argparse.Namespace) -> None:
        self._connection, self._process = start_process(work, who, arguments)

    def turn(self, steps: int) -> float:
        """Makes so many steps and returns their seconds.

        Raises:
            EOFError, OSError: if the process has died.
        """
        self._connection.send(steps)
        return self._connection.recv()

    def end(self) -> Facts:
        self._connection.send(0)
        facts = self._connection.recv()
        self._process.join()
        return facts


def start_process(
    function: Callable[..., None], who: str, arguments: argparse.Namespace
) -> tuple[Connection, multiprocessing.Process]:
    """Runs `function(who, connection, arguments)` in a fresh process; the connection's other end, and the process."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=function, args=(who, other, arguments), daemon=True)
    process.start()
    other.close()
    return own, process


def compare(arguments: argparse.Namespace) -> dict[str, Result]:
    """The results of the candidates that did not fail."""
    names = arguments.candidates
    results: dict[str, Result] = {}
    for group in [[name] for name in names] if arguments.device == "cuda" else [names]:
        results |= take_turns(group, arguments)
    return results


def take_turns(names: list[str], arguments: argparse.Namespace) -> dict[str, Result]:
    """Every other round in reverse order; the first `WARM_UP` rounds do not count."""
    workers = {name: Worker(name, arguments) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    facts: dict[str, Facts] = {}
    for round_number in range(WARM_UP + arguments.rounds + 1):
        for name in list(workers)[:: -1 if round_number % 2 else 1]:
            try:
                if round_number == WARM_UP + arguments.rounds:
                    facts[name] = workers[name].end()
                    continue
                seconds = workers[name].turn(arguments.steps)
            except (EOFError, OSError):  # out of memory, most often; the others go on
                print(f"error: {name} failed and is left out", file=sys.stderr, flush=True)
                del workers[name]
                continue
            speeds[name].append(arguments.steps * arguments.batch * arguments.positions / seconds)
    return {name: Result(speeds[name][WARM_UP:], facts[name]) for name in names if name in facts}


# Turns, in a candidate's process


class Turns:
    """The candidate's end: it waits for its turns, and times its steps."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._on_gpu = device == "cuda"
        self._made = self._graphs = 0

    def wait(self) -> int:
        """The steps of the next turn, 0 for the end."""
        if self._made == WARM_UP:
            self._graphs = count_graphs()
        gc.collect()
        return self._connection.recv()

    def answer(self, seconds: float) -> None:
        self._made += 1
        self._connection.send(seconds)

    def clock(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def make(self, step: Callable[[StepData], None], rows: Iterator[StepData]) -> None:
        """All turns of a candidate that leaves the loop to this program; rows are read before each."""
        while steps := self.wait():
            ready = list(islice(rows, steps))
            began = self.clock()
            for data in ready:
                step(data)
            self.answer(self.clock() - began)

    def finish(self, parameters: int, targets: float, flops: float) -> None:
        graphs = count_graphs() - self._graphs
        self._connection.send(Facts(parameters, targets, flops, peak_memory(self._on_gpu), graphs))


def count_graphs() -> int:
    """What torch.compile has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0


def peak_memory(on_gpu: bool) -> int:
    """Bytes, since the process began."""
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    return resident_memory("VmHWM")


def resident_memory(field: str, process: int | str = "self") -> int:
    """Bytes of a process' resident memory: now (`VmRSS`) or at its highest (`VmHWM`)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0  # 0 of a process that is ending


def work(who: str, connection: Connection, arguments: argparse.Namespace) -> None:
    """A candidate's process."""
    from lit_gpt.model.flops import flops_per_token

    gc.disable()
    rows, turns = make_rows(who, arguments), Turns(connection, arguments.device)
    run = {"litgpt": run_litgpt, "dense": run_litgpt, "trainer": run_trainer, "peft": run_trainer}.get(who, run_ours)
    model = run(who, rows.steps, turns, arguments)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_per_token(make_config(arguments), make_lora(arguments), rows.context)
    turns.finish(parameters, rows.targets, flops)


# Models and rows


def make_config(arguments: argparse.Namespace) -> Config:
    from litgpt.config import Config

    layers, width, heads, groups, feed_forward, vocabulary = SHAPES[arguments.shape]
    return Config(
        name=f"benchmark-{arguments.shape}",
        block_size=arguments.positions,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_query_groups=groups,
        intermediate_size=feed_forward,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )


def make_lora(arguments: argparse.Namespace) -> LoRASettings | None:
    from lit_gpt.model.lora import LoRASettings

    adapted = dict.fromkeys(("query", "key", "value", "projection", "mlp"), True)
    return LoRASettings(LORA_R, LORA_ALPHA, LORA_DROPOUT, **adapted, head=False) if arguments.lora else None


def weight_dtype(arguments: argparse.Namespace) -> torch.dtype:
    """The type of the weights, and with LoRA of the base, which needs no more than bf16 as it is not trained."""
    import torch

    in_bf16 = arguments.precision == "bf16-true" or (arguments.lora and arguments.precision == "bf16-mixed")
    return torch.bfloat16 if in_bf16 else torch.float32


def random_weights(config: Config, arguments: argparse.Namespace) -> dict[str, Tensor]:
    """A state dict of the whole model, made where it is used: 7 billion normal numbers take a CPU a minute."""
    import torch

    from lit_gpt.model.gpt import GPT

    torch.manual_seed(SEED)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GPT(config).state_dict().items()}
    where = {"device": arguments.device, "dtype": weight_dtype(arguments)}
    return {
        name: torch.randn(shape, **where).mul_(0.02) if len(shape) > 1 else torch.ones(shape, **where)
        for name, shape in shapes.items()
    }


def make_rows(who: str, arguments: argparse.Namespace) -> Rows:
    import numpy as np

    from lit_gpt.model.flops import mean_context
    from utils.data.manifest import TRAIN, Manifest

    if who == "padded":
        rows = pad_documents(arguments)
        lengths = np.array([row.segment_lengths[0] for row in rows])
        share = float((lengths - 1).sum()) / (len(rows) * arguments.positions)
        return Rows(padded_rows(rows, arguments), share, mean_context(lengths))
    manifest = Manifest.load(arguments.data_dir)
    entries = manifest.select(TRAIN)
    share = sum(entry.targets for entry in entries) / (manifest.block_size * sum(entry.rows for entry in entries))
    masked = who in ("ours", "dense")
    timed = islice(packed_rows(arguments, True), arguments.rounds * arguments.steps)
    lengths = np.concatenate([data.batches[0].segments.diff().numpy() for data in timed])
    context = mean_context(lengths if masked else np.array([arguments.positions]))
    return Rows(packed_rows(arguments, masked), share, context)


def packed_rows(arguments: argparse.Namespace, mask_documents: bool) -> Iterator[StepData]:
    """Those of a training run."""
    from utils.data.batches import TrainingData
    from utils.data.manifest import TRAIN, Manifest
    from utils.data.mixture import Mixture

    manifest = Manifest.load(arguments.data_dir)
    mixture = Mixture.of(manifest.select(TRAIN), None)
    data = TrainingData(arguments.data_dir, mixture, SEED, arguments.batch, manifest.window, mask_documents)
    for step in count():
        yield data.step(step, 0, 1, arguments.batch)


def padded_rows(rows: list[Row], arguments: argparse.Namespace) -> Iterator[StepData]:
    """`rows` in random order, again and again."""
    import numpy as np
    import torch

    from utils.data.batches import StepData, collate

    generator = np.random.default_rng(SEED)
    while True:
        numbers = generator.permutation(len(rows))
        for first in range(0, len(rows) - arguments.batch + 1, arguments.batch):
            chosen = [rows[number] for number in numbers[first : first + arguments.batch]]
            batch = collate(chosen, arguments.positions + 1, mask_documents=False)
            targets = batch.target_count
            of_rows = [torch.zeros(len(chosen), dtype=torch.int64)]
            yield StepData([batch], of_rows, targets, np.array([targets]), targets)


def pad_documents(arguments: argparse.Namespace) -> list[Row]:
    """The training documents, each in as many rows as it needs; a row's first token is no target."""
    import numpy as np

    from benchmarks.padding import encode_splits
    from utils.data.manifest import TRAIN, Manifest
    from utils.data.shards import Row

    manifest = Manifest.load(arguments.data_dir)
    window, one = manifest.window, np.ones(1, np.int32)
    splits = encode_splits(arguments.source, arguments.tokenizer, manifest)
    chosen = [documents for entry, documents in zip(manifest.splits, splits, strict=True) if entry.split == TRAIN]
    pieces = [
        document[first : first + window]
        for documents in chosen
        for document in documents
        for first in range(0, len(document), window)
    ]
    return [Row(np.pad(piece, (0, window - len(piece))), len(piece) * one, one) for piece in pieces]


# Ours


def run_ours(who: str, rows: Iterator[StepData], turns: Turns, arguments: argparse.Namespace) -> nn.Module:
    fabric, model, optimizer = set_up_ours(arguments)
    turns.make(our_step(fabric, model, optimizer), rows)
    return model


def set_up_ours(arguments: argparse.Namespace) -> tuple[Fabric, nn.Module, Optimizer]:
    """As pretrain.py does it, in one process."""
    import torch

    from lit_gpt.model.building import empty_model
    from utils.cluster.launch import launch
    from utils.train.optimizer import make_optimizer
    from utils.train.placement import place_model
    from utils.train.set_up import prepare_blocks

    fabric = launch(1, 1, arguments.precision)
    config, in_bf16 = make_config(arguments), arguments.precision == "bf16-true"
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    model = empty_model(config, make_lora(arguments), dtype, weight_dtype(arguments))
    prepare_blocks(model, arguments)
    model = place_model(fabric, model, random_weights(config, arguments), SEED, arguments.precision)
    optimizer = fabric.setup_optimizers(make_optimizer(model, WEIGHT_DECAY, BETAS, master_weights=in_bf16))
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return fabric, model, optimizer


def our_step(fabric: Fabric, model: nn.Module, optimizer: Optimizer) -> Callable[[StepData], None]:
    """What pretrain.py does between two batches when it does not log."""
    from utils.train.profiler import StepTimer
    from utils.train.step import optimiser_step

    timer = StepTimer(fabric.device)

    def step(data: StepData) -> None:
        optimiser_step(fabric, model, optimizer, data, GRAD_CLIP, [SEED], timer)

    return step


# litgpt's


def run_litgpt(who: str, rows: Iterator[StepData], turns: Turns, arguments: argparse.Namespace) -> nn.Module:
    """What litgpt/pretrain.py does between two batches, at one micro-batch a step and log_interval 1."""
    import torch
    from litgpt.pretrain import initialize_weights
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
    from torchmetrics.aggregation import RunningMean

    from utils.cluster.launch import launch

    fabric = launch(1, 1, arguments.precision)
    fabric.seed_everything(SEED, verbose=False)
    config = make_config(arguments)
    with fabric.init_module(empty_init=True):
        model = make_litgpt_model(config, dense=who == "dense")
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    model = fabric.setup(torch.compile(model) if arguments.compile else model)
    on_gpu = fabric.device.type == "cuda"
    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), lr=LEARNING_RATE, fused=on_gpu)
    optimizer = fabric.setup_optimizers(optimizer)
    running_loss = RunningMean(window=1, sync_on_compute=False).to(fabric.device)

    def step(data: StepData) -> None:
        batch = data.batches[0].to(fabric.device)
        logits = model(batch.input_ids, batch.segments) if who == "dense" else model(batch.input_ids)
        loss = chunked_cross_entropy(logits, batch.targets)
        fabric.backward(loss)
        running_loss.update(loss.detach())
        fabric.clip_gradients(model, optimizer, max_norm=GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        running_loss.compute().item()

    turns.make(step, rows)
    return model


def make_litgpt_model(config: Config, dense: bool) -> nn.Module:
    """litgpt's model, or the same with documents kept apart by a bool mask [B, 1, T, T]."""
    from litgpt.model import GPT

    from lit_gpt.model.attention import segment_positions

    class DenseGPT(GPT):
        def forward(self, ids: Tensor, bounds: Tensor) -> Tensor:
            positions = segment_positions(bounds, ids.numel()).view_as(ids)
            numbers = (positions == 0).flatten().cumsum(0).view_as(ids)
            mask = (numbers.unsqueeze(2) == numbers.unsqueeze(1)).tril().unsqueeze(1)
            cos, sin = self.cos[positions], self.sin[positions]
            x = self.transformer.wte(ids)
            for block in self.transformer.h:
                x = block(x, cos, sin, mask)
            return self.lm_head(self.transformer.ln_f(x))

    return DenseGPT(config) if dense else GPT(config)


# transformers' and peft's


def run_trainer(who: str, rows: Iterator[StepData], turns: Turns, arguments: argparse.Namespace) -> nn.Module:
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    class Timer(TrainerCallback):
        """Takes the turns from inside."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.steps = self.left = turns.wait()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.left == self.steps:
                self.began = turns.clock()

        def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                turns.answer(turns.clock() - self.began)
                self.steps = self.left = turns.wait()
                control.should_training_stop = self.steps == 0

    needed = (WARM_UP + arguments.rounds) * arguments.steps
    torch.manual_seed(SEED)
    trainer = Trainer(
        make_transformers_model(arguments),
        TrainingArguments(
            output_dir=str(arguments.work_dir / who),
            max_steps=10**6,
            per_device_train_batch_size=arguments.batch,
            bf16=arguments.precision != "32-true",
            use_cpu=arguments.device == "cpu",
            gradient_checkpointing=arguments.activation_checkpointing != "none",
            learning_rate=LEARNING_RATE,
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        default_data_collator,
        [{"input_ids": row, "labels": row} for data in islice(rows, needed) for row in data.batches[0].input_ids],
        callbacks=[Timer()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def make_transformers_model(arguments: argparse.Namespace) -> nn.Module:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_config(arguments)
    with torch.device(arguments.device):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.padded_vocab_size,
                hidden_size=config.n_embd,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.n_layer,
                num_attention_heads=config.n_head,
                num_key_value_heads=config.n_query_groups,
                max_position_embeddings=config.block_size,
                rms_norm_eps=config.norm_eps,
                tie_word_embeddings=False,
                use_cache=False,
            )
        )
    model = model.to(weight_dtype(arguments))
    if not arguments.lora:
        return model
    from peft import LoraConfig, get_peft_model

    matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=LORA_DROPOUT, target_modules=matrices)
    model.enable_input_require_grads()  # otherwise nothing is left to differentiate where activations are checkpointed
    return get_peft_model(model, adapter)


# The loss alone


def compare_losses(arguments: argparse.Namespace) -> list[Figure]:
    from benchmarks.results import Figure

    peaks = {}
    for who in ("our loss", "all logits"):
        connection, process = start_process(measure_loss, who, arguments)
        try:
            peaks[who] = connection.recv() / 2**30
        except EOFError:
            sys.exit(f"error: {who} failed")
        process.join()
        print(f"{who:12} {peaks[who]:8.3f} GiB", flush=True)
    print(f"our loss / all logits: {peaks['our loss'] / peaks['all logits']:.3f}")
    shape = describe(arguments)
    return [Figure(who, shape, f"{peak:.3f}", "GiB", f"{peak:.3f}") for who, peak in peaks.items()]


def measure_loss(who: str, connection: Connection, arguments: argparse.Namespace) -> None:
    """Sends the bytes that the loss and both its gradients take at most, above hidden states and head."""
    import torch
    from torch import nn

    device, (_, width, *_, vocabulary) = arguments.device, SHAPES[arguments.shape]
    head = nn.Linear(width, vocabulary, bias=False).to(device)
    compute = our_loss if who == "our loss" else full_logits_loss

    def run(rows: int, positions: int) -> int:
        hidden = torch.randn(rows, positions, width, device=device, requires_grad=True)
        targets = torch.randint(vocabulary, (rows, positions), device=device)
        before = torch.cuda.memory_allocated() if device == "cuda" else resident_memory("VmRSS")
        with torch.autocast(device, torch.bfloat16):
            loss = compute(head, hidden, targets)
        loss.backward()
        return peak_memory(device == "cuda") - before

    run(1, 8)  # loads the kernels
    head.weight.grad = None
    connection.send(run(arguments.batch, arguments.positions))


def our_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    from lit_gpt.model.loss import cross_entropies

    return cross_entropies(head, hidden, targets).sum / targets.numel()


def full_logits_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(head(hidden).flatten(0, 1), targets.flatten())


# What is reported


def print_results(results: dict[str, Result], arguments: argparse.Namespace) -> list[Figure]:
    from benchmarks.results import Figure

    ours = results.get("ours")
    shape, figures = describe(arguments), []
    print(f"\n{shape}, {arguments.rounds} rounds")
    print(f"{'':10} {'parameters':>14} {'positions/s':>12} {'targets/s':>12}", end="")
    print(f" {'ours / it':>10} {'in targets':>10} {'peak, GiB':>10} {'MFU':>6} {'recompiled':>10}")
    for name, (speeds, facts) in results.items():
        speed, peak = statistics.median(speeds), facts.peak / 2**30
        ratio = ratio_of(ours.speeds, speeds) if ours else float("nan")
        in_targets = ratio * ours.facts.targets / facts.targets if ours else float("nan")
        used = utilisation(speed, facts, arguments)
        print(f"{name:10} {facts.parameters:14,} {speed:12,.0f} {speed * facts.targets:12,.0f} {ratio:10.3f}", end="")
        print(f" {in_targets:10.3f} {peak:10.2f} {used:>6} {facts.recompilations:10}")
        figures += [
            Figure(name, shape, f"{speed:.0f}", "positions/s", f"{peak:.2f}"),
            Figure(name, shape, f"{speed * facts.targets:.0f}", "targets/s"),
        ]
        figures += [Figure(name, shape, used.rstrip("%"), "% MFU")] if used != "-" else []
        figures += [Figure(name, shape, str(facts.recompilations), "recompilations")] if arguments.compile else []
    for masked, plain in (("ours", "unmasked"), ("dense", "litgpt")):
        if {masked, plain} <= results.keys():
            cost = 100 * (1 - ratio_of(results[masked].speeds, results[plain].speeds))
            print(f"document masks cost {masked} {cost:.1f} % of the speed of {plain}")
            figures.append(Figure(f"{masked} against {plain}", shape, f"{cost:.1f}", "% for masks"))
    return figures


def describe(arguments: argparse.Namespace) -> str:
    parts = [arguments.shape, f"b{arguments.batch}x{arguments.positions}", arguments.precision]
    parts += ["LoRA"] if arguments.lora else []
    parts += ["compiled"] if arguments.compile else []
    recomputed = arguments.activation_checkpointing
    parts += [f"{recomputed} activation checkpointing"] if recomputed != "none" else []
    return " ".join(parts)


def ratio_of(speeds: list[float], others: list[float]) -> float:
    """The median of the ratios of turns of the same round."""
    return statistics.median(one / other for one, other in zip(speeds, others, strict=True))


def utilisation(speed: float, facts: Facts, arguments: argparse.Namespace) -> str:
    """Model FLOPs utilisation in %, padding not counted; `-` where the device's peak is not known."""
    if arguments.device == "cpu":
        return "-"
    import torch

    from lit_gpt.model.flops import peak_flops

    peak = peak_flops(torch.cuda.get_device_name(), arguments.precision)
    return f"{100 * speed * facts.targets * facts.flops / peak:.1f}%" if peak else "-"


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
