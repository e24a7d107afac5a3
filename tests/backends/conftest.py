"""A tiny random Llama on disk, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import SHAPE, save_model
from servers import Server, stock
from transformers import LlamaConfig


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama with two layers."""
    return save_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**SHAPE))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A vLLM server with the embedded model; one for all modules, for it takes half a minute to start."""
    with stock(tmp_path_factory.mktemp("server")) as made:
        yield made
