"""LongBench's metrics against vectors of its own code, and every task's own references."""

from __future__ import annotations

import difflib
import json
import random
import sys
from pathlib import Path

import pytest
from longbench_files import files

from anchoreval.cards import load_tasks
from anchoreval.errors import MissingExtra, RunError
from anchoreval.suites import scorers
from anchoreval.suites.longbench import scoring as longbench
from anchoreval.suites.longbench.scoring import (
    LIMIT,
    SCORERS,
    UPSTREAM_CALLS,
    common_words,
    first_line,
    lengths,
    rouge_l,
)

METRICS = {
    "qa_f1_score": "longbench_f1",
    "qa_f1_zh_score": "longbench_f1_zh",
    "rouge_score": "longbench_rouge",
    "rouge_zh_score": "longbench_rouge_zh",
    "classification_score": "longbench_classes",
    "retrieval_score": "longbench_retrieval",
    "retrieval_zh_score": "longbench_retrieval_zh",
    "count_score": "longbench_count",
    "code_sim_score": "longbench_code",
}
#: A fresh answer of the reference is worth less than 1 here: ROUGE's 1e-8 in a denominator.
ALMOST = {"longbench_rouge": 0.999999995, "longbench_rouge_line": 0.999999995, "longbench_rouge_zh": 0.999999995}


@pytest.fixture
def jieba() -> None:
    pytest.importorskip("jieba", reason="JIEBA ABSENT: pip install 'anchoreval[zh]'; nothing Chinese was compared")


def test_scores_are_those_of_longbenchs_own_code(shared: Path, jieba: None) -> None:
    cases = json.loads((shared / "golden" / "longbench_metrics.json").read_text("utf-8"))
    assert len(cases) == 22 and {case["metric"] for case in cases} == METRICS.keys()
    for case in cases:
        scorer = scorers()[METRICS[case["metric"]]]
        score = scorer(case["prediction"], [case["answer"]], {"all_classes": case["all_classes"]})
        assert score.value == pytest.approx(case["score"], abs=1e-11), case


def test_every_task_scores_one_on_each_of_its_references_and_zero_on_nothing(jieba: None) -> None:
    tasks, rows = load_tasks()[0], files()
    for task in (task for task in tasks.values() if task.generator == "longbench"):
        for row in rows[task.name]:
            facts = {"all_classes": row["all_classes"]}
            assert scorers()[task.scorer]("", row["answers"], facts).value == 0.0, task.address
            for answer in row["answers"]:
                score = scorers()[task.scorer](answer, row["answers"], facts)
                assert score.value == pytest.approx(ALMOST.get(task.scorer, 1.0), abs=1e-12), task.address


def test_the_best_reference_counts() -> None:
    assert scorers()["longbench_f1"]("Aude", ["nobody", "miss Aude", "Aude"]).value == 1.0


def test_only_four_data_sets_are_judged_by_their_first_line() -> None:
    cut = {task.name for task in load_tasks()[0].values() if task.scorer.endswith("_line") or "classes" in task.scorer}
    assert cut == {"trec", "triviaqa", "samsum", "lsht"}
    assert first_line("\n\n Aude \nmore") == " Aude "
    assert scorers()["longbench_f1_line"]("\nAude\nQuestion: Who?", ["Aude"]).value == 1.0
    assert scorers()["longbench_f1"]("\nAude\nQuestion: Who?", ["Aude"]).value == 0.5
    assert scorers()["longbench_classes"]("Food\nDate", ["Food"], {"all_classes": ["Food", "Date"]}).value == 1.0


def test_rouge_is_a_set_of_words_split_at_single_blanks() -> None:
    assert rouge_l("the cat the cat", "the cat").f == pytest.approx(1.0, abs=1e-8)
    assert rouge_l("...", "x").f == rouge_l("x", "").f == 0.0
    assert rouge_l("a. ", "b. ").f > 0, "a stretch of blanks is an empty word on both sides"


def recursive(one: list[str], other: list[str]) -> set[str]:
    """rouge 1.0.1's _recon_lcs with its dictionary and its recursion."""
    table = {}
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if i == 0 or j == 0:
                table[i, j] = 0
            elif one[i - 1] == other[j - 1]:
                table[i, j] = table[i - 1, j - 1] + 1
            else:
                table[i, j] = max(table[i - 1, j], table[i, j - 1])

    def recon(i: int, j: int) -> list[str]:
        if i == 0 or j == 0:
            return []
        if one[i - 1] == other[j - 1]:
            return [*recon(i - 1, j - 1), one[i - 1]]
        if table[i - 1, j] > table[i, j - 1]:
            return recon(i - 1, j)
        return recon(i, j - 1)

    return set(recon(len(one), len(other)))


def test_the_walk_without_recursion_finds_upstreams_words() -> None:
    rng = random.Random(3)
    for _ in range(300):
        one, other = ([rng.choice("abcde") for _ in range(rng.randint(1, 12))] for _ in range(2))
        assert common_words(one, other)[0] == recursive(one, other)


def test_upstreams_zero_beyond_its_recursion_limit_is_said_and_not_scored() -> None:
    words = [f"w{number}" for number in range(UPSTREAM_CALLS)]
    below, beyond = " ".join(words[:-1]), " ".join(words)
    assert scorers()["longbench_rouge"](below, [below]).why is None
    score = scorers()["longbench_rouge"](beyond, [beyond])
    assert score.value == pytest.approx(1.0) and score.why == f"{LIMIT} 0.0000"
    assert scorers()["longbench_rouge_zeroed"](beyond, [beyond]).value == 0.0
    assert scorers()["longbench_rouge"](beyond, [beyond, "nothing"]).why == f"{LIMIT} 0.0000"


def test_classes_are_skipped_while_the_list_is_edited_unless_asked_otherwise() -> None:
    facts = {"all_classes": ["A", "AB", "ABC"]}
    assert scorers()["longbench_classes"]("ABC", ["ABC"], facts).value == 0.5
    assert scorers()["longbench_classes_whole"]("ABC", ["ABC"], facts).value == 1.0


@pytest.mark.parametrize("empty", [None, [], "absent"])
def test_classification_without_classes_has_no_score_and_says_why(empty: object) -> None:
    score = scorers()["longbench_classes"]("Food", ["Food"], {} if empty == "absent" else {"all_classes": empty})
    assert score.value is None and "all_classes" in (score.why or "")


def test_a_reference_without_its_number_has_no_score_and_says_why() -> None:
    score = scorers()["longbench_retrieval"]("Paragraph 1", ["the first"])
    assert score.value is None and "Paragraph" in (score.why or "")


def test_code_is_compared_by_difflib_unless_asked_otherwise() -> None:
    one, other = "for i in range(n):", "while not done(i, n):"
    expected = round(100 * difflib.SequenceMatcher(None, one, other).ratio()) / 100
    assert scorers()["longbench_code"](one, [other]).value == expected == 0.41
    assert scorers()["longbench_code_levenshtein"](one, [other]).value == 0.51  # rapidfuzz 3.14 fuzz.ratio, rounded
    assert scorers()["longbench_code"]("  \nx = 1", ["x = 1"]).value == 0.57
    assert scorers()["longbench_code_text"]("  \nx = 1", ["x = 1"]).value == 1.0
    assert lengths("abc", "ac")[-1][-1] == 2


def test_no_card_deviates_from_upstream() -> None:
    used = {task.scorer for task in load_tasks()[0].values()} & SCORERS.keys()
    assert used == set(METRICS.values()) | {"longbench_f1_line", "longbench_rouge_line"}


def test_chinese_without_jieba_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    longbench._jieba.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'anchoreval\[zh\]'"):
        scorers()["longbench_rouge_zh"].packages()
    assert scorers()["longbench_rouge"].packages() == {}
    longbench._jieba.cache_clear()


def test_the_version_of_jieba_is_told(jieba: None) -> None:
    assert scorers()["longbench_f1_zh"].packages()["jieba"]


def test_an_answer_and_a_reference_of_a_book_each_are_refused_at_once() -> None:
    for work in (rouge_l, lengths):
        with pytest.raises(RunError, match=r"an answer of 20,000 and a reference of 20,000 items are too long"):
            work("a " * 20_000, "a " * 20_000) if work is rouge_l else work("a" * 20_000, "a" * 20_000)
