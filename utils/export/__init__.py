"""A trained model for other programs: its Hugging Face folder, and from that GGUF files and Modelfiles. What is written
is compared with the model before it gets its name. The GGUF part reads only what is published, and the room must not
know how a model is trained or what its card says."""
