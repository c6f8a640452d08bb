"""The model: tokens to loss, and weights to and from other formats, on top of the PyPI package litgpt."""
