"""Raw text that goes to a model with a chat template is said so, at once and wherever the scores stand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import cli

from anchoreval.records.header import RAW_TEXT, Header
from anchoreval.records.run import load_run
from anchoreval.reports.viewer.write import write_view

REPOSITORY = Path(__file__).parents[2]
TASK = ["--backend", "fake", "--tasks", "ruler/vt", "--lengths", "512", "--limit", "1", "--haystack", "generated"]


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "instruct"
    shutil.copytree(REPOSITORY / "models" / "anchor-tiny", folder)
    template = "{{ bos_token }}{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}Answer:"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_model_with_a_chat_template_without_template_is_named_on_stderr_under_the_table_and_on_boards(
    instruct: Path, tmp_path: Path
) -> None:
    done = cli("run", "--model", str(instruct), *TASK, "--output", str(tmp_path))
    assert RAW_TEXT in done.stderr.splitlines() and "--template chat" in RAW_TEXT and "raw text" in RAW_TEXT
    assert RAW_TEXT[1:] in " ".join(done.stdout.split())
    assert RAW_TEXT[1:] in next(tmp_path.glob("*/*/board.html")).read_text("utf-8")
    (path,) = tmp_path.glob("*/*/header.json")
    header = json.loads(path.read_text("utf-8"))
    assert Header(header).raw_words == RAW_TEXT and "unused_chat_template" not in header["identity"]
    assert cli("board", str(tmp_path), "--definition", "anchor-tiny", "--output", str(tmp_path / "b")).returncode == 0
    assert cli("verify", str(tmp_path)).returncode == 0
    write_view(load_run(path.parent), tmp_path / "view")
    assert any(RAW_TEXT[1:] in page.read_text("utf-8") for page in (tmp_path / "view").rglob("*.js"))


@pytest.mark.parametrize("template", ["base", "chat"])
def test_a_template_that_was_asked_for_is_not_commented_on(instruct: Path, template: str, tmp_path: Path) -> None:
    done = cli("run", "--model", str(instruct), *TASK, "--template", template, "--output", str(tmp_path))
    assert done.returncode == 0 and "raw text" not in done.stderr + done.stdout


def test_a_base_model_gets_no_such_line(tmp_path: Path) -> None:
    done = cli("run", "--model", "anchor-tiny", *TASK, "--output", str(tmp_path))
    assert done.returncode == 0 and "raw text" not in done.stderr + done.stdout


def test_a_server_that_applies_its_own_template_gets_no_such_line() -> None:
    for header in ({"form": "server"}, {}, {"unused_chat_template": "yes"}):
        assert not Header(header).raw_words
