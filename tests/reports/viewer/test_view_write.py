"""What a viewer's files hold, that they repeat, and what stands after a writing that failed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from test_board import HOSTILE, make_run

from anchoreval.errors import RunError
from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS, to_line
from anchoreval.records.run import Run, load_run
from anchoreval.reports.viewer import write as viewer
from anchoreval.reports.viewer import write_view
from anchoreval.reports.viewer.prompts import to_json
from anchoreval.runs.rebuild import Remake

MODEL = Path(__file__).parents[3] / "models" / "anchor-tiny"
RESULTS = Path(__file__).parents[3] / "leaderboards" / "results" / "anchor-tiny"
CALL = re.compile(r"anchorevalData\('([0-9a-z]+)','(.*)'\);\n", re.DOTALL)


def stored(run: Any) -> Run:
    """The run on disk, read again."""
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / HEADER).write_text(json.dumps(run.header))
    (run.path / RECORDS).write_bytes(b"".join(map(to_line, run.records)))
    return load_run(run.path)


def committed(tmp_path: Path, name: str = "3ea75cb9ef6b0c93") -> Run:
    """A copy of a committed run; its prompts can be made again anywhere."""
    return load_run(Path(shutil.copytree(RESULTS / name, tmp_path / name)))


def texts(page: Path) -> dict[str, str]:
    """Name -> text of every data file, unquoted as a browser would."""
    (folder,) = (page.parent / "data").iterdir()
    found = {}
    for path in folder.iterdir():
        match = CALL.fullmatch(path.read_bytes().decode("ascii"))
        assert match and match[1] == path.stem
        found[match[1]] = re.sub(r"\\(.)", lambda one: {"n": "\n", "r": "\r"}.get(one[1], one[1]), match[2])
    return found


def index(page: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(texts(page)["index"])
    return read


def tree(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def reasons(page: Path) -> list[str]:
    listing = index(page)
    return [listing["reasons"][-1 - row[5]] if row[5] < 0 else "shown" for row in listing["rows"]]


def test_every_line_of_the_records_is_in_the_data_byte_for_byte_beside_its_number(tmp_path: Path) -> None:
    run = stored(make_run(tmp_path / "run", hostile=True))
    held = texts(write_view(run))
    lines = dict(line.split("\t", 1) for name, text in held.items() if name != "index" for line in text.split("\n"))
    raw = (run.path / RECORDS).read_text("ascii").splitlines()
    assert [lines[str(at)] for at in range(1, len(raw) + 1)] == raw


def test_a_row_has_the_scores_of_all_arms_and_says_which_outputs_are_equal(tmp_path: Path) -> None:
    run = stored(make_run(tmp_path / "run"))
    name = "ruler/vt@512#3"
    row = next(row for row in index(write_view(run))["rows"] if row[0] == name)
    place, (scores, logprobs, outputs) = row[:6], row[6:]
    assert place == [name, "ruler/vt", 512, 3, 0, -1]
    assert scores == [None, None, None] and logprobs == [-0.1, -0.1, -0.85]
    said = {one.arm: one.output for one in run.records if one.sample_id == name}
    texts_said = [said[arm] for arm in run.arms]
    assert [[a == b for a in outputs] for b in outputs] == [[a == b for a in texts_said] for b in texts_said]


def test_an_arm_without_a_record_is_not_an_arm_without_a_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    few = dataclasses.replace(run, records=tuple(one for one in run.records if one.arm != "fp32" or one.index))
    first = index(write_view(stored(few)))["rows"][0]
    assert first[6][1] == -1 and first[8][1] is None and first[6][0] in (0, 1)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = committed(tmp_path)
    first = tree(write_view(run, remake=Remake).parent)
    assert tree(write_view(run, remake=Remake).parent) == first
    assert tree(write_view(run, tmp_path / "other", remake=Remake).parent) == first


def test_prompts_are_stored_once_per_sample_and_have_the_recorded_hash(tmp_path: Path) -> None:
    run = committed(tmp_path)
    page = write_view(run, remake=Remake)
    held = texts(page)
    numbers = {row[5] for row in index(page)["rows"]}
    made = [json.loads(line) for number in numbers for line in held[f"{number:03}"].split("\n")]
    hashes = {record.sample_id: record.prompt_sha256 for record in run.records}
    found = {one["id"]: "".join(text for _, text in one["segments"]) for one in made}
    assert {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()} == hashes
    assert len(made) == 100 == len(run.records) / 2
    for one in made:  # the needle of niah_single_1 is a sentence of its own
        assert found[one["id"]][one["needles"][0] :].lstrip().startswith("One of the special magic numbers")


def test_where_the_arms_part_is_told_in_tokens(tmp_path: Path) -> None:
    run = committed(tmp_path)
    said = {"native": " 4694634.", "bf16-angle": " 4694699."}
    page = write_view(
        dataclasses.replace(
            run, records=tuple(dataclasses.replace(one, output=said[one.arm]) for one in run.records if one.index < 2)
        ),
        remake=Remake,
    )
    number = index(page)["rows"][0][5]
    one = json.loads(texts(page)[f"{number:03}"].split("\n")[0])
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    a, b = (tokenizer.encode(said[arm], add_special_tokens=False).tokens for arm in ("bf16-angle", "native"))
    at = next(at for at in range(len(a)) if a[at] != b[at])
    assert one["tokens"] == {"bf16-angle": [at, *(tokens[at].replace("Ġ", " ") for tokens in (a, b))]}


def test_a_prompt_with_another_hash_is_not_shown_and_the_reason_is(tmp_path: Path) -> None:
    run = committed(tmp_path)
    changed = [dataclasses.replace(one, prompt_sha256="0" * 64) if one.index == 7 else one for one in run.records]
    said = reasons(write_view(dataclasses.replace(run, records=tuple(changed)), remake=Remake))
    assert [text for text in said if text != "shown"] == [said[7]]
    assert "Not shown" in said[7] and "0000000000000000" in said[7]


def test_a_run_whose_prompts_cannot_be_made_again_says_why(tmp_path: Path) -> None:
    run = committed(tmp_path)
    header = json.loads(json.dumps(dict(run.header)))
    header["identity"]["tokenizer"] = header["tokenizer"]["sha256"] = "0" * 64
    said = set(reasons(write_view(dataclasses.replace(run, header=header), remake=Remake)))
    assert len(said) == 1 and "cannot be made again" in next(iter(said)) and "--tokenizer" in next(iter(said))


def test_without_prompts_the_page_says_how_to_get_them(tmp_path: Path) -> None:
    assert set(reasons(write_view(committed(tmp_path)))) == {
        "This page was written without prompts: anchoreval view RUN adds them."
    }


def test_a_budget_of_prompts_is_kept_and_disagreeing_samples_come_first(tmp_path: Path) -> None:
    run = committed(tmp_path)
    same = [dataclasses.replace(one, output="x", score=1.0) if one.index < 40 else one for one in run.records]
    said = reasons(write_view(dataclasses.replace(run, records=tuple(same)), megabytes=0, remake=Remake))
    assert all("--prompt-megabytes" in text for text in said)
    few = dataclasses.replace(run, records=tuple(dataclasses.replace(one, prompt_tokens=10_000) for one in same))
    said = reasons(write_view(few, megabytes=1, remake=Remake))
    assert [at for at, text in enumerate(said) if text == "shown"] == list(range(40, 60))


def test_a_run_that_is_being_written_can_be_viewed(tmp_path: Path) -> None:
    run = stored(make_run(tmp_path / "run"))
    with (run.path / RECORDS).open("ab") as file:
        file.write(b'{"key": "torn')
    (run.path / HEADER).write_text(json.dumps(dict(run.header)))
    page = write_view(load_run(run.path))
    assert len(index(page)["rows"]) * 3 == len(run.records)
    assert any("not finished" in note for note in index(page)["notes"])


def test_a_repeated_line_is_told_and_the_last_one_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    again = dataclasses.replace(run.records[0], key="0" * 64, score=0.25)
    listing = index(write_view(stored(dataclasses.replace(run, records=(*run.records, again)))))
    assert listing["rows"][0][6][0] == 0.25 and any(note.startswith("1 lines") for note in listing["notes"])


def test_masked_inference_is_called_an_extension(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    masked = [dataclasses.replace(one, arm="anchor/fp32") if one.arm == "fp32" else one for one in run.records]
    notes = index(write_view(stored(dataclasses.replace(run, records=tuple(masked)))))["notes"]
    assert any("extension" in note for note in notes)


def test_a_full_disk_leaves_the_old_viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = committed(tmp_path)
    page = write_view(run)
    before, count = tree(page.parent), [0]

    def full(folder: Path, pieces: Any) -> Path:
        count[0] += 1
        if count[0] == 2:
            raise RunError(f"cannot write {folder}: No space left on device")
        return write(folder, pieces)

    write = viewer.write_whole
    monkeypatch.setattr(viewer, "write_whole", full)
    with pytest.raises(RunError, match="No space left"):
        write_view(run, remake=Remake)
    assert tree(page.parent) == before


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.3])
def test_a_killed_writer_leaves_a_whole_viewer_and_the_next_one_clears_up(tmp_path: Path, delay: float) -> None:
    run = committed(tmp_path)
    page = write_view(run)
    old = page.read_bytes()
    code = (
        "import sys; from pathlib import Path; from anchoreval.records.run import load_run\n"
        "from anchoreval.reports.viewer import write_view; from anchoreval.runs.rebuild import Remake\n"
        "run = load_run(Path(sys.argv[1]))\n"
        "print(flush=True)\nwhile True: write_view(run, remake=Remake); write_view(run)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline()
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    (name,) = re.findall(r'data-files="data/([0-9a-f]{12})/"', page.read_text("utf-8"))
    listing = json.loads(
        CALL.fullmatch((page.parent / "data" / name / "index.js").read_text())[2].replace("\\\\", "\\")
    )  # type: ignore[index]
    held = {path.stem for path in (page.parent / "data" / name).iterdir()}
    assert {f"{row[4]:03}" for row in listing["rows"]} <= held
    write_view(run)
    assert page.read_bytes() == old and len(list((page.parent / "data").iterdir())) == 1


def test_hostile_text_stays_inside_a_string_literal(tmp_path: Path) -> None:
    for text in (*HOSTILE, "'; alert(1); '", "\\'; alert(1)//", "a\r\n\u2028b", '{"__proto__": 1}'):
        viewer.DataFiles(tmp_path).write("000", to_json(text))
        made = (tmp_path / "000.js").read_bytes().decode("utf-8")
        assert made.isascii() and made.count("\n") == 1
        body = CALL.fullmatch(made)
        assert body and not re.search(r"(?<!\\)(?:\\\\)*'", body[2])
