"""Memory and time of what a checkpoint goes through, beside copying its file; litgpt's merge beside ours.

    python benchmarks/export.py [--gigabytes 2.2 --rounds 3]

1. A random model of a Llama's shape is made in bf16: a Hugging Face folder, an adapter for it (peft's and litgpt's
   files), and a training checkpoint of it written by two processes.
2. Each command then runs in a process of its own, in turns with a plain copy of the file: converted in, merged,
   converted out, consolidated from the training checkpoint, merged by litgpt. What it reads is in memory already, and
   a file counts as written when it is on the disk.
3. The same on a model of a few MB says what the interpreter and the libraries take: memory and time above that are the
   command's own.
4. Memory is the process' peak of resident memory (getrusage), mapped pages of files included.

Prints a table and appends it to benchmarks/results.csv. Writes about five times the checkpoint under --work_dir.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "data" / "sample" / "tokenizer"
VOCABULARY = 32_000
WIDTH, HEADS, RANK = 2048, 16, 8
COMMANDS = ("copy", "in", "merge", "merge, not verified", "litgpt's merge", "out", "consolidate")


@dataclass
class Measured:
    """Seconds of each round, and the highest peak of memory, in MB."""

    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work_dir", type=Path)
    parser.add_argument("--tiny", action="store_true", help="measure the model of a few MB only")
    parser.add_argument("--no_record", action="store_true")
    parser.add_argument("--work", choices=("make", "shard"), help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        (make_files if arguments.work == "make" else make_checkpoint)(arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as name:
        own = measure(Path(name) / "tiny", 256, 2, 1)
        layers = max(1, round((arguments.gigabytes * 1e9 - 4 * VOCABULARY * WIDTH) / (2 * layer_parameters(WIDTH))))
        found = own if arguments.tiny else measure(Path(name) / "large", WIDTH, layers, arguments.rounds)
        size, largest = sizes(Path(name) / ("tiny" if arguments.tiny else "large"))
    report(found, own, size, largest, not arguments.no_record)


def layer_parameters(width: int) -> int:
    return 4 * width**2 + 3 * width * mlp_width(width)


def mlp_width(width: int) -> int:
    return width * 11 // 4


def report(found: dict[str, Measured], own: dict[str, Measured], size: float, largest: float, keep: bool) -> None:
    from benchmarks.results import Figure, record

    shape = f"{size / 1e9:.2f} GB bf16, largest tensor {largest / 1e6:.0f} MB"
    allowed = 300 + 2 * largest / 1e6
    print(f"{shape}; above the interpreter's own: at most {allowed:.0f} MB")
    copied = statistics.median(found["copy"].seconds)
    figures = []
    for name, measured in found.items():
        seconds, start = statistics.median(measured.seconds), statistics.median(own[name].seconds)
        above = measured.peak - own[name].peak
        whole, rest = seconds / copied, (seconds - start) / copied
        print(
            f"{name:20} {seconds:6.1f} s, {start:5.1f} s of it its start: {whole:5.2f} of a copy, without {rest:5.2f}; "
            f"peak {measured.peak:6.0f} MB, above its own {above:6.0f} MB"
        )
        figures += [Figure(name, shape, f"{seconds:.2f}", "s"), Figure(name, shape, f"{above:.0f}", "MB above its own")]
    if keep:
        record("export", figures)


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the checkpoint and of its largest tensor."""
    from lit_gpt.formats.litgpt_directory import WEIGHTS, lazy_weights

    specs = lazy_weights(folder / "hf").specs
    return (folder / "hf" / WEIGHTS).stat().st_size, max(spec.nbytes for spec in specs.values())


def measure(folder: Path, width: int, layers: int, rounds: int) -> dict[str, Measured]:
    """Makes the files in `folder` and runs every command `rounds` times, in turns."""
    folder.mkdir()
    (folder / "shape.json").write_text(json.dumps({"width": width, "layers": layers}))
    for work in ("make", "shard"):
        subprocess.run([sys.executable, __file__, "--work", work, str(folder)], cwd=ROOT, check=True)
    found = {name: Measured() for name in COMMANDS}
    for _ in range(rounds):
        for name, command in commands(folder):
            read_once([word for word in command if isinstance(word, Path) and word.exists()])
            before = time.perf_counter()
            found[name].peak = max(found[name].peak, run(command))
            found[name].seconds.append(time.perf_counter() - before)
    return found


def commands(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Each command, and after it the removal of what it wrote and no later one reads."""
    base, merged, out = folder / "hf", folder / "merged", folder / "out"
    model = base / "lit_model.pth"
    yield "in", ["lit_gpt/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", base, "--verify", "none"]
    yield "copy", ["-c", COPY, model, folder / "copy"]
    (folder / "copy").unlink()
    adapter = ["utils/merge_lora.py", "--lora_path", folder / "peft", "--checkpoint_dir", base, "--save_path", merged]
    yield "merge, not verified", [*adapter, "--verify", "none"]
    shutil.rmtree(merged)
    yield "litgpt's merge", ["-m", "litgpt", "merge_lora", folder / "litgpt"]
    (folder / "litgpt" / "lit_model.pth").unlink()
    yield "merge", adapter
    convert = ["convert_litgpt_to_transformers.py", "--output_dir", out, "--verify", "none", "--input_path"]
    yield "out", [*convert, merged]
    shutil.rmtree(out)
    shutil.rmtree(merged)
    yield "consolidate", [*convert, folder / "run"]
    shutil.rmtree(out)


def read_once(paths: list[Path]) -> None:
    for path in paths:
        for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
            with file.open("rb") as content:
                while content.read(1 << 20):
                    pass


COPY = "import os, shutil, sys; shutil.copyfile(*sys.argv[1:]); os.fsync(os.open(sys.argv[2], os.O_RDONLY))"


def run(words: list[Any]) -> float:
    """Runs a Python command and waits until the disk has what it wrote; its peak of resident memory in MB."""
    process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        sys.exit(f"{words[:2]} failed: {status}")
    return usage.ru_maxrss / 1000


# ---------------------------------------------------------------------------------------------------- what is measured


def config_of(folder: Path) -> Any:
    from litgpt.config import Config

    shape = json.loads((folder / "shape.json").read_text())
    width = shape["width"]
    return Config(
        name="benchmark",
        n_layer=shape["layers"],
        n_embd=width,
        n_head=HEADS,
        n_query_groups=HEADS,
        head_size=width // HEADS,
        intermediate_size=mlp_width(width),
        block_size=2048,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )


def make_files(folder: Path) -> None:
    """A Hugging Face folder, and an adapter for it as peft and as litgpt keep it."""
    import torch
    import yaml

    from lit_gpt.formats.hf_config import config_to_hf
    from lit_gpt.formats.hf_weights import tensors_to_hf
    from lit_gpt.formats.litgpt_directory import config_values
    from lit_gpt.formats.peft import write_peft
    from lit_gpt.formats.tensor_files import write_safetensors
    from lit_gpt.model.gpt import LoRAGPT
    from lit_gpt.model.lazy_tensors import LazyTensors
    from lit_gpt.model.lora import LoRASettings

    config = config_of(folder)
    settings = LoRASettings(RANK, 2 * RANK, 0.0, query=True, key=True, value=True, projection=True, mlp=True, head=True)
    with torch.device("meta"):
        model = LoRAGPT(settings.extend(config))
    generator = torch.Generator().manual_seed(0)

    def random(spec: torch.Tensor) -> torch.Tensor:
        return torch.randn(spec.shape, generator=generator).mul_(0.02).to(spec.dtype)

    shapes = {name.replace(".linear.", "."): p.to(torch.bfloat16) for name, p in model.named_parameters()}
    base = {name: spec for name, spec in shapes.items() if "lora_" not in name}
    adapter = {name: random(spec) for name, spec in shapes.items() if "lora_" in name}
    hf = config_to_hf(config, 1, 2, "bfloat16")
    for name in ("hf", "peft", "litgpt"):
        (folder / name).mkdir()
        for path in TOKENIZER.iterdir():
            shutil.copyfile(path, folder / name / path.name)
    tensors = tensors_to_hf(LazyTensors(base, lambda name: random(base[name])), config, hf)
    write_safetensors(folder / "hf", dict(tensors_to_hf(base, config, hf)), tensors, 10**9)
    (folder / "hf" / "config.json").write_text(json.dumps(hf))
    write_peft(folder / "peft", adapter, config, settings, hf, None)
    torch.save({"model": adapter}, folder / "litgpt" / "lit_model.pth.lora")
    (folder / "litgpt" / "model_config.yaml").write_text(yaml.safe_dump(config_values(config)))
    lora = {f"lora_{name}": value for name, value in settings.recorded().items()}
    theirs = {"checkpoint_dir": str(folder / "hf"), "precision": "bf16-true", **lora}
    (folder / "litgpt" / "hyperparameters.yaml").write_text(yaml.safe_dump(theirs))


def make_checkpoint(folder: Path) -> None:
    """A run folder with a checkpoint of the model, written by two processes."""
    import torch
    import yaml

    from lit_gpt.formats.litgpt_directory import CONFIG, config_values
    from lit_gpt.model.building import empty_model
    from utils.cluster.launch import launch
    from utils.run.checkpoint_writer import CheckpointWriter
    from utils.run.progress import TrainingProgress
    from utils.run.record import RunIdentity, RunRecord
    from utils.train.placement import place_model

    config = config_of(folder)
    identity = RunIdentity(
        model={}, lora=None, base=None, data="", mixture={}, samples_per_step=1, mask_documents=True, seed=0
    )
    run_dir = folder / "run"
    fabric = launch(2, 1, "bf16-true")
    companions = [folder / CONFIG, folder / "run.yaml", *TOKENIZER.iterdir()]
    if fabric.is_global_zero:
        run_dir.mkdir()
        (folder / CONFIG).write_text(yaml.safe_dump(config_values(config)))
        RunRecord(identity, {}, {}, {}, None, []).save(folder)
        RunRecord(identity, {}, {}, {}, None, []).save(run_dir)
        (run_dir / "metrics.csv").write_text("step,split,dataset,loss\n")
    fabric.barrier()
    model = place_model(fabric, empty_model(config, None, torch.bfloat16), None, 0, "bf16-true")
    writer = CheckpointWriter(run_dir, companions, None)
    writer.save(model.module, torch.optim.SGD(model.parameters(), lr=0.0), TrainingProgress(step=1))
    writer.wait()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
