"""Several models in one call: what each run is, in which order, what is refused before anything is computed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import cli
from other_models import TINY, other_weights, other_words

from anchoreval import compare, evaluate, load_run
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.errors import AnchorEvalError, LengthError, ModelError, UnknownName, UnsupportedArm
from anchoreval.reports.compare.table import table_of
from anchoreval.runs import several
from anchoreval.runs.evaluate import ask
from anchoreval.runs.several import models_named

pytestmark = pytest.mark.numeric
TASKS = "ruler/vt"
ASKED: dict[str, Any] = {"lengths": [512], "limit": 2, "haystack": "generated", "arms": "fp32"}
CARD = "anchoreval_training.json"


@pytest.fixture
def models(tmp_path: Path) -> Callable[..., Path]:
    def copied(name: str, **config: Any) -> Path:
        folder = Path(shutil.copytree(TINY, tmp_path / name))
        if config:
            (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
        return folder

    return copied


def kept(path: Path) -> Any:
    """A run without what tells when and how fast it was computed."""
    run = load_run(path)
    header = {name: value for name, value in run.header.items() if name not in ("created", "finished", "seal")}
    return header, [(record.key, record.output, record.score, record.reference_logprob) for record in run.records]


def test_each_model_has_the_run_that_it_has_alone_and_the_pairs_are_those_of_compare(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    asked = [str(models("a")), str(models("b"))]
    other_weights(Path(asked[1]))
    words = ["run", "--tasks", TASKS, "--lengths", "512", "--limit", "2", "--haystack", "generated", "--arms", "fp32"]
    both = cli(*words, "--model", ",".join(asked), "--output", str(tmp_path / "both"))
    assert both.returncode == 0
    alone = [evaluate(model, TASKS, output=tmp_path / "alone", **ASKED) for model in asked]
    for run in alone:
        there = tmp_path / "both" / run.path.parent.name / run.name
        assert kept(there) == kept(run.path)
    (contrast,) = compare([run.path for run in alone])
    assert (contrast.arm, contrast.baseline) == ("fp32 (b)", "fp32 (a)")
    assert contrast.pooled.difference.logprob not in (None, 0.0)
    assert table_of(contrast, 160) in both.stdout
    assert f"board of all: {tmp_path / 'both' / 'board.html'}" in both.stderr
    assert [line for line in both.stderr.splitlines() if line.startswith("model ")] == [
        f"model 1 of 2: {asked[0]}", f"model 2 of 2: {asked[1]}",
    ]  # fmt: skip


def test_a_model_is_gone_before_the_next_is_opened(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Any]] = []
    load = HfBackend.open.__func__  # type: ignore[attr-defined]

    def watched(cls: type[HfBackend], model: str, **options: Any) -> HfBackend:
        gc.collect()
        assert not [one for one in opened if one() is not None]
        backend: HfBackend = load(cls, model, **options)
        opened.append(weakref.ref(backend.model))
        return backend

    monkeypatch.setattr(HfBackend, "open", classmethod(watched))
    runs = evaluate([str(models("a")), str(models("b"))], "ruler/vt", output=tmp_path / "runs", **ASKED | {"limit": 1})
    assert [run.header.model["name"] for run in runs] == ["a", "b"] and len(opened) == 2


def torn(folder: Path) -> None:
    (folder / CARD).write_text("{}")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-64])


def begun(folder: Path) -> None:
    (folder / "training.json").write_text("{}")
    (folder / "config.json").unlink()


def shorter(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (shorter, LengthError, "b: length 512 is over the model's limit of 256 positions"),
        (torn, ModelError, r"b: model.safetensors is not whole: the same `anchoreval train` makes it again"),
        (begun, ModelError, r"b: its training has not ended: the same `anchoreval train` goes on$"),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelError, "b has no weights"),
        (shutil.rmtree, ModelError, "b: there is no such folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), AnchorEvalError, "/b[:/]"),
    ],
)
def test_a_model_that_would_be_refused_is_refused_before_the_first_is_computed(
    models: Callable[..., Path], tmp_path: Path, spoil: Callable[[Path], Any], error: type[Exception], says: str
) -> None:
    first, second = models("a"), models("b")
    spoil(second)
    with pytest.raises(error, match=says):
        evaluate([str(first), str(second)], "ruler/vt", output=tmp_path / "runs", **ASKED)
    assert not list((tmp_path / "runs").glob("**/records.jsonl"))


def test_arms_are_tried_on_every_architecture_before_the_first_is_computed(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = models("a"), models("b", max_position_embeddings=4096)

    def refused(evaluation: Any) -> None:
        raise UnsupportedArm(f"arm fp32: rope: {Path(evaluation.opening.model).name} cannot")

    monkeypatch.setattr(several, "_try_arms", refused)
    with pytest.raises(UnsupportedArm, match=r"/b: arm fp32: rope: b cannot"):
        evaluate([str(first), str(second)], "ruler/vt", output=tmp_path / "runs", **ASKED)
    assert not list((tmp_path / "runs").glob("**/records.jsonl"))
    monkeypatch.undo()
    with pytest.raises(UnsupportedArm):
        several._try_arms(ask(str(second), "ruler/vt", output=tmp_path / "runs", **ASKED | {"arms": "fp32-qk"}))


def test_what_keeps_samples_from_being_pairs_is_said(models: Callable[..., Path], tmp_path: Path) -> None:
    first, short, other = models("a"), models("short", max_position_embeddings=512), models("other")
    other_words(other)
    (first / CARD).write_text(json.dumps({"variant": "anchor", "rope": "fp32", "seed": 0, "step": 8, "steps": 16}))
    told: list[str] = []
    asked = ASKED | {"lengths": [512, 1024], "backend": "fake", "limit": 1}
    evaluate([str(first), str(short), str(other)], "ruler/vt", output=tmp_path / "runs", tell=told.append, **asked)
    assert f"{short} has 512 positions: beyond them there are no pairs with the other models" in told
    assert any(line.startswith(f"{other} has another tokenizer than {first}: scores are compared") for line in told)
    assert f"{first} is half trained: step 8 of 16" in told


def test_models_are_named_by_cards_folders_commas_and_globs(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ckpt/anchor-10", "ckpt/anchor-2", "ckpt/full-0", "with,comma"):
        models(name)
    (tmp_path / "ckpt" / "anchor-store").mkdir()
    (tmp_path / "ckpt" / "anchor-torn").mkdir()
    (tmp_path / "ckpt" / "anchor-torn" / "training.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert models_named("anchor-tiny, ckpt/full-0,anchor-tiny") == ["anchor-tiny", "ckpt/full-0"]
    assert models_named("ckpt/anchor-*") == ["ckpt/anchor-2", "ckpt/anchor-10", "ckpt/anchor-torn"]
    assert models_named(["ckpt/*l-0", "with,comma"]) == ["ckpt/full-0", "with,comma"]
    assert models_named("with,comma") == ["with,comma"]
    assert models_named("sailor2-?b") == ["sailor2-1b", "sailor2-8b"]
    with pytest.raises(ModelError, match="--model ckpt/b\\*: no card and no folder with a model matches"):
        models_named("anchor-tiny,ckpt/b*")
    with pytest.raises(ModelError, match="--model names no model"):
        models_named(",")
    with pytest.raises(UnknownName, match=r"unknown model .*'anchor-tinny'"):
        evaluate(["anchor-tiny", "anchor-tinny"], "ruler/vt", backend="fake", output=tmp_path / "runs", **ASKED)


def test_a_plan_is_of_every_model_and_of_all(models: Callable[..., Path]) -> None:
    first, second = models("a"), models("b")
    words = ["--tasks", "ruler/vt", "--lengths", "512", "--limit", "2", "--haystack", "generated", "--gpus", "1xH200"]
    said = cli("plan", "--model", f"{first},{second}", *words)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == str(first) and str(second) in lines
    assert lines[-1].startswith("2 models, one after the other: ")
