"""Runs of the program: from raw text to shards, from shards to checkpoints, from checkpoints to figures and exports.

The files here are commands that a person runs, but for `cli.py`; the library lies in the rooms below."""

import lit_gpt  # noqa: F401  its finder has to be there before any import of lightning
