"""Prompts made again from a header: the same ones, or one line that says why not."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate, load_run
from anchoreval.errors import AnchorEvalError, CardError, ModelError, RunError, SourceError
from anchoreval.records.lines import key_of
from anchoreval.records.run import Run
from anchoreval.runs.rebuild import Remake

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "models" / "anchor-tiny"
TASKS = "ruler/niah_single_2,ruler/qa_1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evaluate(
        "anchor-tiny", TASKS, lengths=[512, 640], limit=3, backend="fake", arms="bf16,anchor/fp32", seed=43,
        document_tokens=64, output=tmp_path_factory.mktemp("remake"),
    )  # fmt: skip


def edited(run: Run, *path: str | int, to: Any) -> Run:
    header = copy.deepcopy(dict(run.header))
    place: Any = header
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return Run(run.path, header, run.records)


def prompts(run: Run) -> dict[str, tuple[str, int]]:
    return {record.sample_id: (record.prompt_sha256, record.prompt_tokens) for record in run.records}


def made_again(remake: Remake, *which: Any) -> dict[str, tuple[str, int]]:
    return {
        sample.id: (hashlib.sha256(sample.prompt.encode()).hexdigest(), len(remake.request(sample).token_ids))
        for sample in remake.samples(*which)
    }


def test_the_prompts_and_keys_are_those_of_the_records(run: Run) -> None:
    remake = Remake(run)
    assert made_again(remake) == prompts(run) and len(prompts(run)) == 12
    keys = {
        key_of(remake.request(sample), arm, remake.header.identity.engine)
        for sample in remake.samples()
        for arm in remake.spec.arms
    }
    assert keys == {record.key for record in run.records}


def test_one_task_at_one_length_can_be_had_alone(run: Run) -> None:
    ids = [sample.id for sample in Remake(run).samples("ruler/qa_1", 640)]
    assert ids == [f"ruler/qa_1@640#{index}" for index in range(3)]


@pytest.mark.parametrize("name", ["3ea75cb9ef6b0c93", "b15ad5caca491e1b"])
def test_committed_runs_are_made_again_to_the_byte(name: str) -> None:
    committed = load_run(REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / name)
    wanted = {key: value for key, value in prompts(committed).items() if "niah_single_1@" in key}
    assert made_again(Remake(committed), "ruler/niah_single_1") == wanted


def test_a_checkpoint_that_is_gone_asks_for_its_tokenizer_which_is_enough(run: Run) -> None:
    gone = edited(run, "model", "path", to="/nowhere/model")
    with pytest.raises(ModelError, match="--tokenizer PATH") as caught:
        Remake(gone)
    assert "/nowhere/model" in str(caught.value) and "\n" not in str(caught.value)
    assert made_again(Remake(gone, tokenizer=TINY)) == prompts(run)


def test_a_tokenizer_is_fetched_where_the_user_names_it_and_never_where_a_header_does(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    fetched: list[str] = []

    def hub(model: str, local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        fetched.append(model)
        return str(TINY)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    gone = edited(run, "model", "path", to="owner/name")
    with pytest.raises(ModelError, match="is not here, and what a header names is not downloaded") as caught:
        Remake(gone)
    assert not fetched and "\n" not in str(caught.value)
    assert made_again(Remake(gone, tokenizer="owner/name")) == prompts(run) and fetched == ["owner/name"]


@pytest.mark.parametrize(
    "name", ["", "~nobody-there/x", "a\0b", "x" * 5000, "a/b/c", "/proc/self/fd", "\x1b[31m/x", "../.."]
)
def test_a_checkpoint_of_a_header_that_can_be_none_is_one_line(name: str, run: Run) -> None:
    with pytest.raises(ModelError, match="--tokenizer PATH") as caught:
        Remake(edited(run, "model", "path", to=name))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    content = json.loads((TINY / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 9999, "content": "<|more|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    with pytest.raises(ModelError, match=r"has sha256 .* was made with .*--tokenizer PATH"):
        Remake(run, tokenizer=tmp_path)


def test_a_tokenizer_that_puts_another_token_first_is_refused(run: Run, tmp_path: Path) -> None:
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": config["eos_token"]}))
    with pytest.raises(ModelError, match=r"puts .* first"):
        Remake(run, tokenizer=tmp_path)


def test_source_texts_that_are_absent_are_named(run: Run, tmp_path: Path) -> None:
    published = edited(run, "identity", "sources", "haystack", to="published")
    with pytest.raises(SourceError, match=r"PaulGrahamEssays\.json is missing .*--data-dir"):
        list(Remake(published, data_dir=tmp_path).samples("ruler/niah_single_2"))


def test_source_texts_of_another_hash_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.texts.sources import Sources

    monkeypatch.setattr(Sources, "sentence_splitter", lambda _: lambda text: [(0, len(text))])
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": "One two three. " * 5000}))
    published = edited(run, "identity", "sources", "haystack", to="published")
    for said in ("published", "0" * 64):
        other = edited(published, "source_files", to={"PaulGrahamEssays.json": {"sha256": said}})
        with pytest.raises(SourceError, match=rf"made with {said}: name the folder of that file with --data-dir"):
            list(Remake(other, data_dir=tmp_path).samples("ruler/niah_single_2"))
    assert list(Remake(published, data_dir=tmp_path).samples("ruler/niah_single_2"))


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("identity", "tasks", 0, "args"), {"haystack": "noise"}, "ruler/niah_single_2: args: the run was made with"),
        (("identity", "tasks", 0, "version"), 0, "version: the run was made with 0, the card now says"),
        (("identity", "tasks", 0, "name"), "niah_single_9", "no task card has ruler/niah_single_9 any more"),
    ],
)
def test_a_task_card_that_has_changed_since_is_named(run: Run, path: Any, to: Any, says: str) -> None:
    with pytest.raises(CardError, match=says):
        Remake(edited(run, *path, to=to))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: edited(run, "identity", "seed", to="42"), "identity > seed"),
        (lambda run: edited(run, "identity", to={}), "identity > "),
        (lambda run: edited(run, "identity", "schema", to=9), "schema 9, this version reads 1"),
        (lambda run: edited(run, "identity", "arms", to=["0" * 64]), "arms: not those of its identity"),
        (lambda run: edited(run, "identity", "sources", "wordlists", to="wonderwords 1"), "wordlists"),
    ],
)
def test_a_header_that_says_too_little_is_named(run: Run, change: Callable[[Run], Run], says: str) -> None:
    with pytest.raises(RunError, match=says) as caught:
        Remake(change(run))
    assert "header.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_cell_of_no_known_task_is_an_error(run: Run) -> None:
    with pytest.raises(AnchorEvalError, match=r"ruler/vt is no task of this run"):
        list(Remake(edited(run, "asked", 0, "task", to="ruler/vt")).samples())
