"""programs.py: what the machine does to a program, llama.cpp's or transformers', is told from damaged data."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from lit_gpt.errors import DataError, Interrupted
from lit_gpt.formats import hf_logits
from utils.export import hf_probabilities
from utils.export.llama_cpp import LlamaCpp


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "error", "number", "words"),
    [
        ("kill -9 $$", OSError, errno.ENOMEM, "killed by signal 9, probably out of memory"),
        ("kill -TERM $$", Interrupted, None, "signal 15"),
        ("echo 'OSError: [Errno 122] Disk quota exceeded' >&2; exit 1", OSError, errno.EDQUOT, "quota"),
        ("echo 'PermissionError: [Errno 13] Permission denied: x' >&2; exit 1", OSError, errno.EACCES, "denied"),
        ("echo 'OSError: 4096 requested and 0 written' >&2; exit 1", OSError, errno.ENOSPC, "No space"),
        ("echo 'Error code 12 (Cannot allocate memory)' >&2; exit 1", OSError, errno.ENOMEM, "memory"),
        ("echo 'ValueError: no' >&2; exit 1", DataError, None, "ValueError: no"),
    ],
)
def test_what_the_machine_does_is_not_the_datas_fault(tmp_path, monkeypatch, script, error, number, words):
    llama = LlamaCpp(tmp_path, program(tmp_path / "bin" / "llama-quantize", script).parent)
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", script)))
    for call in (
        lambda: llama.quantize(tmp_path / "a", tmp_path / "b", "F16"),
        lambda: hf_probabilities.ask(tmp_path, "text", 64, 8, tmp_path / "probabilities"),
        lambda: hf_logits.ask_transformers(tmp_path, [[1, 2]], None),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert number is None or caught.value.errno == number
