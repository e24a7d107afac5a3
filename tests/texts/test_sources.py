from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anchoreval.errors import SourceError
from anchoreval.files import cache_folder
from anchoreval.texts import sources
from anchoreval.texts.sources import Published, Sources, download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the loopback address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def squad_text() -> str:
    paragraph = {
        "context": "Lille is in France.",
        "qas": [
            {
                "question": "Where?",
                "answers": [{"text": "France"}, {"text": "France"}],
                "is_impossible": False,
            },
            {"question": "When?", "answers": [], "is_impossible": True},
        ],
    }
    other = {"context": "A second paragraph.", "qas": []}
    return json.dumps({"data": [{"paragraphs": [paragraph, other]}]})


def test_a_missing_file_is_downloaded_once_and_kept_in_the_cache(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    (folder / "dev.json").write_text(squad_text())
    sha256 = hashlib.sha256(squad_text().encode()).hexdigest()
    monkeypatch.setattr(
        sources, "SQUAD", Published("squad.json", sha256, (f"{address}/gone.json", f"{address}/dev.json"))
    )
    cache = tmp_path / "cache"
    first = Sources(cache=cache)
    assert [question.text for question in first.squad.questions] == ["Where?"]
    assert first.squad.questions[0].answers == ("France", "France")
    assert first.describe()["squad.json"] == "published" and first.published and not first.others
    (folder / "dev.json").unlink()
    assert Sources(cache=cache, offline=True).squad.documents == [
        "A second paragraph.",
        "Lille is in France.",
    ]
    assert [path.name for path in cache.iterdir()] == ["squad.json"]


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "dev.json").write_text("other")
    with pytest.raises(SourceError, match="its SHA-256 is"):
        download(f"{address}/dev.json", tmp_path / "cache" / "squad.json", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_file_names_address_file_and_flags(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        _ = Sources(tmp_path / "data", cache=tmp_path / "cache", offline=True).squad
    message = str(caught.value)
    for part in (
        "squad.json",
        sources.SQUAD.addresses[0],
        "--data-dir",
        "--haystack generated",
        str(tmp_path / "data"),
    ):
        assert part in message
    assert "\n" not in message


def test_the_essays_have_no_address_and_the_error_says_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"PaulGrahamEssays\.json.*download_paulgraham_essay\.py.*--haystack generated"
    ):
        Sources(cache=tmp_path).essay()


def test_a_users_own_file_is_used_and_said_not_to_be_the_published_one(tmp_path: Path) -> None:
    text = json.dumps({"text": "An essay."})
    (tmp_path / "PaulGrahamEssays.json").write_text(text)
    own = Sources(tmp_path, cache=tmp_path / "cache", offline=True)
    assert not own.others, "nothing has been read yet"
    assert own.essay() == "An essay."
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    assert own.describe()["PaulGrahamEssays.json"] == f"not the published file: sha256 {sha256}"
    assert own.files()["PaulGrahamEssays.json"]["sha256"] == sha256
    assert own.others == [f"PaulGrahamEssays.json not the published file: sha256 {sha256}"]


def test_the_data_folder_comes_before_the_cache(tmp_path: Path) -> None:
    for name in ("data", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "PaulGrahamEssays.json").write_text(json.dumps({"text": name}))
    assert Sources(tmp_path / "data", cache=tmp_path / "cache").essay() == "data"
    assert Sources(cache=tmp_path / "cache").essay() == "cache"


def test_a_git_lfs_pointer_is_not_taken_for_data(tmp_path: Path) -> None:
    (tmp_path / "english_words.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match="git-lfs"):
        _ = Sources(tmp_path, offline=True).english_words


def test_hotpot_questions_know_their_paragraphs(tmp_path: Path) -> None:
    entry = {"question": "Q?", "answer": "yes", "context": [["B", ["one ", "two"]], ["A", ["three"]]]}
    (tmp_path / "hotpotqa.json").write_text(json.dumps([entry]))
    found = Sources(tmp_path, offline=True).hotpot
    assert list(found.documents) == ["A\nthree", "B\none two"]
    assert found.questions[0].gold == (1, 0) and found.questions[0].answers == ("yes",)


def test_a_generated_haystack_and_a_context_left_out_are_said(tmp_path: Path) -> None:
    made = Sources(haystack="generated", cache=tmp_path, context=False)
    assert made.describe()["haystack"] == "generated" and made.others == ["context left out (--no-context)"]


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "anchoreval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "anchoreval"
