"""What each token of a conversation is: a target, or the reason why it is none.

A shard stores these as runs (utils/data/shards.py), and nothing where every token is a target, as in plain text.
"""

PARTS = (
    "target",
    "template",  # what the chat template writes: headers, definitions of tools, what stands between messages
    "system",
    "user",
    "tool",
    "weight_0",  # an answer whose message has the weight 0
    "earlier_answer",  # an answer before the one that this sample is for
)
"""Their numbers, from 0 on, are those in the shards: new ones are appended."""

TARGET = PARTS.index("target")
