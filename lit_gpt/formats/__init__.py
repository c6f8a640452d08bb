"""Weights and configs on disk: litgpt's directories, Hugging Face folders, peft's adapters, and the Hub.

It reads and writes them, tensor by tensor, and refuses by name what it does not understand. It must not know how a
model was trained or what a run folder is. families.py is longer than other files: it is a table of families, of which
one reads a single entry."""
