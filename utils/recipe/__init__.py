"""A recipe: one YAML file with a section for each command that leads from data to a model that answers.

The room knows the sections, their order, and what one takes from another. It knows no command's options: each command
reads its own section (`utils/cli.py`).
"""
