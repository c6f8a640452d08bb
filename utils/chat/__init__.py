"""Conversations with a model: who answers, what is asked, what is forgotten, and how it is shown.

A `Speaker` is any model that answers, one computed here or a GGUF file that llama.cpp runs. It must not know how a
model was trained, nor what a recipe is."""
