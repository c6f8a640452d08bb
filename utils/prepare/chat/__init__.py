"""From records of chats to tokens with proven targets: converters, conversations, targets.

`converters.py` makes every record a conversation of OpenAI's messages, or names what is wrong with it. `targets.py`
finds by the chat template which tokens are targets and proves it; `encoding.py` does so for the conversations of a
block. The room must not know corpora, shards or packing: `utils/prepare` brings the records, and packs what comes out.
"""
