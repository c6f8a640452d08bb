"""Shows that this checkout writes what another one writes: the quickstart's chain in both, file by file.

    python tests/same_bytes.py OTHER_CHECKOUT

The chain runs on one and on two processes. Times, speeds, versions, commits and the folder's own name differ between
any two runs and are left aside; all else that the chain writes must be equal: shards, manifest, losses, weights,
Hugging Face folders, the merged model, figures, logs. Exits with 1 and names the files where something is not.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ("plot_convergence_curves.py", "out/run_lora", "out/convergence.png")
PRINTED = "out/printed.json"
SMALL = "--max_steps 12 --eval_interval 6 --save_interval 6"
# A configuration's file, and its name in earlier versions.
CONFIGS = {
    "foundation": ("configs/quickstart/foundation.yaml", "configs/sample_pretrain.yaml"),
    "lora": ("configs/quickstart/lora.yaml", "configs/sample_lora.yaml"),
}
# The commands of `make quickstart`, over fewer steps; {devices} and {workers} are what varies.
CHAIN = (
    "prepare_data.py --source_path data/sample/french --checkpoint_dir data/sample/tokenizer"
    " --destination_path {out}/data_fr --max_length 256 --group_datasets_by_genre data/sample/groups.json {workers}",
    "pretrain.py --config {foundation} --model_config model.yaml --checkpoint_dir data/sample/tokenizer"
    " --data_dir {out}/data_fr --out_dir {out}/run_foundation"
    f" {{devices}} {SMALL}",
    "convert_litgpt_to_transformers.py --input_path {out}/run_foundation --output_dir {out}/foundation",
    "lit_gpt/scripts/convert_hf_checkpoint.py --checkpoint_dir {out}/foundation",
    "prepare_data.py --source_path data/sample/english --checkpoint_dir {out}/foundation"
    " --destination_path {out}/data_en --group_datasets_by_genre data/sample/groups.json {workers}",
    "pretrain.py --config {lora} --data_dir {out}/data_en --checkpoint_dir {out}/foundation"
    f" --out_dir {{out}}/run_lora {{devices}} {SMALL}",
    "validate_pretrain.py --out_dir {out}/run_lora --batch_size 16 {devices}",
    "{} {} --output {}".format(*FIGURE),
    "utils/merge_lora.py --lora_path {out}/run_lora --save_path {out}/merged/lit_model.pth",
    "convert_litgpt_to_transformers.py --input_path {out}/run_lora --output_dir {out}/transformers",
    "lit_gpt/generate/base.py --checkpoint_dir {out}/merged --prompt '[speaker001:] Good morning' --max_new_tokens 60",
)

# What differs between any two runs, by name of a column or key; `memory_gib` is the process's peak.
VARYING = {"seconds", "device_seconds", "time", "since", "pid", "pid_started", "commit", "versions", "host", "machine"}
VARYING |= {"tokens_per_second", "mfu", "memory_gib", "data_seconds", "forward_seconds", "backward_seconds"}
VARYING |= {"communication_seconds", "optimiser_seconds"}
# The same in text: clock times, durations, speeds, sizes of files.
VARYING_TEXT = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*|[\d.,]+ (s|ms|min|h|tokens/s|MB)\b"
# A line per so many seconds, not per so many steps.
VARYING_LINES = re.compile(r"step \d+/\d+  loss")
# Derived from files that are compared themselves (checksums, torch's index of a checkpoint); locks; copies of programs,
# which the commits between change.
NOT_COMPARED = ("SHA256SUMS", ".metadata", ".lock/*", "*.py")


def run_chain(checkout: Path, folder: Path, processes: int) -> None:
    """Runs the chain in `folder`, which sees the checkout's data and configs; what it printed is the last file there.

    A folder that has that file is complete and left as it is.
    """
    if (folder / PRINTED).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("data", "configs"):
        (folder / name).symlink_to(checkout / name)
    # One thread: sums of floating-point numbers then have one order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    shutil.copyfile(ROOT / "configs" / "quickstart" / "model.yaml", folder / "model.yaml")
    values = {name: next(path for path in paths if (checkout / path).is_file()) for name, paths in CONFIGS.items()}
    values |= {"out": "out", "devices": f"--devices {processes}", "workers": f"--num_workers {processes}"}
    printed = {}
    for number, command in enumerate(CHAIN, start=1):
        script, *words = shlex.split(command.format(**values))
        line = [sys.executable, str(checkout / script), *words]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"in {checkout}: {script} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        printed[f"{number:02d} {script}"] = masked_lines(done.stdout)
    (folder / PRINTED).write_text(json.dumps(printed), encoding="utf-8")


def redraw(folder: Path) -> None:
    """Draws the figure of the run over there with the program here: it has an axis of hours, which differ by run."""
    line = [sys.executable, str(ROOT / FIGURE[0]), FIGURE[1], "--output", str(folder / "here" / FIGURE[2])]
    subprocess.run(line, cwd=folder / "there", capture_output=True, check=True)


def contents(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each file's path and a function that reads what must be equal of it; a checkpoint's tensors are one file."""
    for path in sorted((folder / "out").rglob("*")):
        name = path.relative_to(folder / "out")
        if path.is_dir() or any(name.match(pattern) for pattern in NOT_COMPARED):
            continue
        if path.suffix == ".distcp":
            if path.name == "__0_0.distcp":
                yield f"{name.parent}/tensors", lambda path=path: checkpoint_tensors(path.parent)
        else:
            yield str(name), lambda path=path: content(path, folder)


def content(path: Path, folder: Path) -> Any:
    if path.suffix == ".pth":
        return tensor_hashes(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix in (".png", ".safetensors", ".model"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8").replace(str(folder), "FOLDER")
    if path.suffix == ".json":
        return without_varying(json.loads(text))
    if path.suffix == ".yaml":
        return without_varying(yaml.safe_load(text))
    if path.suffix == ".csv":
        return without_varying(list(csv.DictReader(text.splitlines())))
    return masked_lines(text)


def without_varying(value: Any) -> Any:
    """Drops VARYING keys, and keys without a value: an option that only one of the two knows and nobody gave."""
    if isinstance(value, dict):
        return {
            key: without_varying(item) for key, item in value.items() if key not in VARYING and item not in (None, "")
        }
    if isinstance(value, list):
        return [without_varying(item) for item in value]
    return value


def masked_lines(text: str) -> list[str]:
    """Sorted, as a checkpoint is written beside the training and says so when it is done."""
    return sorted(re.sub(VARYING_TEXT, "…", line) for line in text.splitlines() if not VARYING_LINES.search(line))


def checkpoint_tensors(checkpoint: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.pth")
        dcp_to_torch_save(checkpoint, whole)
        return tensor_hashes(torch.load(whole, map_location="cpu", weights_only=True))


def tensor_hashes(value: Any, name: str = "") -> dict[str, str]:
    """Name → type, shape and hash of every tensor; of anything else, its text."""
    if isinstance(value, dict):
        hashes = [tensor_hashes(item, f"{name}.{key}") for key, item in value.items()]
        return {key: item for found in hashes for key, item in found.items()}
    if isinstance(value, torch.Tensor):
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {name: f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"}
    return {name: repr(value)}


def first_difference(here: Any, there: Any, name: str = "") -> str:
    """Where two contents differ first, and how."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in (*here, *there):
            if here.get(key) != there.get(key):
                return first_difference(here.get(key), there.get(key), f"{name}.{key}")
    if isinstance(here, list) and isinstance(there, list):
        for number, (one, other) in enumerate(zip(here, there, strict=False)):
            if one != other:
                return first_difference(one, other, f"{name}[{number}]")
        return f"{name}: {len(here)} and {len(there)} entries"
    return f"{name}: here {str(here)[:200]!r}, there {str(there)[:200]!r}"


def compare(processes: int, folder: Path, other: Path) -> int:
    """Runs both chains side by side and prints a line per kind of file; the number of differences."""
    with ThreadPoolExecutor(2) as pool:
        sides = [(ROOT, folder / "here"), (other, folder / "there")]
        running = [pool.submit(run_chain, checkout, side, processes) for checkout, side in sides]
        for job in running:
            job.result()
    redraw(folder)
    here, there = (dict(contents(side)) for _, side in sides)
    equal, differences = Counter(), []
    for name in sorted(here.keys() | there.keys()):
        kind = f"{Path(name).parts[0]} {Path(name).suffix or Path(name).name}"
        if name not in here or name not in there:
            differences.append(f"{name} is only {'here' if name in here else 'there'}")
        elif (one := here[name]()) != (two := there[name]()):
            differences.append(f"{name} differs at {first_difference(one, two)}")
        else:
            equal[kind] += 1
    print(f"on {processes} process(es): {equal.total()} files equal, {len(differences)} differences")
    for kind, count in sorted(equal.items()):
        print(f"  {count:4d} equal  {kind}")
    for difference in differences:
        print(f"  DIFFERENT {difference}")
    return len(differences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of another commit")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--keep", type=Path, help="write there and keep it; a chain that is complete there is not run again"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        counts = [compare(number, folder / str(number), options.other.resolve()) for number in options.processes]
    return 1 if any(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
