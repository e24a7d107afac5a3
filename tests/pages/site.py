"""Hooks of mkdocs: the README is the first page, and what pages of docs/ link to outside it is copied beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
#: Links as the repository has them -> as the site has them.
LINKS = {
    "](../docs/": "](../",
    "](../README.md": "](index.md",
    "](docs/)": "](index.md)",
    "](docs/": "](",
    "](../": "](",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the first page, and the pictures and pages that other pages link to."""
    made = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in made:
        for link in re.findall(r"\]\(([^)#\s:]+\.(?:svg|cff|md))", path.read_text("utf-8")):
            target = (path.parent / link).resolve()
            name = target.relative_to(ROOT).as_posix()
            if (
                name != "README.md"
                and not target.is_relative_to(ROOT / "docs")
                and files.get_file_from_path(name) is None
            ):
                files.append(File.generated(config, name, content=target.read_bytes()))
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page with links as the site has them."""
    below = "/" in page.file.src_path
    for link, there in LINKS.items():
        if not below or link == "](../docs/":
            markdown = markdown.replace(link, there)
    return markdown
