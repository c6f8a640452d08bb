"""Megabytes of text per second from raw text to verified shards, beside the tokenizer alone and two other ways.

    python benchmarks/prepare.py [--megabytes 200 1000 --rounds 3 --workers 2 --tokenizer gpt2 --peer_python PYTHON]

1. The text: the plays of ../shared, copied until they have the size. Each copy deals its turns out anew to its scenes,
   and spells every word that a file has at most 20 times (one word in ten) in another way, the same throughout the
   copy. So the vocabulary grows with the text, faster than natural text's, and no cache of words holds it.
2. Alternately, in fresh processes, from a warm page cache: prepare_data.py and the check of its shards' SHA-256; the
   tokenizer it chose, alone, on documents in memory; litdata's `optimize`; a one-process loop over the Hugging Face
   tokenizer. These last two have --peer_megabytes of the same text, which may be less; what is compared is MB/s, start
   included, and litdata needs some seconds to start.
3. Time is from start to exit. Memory is the peak of the sum over all processes of a run, read every 100 ms, each page
   that several share counted once (Pss).

Prints the medians and appends them to benchmarks/results.csv. The last two need benchmarks/requirements.txt, which
does not fit into the project's environment: --peer_python is the Python of another one. What is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PEERS = ROOT / "benchmarks" / "prepare_peers.py"
MAX_LENGTH = 2048
RARE = 20  # at most so often in a file of 1 MB to 2 MB: 10 % of the plays' words, of 31,000 kinds
SAMPLING_SECONDS = 0.1
VOWELS, CONSONANTS = "aaeeeeiiioouu", "bccddfglllmmnnnnpqrrrrssssttttv"
OTHERS = {
    **dict.fromkeys("aeiouyàâéèêëîïôùûœ", VOWELS),
    **dict.fromkeys("AEIOUYÀÂÉÈÊËÎÏÔÙÛŒ", VOWELS.upper()),
    **dict.fromkeys("bcdfghjklmnpqrstvwxzç", CONSONANTS),
    **dict.fromkeys("BCDFGHJKLMNPQRSTVWXZÇ", CONSONANTS.upper()),
}


class Plays(NamedTuple):
    """A file as words: `strings` are its words and what lies between them, `turns` numbers of these per turn."""

    strings: list[str]
    turns: list[np.ndarray]
    scenes: np.ndarray
    """Turns of each scene."""
    rare: list[int]
    """The words to be spelled in another way."""


class Candidate(NamedTuple):
    """Who prepares how many MB of text."""

    who: str
    megabytes: float


class Run(NamedTuple):
    """One run of a candidate: its text in MB, its seconds, its tokens, the peak of its memory in bytes."""

    megabytes: float
    seconds: float
    tokens: int
    peak: int
    start_seconds: float = 0.0
    """In `alone`: until the tokenizers are loaded, not in `seconds`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[200.0])
    parser.add_argument("--peer_megabytes", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default="mistral-7b-v0.1", help="a directory, or a name in ../shared/tokenizers")
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "claire")
    parser.add_argument("--alone", choices=("auto", "gigatoken", "hf", "sentencepiece"), default="auto")
    parser.add_argument("--peer_python", type=Path, default=Path(sys.executable))
    parser.add_argument("--work_dir", type=Path, help="keeps the text for the next call; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no_record", action="store_true", help="leave results.csv as it is")
    arguments = parser.parse_args()
    arguments.tokenizer = SHARED / "tokenizers" / arguments.tokenizer
    if arguments.work_dir:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        compare(arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work_dir = Path(folder)
            compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    candidates = make_candidates(arguments)
    runs: dict[Candidate, list[Run]] = {candidate: [] for candidate in candidates}
    for round_number in range(arguments.rounds):
        for candidate in list(candidates)[:: -1 if round_number % 2 else 1]:
            run = candidates[candidate]()
            runs[candidate].append(run)
            size = f"{candidate.megabytes:g} MB"
            print(f"round {round_number + 1}: {candidate.who}, {size}: {run.seconds:.2f} s", flush=True)
    medians = {candidate: median_run(done) for candidate, done in runs.items()}
    print_table(medians)
    if not arguments.no_record:
        write_figures(medians, arguments)


# The text


def make_corpus(source: Path, folder: Path, megabytes: float, seed: int) -> Path:
    """The text file of a raw corpus of so many MB of varied copies below `folder`; an earlier call's is kept."""
    corpus = folder / f"corpus-{megabytes:g}-{seed}"
    path = corpus / "FR" / "Big" / "train.txt"
    if path.is_file():
        return path
    began, limit, written = time.monotonic(), int(megabytes * 1e6), 0
    plays = [read_plays(file) for file in sorted(source.rglob("train.txt"))]
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".tmp")
    with staged.open("wb") as file:
        for copy in iter_copies(plays, seed):
            content = copy.encode()
            if written + len(content) >= limit:
                file.write(content[: content.rfind(b"\n\n", 0, limit - written) + 1])
                break
            written += file.write(content)
    staged.rename(path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s", flush=True)
    return path


def read_plays(path: Path) -> Plays:
    scenes = [scene.split("\n") for scene in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())]
    turns = [re.findall(r"\w+|\W+", f"{turn}\n") for scene in scenes for turn in scene]
    counts = Counter(word for turn in turns for word in turn)
    numbers = {word: number for number, word in enumerate(counts)}
    rare = [numbers[word] for word, count in counts.items() if count <= RARE and word.isalpha() and len(word) > 3]
    return Plays(
        list(numbers),
        [np.array([numbers[word] for word in turn]) for turn in turns],
        np.array([len(scene) for scene in scenes]),
        rare,
    )


def iter_copies(plays: list[Plays], seed: int) -> Iterator[str]:
    """Varied copies of each file in turn, for ever."""
    copy = 0
    while True:
        for index, play in enumerate(plays):
            yield vary(play, np.random.default_rng((seed, copy, index)))
        copy += 1


def vary(play: Plays, rng: np.random.Generator) -> str:
    """The file with its turns dealt out anew to its scenes, these in another order, and its rare words respelled."""
    strings = play.strings.copy()
    draws = rng.integers(0, 1 << 30, (len(play.rare), 4)).tolist()
    for number, (place, letter, other_place, other_letter) in zip(play.rare, draws, strict=True):
        strings[number] = respell(respell(strings[number], place, letter), other_place, other_letter)
    turns = [play.turns[number] for number in rng.permutation(len(play.turns))]
    scene_ends = np.cumsum(rng.permutation(play.scenes))
    text = []
    for first, last in zip([0, *scene_ends], scene_ends, strict=False):
        text.append("".join(map(strings.__getitem__, np.concatenate(turns[first:last]).tolist())))
    return "\n".join([*text, ""])


def respell(word: str, place: int, letter: int) -> str:
    place %= len(word)
    others = OTHERS.get(word[place], word[place])
    return word[:place] + others[letter % len(others)] + word[place + 1 :]


# The candidates


def make_candidates(arguments: argparse.Namespace) -> dict[Candidate, Callable[[], Run]]:
    """What is measured, and the function that runs it once."""
    peer_text = make_corpus(arguments.source, arguments.work_dir, arguments.peer_megabytes, arguments.seed)
    converted = convert_tokenizer(arguments)
    kind = arguments.alone
    if kind == "auto":
        kind = chosen_tokenizer(prepare(arguments, peer_text)[2])
    tokenizer = converted if kind == "hf" else arguments.tokenizer
    candidates: dict[Candidate, Callable[[], Run]] = {}
    for megabytes in arguments.megabytes:
        text = make_corpus(arguments.source, arguments.work_dir, megabytes, arguments.seed)
        candidates[Candidate("ours", megabytes)] = partial(run_ours, arguments, text)
        if tokenizer:
            candidates[Candidate(f"{kind} alone", megabytes)] = partial(run_alone, arguments, text, kind, tokenizer)
    if converted is None:
        return candidates
    size = arguments.peer_megabytes
    candidates[Candidate("loop", size)] = partial(run_peer, arguments, "loop", [peer_text], converted)
    if has_module(arguments.peer_python, "litdata"):
        parts = split_text(peer_text, arguments.workers)
        candidates[Candidate("litdata", size)] = partial(run_peer, arguments, "litdata", parts, converted)
    else:
        print(f"litdata left out: {arguments.peer_python} does not have it (benchmarks/requirements.txt)")
    return candidates


def has_module(python: Path, name: str) -> bool:
    found = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False)
    return found.returncode == 0


def convert_tokenizer(arguments: argparse.Namespace) -> Path | None:
    """The directory of the tokenizer's tokenizer.json, made from tokenizer.model where there is none."""
    if (arguments.tokenizer / "tokenizer.json").is_file():
        return arguments.tokenizer
    folder = arguments.work_dir / f"tokenizer-{arguments.tokenizer.name}"
    command = [arguments.peer_python, PEERS, "convert", "--tokenizer", arguments.tokenizer, "--destination", folder]
    if (folder / "tokenizer.json").is_file() or subprocess.run(command, capture_output=True).returncode == 0:
        return folder
    print(f"loop, litdata left out: {arguments.peer_python} cannot make a tokenizer.json of {arguments.tokenizer}")
    print("    (it needs transformers and protobuf: benchmarks/requirements.txt)")
    return None


def chosen_tokenizer(output: str) -> str:
    """Which tokenizer prepare_data.py says that it uses: the first one in a line like `tokenizer: gigatoken (…)`."""
    names = {"gigatoken": "gigatoken", "hugging face": "hf", "tokenizers": "hf", "sentencepiece": "sentencepiece"}
    line = next((line for line in output.lower().splitlines() if line.startswith("tokeni")), "")
    found = re.search("|".join(names), line.partition(" ")[2])
    if not found:
        sys.exit("error: prepare_data.py does not say which tokenizer it uses; give --alone")
    return names[found[0]]


def split_text(path: Path, parts: int) -> list[Path]:
    """The documents of `path` in `parts` files of about one size, beside its corpus."""
    content = path.read_bytes()
    files, first = [], 0
    for part in range(parts):
        last = content.find(b"\n\n", len(content) * (part + 1) // parts) + 2
        last = len(content) if last < 2 or part == parts - 1 else last
        files.append(path.parents[2].with_name(f"{path.parents[2].name}-part-{part}.txt"))
        files[-1].write_bytes(content[first:last])
        first = last
    return files


def prepare(arguments: argparse.Namespace, text: Path) -> tuple[float, int, str]:
    """Runs prepare_data.py on the corpus of `text`, into an empty `output`; what `measure` says of it."""
    data_dir = start_over(arguments, [text])
    command = [sys.executable, ROOT / "prepare_data.py", "--source_path", text.parents[2]]
    command += ["--checkpoint_dir", arguments.tokenizer, "--destination_path", data_dir]
    return measure([*command, "--max_length", str(MAX_LENGTH), "--num_workers", str(arguments.workers)])


def run_ours(arguments: argparse.Namespace, text: Path) -> Run:
    seconds, peak, _ = prepare(arguments, text)
    verify = [sys.executable, PEERS, "verify", "--destination", arguments.work_dir / "output"]
    check_seconds, check_peak, checked = measure(verify)
    tokens = int(read_answer(checked)["tokens"])
    return Run(text.stat().st_size / 1e6, seconds + check_seconds, tokens, max(peak, check_peak))


def run_alone(arguments: argparse.Namespace, text: Path, kind: str, tokenizer: Path) -> Run:
    start_over(arguments, [text])
    command = [sys.executable, PEERS, "alone", "--kind", kind, "--tokenizer", tokenizer, "--source", text]
    _, peak, output = measure([*command, "--workers", str(arguments.workers)])
    answer = read_answer(output)
    size = text.stat().st_size / 1e6
    return Run(size, answer["seconds"], int(answer["tokens"]), peak, answer["start_seconds"])


def run_peer(arguments: argparse.Namespace, name: str, texts: list[Path], tokenizer: Path) -> Run:
    sys.path[0] = str(ROOT)
    from lit_gpt.tokenizer.tokenizer import Tokenizer

    destination = start_over(arguments, texts)
    command = [arguments.peer_python, PEERS, name, "--tokenizer", tokenizer, "--destination", destination]
    command += ["--source", *texts, "--workers", str(arguments.workers)]
    command += ["--eos", str(Tokenizer(arguments.tokenizer).eos_id)]
    seconds, peak, output = measure(command)
    return Run(sum(text.stat().st_size for text in texts) / 1e6, seconds, int(read_answer(output)["tokens"]), peak)


def start_over(arguments: argparse.Namespace, texts: list[Path]) -> Path:
    """An empty place for the output; the text is in the page cache, and no earlier run's output is being written."""
    destination = arguments.work_dir / "output"
    shutil.rmtree(destination, ignore_errors=True)
    for text in texts:
        with text.open("rb") as file:
            while file.read(1 << 24):
                pass
    os.sync()
    return destination


# Measuring


def measure(command: list[str | Path]) -> tuple[float, int, str]:
    """Seconds from start to exit, the peak of the memory of all the command's processes in bytes, and its output."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    peaks, ended = [0], threading.Event()
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )

        def sample() -> None:
            while not ended.wait(SAMPLING_SECONDS):
                peaks.append(session_memory(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        process.wait()
        seconds = time.perf_counter() - began
        ended.set()
        sampler.join()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} exited with {process.returncode}:\n{text[-2000:]}")
    return seconds, max(peaks), text


def session_memory(session: int) -> int:
    """Bytes of memory of the processes of `session`, with what they share counted once where the system says it."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += process_memory(folder)
        except OSError:  # it has ended meanwhile
            continue
    return total


def process_memory(folder: Path) -> int:
    try:
        rollup = (folder / "smaps_rollup").read_text()
    except PermissionError:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def read_answer(output: str) -> dict[str, float]:
    return json.loads(output.strip().splitlines()[-1])


def median_run(runs: list[Run]) -> Run:
    """The medians of times; memory is the largest peak."""
    seconds, starts = ([getattr(run, name) for run in runs] for name in ("seconds", "start_seconds"))
    peak = max(run.peak for run in runs)
    return runs[0]._replace(seconds=statistics.median(seconds), start_seconds=statistics.median(starts), peak=peak)


# What is reported


def find_rates(medians: dict[Candidate, Run]) -> dict[Candidate, float]:
    """MB/s; a tokenizer alone stands there twice, its start counted or not."""
    rates = {}
    for candidate, run in medians.items():
        rates[candidate] = run.megabytes / run.seconds
        if run.start_seconds:
            started = candidate._replace(who=f"{candidate.who}, with its start")
            rates[started] = run.megabytes / (run.seconds + run.start_seconds)
    return rates


def run_of(candidate: Candidate, medians: dict[Candidate, Run]) -> Run:
    return medians[candidate._replace(who=candidate.who.partition(",")[0])]


def print_table(medians: dict[Candidate, Run]) -> None:
    """Who runs on less text than ours is compared with ours on the least."""
    rates = find_rates(medians)
    ours = {candidate.megabytes: rate for candidate, rate in rates.items() if candidate.who == "ours"}
    print(f"\n{'':32} {'text, MB':>8} {'MB/s':>8} {'M tokens/s':>11} {'peak, MB':>9} {'ours / it':>10}")
    for candidate, rate in rates.items():
        run = run_of(candidate, medians)
        ratio = ours.get(candidate.megabytes, ours[min(ours)]) / rate
        tokens = run.tokens / run.megabytes * rate / 1e6
        size, peak = f"{candidate.megabytes:g}", run.peak / 1e6
        print(f"{candidate.who:32} {size:>8} {rate:8.2f} {tokens:11.3f} {peak:9.0f} {ratio:10.3f}")


def write_figures(medians: dict[Candidate, Run], arguments: argparse.Namespace) -> None:
    sys.path[0] = str(ROOT)
    from benchmarks.results import Figure, record

    figures = []
    for candidate, rate in find_rates(medians).items():
        shape = f"{arguments.tokenizer.name} {candidate.megabytes:g} MB x{arguments.workers}"
        peak = run_of(candidate, medians).peak / 2**30
        figures.append(Figure(candidate.who, shape, f"{rate:.2f}", "MB/s", f"{peak:.3f}"))
    record("prepare", figures)


if __name__ == "__main__":
    main()
