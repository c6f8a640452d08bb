"""llama.cpp at one pinned version: where its converter and programs are, and what each is asked. The folder is one
that `utils/install_llama_cpp.py` made, or a checkout that somebody built by CMake."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lit_gpt.errors import DataError, UserError
from lit_gpt.formats.programs import failure_of_system, reason_of
from lit_gpt.repository import REPOSITORY

GIT_URL = "https://github.com/ggml-org/llama.cpp"
COMMIT = "0c1e57098"  # that `PACKAGE` carries under vendor/, as llama-cpp-python's changelog says
PACKAGE = "llama-cpp-python==0.3.36"
PACKAGE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of its source archive on PyPI

FOLDER = REPOSITORY / ".llama.cpp"  # where it is installed and looked for, unless another folder is given
CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_PROCESS = Path(__file__).with_name("converter_process.py")
PROGRAMS = ("llama-quantize", "llama-perplexity", "llama-completion", "llama-tokenize")
ANSWER_ALONE = ("--no-escape", "--no-warmup", "-no-cnv", "--no-display-prompt", "--simple-io")  # of llama-completion
CHATS = "llama-chats"  # ours, of llama_chats.cpp: not in an llama.cpp that somebody else built


@dataclass(frozen=True)
class LlamaCpp:
    """An installed llama.cpp. What its programs refuse is a DataError; too little disk, quota or memory an OSError."""

    folder: Path
    programs: Path

    @classmethod
    def find(cls, folder: Path | None) -> LlamaCpp:
        """Finds the one in `folder`, None for the usual one; a UserError names what is missing."""
        folder = folder or FOLDER
        missing = [] if (folder / CONVERTER).is_file() else [CONVERTER]
        installed, built = folder / "bin", folder / "build" / "bin"
        programs = built if built.is_dir() and not installed.is_dir() else installed
        missing += [name for name in PROGRAMS if not os.access(programs / name, os.X_OK)]
        if missing:
            how = "python utils/install_llama_cpp.py installs it; --llama_cpp_dir names another place"
            raise UserError(f"llama.cpp is not in {folder} ({', '.join(missing)} missing): {how}")
        return cls(folder, programs)

    def convert(self, model_dir: Path, file: Path, dtype: str, pre_tokenizer: str | None = None) -> None:
        """Writes `model_dir`, a Hugging Face folder, as `file`, in f32, f16 or bf16.

        `pre_tokenizer` names the rules of a byte-level BPE that the converter does not recognise.
        """
        program = [self.folder / CONVERTER]
        if pre_tokenizer:
            program = [CONVERTER_PROCESS, pre_tokenizer, *program]
        command = [sys.executable, *program, model_dir, "--outfile", file, "--outtype", dtype]
        self._run(command, file.parent)

    def set_context(self, file: Path, architecture: str, context: int) -> None:
        """Writes into `file` how many tokens the model can see, where the converter does not read it in config.json."""
        script = self._script("gguf_set_metadata.py")
        command = [sys.executable, script, file, f"{architecture}.context_length", str(context), "--force"]
        self._run(command, file.parent)

    def quantize(self, source: Path, target: Path, gguf_type: str) -> tuple[float, int]:
        """Writes `source` as `target` in another type, as llama-quantize names it; returns bits per weight, and how
        many matrices got another type, as their rows do not divide into blocks of 256 (k-methods) or 32 weights."""
        done = self._run([self.programs / "llama-quantize", source, target, gguf_type, thread_count()], target.parent)
        bits = re.search(r"quant size\s*=.*\(([\d.]+) BPW\)", done)
        fallback = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", done)
        return float(bits[1]) if bits else math.nan, int(fallback[1]) if fallback else 0

    def token_ids(self, file: Path, text: Path, add_begin: bool = True) -> list[int]:
        """Token ids of the UTF-8 text in a file, with the begin and end tokens that the model adds, if `add_begin`."""
        command = [self.programs / "llama-tokenize", "-m", file, "-f", text, "--no-escape", "--ids"]
        command += [] if add_begin else ["--no-bos"]
        output = self._run(command, file.parent, last="]", errors=subprocess.PIPE)
        return list(ast.literal_eval(output[output.index("[") : output.rindex("]") + 1]))

    def chats(self, file: Path, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """What llama.cpp's server makes of each conversation for the model in `file`: see llama_chats.cpp. None where
        that program was not built."""
        if not os.access(self.programs / CHATS, os.X_OK):
            return None
        asked = file.with_name("chats")
        asked.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
        with asked.open("rb") as stdin:
            output = self._run([self.programs / CHATS, file], file.parent, errors=subprocess.PIPE, stdin=stdin)
        return [json.loads(line) for line in output.splitlines()]

    def set_flag(self, file: Path, name: str, value: bool) -> bool:
        """Sets a yes or no of the model in `file`; returns whether the file has one of that name."""
        script = self._script("gguf_set_metadata.py")
        written = "1" if value else ""  # as numpy makes a bool of a text
        try:
            self._run([sys.executable, script, file, name, written, "--force"], file.parent)
        except DataError as e:
            if "not found" not in str(e):
                raise
            return False
        return True

    def set_template(self, file: Path, template: Path) -> None:
        """Writes the chat template of the Jinja file `template` into the model in `file`."""
        script = self._script("gguf_new_metadata.py")
        copy = file.with_name(f"{file.name}.copy")
        self._run([sys.executable, script, file, copy, "--chat-template-file", template, "--force"], file.parent)
        copy.replace(file)

    def compare(self, file: Path, reference: Path, context: int) -> tuple[float, float, float]:
        """Compares the model in `file` with `reference`, log-probabilities over windows of `context` tokens.

        Returns its perplexity, its mean Kullback-Leibler divergence from the reference in nats per token, and the share
        of positions whose most probable token is the same. Formulas: llama.cpp's tools/perplexity, `--kl-divergence`.
        """
        command = [self.programs / "llama-perplexity", "-m", file, "--kl-divergence-base", reference, "--kl-divergence"]
        command += ["-c", str(context), "-b", str(context), "-ub", str(min(context, 512)), "-t", thread_count()]
        output = self._run(command, file.parent, last="Same top p")
        labels = (r"Mean PPL\(Q\)", r"Mean\s+KLD", "Same top p")
        found = [re.search(rf"^{label}\s*:\s*(\S+)", output, re.MULTILINE) for label in labels]
        if "inconsistent vocabulary" in output or not all(found):
            raise DataError(f"llama-perplexity does not measure {file.name}: {reason_of(output)}")
        perplexity, divergence, same_top = (float(match[1]) for match in found if match)
        return perplexity, divergence, same_top / 100

    def complete(self, file: Path, prompt: Path, tokens: int, context: int) -> str:
        """How the model in `file` continues the text in `prompt`, always by its most probable token."""
        command = [self.programs / "llama-completion", "-m", file, "-f", prompt, "-n", str(tokens), "-c", str(context)]
        command += ["-t", thread_count(), "--temp", "0", *ANSWER_ALONE]
        return self._run(command, file.parent, last="\n\n", errors=subprocess.PIPE)

    def _script(self, name: str) -> Path:
        return self.folder / "gguf-py" / "gguf" / "scripts" / name

    def _run(
        self,
        command: list[str | Path],
        scratch: Path,
        last: str = "",
        errors: int = subprocess.STDOUT,
        stdin: int | BinaryIO = subprocess.DEVNULL,
    ) -> str:
        """Runs a program that writes to `scratch` and returns what it prints: on both streams, or on stdout only if
        `errors` is a pipe. `last` is what the output holds when it is whole."""
        # the converter's own gguf-py comes before an installed gguf; it loads tokenizers from the folder alone
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.folder / "gguf-py")}
        # as llama.cpp builds them, some programs end before the thread that prints has printed all: ask them again
        for _ in range(5):
            done = subprocess.run(command, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=errors)
            output = done.stdout.decode("utf-8", errors="replace")
            if done.returncode or last in output:
                break
        if done.returncode == 0:
            return output
        output += (done.stderr or b"").decode("utf-8", errors="replace")
        script_or_program = command[1] if command[0] == sys.executable else command[0]
        name = Path(script_or_program).name
        if failure := failure_of_system(name, done.returncode, output, scratch):
            raise failure
        raise DataError(f"{name} failed (exit code {done.returncode}): {reason_of(output)}")


def thread_count() -> str:
    """OMP_NUM_THREADS, which a batch job sets to its cores, else all cores this process may use."""
    return os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
