"""llama.cpp's converter, told the rules of a byte-level BPE that it does not recognise: `NAME CONVERTER …`.

A process of its own. The converter knows a tokenizer by a hash of token ids, which another vocabulary changes, and
refuses what it does not know. NAME says which rules these are; that llama.cpp then gives the ids that transformers
gives is compared afterwards.
"""

import importlib
import runpy
import sys
from pathlib import Path


def main(name: str, converter: Path, arguments: list[str]) -> None:
    sys.path.insert(0, str(converter.parent))
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda *_: name
    sys.argv = [str(converter), *arguments]
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
