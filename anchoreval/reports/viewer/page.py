"""index.html of a viewer: markup, style and script in one file; the samples are in data files beside it.

The content policy allows the page's own script by its hash, and scripts that this script adds. A Trusted Types policy,
in browsers that have them, lets it add data files only. The page uses no network, no frame and no form.
"""

from __future__ import annotations

from pathlib import Path

from anchoreval.reports.page import render

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("text.js", "list.js", "sample.js", "main.js")


def page(title: str, data: str, records: str, prompts: int) -> str:
    """Return the page as text; `data` is the folder of the data files, relative to the page, with `/` at its end.

    `records` marks the records that were read (`mark_of`), and `prompts` counts the prompts that are stored.
    """
    parts = render(
        TEMPLATES / "view.html", "samples", title, [TEMPLATES / "view.css"], [TEMPLATES / name for name in SCRIPTS],
        trusted="anchoreval-data", data=data, records=records, prompts=prompts,
    )  # fmt: skip
    return "".join(parts)
