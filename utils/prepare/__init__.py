"""From raw corpora to rows: sources, documents, dialogue, tokens, packing, duplicates; one step in each file.

The order is `sources.py` → `blocks.py` → `documents.py` → `dialogue.py` → `encoding.py` → `packing.py`, which
`block_rows.py` does for one block in one process, and `splits.py` for all blocks of a split. The room writes what
`data/` reads, and must not know models or runs."""
