"""The run folder: its record, its logs, its checkpoints, and which of them a path stands for.

It must not know how the numbers in it came about."""
