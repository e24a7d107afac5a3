"""Rounds of a run that stops by its rule: whole sources, in an order of the seed, each bet on once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anchoreval import compare, evaluate, load_run
from anchoreval.errors import AnchorEvalError
from anchoreval.records.header import HEADER
from anchoreval.runs.dealing import ROUND, bets, dealt, shuffled, source
from anchoreval.runs.rounds import words
from anchoreval.runs.verify.records import findings
from anchoreval.schema import Sample, Segment
from anchoreval.stats.sequential import Watcher, parse_until


def samples(sources: Sequence[object], task: str = "longbench/qasper") -> list[Sample]:
    query = (Segment("query", "?"),)
    return [Sample(task, 512, i, query, (str(i),), 8, {"source": named}) for i, named in enumerate(sources)]


def test_a_round_holds_whole_sources() -> None:
    made = samples([f"text {i // 5}" for i in range(203)])
    rounds = list(dealt(shuffled(made, 42)))
    assert sorted(one.index for each in rounds for one in each) == list(range(203))
    seen = [{source(one) for one in each} for each in rounds]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 41
    assert all(ROUND <= len(each) < ROUND + 5 for each in rounds[:-1])


def test_the_seed_alone_decides_the_order() -> None:
    made = samples([f"text {i // 3}" for i in range(60)])
    order = [[one.index for one in shuffled(made, seed)] for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2] and order[0] != list(range(60))
    assert all(order[0][at + 1] - order[0][at] == 1 for at in range(0, 60, 3))


def test_sources_that_come_back_are_put_together() -> None:
    made = samples([f"text {i % 30}" for i in range(90)])
    assert all(len({source(one) for one in each}) * 3 == len(each) for each in dealt(iter(made)))


@pytest.mark.parametrize("deal", [dealt, lambda made: shuffled(made, 42)])
def test_sources_that_recur_all_along_are_refused_with_their_number(deal: Any) -> None:
    made = samples([i % 24 for i in range(416)], "ruler/qa_1")
    said = "--until: ruler/qa_1 at 512 asks of 24 sources over 416 samples"
    with pytest.raises(AnchorEvalError, match=said):
        deal(iter(made))


def test_a_bet_is_the_mean_of_the_pairs_of_a_source_that_have_two_scores() -> None:
    arm, base = [1.0, 0.0, None, 0.5, None], [0.0, 0.0, 1.0, 1.0, 1.0]
    assert bets(arm, base, ["a", "a", "a", "b", "c"]) == ([0.5, -0.5], 3)


def test_false_verdicts_on_clustered_samples_keep_the_level() -> None:
    false, runs, n, each, rule = 0, 60, 320, 4, parse_until("1pt@95%")
    for seed in range(runs):
        rng = random.Random(seed)
        texts = [rng.choice((-1.0, 1.0)) if rng.random() < 0.2 else 0.0 for _ in range(n // each)]
        watcher = Watcher(rule)
        for at in range(0, n, ROUND):
            pulled = [texts[i // each] for i in range(at, at + ROUND)]
            watcher.add(*bets(pulled, [0.0] * ROUND, [i // each for i in range(at, at + ROUND)]))
        false += watcher.word in ("worse", "better")
    assert false / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5  # three Monte Carlo errors above nominal


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(
        "anchor-tiny", "niah/single,ruler/vt", lengths=[512], limit=72, backend="fake", arms="bf16,fp32",
        haystack="generated", until="20pt@80%", settings={"depths": 3, "repeats": 24},
        output=tmp_path_factory.mktemp("run"),
    ).path  # fmt: skip


def test_a_run_says_after_how_many_sources_and_verifies(run: Path) -> None:
    header = json.loads((run / HEADER).read_text())
    assert header["identity"]["shuffled"] == ["niah/single@512"]
    clustered, alone = (cell["arms"]["fp32"] for cell in header["until"]["cells"])
    assert clustered["pairs"] == 3 * clustered["sources"] and "sources" not in alone
    assert any(
        f"after {clustered['sources']} sources, {clustered['pairs']} of 72 pairs" in line for line in words(header)
    )
    (contrast,) = compare(load_run(run))
    assert contrast.cells[0].says == f"equivalent within 20 (20pt@80% after {clustered['sources']} sources)"
    assert not list(findings(run))


def test_a_changed_number_of_sources_is_named(run: Path) -> None:
    before = (run / HEADER).read_text()
    header = json.loads(before)
    header["until"]["cells"][0]["arms"]["fp32"]["sources"] = 3
    (run / HEADER).write_text(json.dumps(header))
    said = [str(one) for one in findings(run)]
    (run / HEADER).write_text(before)
    assert any("niah/single at 512: fp32: sources is 3, from the records" in line for line in said)
