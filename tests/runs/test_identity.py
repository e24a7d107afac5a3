"""What a run is follows from all that decides an answer, and from nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from anchoreval import cards, evaluate
from anchoreval.backends import open_backend
from anchoreval.backends.fake import FakeBackend
from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.errors import ModelError
from anchoreval.records.header import HEADER
from anchoreval.records.run import Run
from anchoreval.runs import rebuild as remake
from anchoreval.runs.identity import changed_files, environment_of
from anchoreval.runs.verify.records import findings

TINY = Path(__file__).parents[2] / "models" / "anchor-tiny"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|pad|>' + m['role'] + '\\n' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|pad|>assistant\\n' }}{% endif %}"
)
DESCRIBE = FakeBackend.describe


@pytest.fixture(scope="module", autouse=True)
def _cards_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_once = cache(load_tasks)
        for module in (cards, remake):
            patch.setattr(module, "load_tasks", read_once)
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(TINY, tmp_path / "m"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def as_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the fake backend say that it loads a checkpoint, so that the files of a loader count."""
    monkeypatch.setattr(FakeBackend, "describe", lambda self: DESCRIBE(self) | {"engine": "hf", "eos_token_ids": [1]})


def run(model: Path, told: list[str] | None = None, tasks: str = "ruler/vt", **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "limit": 1, "backend": "fake", "haystack": "generated"} | changes
    tell = (told if told is not None else []).append
    return evaluate(str(model), tasks, output=model.parent / "runs", tell=tell, **asked)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "generation_config.json": lambda path: edit(path, lambda said: said.update(eos_token_id=[1, 5])),
    "tokenizer_config.json": lambda path: edit(path, lambda said: said.update(padding_side="left")),
    "special_tokens_map.json": lambda path: edit(path, lambda said: said.update(bos_token="<|bos|>")),
    "tokenizer.json": lambda path: path.write_text(path.read_text() + "\n"),
    "config.json": lambda path: edit(path, lambda said: said.update(rms_norm_eps=1e-3)),
    "chat_template.jinja": lambda path: path.write_text(TEMPLATE.replace("assistant", "model")),
    "added_tokens.json": lambda path: path.write_text("{}"),
    "additional_chat_templates/tool.jinja": lambda path: (path.parent.mkdir(), path.write_text("x")),
}


@pytest.mark.usefixtures("as_hf")
def test_another_way_of_prefill_begins_a_new_run_that_names_the_version_and_the_flag(model: Path) -> None:
    told: list[str] = []
    first = run(model)
    edit(first.path / "header.json", lambda said: said["backend"].update(prefill={"chunk_tokens": 512}))
    edit(first.path / "header.json", lambda said: said["identity"].update(fingerprint="0" * 64))
    first.path.rename(first.path.with_name("0" * 16))
    run(model, told)
    begins = [line for line in told if "begins" in line]
    assert len(begins) == 1 and f"in version {first.header['version']}" in begins[0]
    assert "(--chunk-tokens 512 resumes it)" in begins[0]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.usefixtures("as_hf")
def test_a_changed_file_begins_a_new_run_and_says_so(model: Path, name: str) -> None:
    told: list[str] = []
    first = run(model, template="chat")
    assert run(model, told, template="chat").path == first.path and not any("begins" in line for line in told)
    before = {file: file.read_bytes() for file in first.path.iterdir()}
    fresh = not (model / name).exists()
    CHANGES[name](model / name)
    second = run(model, told, template="chat")
    assert second.path != first.path and {file: file.read_bytes() for file in before} == before
    what = f"{name} {'is new' if fresh else 'changed'} since run {first.path.name}: a new run begins"
    assert [line for line in told if "begins" in line] == [what]
    assert main(["board", str(model.parent / "runs")]) == 0


@pytest.mark.usefixtures("as_hf")
def test_verify_names_the_files_that_changed_since(model: Path) -> None:
    path = run(model).path
    assert not [str(each) for each in findings(path)]
    CHANGES["generation_config.json"](model / "generation_config.json")
    CHANGES["added_tokens.json"](model / "added_tokens.json")
    differing = [str(each) for each in findings(path) if each.differs]
    where = path / HEADER
    assert differing == [f"{where}: added_tokens.json is new since", f"{where}: generation_config.json changed since"]
    assert main(["verify", str(path)]) == 1
    (model / "generation_config.json").unlink()
    assert f"{where}: generation_config.json is gone since" in [str(each) for each in findings(path)]


def test_verify_says_where_the_files_are_not_there_to_be_compared(model: Path) -> None:
    path = run(model).path
    model.rename(model.with_name("elsewhere"))
    found = [str(each) for each in findings(path, tokenizer=model.with_name("elsewhere")) if not each.differs]
    assert any(f"the files of {model} were not compared" in line for line in found)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "**/*", "[a-z]*", "..", "a/../b", "", "a\0b"])
def test_names_of_files_in_a_header_are_no_patterns_and_lead_nowhere(name: str) -> None:
    header = {
        "identity": {"files": {name: "0" * 64}},
        "backend": {"engine": "fake"},
        "template": "base",
        "tokenizer": {},
        "model": {"path": "anchor-tiny"},
    }
    found = list(changed_files(Run(Path("run"), header, ())))
    assert found == [(f"identity: files: {name!r} is no name of a file of a checkpoint", True)]


def test_a_run_beside_headers_of_any_shape_is_made_all_the_same(model: Path) -> None:
    path = run(model).path
    header = json.loads((path / HEADER).read_text())
    for at, change in enumerate(({"files": 5}, {"files": ["a"]}, {"pools": "x"})):
        (path.parent / f"theirs{at}").mkdir()
        odd = header | {"created": "9", "identity": header["identity"] | change}
        (path.parent / f"theirs{at}" / HEADER).write_text(json.dumps(odd))
    CHANGES["generation_config.json"](model / "generation_config.json")
    assert run(model).path.parent == path.parent


def test_verify_refuses_another_chat_template_and_names_the_file(model: Path) -> None:
    path = run(model, template="chat").path
    CHANGES["chat_template.jinja"](model / "chat_template.jinja")
    said = []
    with pytest.raises(ModelError, match=r"the chat template of .* is not the one"):
        for each in findings(path):
            said.append(str(each))
    assert said == [f"{path / HEADER}: chat_template.jinja changed since"]


def test_a_chat_template_decides_nothing_without_a_chat(model: Path) -> None:
    first = run(model)
    CHANGES["chat_template.jinja"](model / "chat_template.jinja")
    assert run(model).path == first.path and "chat_template.jinja" not in first.header["identity"]["files"]


def test_the_end_tokens_are_part_of_the_keys_and_versions_are_not(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.backends.hf import backend as hf

    first = open_backend("hf", str(model), dtype="float32")
    before, environment = first.fingerprint, environment_of(first.describe())
    assert {"torch", "transformers", "anchoreval"} <= environment["versions"].keys()
    assert environment["device"] == "cpu" and environment["threads"] >= 1 and environment["processor"]
    monkeypatch.setattr(hf, "_VERSIONS", {"torch": "0", "transformers": "0"})
    monkeypatch.setattr(hf, "processor", lambda: "another")
    assert first.fingerprint == before and environment_of(first.describe()) != environment
    first.close()
    CHANGES["generation_config.json"](model / "generation_config.json")
    other = open_backend("hf", str(model), dtype="float32")
    assert other.fingerprint != before
    other.close()


def test_the_end_tokens_anchor_and_template_stand_in_the_identity(model: Path) -> None:
    identity = run(model, template="chat").header["identity"]
    assert identity["schema"] == 2 and identity["anchor_token"][0] == "<|bos|>" and "limit" not in identity
    assert len(identity["template_text"]) == 64


def test_where_prompts_are_cut_is_part_of_what_a_run_is(model: Path) -> None:
    from longbench_files import write_folder

    data: dict[str, Any] = {"tasks": "longbench/qasper", "lengths": None, "haystack": None}
    data["data_dir"] = write_folder(model.parent / "data")
    one, other = (run(model, max_length=length, **data) for length in (3500, 7500))
    assert one.path != other.path and [one.header["identity"]["cut"], other.header["identity"]["cut"]] == [
        {"longbench/qasper": 3500},
        {"longbench/qasper": 7500},
    ]


def test_a_window_that_takes_a_token_from_answers_begins_a_new_run_and_says_so(model: Path) -> None:
    from longbench_files import write_folder

    data: dict[str, Any] = {"tasks": "longbench/qasper", "lengths": [400], "haystack": None}
    data["data_dir"] = write_folder(model.parent / "data")
    told: list[str] = []
    full, less, wider = (run(model, told, max_length=400 + 128 + more, **data) for more in (0, -1, 50))
    assert full.path == wider.path != less.path
    assert [record.facts.get("budget_less") for each in (full, less) for record in each.records] == [None, 1]
    assert any("the room for an answer, changed since run" in line for line in told)
    assert not [str(each) for each in findings(less.path, data["data_dir"]) if each.differs]


def test_an_unfinished_run_of_the_older_format_is_named_and_left(model: Path) -> None:
    told: list[str] = []
    path = run(model).path
    edit(path / HEADER, lambda header: (header.update(schema=1), header["identity"].update(schema=1, limit=1)))
    edit(path / HEADER, lambda header: (header.pop("finished"), header["identity"].pop("files")))
    old = Path(shutil.move(path, path.with_name("0123456789abcdef")))
    before = {file: file.read_bytes() for file in old.iterdir()}
    assert run(model, told).path != old
    assert any("begun in an older format and is left unfinished as it is" in line for line in told)
    assert {file: file.read_bytes() for file in old.iterdir()} == before


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"identity": 3}', '{"identity": {}, "backend": 5}', "\xff" * 9])
def test_a_run_beside_it_that_cannot_be_read_is_none(model: Path, header: str) -> None:
    beside = model.parent / "runs" / "m" / "x"
    beside.mkdir(parents=True)
    (beside / HEADER).write_text(header, "latin-1")
    assert run(model).records
