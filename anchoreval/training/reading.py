"""Training texts out of files and data sets: JSONL, parquet, plain text, `datasets` by name or path, packed rows."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anchoreval.errors import MissingExtra, SourceError
from anchoreval.files.strict_json import unpaired
from anchoreval.texts.reading import json_lines

#: The name of the source of documents that name none.
UNNAMED = "text"
_PACKED = "source"  # of packed rows: [{start, end}], as FranxYao's and EasyContext's data sets have it


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or its token ids where somebody tokenised it, and the name of its source.

    `loss` are the character spans on which a loss is wanted, `wanted` the tokens of `ids`; None for everywhere.
    """

    text: str | None
    ids: list[int] | None
    source: str
    loss: tuple[tuple[int, int], ...] | None = None
    wanted: tuple[bool, ...] | None = None


def documents_in(places: Iterable[str], text_key: str = "text") -> Iterator[Document]:
    """Yield the documents of files, folders and data sets, in order; SourceError names the place of a wrong one."""
    for place in places:
        for where, row in _rows(place, text_key):
            yield from _documents(where, row, text_key)


def files_of(place: str) -> list[Path]:
    """Return the files of a place, sorted; none for a data set by name, and for a folder that `datasets` saved."""
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir() and not _saved(path):
        return sorted(each for each in path.rglob("*") if each.is_file() and _reader(each) is not None)
    return []


def _saved(folder: Path) -> bool:
    """Whether `datasets` wrote this folder (save_to_disk)."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def _rows(place: str, text_key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of all rows of one place."""
    path = Path(place).expanduser()
    files = files_of(place)
    if not files and path.exists() and not (path.is_dir() and _saved(path)):
        known = ".jsonl, .json, .parquet, .txt or .md, .gz behind it where it is compressed"
        what = "no file of training text" if path.is_dir() else "no text that is read here"
        raise SourceError(f"{path}: {what}: {known}")
    for file in files:
        reader = _reader(file)
        if reader is None:
            raise SourceError(f"{file}: not read here: .jsonl, .json, .parquet, .txt or .md, or .gz behind one of them")
        yield from reader(file, text_key)
    if not files:
        yield from _of_datasets(place)


Reader = Callable[[Path, str], Iterator[tuple[str, Mapping[str, Any]]]]


def _reader(path: Path) -> Reader | None:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return {".jsonl": _jsonl, ".json": _jsonl, ".parquet": _parquet, ".txt": _text, ".md": _text}.get(suffix.lower())


def _text(path: Path, text_key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with _opened(path) as file:
            yield str(path), {text_key: file.read().decode("utf-8")}
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read as UTF-8: {error}") from error


def _jsonl(path: Path, _: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with _opened(path) as file:  # half a character where no text is does no harm
            yield from json_lines(file, path, lambda line, _: json.loads(line))
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read: {' '.join(str(error).split())[:120]}") from error


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parquet(path: Path, _: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if find_spec("pyarrow") is None:
        raise MissingExtra(f"{path}: parquet needs pyarrow: pip install 'anchoreval[train]'")
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield f"{path}:{number}", row
                number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())[:120]}") from error


def _of_datasets(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of `NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT` (default: train), or of a folder that was saved."""
    if find_spec("datasets") is None:
        raise MissingExtra(
            f"--data {name}: no such file; data sets by name need datasets: pip install 'anchoreval[train]'"
        )
    import datasets

    parts = name.split(":")
    split = parts[-1] if len(parts) > 1 else "train"
    try:
        if (folder := Path(parts[0]).expanduser()).is_dir():
            loaded = datasets.load_from_disk(str(folder))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(*parts[: max(1, len(parts) - 1)], split=split, streaming=True)
        for number, row in enumerate(loaded):
            yield f"{name}[{number}]", row
    except SourceError:
        raise
    except Exception as error:  # whatever the library, the hub and a script of the data set raise
        line = " ".join(str(error).split())[:160]
        raise SourceError(f"--data {name}: no such file, and no data set that can be loaded: {line}") from error


def _documents(where: str, row: Mapping[str, Any], text_key: str) -> Iterator[Document]:
    """Yield the documents of one row: one text, or packed ids cut at the ends that `source` names."""
    name = _source(row)
    if (ids := row.get("input_ids")) is not None:
        yield from _packed(where, list(ids), row.get(_PACKED), name)
        return
    text = row.get(text_key)
    if not isinstance(text, str):
        has = ", ".join(map(str, row)) or "nothing"
        raise SourceError(f"{where}: no {text_key!r} and no input_ids; it has {has} (--text-key names another)")
    if unpaired(text) is not None:
        raise SourceError(f"{where}: {text_key} holds half a character (an unpaired surrogate)")
    yield Document(text, None, name, _spans(where, row.get("loss"), len(text)))


def _spans(where: str, loss: Any, length: int) -> tuple[tuple[int, int], ...] | None:
    if loss is None:
        return None
    pairs = isinstance(loss, list) and all(isinstance(span, list) and len(span) == 2 for span in loss)
    if not pairs or not all(0 <= first <= stop <= length for first, stop in loss):
        raise SourceError(f"{where}: loss: spans of characters [[first, stop], ...] inside the text")
    return tuple((int(first), int(stop)) for first, stop in loss)


def _packed(where: str, ids: list[int], parts: Any, name: str) -> Iterator[Document]:
    if not all(type(token) is int and token >= 0 for token in ids):
        raise SourceError(f"{where}: input_ids holds what is no token id")
    if not isinstance(parts, list):
        yield Document(None, ids, name)
        return
    first = 0
    for part in parts:
        end = part.get("end") if isinstance(part, Mapping) else None
        if type(end) is not int or not first <= end <= len(ids):
            raise SourceError(f"{where}: source: an end that is not between {first} and {len(ids)}")
        own = part.get("source")
        yield Document(None, ids[first:end], own if isinstance(own, str) else name)
        first = end
    if first < len(ids):
        yield Document(None, ids[first:], name)


def _source(row: Mapping[str, Any]) -> str:
    """Return the name of a row's source: `source`, or SlimPajama's `meta.redpajama_set_name`."""
    meta = row.get("meta")
    named = (row.get("source"), meta.get("redpajama_set_name") if isinstance(meta, Mapping) else None)
    return next((name for name in named if isinstance(name, str) and name), UNNAMED)
