"""A trained model for other programs: its Hugging Face folder, and from that GGUF files and Modelfiles.

What is written is compared with the model, or measured against it, before it gets its name. The GGUF part sees what
anybody who downloads the model sees; the room must not know how a model is trained or what its card says."""
