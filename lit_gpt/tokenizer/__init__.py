"""From text to tokens and back, and from a conversation to text: tokenizers and chat templates.

It must not know models or corpora."""
