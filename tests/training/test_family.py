"""examples/family: a whole family of a step, on a random model; a kill resumes, a second call does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import family as driver
import plan
import pytest
import report
from tiny_training import write_base

from anchoreval.cli.parser import main as cli
from anchoreval.errors import RunError
from anchoreval.training.recipes import recipe_of
from anchoreval.training.tiny.examples import TRAINING_SEED

FOLDER = Path(driver.__file__).parent
SEEDS = 2


@pytest.fixture(scope="module")
def patched() -> Any:
    """Two arms of eight, one of them to equal time, and one of the longer text."""
    with pytest.MonkeyPatch.context() as patch:
        arms = (plan.CORE[0], plan.Arm("anchor"))
        for module in (plan, report):
            patch.setattr(module, "CORE", arms)
            patch.setattr(module, "LONG", plan.LONG[:1])
        yield


@pytest.fixture(scope="module")
def whole(patched: None, tmp_path_factory: pytest.TempPathFactory) -> driver.Family:
    """A family killed at its second training and at its last evaluation, then run to its end."""
    place = tmp_path_factory.mktemp("family")
    base = write_base(place / "base", max_position_embeddings=512)
    numbers = {"length": 512, "batch_tokens": 512, "save_every": 1, "corpus_tokens": 4000, "steps": 1}
    sizes = driver.Sizes(
        equal_tokens=1, equal_time=2, lengths=(512,), questions=2, control_seeds=0, more_seeds=0, long_seeds=1,
        upsample=(400, 0.5), long_tokens=8000, first_token_tokens=64, ruler_samples=1, nll_texts=1,
    )  # fmt: skip
    card = recipe_of("variants-cpu").model_copy(update=numbers)
    family = driver.Family(place / "out", place / "results", sizes, str(base), card)
    for name, at in (("trained", 2), ("evaluated", 7)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(driver, name, _killed(getattr(driver, name), at))
            driver.run(family, SEEDS, 1)
    driver.run(family, SEEDS, 1)
    return family


def _killed(function: Any, at: int) -> Any:
    """Call a function and break off behind its call of this number, before anything else is written."""
    calls = iter(range(1, 1000))

    def called(*args: Any, **named: Any) -> Any:
        function(*args, **named)
        if next(calls) == at:
            raise KeyboardInterrupt

    return called


def test_every_job_of_a_family_is_measured_and_its_weights_are_kept(whole: driver.Family) -> None:
    every = list(plan.jobs(whole.sizes, SEEDS))
    assert len(every) == 2 * 3 + 3 + 1 and all(whole.finished(job) for job in every)
    assert {path.name for path in (whole.output / "models").iterdir()} == {job.name for job in every}
    assert not list((whole.output / "training").rglob("model.safetensors"))


def test_a_second_call_does_nothing(whole: driver.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trained", "evaluated"):
        monkeypatch.setattr(driver, name, lambda *_, **__: pytest.fail("a second call works"))
    driver.run(whole, SEEDS, 1)


def test_the_question_stands_before_the_first_step_and_is_not_changed(whole: driver.Family) -> None:
    asked = json.loads((whole.results / driver.QUESTION).read_text("utf-8"))
    first = min(json.loads(path.read_text("utf-8"))["created"] for path in whole.results.rglob("header.json"))
    assert "(anchor - intra-doc) at bf16 minus the same at fp32" in asked["question"] and asked["created"][:19] <= first
    with pytest.raises(RunError, match="sizes: another family lies there"):
        driver.ask(driver.Family(whole.output, whole.results, driver.Sizes(), whole.model, whole.recipe))


def test_the_runs_of_a_family_verify_without_its_weights(
    whole: driver.Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, weights = tmp_path / "results", whole.output / "models"
    driver.gather(whole, results)
    assert not list(results.rglob("lock")) and (results / driver.QUESTION).is_file()
    weights.rename(weights.with_name("away"))
    try:
        words = ["verify", str(results / "seed1"), "--tasks", str(FOLDER / "needles.yaml")]
        assert cli(words) == 0  # the tokenizer is that of the base, which headers name
    finally:
        weights.with_name("away").rename(weights)
    assert capsys.readouterr().out.count("as its header says") == 3


def test_the_report_is_of_the_records_with_seeds_as_units(whole: driver.Family) -> None:
    found = report.read(whole.results, whole.sizes)
    text = driver.reported(whole)
    assert text.startswith("1. The control was not measured")
    seeds = found.minus("anchor-fp32", "intra-doc-fp32", 512, 1)
    assert sorted(seeds.by_seed) == [0, 1] and seeds.samples == 2
    lines = [json.loads(line) for path in (whole.results / "seed1" / "anchor-fp32-seed1-step1").rglob("records.jsonl")
             for line in path.read_text("utf-8").splitlines()]  # fmt: skip
    own = sum(line["reference_logprob"] / line["reference_tokens"] for line in lines) / len(lines)
    assert fmean(found.values("anchor-fp32", 1, 512)[1].values()) == pytest.approx(own)
    baseline = fmean(found.values("intra-doc-fp32", 1, 512)[1].values())
    assert seeds.by_seed[1] == pytest.approx(own - baseline)
    assert report.told(seeds) in text and (whole.results / driver.PICTURE).read_text("utf-8").startswith("<svg")


def _control(by_length: dict[int, list[float]]) -> str:
    """Return the sentence about a control whose difference at each length has these values by seed."""
    found = report.Found(plan.Sizes())
    for seed, values in enumerate(zip(*by_length.values(), strict=True)):
        for arm, factor in zip(reversed(plan.CONTROL), (1, 0), strict=True):
            nats = {(length, "a"): factor * value for length, value in zip(by_length, values, strict=True)}
            found.needles[(arm.name, 16, arm.rope), seed] = report.Answers(nats, nats)
    return report.sentences(found)[0]


def test_a_control_that_shows_only_at_shorter_lengths_says_that_nothing_is_shown_at_the_longest() -> None:
    near = [0.30, 0.31, 0.32]
    text = _control({512: near, 2048: near, 8192: [1.0, 0.1, -0.5]})
    assert "at 8,192 tokens: cannot tell" in text and "at 512 tokens (higher" in text
    assert text.endswith("this family can show nothing at 8,192 tokens, the length of the question.")
    text = _control({512: near, 2048: near, 8192: near})
    assert "higher" in text and text.endswith("what rounding of positions does to a training.")
    assert _control({512: [1, -1, 0], 2048: [1, -1, 0], 8192: [1, -1, 0]}).endswith("nothing about the rest.")


def test_evaluation_text_is_never_training_text() -> None:
    highest = max(1000 * 42 + whole for whole in range(plan.Sizes().questions))
    assert max(highest, driver.FIRST_TOKEN_SEED, driver.NLL_SEED + plan.Sizes().nll_texts) < TRAINING_SEED
