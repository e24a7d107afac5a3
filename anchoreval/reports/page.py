"""What every board page is made of: inlined scripts and styles, their names in a content policy, the templates."""

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
_EARLY_BYTES = 8192  # a page's title and a table's first line stand within them


def environment(folder: Path) -> Environment:
    """Jinja over the templates of a folder: everything is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def require_page(path: Path, begins: str) -> None:
    """Raise RunError where a file lies at `path` that we did not write: `begins` stands early in every one of ours."""
    if not path.exists() or path.is_symlink():  # a link is replaced, and never written through
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_EARLY_BYTES)
    if not path.is_file() or (start and begins.encode() not in start):
        raise RunError(f"{path} was not written by anchoreval: move it away, or name another --output")


def script(own: Path) -> str:
    """The pieces that all boards share and a page's own script, in one scope."""
    parts = [(TEMPLATES / "pieces.js").read_text("utf-8"), own.read_text("utf-8")]
    ready = 'document.documentElement.dataset.ready = "yes";'
    return '"use strict";\n(() => {\n' + "\n".join(parts) + ready + "\n})();\n"


def style(*own: Path) -> str:
    """The style that all boards share, the colour scales and what a page adds."""
    parts = [TEMPLATES / "board.css", *own]
    return "".join(part.read_text("utf-8") for part in parts) + colours.css()


def policy_hash(text: str) -> str:
    """A content policy's name for an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def data_block(value: Json) -> str:
    """JSON that can stand in a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
