"""Verification: a run as it was written passes, and whatever is done to it afterwards is found and named."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cli.parser import main
from anchoreval.errors import ModelError, RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import HEADER, fingerprint
from anchoreval.records.lines import RECORDS, read_records
from anchoreval.runs.verify import records as verified
from anchoreval.runs.verify.records import NOT_REMADE, Expected, Made, findings, pressed, record_differences
from anchoreval.schema import Record

REPOSITORY = Path(__file__).parents[3]
TINY = REPOSITORY / "models" / "anchor-tiny"
Lines = list[bytes]


def make(output: Path, seed: int = 43) -> Path:
    return evaluate(
        "anchor-tiny", "ruler/niah_single_1,ruler/vt", lengths=[512], limit=4, backend="fake", arms="bf16,fp32",
        seed=seed, output=output, backend_args={"mode": "half"},
    ).path  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("other"), seed=44)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def differences(path: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in findings(path, **options) if finding.differs]


def notices(path: Path) -> str:
    return "\n".join(str(finding) for finding in findings(path) if not finding.differs)


def unsealed(path: Path) -> None:
    """The run as an older version would have left it, so that each check is seen without the seal."""
    header = json.loads((path / HEADER).read_text())
    del header["seal"]
    (path / HEADER).write_text(json.dumps(header))


def rewrite(path: Path, change: Callable[[Lines], Lines], seal: bool = False) -> None:
    file = path / RECORDS
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    if not seal:
        unsealed(path)


def with_fields(line: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n"


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any], seal: bool = False) -> None:
    header = json.loads((path / HEADER).read_text())
    change(header)
    (path / HEADER).write_text(json.dumps(header))
    if not seal:
        unsealed(path)


def test_a_run_as_it_was_written_passes(run: Path) -> None:
    assert not list(findings(run))


@pytest.mark.parametrize("name", ["3ea75cb9ef6b0c93", "b15ad5caca491e1b", "8e482709f10cc4ba"])
def test_committed_runs_pass_and_say_what_they_are_too_old_for(name: str) -> None:
    path = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / name
    assert not differences(path)
    assert "no seal, the run is older" in notices(path) and "lack facts" in notices(path)


def test_the_committed_run_with_a_placebo_is_whole_and_sealed() -> None:
    path = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / "31bf25797b7ffa79"
    assert not differences(path) and not notices(path)


def test_an_unfinished_run_is_said_to_be_one_and_is_no_error(run: Path) -> None:
    edit_header(run, lambda header: header.pop("finished"))
    rewrite_again = (run / RECORDS).read_bytes().splitlines(keepends=True)[:-3]
    (run / RECORDS).write_bytes(b"".join(rewrite_again))
    assert not differences(run) and "not finished: 13 of 16 records" in notices(run)


def test_a_changed_output_that_keeps_its_score_breaks_the_seal(run: Path) -> None:
    said = json.loads((run / RECORDS).read_bytes().splitlines()[0])["output"]
    rewrite(run, lambda lines: [with_fields(lines[0], output=said + "?"), *lines[1:]], seal=True)
    assert differences(run) == [f"{run / HEADER}: seal: the records changed since the run finished"]
    unsealed(run)
    assert not differences(run)


def test_an_output_that_no_longer_earns_its_score_is_named(run: Path) -> None:
    right = next(i for i, line in enumerate((run / RECORDS).read_bytes().splitlines()) if b'"score": 1.0' in line)
    rewrite(run, lambda lines: [*lines[:right], with_fields(lines[right], output="?"), *lines[right + 1 :]])
    (found,) = differences(run)
    assert f"{RECORDS}:{right + 1}: " in found and "score on disk 1.0 (None), scored again 0.0" in found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"score": 0.25}, "score on disk 0.25"),
        ({"why": "so"}, "score on disk"),
        ({"prompt_sha256": "0" * 64}, "prompt_sha256 is not"),
        ({"prompt_sha256": "x"}, "prompt_sha256 is not"),
        ({"prompt_tokens": 3}, "prompt_tokens is 3, made again"),
        ({"reference_tokens": 3}, "reference_tokens is 3, made again"),
        ({"length": 513}, "length is 513"),
        ({"key": "0" * 64}, "key is not that"),
        ({"facts": {"depths": [0.9]}}, "fact 'depths'"),
        ({"sample_id": "ruler/vt@512#99"}, "foreign: the run asks for no sample ruler/vt@512#99"),
        ({"arm": "fp64"}, "foreign: the run has no arm fp64"),
        ({"score": "1"}, 'corrupt line: not a record: score is "1"'),
        ({"references": [1]}, "corrupt line: not a record: references"),
        ({"score": float("nan")}, "corrupt line: NaN is no JSON"),
    ],
)
def test_a_changed_field_is_named_with_its_line(run: Path, changes: dict[str, Any], says: str) -> None:
    rewrite(run, lambda lines: [lines[0], with_fields(lines[1], **changes), *lines[2:]])
    found = differences(run)
    assert any(f"{run / RECORDS}:2: " in line and says in line for line in found), found


def test_other_references_are_named(run: Path) -> None:
    rewrite(run, lambda lines: [with_fields(lines[0], references=["x"], output="x", score=1.0), *lines[1:]])
    assert len(differences(run)) == 1 and "references are not those" in differences(run)[0]


def test_a_deleted_line_is_a_missing_record(run: Path) -> None:
    gone = json.loads((run / RECORDS).read_bytes().splitlines()[2])
    rewrite(run, lambda lines: lines[:2] + lines[3:])
    assert differences(run) == [f"{run / RECORDS}: {gone['sample_id']} {gone['arm']}: no record"]


def test_two_swapped_lines_are_out_of_order(run: Path) -> None:
    rewrite(run, lambda lines: [lines[-1], *lines[1:-1], lines[0]])
    found = differences(run)
    assert [line.partition(": ")[0].rpartition(":")[2] for line in found] == ["2", "16"]
    assert all("out of order" in line for line in found)


def test_a_resumed_run_may_go_back_as_often_as_it_was_resumed(run: Path) -> None:
    edit_header(run, lambda header: header.update(resumed=1))
    rewrite_again = (run / RECORDS).read_bytes().splitlines(keepends=True)
    (run / RECORDS).write_bytes(b"".join([*rewrite_again[1:], rewrite_again[0]]))
    assert not differences(run) and "1 records out of order: the run was resumed or many compute it" in notices(run)


def test_a_duplicated_line_is_named_with_the_first_one(run: Path) -> None:
    rewrite(run, lambda lines: [*lines[:4], lines[3], *lines[4:]])
    (found,) = differences(run)
    assert f"{RECORDS}:5: " in found and "a second time, first on line 4" in found


def test_a_torn_last_line_is_named_and_its_record_missing(run: Path) -> None:
    rewrite(run, lambda lines: [*lines[:-1], lines[-1][:50]])
    torn, missing = differences(run)
    assert f"{RECORDS}:16: torn last line" in torn and missing.endswith("no record")


@pytest.mark.parametrize(
    "line", [b"not json\n", b"\xff\xfe\n", b"[]\n", b"\n", b"[" * 100_000 + b"\n", b'{"key": 1}\n']
)
def test_a_corrupt_line_is_named(run: Path, line: bytes) -> None:
    rewrite(run, lambda lines: [*lines[:1], line, *lines[1:]])
    (found,) = differences(run)
    assert f"{RECORDS}:2: corrupt line: " in found


def test_records_of_another_seed_are_not_those_of_the_run(run: Path, other_seed: Path) -> None:
    shutil.copy(other_seed / RECORDS, run)
    unsealed(run)
    found = differences(run)
    for says in ("prompt_sha256 is not that", "key is not that", "references are not those"):
        assert sum(says in line for line in found) == 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda header: header["identity"].update(seed=44), "is not the fingerprint"),
        (lambda header: header.update(seed=44), "seed: 44 here, 43 in its identity"),
        (lambda header: header.update(limit=5), "ruler/vt at 512: 4 samples, not 5"),
        (lambda header: header["asked"][0].update(samples=3), "asked: ruler/niah_single_1 at 512: 3 samples, not 4"),
        (lambda header: header["asked"].pop(), "asked: ruler/vt at 512 stands there 0 times"),
        (lambda header: header["asked"].append(header["asked"][0]), "stands there 2 times"),
        (lambda header: header["arms"][0].update(name="fp64"), "arms: not those"),
        (lambda header: header["arms"][0]["asked"].update(positions="reset"), "arms: bf16: asked is not"),
        (lambda header: header["scorers"].update({"ruler/vt": "match_any"}), "scorers: not those"),
        (lambda header: header["tasks"].pop(), "tasks: not those"),
        (lambda header: header["model"].update(sha256="0" * 64), "model: sha256"),
        (lambda header: header["sources"].update(haystack="published"), "sources: not those"),
        (lambda header: header.update(comparable=True), "comparable: true"),
        (lambda header: header["tokenizer"].update(sha256="0"), "tokenizer: sha256"),
        (lambda header: header.pop("identity"), "identity: field required"),
        (lambda header: header.update(asked="all"), "asked: "),
        (lambda header: header.update(sources=[]), "sources: "),
        (
            lambda header: header["identity"]["tasks"][0].pop("samples"),
            "identity > tasks > 0 > samples: field required",
        ),
        (
            lambda header: header["unmakeable"].append({**header["asked"].pop(), "why": "too short"}),
            "unmakeable: ruler/vt at 512 can be made",
        ),
    ],
)
def test_an_edited_header_is_named(run: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    edit_header(run, change)
    assert any(str(run / HEADER) in line and says in line for line in differences(run)), differences(run)


def test_an_edited_header_that_agrees_with_itself_breaks_the_seal(run: Path) -> None:
    edit_header(run, lambda header: header["backend"].update(device="cuda"), seal=True)
    assert differences(run) == [f"{run / HEADER}: seal: the header changed since the run finished"]


def test_weights_that_are_not_their_files_are_named(run: Path) -> None:
    edit_header(run, lambda header: header["backend"].update(files_sha256={"model.safetensors": "0"}))
    assert "weights_sha256 is not that of its files_sha256" in differences(run)[0]


def test_another_tokenizer_is_refused_and_exits_with_2(run: Path, tmp_path: Path) -> None:
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 9999, "content": "<|more|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    with pytest.raises(ModelError, match="sha256"):
        differences(run, tokenizer=tmp_path)
    assert main(["verify", str(run), "--tokenizer", str(tmp_path)]) == 2


def test_the_command_prints_differences_and_a_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: as its header says\n"
    rewrite(run, lambda lines: lines[1:])
    assert main(["verify", str(run)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}: 1 differences"


def test_a_duplicated_record_is_refused_with_both_lines_when_a_run_is_resumed(run: Path) -> None:
    rewrite(run, lambda lines: [*lines, lines[0]])
    header = json.loads((run / HEADER).read_text())
    assert fingerprint(header["identity"]) == header["run"]
    says = r"records\.jsonl:17: the same record as line 1: delete this line"
    with pytest.raises(RunError, match=says), RunFolder(run, header):
        pass
    with pytest.raises(RunError, match=says):
        read_records(run / RECORDS)


def test_what_is_held_of_a_sample_stays_under_two_kilobytes(run: Path) -> None:
    expected = Expected({f"arm{number}": number for number in range(4)}, lines=array("Q"))
    record = replace(read_records(run / RECORDS)[0], facts={f"fact{number}": "x" * 1000 for number in range(9)})
    tracemalloc.start()
    for index in range(2000):
        own = {"sample_id": f"s/t@512#{index}", "prompt_sha256": f"{index:064}", "index": index}
        expected.add(Made(pressed(replace(record, **own)), index // 64), ["0" * 64] * 4)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 2000 < 2048


def test_every_field_of_a_record_is_made_again_or_named_with_what_else_holds_it(run: Path) -> None:
    record = read_records(run / RECORDS)[0]
    expected = replace(pressed(record))
    names = {field.name for field in fields(Record)}
    assert NOT_REMADE.keys() < names and all(NOT_REMADE.values())
    for name in names - NOT_REMADE.keys():
        value = {"depths": [2]} if name == "facts" else (str(getattr(record, name)) + "?",)
        assert list(record_differences(replace(record, **{name: value}), expected)), name
    assert not list(record_differences(record, expected))


def test_a_field_that_a_record_gains_is_compared(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True)
    class Longer(Record):
        layers: int = 0

    record = read_records(run / RECORDS)[0]
    given = {field.name: getattr(record, field.name) for field in fields(Record)}
    monkeypatch.setattr(verified, "Record", Longer)
    found = list(record_differences(Longer(**given, layers=2), Longer(**asdict(pressed(record)), layers=1)))
    assert found == ["layers is 2, made again 1"]


def test_generated_text_behind_the_first_sample_is_not_comparable(run: Path) -> None:
    def comparable(header: dict[str, Any]) -> None:
        header.update(comparable=True, incomparable={})

    edit_header(run, comparable, seal=True)
    rewrite(run, lambda lines: [*lines[:1], with_facts(lines[1], haystack="generated"), *lines[2:]])
    says = "niah_single_1 holds generated text, and the header does not say that it is not comparable"
    assert any(f"{RECORDS}:2: " in line and says in line for line in differences(run)), differences(run)


def with_facts(line: bytes, **facts: Any) -> bytes:
    return with_fields(line, facts={**json.loads(line)["facts"], **facts})
