"""docs/ as a site, its generated pages, and every command that README and docs print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages.__main__ import DOCS, PAGES

from anchoreval.cli import parser as cli

ROOT = DOCS.parent
PRINTED = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "leaderboards" / "README.md",
    *sorted(DOCS.glob("*.md")),
]


OPTIONAL = str.maketrans("", "", "[]")


def commands(page: Path) -> Iterator[str]:
    """Yield every line of a page's code blocks that calls anchoreval, with its continuation lines."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    fenced = [body for _, body in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)]
    for line in "\n".join(fenced).splitlines() + re.findall(r"^    (\S.*)$", text, re.MULTILINE):
        words = line.strip().removeprefix("PYTHONPATH=examples ").partition(" # ")[0].strip().translate(OPTIONAL)
        if words.startswith("anchoreval ") and "..." not in words:
            yield words


EVERY = [(page.name, line) for page in PRINTED if page.name != "commands.md" for line in commands(page)]


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_says_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "make pages writes it anew"


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_every_printed_command_is_one_that_the_command_line_takes(page: str, line: str) -> None:
    options = cli.parsed(shlex.split(line)[1:])
    assert options.command in line


def test_commands_are_found_on_every_page_that_has_them() -> None:
    pages = {page for page, _ in EVERY}
    assert {"README.md", "CONTRIBUTING.md", "engines.md", "training.md", "arms.md"} <= pages and len(EVERY) > 25


def test_the_quickstart_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text("utf-8").split("## Quickstart")[1].split("## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("anchoreval ")]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)[1:]
        small = [*words, "--limit", "1", "--backend", "fake"] if words[0] == "run" else words
        assert cli.main(small) == 0
    assert list(Path("runs").glob("*/*/board.html"))


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for page in PRINTED:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
