"""The parts of every board page: inlined scripts and styles, their hashes for a content policy, the templates."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.errors import RunError
from anchoreval.reports import colours
from anchoreval.schema import Json

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "board" / "templates"
_EARLY_BYTES = 8192  # hold a page's title and a table's first line


def environment(folder: Path) -> Environment:
    """Return a Jinja environment over the templates of a folder: all text is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def require_page(path: Path, begins: str) -> None:
    """Raise RunError if `path` holds a file that we did not write: all of ours have `begins` in their first bytes."""
    if not path.exists() or path.is_symlink():  # a link is replaced, and never written through
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_EARLY_BYTES)
    if not path.is_file() or (start and begins.encode() not in start):
        raise RunError(f"{path} was not written by anchoreval: move it away, or name another --output")


def script(own: Path) -> str:
    """Return the script pieces that all boards share, and a page's own script, in one scope."""
    parts = [(TEMPLATES / "pieces.js").read_text("utf-8"), own.read_text("utf-8")]
    ready = 'document.documentElement.dataset.ready = "yes";'
    return '"use strict";\n(() => {\n' + "\n".join(parts) + ready + "\n})();\n"


def style(*own: Path) -> str:
    """Return the style that all boards share, the colour scales, and the page's own style sheets."""
    parts = [TEMPLATES / "board.css", *own]
    return "".join(part.read_text("utf-8") for part in parts) + colours.css()


def policy_hash(text: str) -> str:
    """Return a content policy's name for an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def data_block(value: Json) -> str:
    """Return JSON that can be in a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
