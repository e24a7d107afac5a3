"""The viewer in headless Chromium, from a disk: it works, its links work, and no record executes anything."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browser import Tab
from test_board import ARMS, HOSTILE, make_run
from test_view_write import committed, stored

from anchoreval.reports.viewer import prompts, write_view
from anchoreval.reports.viewer.prompts import to_json
from anchoreval.runs.rebuild import Remake
from anchoreval.schema import Segment

pytestmark = pytest.mark.browser
Opener = Callable[..., AbstractContextManager[Tab]]
EVIL = (
    *HOSTILE,
    "</mark><svg onload=\"document.title='owned'\">",
    "\u05d0\u202eabc\u2066\u2028\u2029\x00",
    "']);alert(1)//",
)
FULL = "8e482709f10cc4ba"  # 13 tasks, four arms


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_view(committed(tmp_path_factory.mktemp("viewed"), FULL), remake=Remake)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A viewer in which ids, tasks, arms, references, outputs, reasons, facts and prompts are hostile."""
    run = make_run(tmp_path_factory.mktemp("hostile") / "run", hostile=True)
    evil = EVIL[1]
    records = [
        dataclasses.replace(
            one, sample_id=one.sample_id + evil, task=one.task + evil, arm=one.arm + evil, why=EVIL[2], output=text,
            references=(text, "needle"), facts={evil: text, "__proto__": {"x": EVIL[2]}, "constructor": 1},
        )
        for one, text in ((one, EVIL[at % len(EVIL)]) for at, one in enumerate(run.records))
    ]  # fmt: skip
    run = stored(dataclasses.replace(run, records=tuple(records)))
    with pytest.MonkeyPatch.context() as patch:
        name = "anchoreval.reports.viewer.write.remade_prompts"
        patch.setattr(name, lambda run, rows, *_: prompts.Prompts(_evil(rows), {}, evil))
        return write_view(run, remake=Remake)


def _evil(rows: Any) -> Any:
    for at, row in enumerate(rows):
        if at % 3:
            text = EVIL[at % len(EVIL)]
            segments = [Segment("document", text + "needle"), Segment("query", f"a needle {EVIL[3]}")]
            shown = {"segments": [[one.role, one.text] for one in segments], "needles": [0, 3], "tokens": {}}
            yield row.sample_id, to_json({"id": row.sample_id, **shown})


def ready(tab: Tab) -> Any:
    tab.page.wait_for_selector("html[data-ready]", timeout=10_000)
    return tab.page


def until(tab: Tab, true: str) -> None:
    """Waits for a JavaScript expression, asked from outside: the page's content policy allows no eval within."""
    end = time.monotonic() + 10
    while not tab.page.evaluate(true):
        assert time.monotonic() < end, true
        time.sleep(0.02)


def counted(tab: Tab, start: str) -> None:
    until(tab, f"document.querySelector('#count').textContent.startsWith({json.dumps(start)})")


def shown(tab: Tab, sample_id: str) -> None:
    until(tab, f"document.querySelector('#body').dataset.sample === {json.dumps(sample_id)}")


def test_list_filter_sample_next_and_back(open_page: Opener, page: Path) -> None:
    with open_page(page) as tab:
        at = ready(tab)
        assert at.inner_text("#count") == "260 of 260 samples"
        at.select_option("#task", "ruler/qa_1")
        counted(tab, "20 of")
        at.check("#differ")
        until(tab, "location.hash.includes('differ=1')")
        rows = at.locator("#samples tbody a")
        ids = [rows.nth(i).get_attribute("aria-label") for i in range(2)]
        rows.nth(0).click()
        shown(tab, ids[0])
        assert at.inner_text("#name") == ids[0] and "1 of" in at.inner_text("#place")
        at.click("#next")
        shown(tab, ids[1])
        at.go_back()
        shown(tab, ids[0])
        at.go_back()
        at.wait_for_selector("#list:not([hidden])")
        assert at.is_checked("#differ") and at.input_value("#task") == "ruler/qa_1"
        assert not tab.problems


def test_a_sample_shows_the_prompt_the_outputs_and_the_line_on_disk(open_page: Opener, page: Path) -> None:
    name = "ruler/qa_1@2048#3"
    lines = (page.parents[1] / "records.jsonl").read_text("ascii").splitlines()
    asked = [(at, json.loads(line)) for at, line in enumerate(lines, 1) if f'"{name}"' in line]
    with open_page(page, fragment=f"#sample={quote(name, safe='')}") as tab:
        ready(tab)
        shown(tab, name)
        at = tab.page
        assert at.locator(".segment.document").count() == asked[0][1]["facts"]["documents"]
        assert at.locator("mark.needle").count() == 1 and at.locator("#text mark.reference").count() >= 1
        assert at.locator("#text mark.reference").all_text_contents()[0] == asked[0][1]["references"][0]
        assert at.locator("#raw pre").all_text_contents() == [lines[number - 1] for number, _ in asked]
        assert f"line {asked[0][0]} of" in at.locator("#raw h4").first.inner_text()
        assert at.locator(".card h4").count() == 4 and "token 1 of the text" in at.inner_text("#answers")
        drawn = at.eval_on_selector_all("#text .text", "all => all.map((one) => one.textContent).join('')")
        assert len(drawn) == int(
            re.sub(r".*?([\d,]+) characters.*", r"\1", at.inner_text("#prompt .note")).replace(",", "")
        )
        assert not tab.problems


def test_a_sample_of_two_steps_shows_what_was_said_first(open_page: Opener, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    said = {"reasoning": f"First, {EVIL[0]}", "reasoning_tokens": 3, "reasoning_finish": "length"}
    empty, odd = {**said, "reasoning": ""}, {"reasoning": EVIL[2]}
    facts = dict(zip(ARMS, (said, empty, odd), strict=False))
    records = tuple(dataclasses.replace(one, facts={**one.facts, **facts.get(one.arm, {})}) for one in run.records)
    page = write_view(stored(dataclasses.replace(run, records=records)))
    name = records[0].sample_id
    with open_page(page, fragment=f"#sample={quote(name, safe='')}") as tab:
        ready(tab)
        shown(tab, name)
        first = tab.page.locator(".card").first
        assert first.locator("pre").all_text_contents()[0] == said["reasoning"]
        assert "first step: 3 tokens, ended by length; the answer below is to the second prompt" in first.inner_text()
        assert tab.page.locator("pre.first-step").all_text_contents()[1] == "(empty)"
        assert tab.page.locator("pre.first-step").count() == 2
        assert said["reasoning"] not in tab.page.inner_text("#facts")
        assert not tab.problems


def test_each_line_of_a_haystack_of_lines_is_a_document_of_its_own_colour(open_page: Opener, page: Path) -> None:
    name = "ruler/niah_multikey_2@2048#1"
    with open_page(page, fragment=f"#sample={quote(name, safe='')}") as tab:
        ready(tab)
        shown(tab, name)
        lines = tab.page.locator(".segment.document .text").all_text_contents()
        assert len(lines) > 20 and all(line.startswith(("One of", "\u25b8needle", "needle")) for line in lines[:-1])
        assert tab.page.locator(".segment.d1").count() == -(-len(lines) // 4)
        assert f"{len(lines)} documents" in tab.page.inner_text("#prompt .note") and not tab.problems


def test_links_open_the_list_as_they_say(open_page: Opener, page: Path) -> None:
    where = "#task=ruler%2Fvt&length=2048&arm=bf16-angle&differ=1"
    with open_page(page, fragment=where) as tab:
        at = ready(tab)
        assert (at.input_value("#task"), at.input_value("#length"), at.input_value("#arm")) == (
            "ruler/vt",
            "2048",
            "bf16-angle",
        )
        assert at.is_checked("#differ") and at.inner_text("#count").endswith("of 260 samples")
        assert at.locator("#samples thead th.score").all_inner_texts() == ["bf16-angle"]
        at.evaluate("location.hash = 'sample=nothing'")
        at.wait_for_selector("#problem:not([hidden])")
        assert "no sample nothing" in at.inner_text("#problem")


def test_the_keyboard_is_enough(open_page: Opener, page: Path) -> None:
    with open_page(page) as tab:
        at = ready(tab)
        for key in ("j", "j", "ArrowDown", "k"):
            at.keyboard.press(key)
        assert at.evaluate("document.activeElement.getAttribute('aria-label')") == "ruler/niah_single_1@2048#1"
        assert at.evaluate("document.activeElement.matches(':focus-visible')")
        at.keyboard.press("Enter")
        shown(tab, "ruler/niah_single_1@2048#1")
        at.keyboard.press("j")
        shown(tab, "ruler/niah_single_1@2048#2")
        at.keyboard.press("n")
        assert at.evaluate("document.activeElement.tagName") == "MARK"
        at.keyboard.press("Escape")
        at.wait_for_selector("#list:not([hidden])")
        assert at.evaluate("document.activeElement.getAttribute('aria-label')") == "ruler/niah_single_1@2048#2"
        at.keyboard.press("End")
        assert at.evaluate("document.activeElement.getAttribute('aria-label')") == "ruler/qa_2@2048#19"
        at.keyboard.press("/")
        at.keyboard.type("multikey_2")
        counted(tab, "20 of")


def test_outputs_are_searched_once_they_are_loaded(open_page: Opener, page: Path) -> None:
    with open_page(page) as tab:
        at = ready(tab)
        at.fill("#search", "violin")
        counted(tab, "0 of")
        assert "in the files that are loaded" in at.inner_text("#count")
        at.click("#load")
        until(tab, "!document.querySelector('#count').textContent.startsWith('0 of')")
        assert at.is_hidden("#load")


@pytest.mark.parametrize("policy", [True, False])
def test_hostile_records_execute_nothing_and_break_nothing(
    open_page: Opener, hostile: Path, tmp_path: Path, policy: bool
) -> None:
    """With the content policy and, so that the page's own care stands alone, without it."""
    text = hostile.read_text("utf-8")
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bare != text
    other = hostile.with_name("bare.html")
    other.write_text(bare, "utf-8")
    with open_page(hostile if policy else other, size="narrow") as tab:
        dialogs: list[str] = []
        tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        at = ready(tab)
        title, seen = at.title(), 0
        for _ in range(14):
            at.keyboard.press("j")
            at.keyboard.press("Enter")
            at.wait_for_selector("#body[data-sample] #raw pre")
            seen += at.locator("#raw pre").count()
            assert not tab.overflows
            at.keyboard.press("Escape")
            at.wait_for_selector("#list:not([hidden])")
        assert at.title() == title and "owned" not in title.split("·")[-1] and not dialogs and not tab.problems
        assert at.locator("body img, body svg, body iframe").count() == 0
        assert at.evaluate("document.scripts.length") == 1 and seen == 14 * 3


def test_marks_that_reorder_text_are_spelled_out(open_page: Opener, hostile: Path) -> None:
    with open_page(hostile) as tab:
        at, text = ready(tab), ""
        for _ in range(len(EVIL)):
            at.keyboard.press("j")
            at.keyboard.press("Enter")
            at.wait_for_selector("#body[data-sample] #raw pre")
            text += at.inner_text("#sample")
            at.keyboard.press("Escape")
            at.wait_for_selector("#list:not([hidden])")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00\ud800-\udfff]", text)
    assert all(mark in text for mark in ("⟨U+202E⟩", "⟨U+0000⟩", "⟨U+D800⟩", "⟨U+2028⟩"))


def test_the_content_policy_stops_every_other_script(open_page: Opener, page: Path) -> None:
    evil = page.with_name("evil.js")
    evil.write_text("document.title = 'owned'")
    bad = page.with_name("bad.html")
    added = "<script>document.title='owned'</script><script src=evil.js></script>"
    added += "<img src=x onerror=\"document.title='owned'\">"
    bad.write_text(page.read_text("utf-8").replace("</body>", added + "</body>"), "utf-8")
    with open_page(bad) as tab:
        at = ready(tab)
        caught = at.evaluate("""() => { const node = document.createElement('script');
            try { node.src = 'evil.js'; } catch (error) { return error.name; } return ''; }""")
        assert caught == "TypeError" and "owned" not in at.title()
        assert sum("Content Security Policy" in problem for problem in tab.problems) >= 3


def test_a_data_file_that_is_gone_is_named(open_page: Opener, tmp_path: Path) -> None:
    page = write_view(committed(tmp_path))
    next(page.parent.glob("data/*/000.js")).unlink()
    with open_page(page) as tab:
        at = ready(tab)
        at.keyboard.press("Enter")
        at.wait_for_selector("#problem:not([hidden])")
        assert "000.js is not there" in at.inner_text("#problem")


@pytest.mark.parametrize("size", ["desktop", "phone", "narrow"])
def test_axe_finds_nothing_serious(open_page: Opener, page: Path, size: str) -> None:
    with open_page(page, size=size) as tab:
        at = ready(tab)
        assert tab.axe_in_both_themes() == [] and not tab.overflows
        at.evaluate("location.hash = 'sample=ruler%2Fniah_multivalue%402048%230'")
        shown(tab, "ruler/niah_multivalue@2048#0")
        assert tab.axe_in_both_themes() == [] and not tab.overflows and not tab.problems


def test_ten_thousand_samples_stay_fluid(open_page: Opener, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", samples=1)
    one, other = run.records[0], run.records[1]
    records = [
        dataclasses.replace(
            arm, key=f"{arm.key}{at}", sample_id=f"ruler/vt@512#{at}", index=at, output=f" {at * (1 + at % 2)}"
        )
        for at in range(10_000)
        for arm in (one, other)
    ]
    page = write_view(stored(dataclasses.replace(run, records=tuple(records))))
    with open_page(page) as tab:
        at = ready(tab)
        assert at.locator("#samples tbody tr").count() < 100
        paint = at.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        at.fill("#search", "#99")
        counted(tab, "111 of")
        taken = float(at.evaluate("document.documentElement.dataset.filterMs"))
        assert paint < 3000 and taken < 500, (paint, taken)  # measured: 0.1 s and 0.01 s; room for a busy machine
