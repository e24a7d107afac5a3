"""One tiny checkpoint for every test of the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with heads of 32 dimensions."""
    from engines import checkpoint

    return checkpoint(tmp_path_factory.mktemp("llama"))
