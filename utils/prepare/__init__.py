"""From raw corpora to rows: sources, documents, dialogue, tokens, packing, duplicates.

It writes what `data/` reads, and must not know models or runs."""
