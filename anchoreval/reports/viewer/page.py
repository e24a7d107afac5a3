"""index.html of a viewer: markup, style and script in one file; what it shows lies in data files beside it.

The content policy knows the page's own script by its hash; only scripts that this one adds may run besides, and it may
only add data files (a Trusted Types policy, where the browser has them). No network, no frame, no form.
"""

from __future__ import annotations

from pathlib import Path

from anchoreval.reports.page import environment, policy_hash

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("text.js", "list.js", "sample.js", "main.js")


def page(title: str, data: str, records: str, prompts: int) -> str:
    """The page as text; `data` is the folder of the data files, relative to the page, with `/` at its end.

    `records` marks what was read (`mark_of`) and `prompts` counts the prompts that are stored.
    """
    style = (TEMPLATES / "view.css").read_text("utf-8")
    script = "\n".join((TEMPLATES / name).read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    return environment(TEMPLATES).get_template("view.html").render(
        title=title, data=data, records=records, prompts=prompts, style=style, script=script,
        style_hash=policy_hash(style), script_hash=policy_hash(script),
    )  # fmt: skip
