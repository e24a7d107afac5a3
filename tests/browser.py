"""Pages in a real browser: headless Chromium at desktop and phone size, and axe-core's findings on a page.

Needs a Chromium on the machine and the packages playwright and axe-playwright-python (axe.min.js comes with
the latter); playwright's own browsers are never downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = {"desktop": (1400, 900), "phone": (390, 844), "narrow": (360, 740)}
GRAVE = {"serious", "critical"}
ARGUMENTS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run")


@dataclass
class Tab:
    """An open page; `problems` collects uncaught errors, console errors and requests that leave the disk."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def axe(self, grave: bool = True) -> list[str]:
        """axe-core's violations as `impact rule: what (n nodes, the first)`; only serious and critical if `grave`."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['impact']} {one['id']}: {one['help']} ({len(one['nodes'])}: {one['nodes'][0]['html'][:200]})"
            for one in found
            if not grave or one["impact"] in GRAVE
        ]

    def axe_in_both_themes(self) -> list[str]:
        """Serious and critical violations of the page in light and in dark."""
        found = []
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            found += [f"{scheme}: {one}" for one in self.axe()]
        return found

    @property
    def overflows(self) -> bool:
        """Whether the page scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"))


def find_chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def launched(chromium: str) -> Iterator[Any]:
    """A playwright browser over the Chromium of this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS), chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, path: Path, size: str = "desktop", scheme: str = "light", fragment: str = "", scripts: bool = True
) -> Iterator[Tab]:
    """A file opened as a page of its own; `scripts=False` reads it as a browser without JavaScript does."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts,
        is_mobile=size != "desktop", has_touch=size != "desktop",
    )  # fmt: skip
    try:
        tab = Tab(context.new_page())
        tab.page.on("pageerror", lambda error: tab.problems.append(f"error: {error}"))
        tab.page.on("console", lambda said: said.type == "error" and tab.problems.append(f"console: {said.text}"))
        tab.page.on("request", lambda asked: _leaves(asked.url) and tab.problems.append(f"request: {asked.url}"))
        tab.page.goto(path.resolve().as_uri() + fragment)
        yield tab
    finally:
        context.close()


def _leaves(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))
