"""Every task of every suite on its own references and on an empty answer: 1 and 0, exceptions named here."""

from __future__ import annotations

from pathlib import Path

import pytest
from babilong_files import write_babi, write_published
from general_files import write_folder as write_general
from longbench_files import write_folder as write_longbench
from longbench_v2_files import write_folder as write_longbench_v2

from anchoreval.cards import Task, load_tasks
from anchoreval.prompt import reference_text
from anchoreval.schema import NATURAL, ChoiceScore, Sample
from anchoreval.suites import generators, scorers, with_choices
from anchoreval.suites.recipe import Recipe
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

CARDS = load_tasks()[0]
GENERAL = [task.name for task in CARDS.values() if task.suite == "general"]
SAMPLES, LENGTH = 6, 2048
LENGTHS = {"babilong_published": 900}
# ROUGE adds 1e-8 to a denominator.
ALMOST_ONE = {"longbench_rouge", "longbench_rouge_line", "longbench_rouge_zh"}
# BABILong's published metric finds "one" in "none" (babilong_corrected does not).
NEVER_RIGHT = {("babilong", "none")}
# lm-eval's filter of bbh looks behind these words; its references are the answers alone.
SAID = {"bbh": "So the answer is {}."}
# Several choices are right, and the score is the share of probability that they have.
OF_MASS = {"truthfulqa_mc2"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("every")
    write_published(write_babi(folder), {"0k": 20})
    write_longbench_v2(write_longbench(write_general(folder, GENERAL), SAMPLES), SAMPLES)
    (text := folder / "text.txt").write_text("A long text of many words. " * 4000)
    return Sources(folder, haystack="generated", cache=folder / "none", offline=True, text=text)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(Path(__file__).parents[1] / "models" / "anchor-tiny")


def samples(task: Task, tokenizer: TextTokenizer, sources: Sources) -> list[Sample]:
    length = NATURAL if task.length_of == "natural" else LENGTHS.get(task.suite, LENGTH)
    count = 3 if task.generator == "babilong_published" else SAMPLES
    recipe = Recipe(task.address, length, task.max_new_tokens, count, task.args, tokenizer, sources)
    return list(generators()[task.generator](recipe))


def said(task: Task, sample: Sample) -> str:
    """The references as a model that is right would write them."""
    text = reference_text(sample.references, task.reference)
    form = SAID.get(task.name.split("_")[0]) if task.suite == "general" else None
    return form.format(text) if form else text


def chosen(task: Task, sample: Sample, right: bool) -> float | None:
    """The score where the right choices are by far the likeliest, or the others are."""
    gold = [at == sample.facts["gold"] for at in range(len(sample.choices))]
    if task.name in OF_MASS:
        gold = list(map(bool, sample.facts["doc"]["mc2_targets"]["labels"]))
    scores = tuple(ChoiceScore(-1.0 if one == right else -5000.0, one == right) for one in gold)
    return scorers()[task.scorer]("", sample.references, with_choices(sample.facts, scores)).value


def needs(task: Task) -> None:
    """Skips where an extra is missing, and says what was not tried."""
    if task.scorer == "lm_eval":
        pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no general task")
    elif task.scorer.endswith("_zh") and "longbench_retrieval" not in task.scorer:
        pytest.importorskip("jieba", reason="JIEBA ABSENT: pip install 'anchoreval[zh]'; no Chinese task was tried")
    scorers()[task.scorer].packages()


@pytest.mark.parametrize("address", CARDS)
def test_a_task_scores_one_on_its_own_references_and_zero_on_nothing(
    address: str, tokenizer: TextTokenizer, sources: Sources
) -> None:
    task = CARDS[address]
    needs(task)
    made = samples(task, tokenizer, sources)
    assert made
    scorer = scorers()[task.scorer]
    best = 0.999999995 if task.scorer in ALMOST_ONE else 1.0
    for sample in made:
        if sample.ids:  # whose score needs log-probabilities: those of sure tokens, and of impossible ones
            ends = [scorer("", (), with_choices(sample.facts, (), value)).value for value in (0.0, -5000.0)]
            assert ends == [1.0, 0.0] and scorer("", (), sample.facts).value is None
            continue
        if sample.choices:
            assert (chosen(task, sample, True), chosen(task, sample, False)) == pytest.approx((1.0, 0.0)), sample.id
            continue
        expected = 0.0 if (task.scorer, sample.references[0]) in NEVER_RIGHT else best
        assert scorer(said(task, sample), sample.references, sample.facts).value == pytest.approx(expected, abs=1e-11)
        assert scorer("", sample.references, sample.facts).value == 0.0, sample.id


def test_no_exception_is_named_in_vain(tokenizer: TextTokenizer, sources: Sources) -> None:
    assert {task.scorer for task in CARDS.values()} >= ALMOST_ONE | {scorer for scorer, _ in NEVER_RIGHT}
    assert {task.suite for task in CARDS.values()} >= LENGTHS.keys()
    found = samples(CARDS["babilong/qa7"], tokenizer, sources)
    assert ("none",) in {sample.references for sample in found}
