"""`anchoreval data` of the general benchmarks: fetched from a hub that is played here, and what `check` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from general_files import TASKS, write_folder

from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.suites.general.rows import HUB

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no general data was fetched")

CARDS = [task for task in load_tasks()[0].values() if task.suite == "general"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of a hub that has small rows of every data set; the user's cache is an empty folder."""
    import datasets

    folder = write_folder(tmp_path / "hub")
    asked: list[tuple[str, str | None]] = []
    names = {HUB[task.args["folder"]].dataset: task.name for task in CARDS if task.name in TASKS}

    def load(path: str, name: str | None = None, **kwargs: Any) -> Any:
        asked.append((path, kwargs.get("revision")))
        files = sorted((folder / "general" / names[path]).glob("*.jsonl"))
        made = {one.stem: [json.loads(line) for line in one.read_text().splitlines()] for one in files}
        for split in ("train", "dev"):
            made.setdefault(split, next(iter(made.values())))
        return datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in made.items()})

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


def test_fetch_writes_every_split_that_a_run_reads_once_and_at_the_pinned_revision(
    tmp_path: Path, hub: list[tuple[str, str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "data"
    assert main(["data", "fetch", "general", "--data-dir", str(place)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert len(hub) == len(CARDS) == 93
    assert set(hub) == {(one.dataset, one.revision) for one in HUB.values()}
    assert all(Path(line).is_file() for line in written)
    assert str(place / "general" / "mmlu_virology" / "dev.jsonl") in written
    assert str(place / "general" / "piqa" / "train.jsonl") not in written
    assert main(["data", "fetch", "general", "--data-dir", str(place)]) == 0
    assert len(hub) == 93 and capsys.readouterr().out.splitlines() == written
    given = ["--backend", "fake", "--tasks", "general", "--limit", "2", "--data-dir", str(place)]
    assert main(["run", "--model", "anchor-tiny", *given, "--output", str(tmp_path / "runs")]) == 0
    assert len(hub) == 93, "a run takes what lies in the folder"
    assert "hellaswag" in capsys.readouterr().out
    (header,) = (tmp_path / "runs").rglob("header.json")
    (row,) = [one for name, one in json.loads(header.read_text())["source_files"].items() if "gsm8k/test" in name]
    assert (row["revision"], row["published"]) == (HUB["gsm8k"].revision, True)


def test_what_was_fetched_is_known_by_its_revision_until_it_is_changed(
    tmp_path: Path, hub: list[tuple[str, str | None]], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("anchoreval.suites.general.rows._tasks", lambda: [CARDS[0]])
    place = tmp_path / "data"
    assert main(["data", "fetch", "general", "--data-dir", str(place)]) == 0
    name, pin = CARDS[0].name, HUB[CARDS[0].args["folder"]]
    path = place / "general" / name / f"{pin.asked}.jsonl"

    def said() -> str:
        capsys.readouterr()
        main(["data", "check", "--data-dir", str(place)])
        rows = capsys.readouterr().out.splitlines()
        return " ".join(next(row for row in rows if f"general/{name}/{pin.asked}.jsonl" in row).split()[2:])

    assert said() == f"published revision {pin.revision[:7]} {path}"
    whole = path.read_text()
    path.write_text(whole.replace("man", "cat", 1))
    assert said().startswith("differs") and "move it away, then fetch again" in said()
    path.write_text(whole[:-20])
    assert said().startswith("differs") and "not JSON" in said()


def test_a_hub_that_is_out_of_reach_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", dead)
    assert main(["data", "fetch", "general", "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.strip().splitlines()[-1] == (
        "anchoreval: general/hellaswag: Rowan/hellaswag cannot be had from the hub (ConnectionError: no route)"
    )


def test_check_counts_rows_and_names_the_data_sets_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "general"
    for task, split, count in (("mmlu_virology", "test", 166), ("mmlu_anatomy", "test", 134), ("piqa", "train", 3)):
        (place / task).mkdir(parents=True)
        (place / task / f"{split}.jsonl").write_text("{}\n" * count)
    assert main(["data", "check", "--data-dir", str(tmp_path)]) == 1
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines() if line.startswith("general")]
    said = {line[1]: (line[2], line[3]) for line in lines}
    assert said["general/mmlu_virology/test.jsonl"] == ("unpinned", f"166 rows {place}/mmlu_virology/test.jsonl")
    assert said["general/mmlu_virology/dev.jsonl"] == ("missing", str(place / "mmlu_virology" / "dev.jsonl"))
    state, what = said["general/mmlu_anatomy/test.jsonl"]
    assert state == "differs" and what.startswith("134 rows") and what.endswith("published: 135 rows")
    assert said["general/piqa/validation.jsonl"][0] == "missing" and "general/piqa/train.jsonl" not in said
    assert said["cais/mmlu"] == ("missing", "revision c30699e, 55 tasks: a run takes the rows from the hub")
    assert said["Rowan/hellaswag"][1].startswith("revision 218ec52, 1 task: ")
