"""What was left out of a split: counted by reason, and each document named in a file of JSON lines."""

import json
import os
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO

from lit_gpt.errors import naming
from utils.prepare.file_formats import CorpusFile


class RemovalLog(AbstractContextManager["RemovalLog"]):
    """Writes `path` line by line, under another name until `publish`; no file is written if nothing was left out."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # where the first one of each reason is, and what is wrong
        self._path = path
        self._staged = path.with_name(f".{path.name}.tmp")
        self._resources = ExitStack()
        self._file: IO[str] | None = None

    def __exit__(self, *_: object) -> None:
        with naming(self._path):
            self._resources.close()

    def add(self, reason: str, file: CorpusFile, at: int, detail: str, text: str = "") -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{file.name}, {file.unit} {at:,}: {detail}")
        line = {"reason": reason, "file": file.name, file.unit: at, "detail": detail, "text": text}
        with naming(self._path):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._resources.callback(self._staged.unlink, missing_ok=True)
                self._file = self._resources.enter_context(self._staged.open("w", encoding="utf-8"))
            known = {key: value for key, value in line.items() if value != ""}
            self._file.write(json.dumps(known, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Gives the file its name, or removes what an earlier call wrote of this split."""
        with naming(self._path):
            if self._file is None:
                self._path.unlink(missing_ok=True)
                return
            self._file.flush()
            os.fsync(self._file.fileno())
            self._staged.replace(self._path)
