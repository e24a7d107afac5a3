"""A checkpoint folder or hub id to files and their hashes: safetensors only. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from anchoreval.errors import ModelError

_HASH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of weights and the SHA-256 of each file that decides what the model computes."""

    folder: Path
    sha256: dict[str, str]

    @property
    def weights_sha256(self) -> str:
        """One hash over the names and hashes of all files."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()


def folder_of(model: str, weights: bool = True) -> Path:
    """The folder of a local path or of a hub id, downloaded into the cache of the hub where absent.

    Without `weights` only configuration and tokenizer are fetched. Errors: `ModelError`.
    """
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _download(model, weights)


def find_checkpoint(model: str) -> Checkpoint:
    """The folder of a local path or hub id, hashed; `ModelError` where it has no safetensors."""
    folder = folder_of(model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model} has no config.json: not a checkpoint in Hugging Face format")
    names = ["config.json", *_weight_files(folder, model)]
    return Checkpoint(folder, {name: _sha256(folder / name) for name in names})


def _download(model: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    allow = ["*.json", "*.jinja", "*.py", "tokenizer.model", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model, allow_patterns=allow, ignore_patterns=["*/*", "consolidated*"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        text = f"{model} is neither a folder nor a model that the hub hands out: {line}"
        raise ModelError(text) from error


def _weight_files(folder: Path, model: str) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        unsafe = [path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in folder.glob(suffix)]
        has = f"only {unsafe[0]}, which can run code when loaded" if unsafe else "no weights"
        raise ModelError(f"{model} has {has}: model.safetensors is needed (save_pretrained writes it)")
    shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{model} lacks {shard}, which {index.name} names: download it again")
    return [index.name, *shards]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
