"""From tokens to the loss: the model's layers, attention among documents of a row, adapters and their merging.

It knows tensors and litgpt's `Config`; it must not know files, tokenizers or other programs' names of weights."""
