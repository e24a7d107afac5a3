"""Hashes of large files are kept and are never those of other content."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from anchoreval import files as hashes
from anchoreval.files import cache_file, forget, known_sha256_of

OLD_NS = 10**18  # long ago, so that a file counts as settled


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large and as settled, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE_BYTES", 4)
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**18))
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


def real(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    read = hashes.sha256_of
    monkeypatch.setattr(hashes, "sha256_of", lambda path: found.append(path) or read(path))
    return found


def test_a_large_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    assert known_sha256_of(file) == known_sha256_of(file) == real(file) and read == [file]
    assert json.loads(cache_file().read_text()).keys() == {str(file)}


@pytest.mark.parametrize("how", ["size", "mtime", "inode", "in place, times set back"])
def test_a_changed_file_is_read_again(file: Path, how: str) -> None:
    os.utime(file, ns=(OLD_NS, OLD_NS))
    before = known_sha256_of(file)
    if how == "inode":
        other = file.with_name("other")
        other.write_bytes(b"CONTENT")
        other.replace(file)
    else:
        file.write_bytes(b"longer content" if how == "size" else b"CONTENT")
    if how != "mtime":
        os.utime(file, ns=(OLD_NS, OLD_NS))
    assert known_sha256_of(file) == real(file) != before


def test_a_file_that_may_still_change_is_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 10**12)
    assert known_sha256_of(file) == real(file) and not cache_file().exists()


def test_a_small_file_is_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "LARGE_BYTES", 1000)
    assert known_sha256_of(file) == real(file) and not cache_file().exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b'{"PATH": 3}', b'{"PATH": [1, 2, 3, 4, "x"]}', b"[" * 9999]
)
def test_a_damaged_cache_is_no_cache(file: Path, content: bytes) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(content.replace(b"PATH", str(file).encode()))
    assert known_sha256_of(file) == real(file)
    assert json.loads(cache_file().read_text())[str(file)][-1] == real(file)


def test_a_cache_that_cannot_be_written_costs_nothing(file: Path) -> None:
    cache_file().parent.parent.mkdir(parents=True, exist_ok=True)
    cache_file().parent.write_text("a file")
    assert known_sha256_of(file) == real(file)


def test_what_is_forgotten_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_sha256_of(file)
    known = json.loads(cache_file().read_text())
    known[str(file)][-1] = "0" * 64
    cache_file().write_text(json.dumps(known))
    assert known_sha256_of(file) == "0" * 64
    forget(file.parent)
    assert known_sha256_of(file) == real(file)


def test_writers_at_the_same_time_lose_no_entry(file: Path) -> None:
    files = [file.with_name(f"weights{number}") for number in range(8)]
    for number, path in enumerate(files):
        path.write_bytes(b"content %d" % number)
    threads = [threading.Thread(target=known_sha256_of, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path: entry[-1] for path, entry in json.loads(cache_file().read_text()).items()} == {
        str(path): real(path) for path in files
    }
    assert {path.name for path in cache_file().parent.iterdir()} == {"hashes.json", "hashes.lock"}
