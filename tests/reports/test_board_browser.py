"""The HTML board in headless Chromium: hostile records execute nothing, and the controls work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_board import ARMS, LENGTHS, TASKS, make_run

from anchoreval.records.run import load_run
from anchoreval.reports.board import write_board

pytestmark = pytest.mark.browser

DRIVER = """<script>
addEventListener("load", () => {
  const all = (s) => [...document.querySelectorAll(s)];
  const out = { title: document.title, images: all("img").length, scripts: all("script").length };
  const visible = () => all(".against").filter((one) => !one.hidden);
  const shown = () => visible().flatMap((one) => one.querySelector("h3")?.textContent ?? []);
  out.before = shown();
  const select = document.querySelector("#map-base");
  select.value = "2"; select.dispatchEvent(new Event("change"));
  out.after = shown();
  const table = all("table.sortable")[1], button = table.querySelectorAll("thead button")[3];
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[3].textContent.replace("*", ""));
  button.click(); out.down = column(); button.click(); out.up = column();
  const cell = document.querySelector("#gaps .heat td a");
  cell.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  const tip = document.querySelector("#tip");
  out.tip = !tip.hidden && tip.textContent === cell.getAttribute("aria-label");
  cell.focus();
  cell.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
  out.moved = document.activeElement === cell.parentElement.nextElementSibling.firstElementChild;
  cell.click();
  const dialog = document.querySelector("#detail");
  out.open = dialog.open; out.samples = dialog.querySelectorAll(".sample").length;
  out.wide = document.documentElement.scrollWidth > innerWidth + 1;
  const pre = document.createElement("pre"); pre.id = "result"; pre.textContent = JSON.stringify(out);
  setTimeout(() => {
    out.title = document.title;
    pre.textContent = JSON.stringify(out);
    document.body.append(pre);
  }, 50);
});
</script></body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("CHROMIUM ABSENT: no board was opened in a browser (apt-get install chromium fonts-dejavu-core)")


def dumped(chromium: str, page: Path, profile: Path, fragment: str = "") -> str:
    """The page's DOM after its scripts have run, at a phone's width."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=500,900", "--virtual-time-budget=3000", f"--user-data-dir={profile}", "--dump-dom",
        page.as_uri() + fragment,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def driven(chromium: str, page: Path, tmp_path: Path) -> dict[str, Any]:
    """What the driver saw on the page with its content policy taken away, so that escaping stands alone."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    assert "Content-Security-Policy" not in text
    (tmp_path / "driven.html").write_text(text.replace("</body>", DRIVER), "utf-8")
    dom = dumped(chromium, tmp_path / "driven.html", tmp_path / "profile")
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def test_hostile_records_execute_nothing_and_the_controls_work(chromium: str, tmp_path: Path) -> None:
    _, page = write_board([make_run(tmp_path / "run", hostile=True)], tmp_path)
    seen = driven(chromium, page, tmp_path)
    assert seen["title"].endswith("· anchoreval board")  # a script that ran would have left just "owned"
    assert (seen["images"], seen["scripts"]) == (0, 4)  # two data blocks, the page's own and the driver
    assert seen["before"] == ["fp32 minus native"]
    assert seen["after"] == ["native minus bf16-angle"]
    assert [float(x) for x in seen["up"] if x != "–"] == sorted(float(x) for x in seen["up"] if x != "–")
    assert [float(x) for x in seen["down"]] == sorted(map(float, seen["down"]), reverse=True)
    assert len(seen["up"]) == (len(TASKS) * len(LENGTHS) - 1) * len(ARMS)
    assert seen["tip"] and seen["moved"] and seen["open"] and not seen["wide"]
    assert seen["samples"] == 4


def test_the_content_policy_lets_the_pages_own_script_and_style_run(chromium: str, tmp_path: Path) -> None:
    _, page = write_board([make_run(tmp_path / "run")], tmp_path)
    dom = dumped(chromium, page, tmp_path / "profile", "#e0-0-2048")
    assert 'data-ready="yes"' in dom
    assert re.search(r'<dialog id="detail"[^>]* open=""', dom)


def test_the_content_policy_stops_a_script_that_is_not_the_pages_own(chromium: str, tmp_path: Path) -> None:
    _, page = write_board([make_run(tmp_path / "run")], tmp_path)
    text = page.read_text("utf-8").replace("</body>", "<script>document.title = 'owned'</script></body>")
    page.write_text(text, "utf-8")
    assert "<title>tiny · anchoreval board</title>" in dumped(chromium, page, tmp_path / "profile")


def test_colour_follows_the_verdict(chromium: str, tmp_path: Path) -> None:
    run = load_run(Path(__file__).parents[2] / "leaderboards" / "results" / "anchor-tiny" / "31bf25797b7ffa79")
    _, page = write_board([run], tmp_path / "board")
    dom = dumped(chromium, page, tmp_path / "profile")
    cells = re.findall(r'<td class="([^"]*)"[^>]*><a[^>]*aria-label="[^"]* minus [^:"]*: ([^"]*)"', dom)
    found = {(style.split()[0].rstrip("12345"), re.split(r", | \(", words)[0]) for style, words in cells}
    assert found == {("n", "worse"), ("h0", "cannot tell"), ("h0", "floor 0 here"), ("z0", "identical")}
