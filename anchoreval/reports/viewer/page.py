"""index.html of a viewer: markup, style and script in one file; the samples are in data files beside it.

The content policy allows the page's own script by its hash, and scripts that this script adds. A Trusted Types policy,
in browsers that have them, lets it add data files only. The page uses no network, no frame and no form.
"""

from __future__ import annotations

from pathlib import Path

from anchoreval.reports.page import environment, policy_hash

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("text.js", "list.js", "sample.js", "main.js")


def page(title: str, data: str, records: str, prompts: int) -> str:
    """Return the page as text; `data` is the folder of the data files, relative to the page, with `/` at its end.

    `records` marks the records that were read (`mark_of`), and `prompts` counts the prompts that are stored.
    """
    style = (TEMPLATES / "view.css").read_text("utf-8")
    script = "\n".join((TEMPLATES / name).read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    return environment(TEMPLATES).get_template("view.html").render(
        title=title, data=data, records=records, prompts=prompts, style=style, script=script,
        style_hash=policy_hash(style), script_hash=policy_hash(script),
    )  # fmt: skip
