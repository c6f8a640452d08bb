"""From a Hugging Face folder to GGUF files and Modelfiles: what llama.cpp can and cannot do, and how it is measured.

It must not know run folders: it sees what anybody who downloads the model sees."""
