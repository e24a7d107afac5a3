"""A tiny random Llama on disk, on one thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import SHAPE, save_model
from transformers import LlamaConfig


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama with two layers."""
    return save_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**SHAPE))
