"""Language models: tokens to loss, weights to and from other programs' formats, text to tokens, and tokens to text.

Built on the PyPI package litgpt. The rooms here know models and files, never run folders, command lines or Slurm."""

from lit_gpt import bare_packages

bare_packages.install()  # before any import of lightning or litgpt, which take 2 s less with it
