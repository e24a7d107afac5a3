"""Find the files of a checkpoint folder or hub id and hash them: safetensors only. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anchoreval.errors import ModelError
from anchoreval.files import known_sha256_of
from anchoreval.files.strict_json import OBJECT, Shape, either, list_of, number, object_of, or_null, whole
from anchoreval.schema import Json

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Ends of the names of files that anything is read from.
_READ = (".json", ".jinja", ".safetensors", ".model", ".txt", ".py")
_TEXTS = (".json", ".jinja")


_IDS = or_null(either("a whole number or a list of them", list_of(whole(-1, 2**31)), whole(-1, 2**31)))
_STATED: dict[str, Shape] = {
    "max_position_embeddings": or_null(number(1, 2**31)), "num_hidden_layers": or_null(number(0, 10_000)),
    "eos_token_id": _IDS,
}  # fmt: skip
#: What is read of files that are otherwise the library's business, and what would build a model without end.
_SHAPES: dict[str, Shape] = {
    "config.json": object_of(
        {}, {**_STATED, "text_config": or_null(object_of({}, _STATED)), "auto_map": or_null(OBJECT)}
    ),
    "generation_config.json": object_of({}, {"eos_token_id": _IDS}),
}
_SHARD = re.compile(r"[\w-][\w.+@=-]*\.safetensors", re.ASCII)
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of weights and the SHA-256 of each file that decides what the model computes.

    `adapter` describes the peft adapter that is loaded on top of the weights; None without an adapter.
    """

    folder: Path
    sha256: dict[str, str]
    adapter: Mapping[str, Json] | None = None

    @property
    def weights_sha256(self) -> str:
        """One hash over the names and hashes of all files."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()


def folder_of(model: str, weights: bool = True, download: bool = True) -> Path:
    """Return the folder of a local path or hub id; a missing hub id is downloaded into the hub's cache.

    Without `weights` only configuration and tokenizer are fetched, without `download` nothing at all. Raise ModelError
    if that fails, or if the checkpoint's files are not files, are links out of the folder, or state sizes that no model
    has. Files of a snapshot in the hub's cache are links into the folder of blobs beside it.
    """
    try:
        there = Path(model).expanduser()
        folder = there if there.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, a user that is not there, a NUL
        folder = None
    folder = folder or _download(model, weights, download)
    try:
        root = folder.resolve()
        blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
        names = [path for path in folder.iterdir() if path.suffix in _READ or path.name == "additional_chat_templates"]
        names += (folder / "additional_chat_templates").glob("*.jinja")
        for path in names:
            real = path.resolve()
            if path.is_symlink() and not (real.is_relative_to(root) or real.is_relative_to(blobs)):
                raise ModelError(f"{path} is a link out of its folder, to {real}: put a copy there")
            if path.suffix in _TEXTS and not path.is_file():  # weights may be missing where none are read
                raise ModelError(f"{path} is no file: put the file there, or move it away")
    except (OSError, RuntimeError) as error:  # links in a circle, or no right to look
        raise ModelError(f"{folder} cannot be read: {error}") from error
    for name, shape in _SHAPES.items():
        path = folder / name
        if path.is_file() and (wrong := shape(_json(path))) is not None:
            raise ModelError(f"{path}: {wrong}")
    return folder


def find_checkpoint(model: str, code: bool = False, adapters: bool = False) -> Checkpoint:
    """Return the hashed folder of a local path or hub id; raise ModelError if it has no safetensors.

    With `code`, the Python files that the configuration names are hashed too. An adapter in the folder is hashed too,
    and is refused if the loader has no `adapters`: the loaded model would differ from what the folder holds.
    """
    folder = folder_of(model)
    adapter = _adapter(folder, model, adapters)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model} has no config.json: not a checkpoint in Hugging Face format")
    if other := _json(folder / "config.json").get("transformers_weights"):
        raise ModelError(
            f"{folder / 'config.json'}: transformers_weights names other weights, {str(other)[:80]!r}: delete it"
        )
    names = ["config.json", *_weight_files(folder, model), *([ADAPTER, ADAPTER_WEIGHTS] if adapter else [])]
    hashes = {name: known_sha256_of(folder / name) for name in names}
    return Checkpoint(folder, hashes | (_code(folder) if code else {}), adapter)


def hashes_of(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of each file that exists, by name; a name may be a glob."""
    paths = sorted(path for name in names for path in folder.glob(name) if path.is_file())
    return {path.relative_to(folder).as_posix(): known_sha256_of(path) for path in paths}


def _download(model: str, weights: bool, download: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    allow = ["*.json", "*.jinja", "*.py", "tokenizer.model", *(["*.safetensors"] if weights else [])]
    try:
        ignored = ["*/*", "consolidated*"]
        place = snapshot_download(model, allow_patterns=allow, ignore_patterns=ignored, local_files_only=not download)
        return Path(place)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if not download:
            raise ModelError(f"{model[:200]} is neither a folder nor in the hub's cache on this machine") from error
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
    named = _json(index).get("weight_map")
    shards = list(named.values()) if isinstance(named, dict) else []
    if not shards:
        raise ModelError(f"{index}: weight_map names no files: download it again")
    for shard in shards:
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            text = f"{index}: weight_map: {str(shard)[:80]!r} is no plain name of a .safetensors file beside it"
            raise ModelError(text)
    shards = sorted(set(shards))
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{model} lacks {shard}, which {index.name} names: download it again")
    return [index.name, *shards]


def _adapter(folder: Path, model: str, adapters: bool) -> dict[str, Json] | None:
    """Return what the folder's adapter declares; raise ModelError for an adapter that would not be loaded as it is."""
    if not (folder / ADAPTER).is_file():
        return None
    said = _json(folder / ADAPTER)
    base = said.get("base_model_name_or_path")
    merge = "merge it into its model (peft's merge_and_unload, then save_pretrained)"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{model} is an adapter of {base}, without a model of its own: {merge}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{model} has {ADAPTER} and no {ADAPTER_WEIGHTS}: put it there, or move {ADAPTER} away")
    if not adapters:
        raise ModelError(f"{model} has an adapter ({ADAPTER}), which only backend hf loads: {merge}, or move it away")
    if find_spec("peft") is None:
        raise ModelError(f"{model} has an adapter ({ADAPTER}), which needs peft: pip install peft, or {merge}")
    return {"type": said.get("peft_type"), "base_model": base, "rank": said.get("r"), "file": ADAPTER_WEIGHTS}


def _code(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the Python files that the configuration may run.

    Files of another repository are listed under its name.
    """
    mapped = [text for name in ("config.json", "tokenizer_config.json") for text in _mapped(folder / name)]
    if not mapped:
        return {}
    found = {path.relative_to(folder).as_posix(): known_sha256_of(path) for path in sorted(folder.rglob("*.py"))}
    for other in sorted({text.partition("--")[0] for text in mapped if "--" in text}):
        if not _REPOSITORY.fullmatch(other) or Path(other).exists():  # transformers would take a folder of that name
            raise ModelError(f"{folder}: auto_map: {other[:80]!r} is no repository of the hub, or a folder here")
        place = _download(other, weights=False)
        found |= {f"{other}--{path.name}": known_sha256_of(path) for path in sorted(place.glob("*.py"))}
    return found


def _mapped(path: Path) -> Iterator[str]:
    """Yield the custom classes that a configuration names: `module.Class`, or `owner/name--module.Class`."""
    said = _json(path).get("auto_map") if path.is_file() else None
    for value in said.values() if isinstance(said, dict) else ():
        yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file; raise ModelError if the file holds no object."""
    try:
        said = json.loads(path.read_text("utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise ModelError(f"{path} is no object")
    return said
