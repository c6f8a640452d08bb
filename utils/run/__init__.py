"""The run folder: its record, its logs, its checkpoints, which of them a path means, and models loaded from it.

What only names and counts (record.py, progress.py, csv_log.py, checkpoint_folders.py) imports no torch. Nothing here
knows how the numbers in a run came about."""
