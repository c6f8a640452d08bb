"""Where this program's checkout lies: its shipped files, and the folder from which `python -m` finds its modules."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
