"""A viewer in a folder that holds what is somebody else's: nothing of it is deleted, followed or taken for ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from anchoreval.errors import RunError
from anchoreval.files import write_whole
from anchoreval.records.run import Run, load_run
from anchoreval.reports.board import write_board
from anchoreval.reports.board.declared import write_leaderboard
from anchoreval.reports.page import has_viewer
from anchoreval.reports.viewer import write_view
from anchoreval.reports.viewer.write import DataFiles, is_inert, is_own, supply
from anchoreval.runs.rebuild import Remake
from tests.conftest import REPOSITORY

COMMITTED = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / "3ea75cb9ef6b0c93"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    copied = shutil.copytree(COMMITTED, tmp_path / "theirs" / "run", ignore=shutil.ignore_patterns("view"))
    return load_run(Path(copied))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the reader's, with a folder of data in it."""
    (tmp_path / "mine" / "data" / "thesis").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "thesis" / "text").write_text("gold")
    return tmp_path / "mine"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_beside_the_data_of_a_viewer_stay(run: Run, mine: Path) -> None:
    names = ["0123456789ab", "0123456789ac", "0123456789ad", "new.1.part", "new.thesis.part"]
    for name in names:
        (mine / "data" / name).mkdir()
    (mine / "data" / names[0] / "000.js").write_text("let mine = 1;")
    (mine / "data" / names[1] / "chapter.js").write_text("anchorevalData('000','');\n")
    (mine / "data" / names[2] / "000.js").symlink_to(mine / "data" / names[0] / "000.js")
    (mine / "data" / "0123456789ae").symlink_to(mine / "data" / "thesis")
    (mine / "data" / "a file").write_text("mine")
    before = tree(mine)
    write_view(run, mine)
    assert before.items() <= tree(mine).items()
    assert (mine / "data" / "0123456789ae").is_symlink()


def test_data_of_an_earlier_page_and_of_a_killed_process_go(run: Run, mine: Path) -> None:
    DataFiles(mine / "data" / "0123456789ab").write("000", "earlier")
    DataFiles(mine / "data" / "new.77.0.part").write("000", "killed")
    (mine / "data" / "new.77.0.part" / "001.js.77.part").write_bytes(b"anchor")
    write_view(run, mine)
    assert sorted(path.name for path in (mine / "data").iterdir())[-1] == "thesis"
    assert len(list((mine / "data").iterdir())) == 2


@pytest.mark.parametrize("place", ["view", "view/data"])
def test_nothing_is_written_through_a_link_of_a_run_folder(place: str, run: Run, mine: Path) -> None:
    (run.path / place).parent.mkdir(exist_ok=True)
    (run.path / place).symlink_to(mine)
    before, told = tree(mine), list[str]()
    with pytest.raises(RunError, match=f"{place}: it is a link: remove it"):
        write_view(run)
    supply([run.path], told.append)
    assert tree(mine) == before and "it is a link" in told[-1]


def test_a_board_does_not_link_to_a_viewer_that_is_a_link(run: Run, mine: Path) -> None:
    (mine / "index.html").write_text("<title>elsewhere</title>")
    (run.path / "view").symlink_to(mine)
    assert not has_viewer(run.path)
    (run.path / "view").unlink()
    (run.path / "view").mkdir()
    (run.path / "view" / "index.html").symlink_to(mine / "index.html")
    assert not has_viewer(run.path)


def test_a_page_of_somebody_else_is_not_replaced(run: Run, mine: Path, tmp_path: Path) -> None:
    (mine / "index.html").write_text("<title>my thesis</title>")
    (mine / "board.html").write_text("<title>my board</title>")
    (mine / "board.csv").write_text("wood,length\n")
    definition = tmp_path / "index.yaml"
    definition.write_text("title: T\nsuites: [ruler]\nbaseline: native\ncolumns: [mean]\n")
    before = tree(mine)
    with pytest.raises(RunError, match=r"index.html was not written by anchoreval: move it away, or name another"):
        write_view(run, mine)
    with pytest.raises(RunError, match=r"board.csv was not written by anchoreval"):
        write_board([run], mine)
    with pytest.raises(RunError, match=r"index.html was not written by anchoreval"):
        write_leaderboard([run.path], definition, mine)
    assert tree(mine) == before


def test_pages_of_ours_are_replaced(run: Run, tmp_path: Path) -> None:
    definition = tmp_path / "index.yaml"
    definition.write_text("title: T\nsuites: [ruler]\nbaseline: native\ncolumns: [mean]\n")
    for _ in range(2):
        write_view(run, tmp_path / "view")
        write_board([run], tmp_path / "board")
        write_leaderboard([run.path], definition, tmp_path / "leaderboard")


@pytest.mark.parametrize("what", ["page", "data", "name", "link"])
def test_a_viewer_that_came_with_a_run_is_written_anew_before_a_board_links_to_it(what: str, run: Run) -> None:
    page = write_view(run, remake=Remake)
    (data,) = (page.parent / "data").iterdir()
    told: list[str] = []
    supply([run.path], told.append)
    assert not told and is_own(run.path)
    if what == "page":
        page.write_text(page.read_text("utf-8").replace("</body>", "<script>evil()</script></body>"), "utf-8")
    elif what == "data":
        (data / "000.js").write_text((data / "000.js").read_text() + "evil();\n")
    elif what == "name":
        (data / "evil.js").write_text("evil();\n")
    else:
        (data / "999.js").symlink_to(data / "000.js")
    supply([run.path], told.append)
    assert "is no page of this version" in told[0]
    text = page.read_text("utf-8")
    assert "evil" not in text and is_own(run.path)


def test_a_data_file_is_one_call_and_nothing_else(tmp_path: Path) -> None:
    def holds(content: str) -> bool:
        (tmp_path / "000.js").write_bytes(content.encode("utf-8"))
        return is_inert(tmp_path / "000.js")

    for text in ("", "a'b\\", "\\'", "\\\\", "a\r\nb", '{"a": 1}'):
        DataFiles(tmp_path).write("000", text)
        assert is_inert(tmp_path / "000.js")
    bad = [
        "", "evil();\n", "anchorevalData('000','');evil();\n", "anchorevalData('000','');\nevil();\n",
        "anchorevalData('000','');evil('');\n", "anchorevalData('000','\\\\');evil('\\\\');\n",
        "anchorevalData('000','\\');\n",
        "anchorevalData('001','');\n", "anchorevalData('000',''+evil()+'');\n", "anchorevalData('000','\n');\n",
        "anchorevalData('000','é');\n", "anchorevalData('000'');\n",
    ]  # fmt: skip
    assert not any(map(holds, bad))


def test_a_file_is_never_written_through_a_link_that_lies_in_its_way(tmp_path: Path) -> None:

    (tmp_path / "mine").write_text("gold")
    (tmp_path / f"page.html.{os.getpid()}.part").symlink_to(tmp_path / "mine")
    (tmp_path / "page.html").symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "page.html", ["page"])
    assert (tmp_path / "mine").read_text() == "gold" and (tmp_path / "page.html").read_text() == "page"
