"""Viewers over HTTP on 127.0.0.1: read only, and only the files that a viewer consists of.

A request names a viewer and a file by patterns that allow no dots except in known names, so that no path can be
traversed. Another site's page cannot read the files: foreign host names (DNS rebinding) and cross-site requests are
refused.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from anchoreval.errors import RunError

ADDRESS = "127.0.0.1"
FILE = re.compile(r"index\.html|data/[0-9a-f]{12}/(?:index|[0-9]+)\.js", re.ASCII)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of `/`, `/<viewer>/` and the files in it."""

    server: ViewServer
    server_version, sys_version = "anchoreval", ""

    def do_GET(self) -> None:
        """Send the file, or why it is refused."""
        status, kind, body = self._answer()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if status is HTTPStatus.FOUND:
            self.send_header("Location", urlsplit(self.path).path + "/")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks up

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because a page asks for many files."""

    def _answer(self) -> tuple[HTTPStatus, str, bytes]:
        text = "text/plain; charset=utf-8"
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            return HTTPStatus.FORBIDDEN, text, b"only for this machine\n"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return HTTPStatus.FORBIDDEN, text, b"not from another site\n"
        path = urlsplit(self.path).path
        if path == "/":
            names = map(html.escape, self.server.viewers)
            items = "".join(f'<li><a href="{name}/">{name}</a>' for name in names)
            head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>anchoreval samples</title>'
            return HTTPStatus.OK, TYPES[".html"], f"{head}<ul>{items}</ul></html>".encode()
        name, slash, rest = path[1:].partition("/")
        if name in self.server.viewers and not slash:
            return HTTPStatus.FOUND, text, b""
        rest = rest or "index.html"
        if name in self.server.viewers and FILE.fullmatch(rest):
            folder = self.server.viewers[name].resolve()
            try:
                if (folder / rest).resolve() == folder / rest and (folder / rest).is_file():  # no link, no pipe
                    return HTTPStatus.OK, TYPES[Path(rest).suffix], (folder / rest).read_bytes()
            except (OSError, RuntimeError):
                pass
        return HTTPStatus.NOT_FOUND, text, b"no such file\n"


class ViewServer(ThreadingHTTPServer):
    """A server bound to 127.0.0.1; `viewers` are folders by the name in their address."""

    daemon_threads = True

    def __init__(self, viewers: Mapping[str, Path], port: int) -> None:
        self.viewers = viewers
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        """Return the address of the only viewer, or of the list of them."""
        only = f"{next(iter(self.viewers))}/" if len(self.viewers) == 1 else ""
        return f"http://{ADDRESS}:{self.server_address[1]}/{only}"


def serve(viewers: Mapping[str, Path], port: int, say: Callable[[str], None]) -> None:
    """Say the address and answer until Ctrl-C; port 0 takes any free port.

    Raise RunError if the port is not available.
    """
    try:
        server = ViewServer(viewers, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"--serve {port}: {reason}: name another port, or none for a free one") from error
    with server:
        try:
            say(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            return
