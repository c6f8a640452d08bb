"""Training data as the loop reads it: shards, their manifest, the mixture, the sample order and the batches.

It must not know where the text came from (`prepare/`) or how a model is trained (`train/`). Only `batches.py` needs
torch."""
