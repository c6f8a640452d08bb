"""Where this program's checkout lies: its shipped files, and the folder from which `python -m` finds its modules."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
