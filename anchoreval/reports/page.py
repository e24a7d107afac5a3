"""The kit of every page: one Jinja environment, one content policy, one palette, inlined styles and scripts.

A page is a template that extends `page.html`, its own style sheets and its own scripts. It works offline and executes
nothing of what it shows: all text is escaped, and the policy names the page's own style and script by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.errors import RunError
from anchoreval.reports.words import plain, tokens
from anchoreval.schema import Json

if TYPE_CHECKING:
    from jinja2 import Environment

KIT = Path(__file__).parent / "templates"
PALETTE, CURVES, PIECES = KIT / "palette.css", KIT / "curves.css", KIT / "pieces.js"
TITLES = tuple(f" · anchoreval {kind}</title>" for kind in ("board", "leaderboard"))  # of boards, also older ones
TABLES = ("run,kind,task,", "kind,model,")  # of their CSV files
NAME = 100  # characters of a name to show
_EARLY_BYTES = 8192  # hold a page's title and a table's first line


def render(
    template: Path, kind: str, title: str, styles: Sequence[str | Path] = (), scripts: Sequence[Path] = (), *,
    trusted: str = "", **values: Any,
) -> Iterator[str]:  # fmt: skip
    """Yield a page in pieces: `template` with the kit's styles, then `styles` (files or rules), and `scripts`.

    `trusted` names a Trusted Types policy that the page's script makes to add data files; other pages load nothing.
    """
    style = _joined([PALETTE, KIT / "page.css", *styles])
    script = f'"use strict";\n(() => {{\n{_joined(scripts)}}})();\n' if scripts else ""
    yield from _environment(template.parent).get_template(template.name).generate(
        kind=kind, title=title, style=style, script=script, policy=_policy(style, script, trusted), **values
    )  # fmt: skip


def _joined(parts: Sequence[str | Path]) -> str:
    return "\n".join(part.read_text("utf-8") if isinstance(part, Path) else part for part in parts)


@cache
def _environment(folder: Path) -> Environment:
    """Return a Jinja environment over a folder and the kit: all text is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, KIT]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"tokens": tokens, "plain": lambda value: plain(value, NAME)}
    return environment


def _policy(style: str, script: str, trusted: str) -> str:
    """Return the content policy: nothing but the page's own style and script, and what that script adds if trusted."""
    added = " 'strict-dynamic'" if trusted else ""
    rules = [
        "default-src 'none'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(script)}'{added}" if script else "",
        "base-uri 'none'; form-action 'none'",
        f"require-trusted-types-for 'script'; trusted-types {trusted}" if trusted else "",
    ]
    return "; ".join(filter(None, rules))


def _hash(text: str) -> str:
    """Return a content policy's name for an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def require_page(path: Path, *begins: str) -> None:
    """Raise RunError if `path` holds a file that we did not write: ours have one of `begins` in their first bytes."""
    if not path.exists() or path.is_symlink():  # a link is replaced, and never written through
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_EARLY_BYTES)
    if not path.is_file() or (start and not any(text.encode() in start for text in begins)):
        raise RunError(f"{path} was not written by anchoreval: move it away, or name another --output")


def data_block(value: Json) -> str:
    """Return JSON that can be in a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
