"""probe.html in headless Chromium: everything fits at a desktop's and a phone's width, and its style is let in."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_probe_report import checkpoint, study  # noqa: F401 - fixtures

from anchoreval.diagnostics.probe import Study, write_probe

pytestmark = pytest.mark.browser

DRIVER = """<script>
addEventListener("load", () => {
  const all = (s) => [...document.querySelectorAll(s)], box = (one) => one.getBoundingClientRect();
  const out = {
    wide: document.documentElement.scrollWidth > innerWidth + 1,
    columns: new Set(all("section:first-of-type figure").map((one) => Math.round(box(one).left))).size,
    spilt: all("figure svg").filter((one) => box(one).right > box(one.parentElement).right + 1).length,
    charts: all("figure svg").length, curves: all("figure .curve").length,
    styled: getComputedStyle(document.querySelector("figure")).borderTopWidth,
  };
  const pre = document.createElement("pre");
  pre.id = "result"; pre.textContent = JSON.stringify(out);
  document.body.append(pre);
});
</script></body>"""


@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (500, 1)], ids=["desktop", "phone"])
def test_the_page_fits_and_is_styled(study: Study, tmp_path: Path, width: int, columns: int) -> None:  # noqa: F811
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("CHROMIUM ABSENT: no page was opened in a browser (apt-get install chromium fonts-dejavu-core)")
    page = write_probe(study, tmp_path)[1]
    text = page.read_text("utf-8")
    page.write_text(text.replace("default-src 'none';", "script-src 'unsafe-inline';").replace("</body>", DRIVER))
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--window-size={width},900", "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert not seen["wide"] and not seen["spilt"] and seen["columns"] == columns
    assert seen["charts"] == 15 and seen["curves"] > 15 and seen["styled"] == "1px"


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_axe_finds_nothing_serious(open_page: Callable[..., Any], study: Study, tmp_path: Path, size: str) -> None:  # noqa: F811
    with open_page(write_probe(study, tmp_path)[1], size=size) as tab:
        assert tab.axe_in_both_themes() == [] and not tab.overflows and not tab.problems
