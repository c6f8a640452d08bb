from __future__ import annotations

import pytest

from utils.export.ollama_go import Go


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Go:
    """Compiled once, in a second."""
    return Go(tmp_path_factory.mktemp("go"))
