"""`compare`: arms of one run, arms across runs, the noise floor, and runs that must not be paired."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import cli
from scipy import stats

from anchoreval import compare, evaluate
from anchoreval.errors import RunError, UnknownName
from anchoreval.records.header import Header
from anchoreval.records.run import Run
from anchoreval.reports.compare.contrasts import BODY, TABLE, write_compare
from anchoreval.reports.compare.table import table_of
from anchoreval.schema import Record
from anchoreval.stats.paired import OTHER_PROMPT

COMMITTED = Path(__file__).parents[2] / "leaderboards" / "results" / "anchor-tiny"
Right = Callable[[str, int], float]  # (arm, index) -> score


def record(arm: str, task: str, index: int, score: float, logprob: float, prompt: str) -> Record:
    return Record(
        key=f"{arm}{task}{index}", sample_id=f"{task}@512#{index}", task=task, length=512, index=index, arm=arm,
        prompt_sha256=f"{prompt}{index}", prompt_tokens=9, references=("1",), facts={}, output="", output_tokens=1,
        finish="stop", score=score, why=None, reference_logprob=logprob, reference_tokens=1, seconds=0.0,
    )  # fmt: skip


def made(arms: Mapping[str, float], n: int = 100, name: str = "one", prompt: str = "p", **header: Any) -> Run:
    """A run whose arm is wrong on its share of the samples of two tasks; log-probabilities fall with that share."""
    records = [
        record(arm, task, i, float(random.Random(f"{task}{i}").random() >= wrong), -1 - wrong - 1e-6 * (i % 7) * wrong,
               prompt)
        for arm, wrong in arms.items() for task in ("ruler/vt", "ruler/cwe") for i in range(n)
    ]  # fmt: skip
    said = {"run": name, "model": {"name": name}, "seed": 42, "tokenizer": {"sha256": "t"}, "template": "base"}
    said |= {"arms": [{"name": arm} for arm in arms], "sources": {"haystack": "generated"}} | header
    return Run(Path(name), said, tuple(records))


def test_every_arm_is_compared_with_the_first_by_task_length_and_pooled() -> None:
    found = compare(made({"native": 0.0, "bf16-angle": 0.3, "fp32": 0.0}))
    assert [(one.arm, one.baseline) for one in found] == [("bf16-angle", "native"), ("fp32", "native")]
    (worse, same) = found
    assert [row.difference.task for row in worse.rows] == ["ruler/vt", "ruler/cwe", None, None]
    assert {row.verdict.word for row in worse.rows} == {"worse"}
    assert {row.word for row in same.cells} == {"identical"}
    assert all("equivalence within 1 needs about " in row.says for row in same.cells)
    assert {row.difference.same_outputs for row in same.cells} == {100}
    assert {row.logprob_says for row in same.rows} == {"the same"}


def test_holm_is_over_the_cells_of_one_comparison() -> None:
    from statsmodels.stats.multitest import multipletests

    (one,) = compare(made({"a": 0.0, "b": 0.06}))
    expected = multipletests([row.difference.p for row in one.cells], method="holm")[1]
    assert [row.p_holm for row in one.cells] == pytest.approx(expected)
    assert one.pooled.p_holm == one.pooled.difference.p


def test_a_wider_margin_makes_equal_arms_equivalent() -> None:
    (one,) = compare(made({"a": 0.1, "b": 0.1}), margin=5)
    assert {row.says for row in one.rows} == {"identical (equivalent within 5)"}


def test_without_a_placebo_the_table_says_so() -> None:
    (one,) = compare(made({"a": 0.0, "b": 0.3}))
    assert one.pooled.floor is None and "noise floor: no placebo in this run" in table_of(one)


def test_an_effect_counts_only_above_what_the_placebo_differs_by_and_the_placebo_is_named_when_it_differs() -> None:
    quiet, loud = ({"a": 0.0, "a~placebo": wrong, "b": 0.25} for wrong in (0.0, 0.3))
    placebo, arm = compare(made(quiet))
    assert {row.says for row in placebo.rows} == {"floor 0 here"} and {row.says for row in arm.rows} == {"worse"}
    assert arm.pooled.floor is not None and arm.pooled.floor.discordant == 0
    placebo, arm = compare(made(loud))
    assert all("not above the noise floor" in row.says for row in arm.rows)
    assert {row.says for row in placebo.rows} == {"ABOVE THE FLOOR: the placebo is worse"}
    assert {row.logprob_says for row in arm.rows} == {"at the floor"}
    assert "noise floor, pooled: the placebo differs in" in table_of(arm)


def test_two_runs_are_compared_arm_by_arm_under_their_models_names() -> None:
    first, second = made({"bf16": 0.0, "fp32": 0.0}), made({"bf16": 0.3, "fp32": 0.0}, name="two")
    found = compare([first, second])
    assert [(one.arm, one.baseline, one.pooled.verdict.word) for one in found] == [
        ("bf16 (two)", "bf16 (one)", "worse"), ("fp32 (two)", "fp32 (one)", "identical"),
    ]  # fmt: skip
    against = compare([first, second], baseline="fp32")
    assert {one.baseline for one in against} == {"fp32 (one)"} and len(against) == 2


def test_single_arms_of_other_names_are_compared_and_several_are_refused() -> None:
    (found,) = compare([made({"a": 0.0}), made({"b": 0.3}, name="two")])
    assert (found.arm, found.baseline) == ("b (two)", "a (one)")
    with pytest.raises(RunError, match="no arm in common"):
        compare([made({"a": 0.0}), made({"b": 0.3, "c": 0.0}, name="two")])


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"seed": 43}, "different seed: 42 and 43"),
        ({"tokenizer": {"sha256": "u"}}, "different tokenizer: t and u"),
        ({"sources": {"haystack": "published"}}, "different haystack: generated and published"),
        ({"template": "chat"}, "different template: base and chat"),
        ({"source_files": {"squad.json": {"sha256": "x"}}}, "different source files"),
        ({}, "the headers agree: the records were changed"),
    ],
)
def test_runs_over_other_prompts_are_refused_with_the_count_and_the_reason(header: dict[str, Any], why: str) -> None:
    other = made({"a": 0.3}, name="two", prompt="q", **header)
    with pytest.raises(RunError, match="200 of 200 samples had other prompts") as caught:
        compare([made({"a": 0.0}), other])
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_arms_of_one_run_over_other_prompts_are_refused() -> None:
    run = made({"a": 0.0, "b": 0.0}, n=3)
    changed = [dataclasses.replace(one, prompt_sha256="x") if one.key == "bruler/vt1" else one for one in run.records]
    with pytest.raises(RunError, match="1 samples had different prompts"):
        compare(dataclasses.replace(run, records=tuple(changed)))


def other_prompts(run: Run, share: int) -> Run:
    """The run with other prompts in one of so many samples."""
    records = (dataclasses.replace(one, prompt_sha256=f"other {one.prompt_sha256}") if one.index % share == 0 else one
               for one in run.records)  # fmt: skip
    return dataclasses.replace(run, records=tuple(records))


def test_samples_whose_prompts_the_tokenizers_make_differ_are_left_out_and_the_table_says_so() -> None:
    first, second = made({"a": 0.0}), other_prompts(made({"a": 0.3}, name="two", tokenizer={"sha256": "u"}), 4)
    (one,) = compare([first, second])
    assert {row.difference.pairs for row in one.cells} == {75} and one.pooled.difference.lost == {OTHER_PROMPT: 50}
    right = [one.score for one in second.records if one.index % 4]
    assert one.pooled.difference.mean_arm == pytest.approx(sum(score or 0 for score in right) / len(right))
    text = table_of(one)
    assert "not paired: 50 of 200 samples, whose prompts differ (different tokenizer: t and u)" in text
    assert "ruler/vt at 512: 25 left out: 25 with another prompt" in text
    with pytest.raises(RunError, match="50 of 200 samples had other prompts"):
        compare([first, other_prompts(made({"a": 0.3}, name="two"), 4)])


def test_two_models_are_compared_as_two_arms_are() -> None:
    own = compare(made({"a": 0.0, "a~placebo": 0.02, "b": 0.3}))[1]
    first, second = made({"a": 0.0, "a~placebo": 0.02}), made({"a": 0.3}, name="two")
    (two,) = compare([first, second])
    assert (two.arm, two.baseline) == ("a (two)", "a (one)")
    assert two.pooled.floor and {row.word for row in two.rows} == {"worse"}
    assert table_of(two).splitlines()[1:] == table_of(own).splitlines()[1:]


def test_a_placebo_stands_for_its_own_model_alone() -> None:
    noisy = {"a": 0.0, "a~placebo": 0.3}
    placebo, plain = compare([made({"a": 0.0, "b": 0.0}), made(noisy, name="two")], baseline="a")[::-1]
    assert (placebo.arm, placebo.pooled.word) == ("a~placebo (two)", "cannot tell")  # a verdict, no noise floor
    assert plain.pooled.word == "identical"
    against = compare([made(noisy), made({"b": 0.3}, name="two")], baseline="a")[0].pooled
    assert "not above the noise floor" in against.says  # the baseline's own placebo differs as much
    still = made({"a": 0.0, "a~placebo": 0.0}), made(noisy | {"b": 0.3}, name="two")
    assert compare(still, baseline="a")[2].pooled.word == "worse"  # the other model's placebo does not count


def test_one_name_of_an_arm_from_outside_and_two_sources_are_two_subjects() -> None:
    arm = "bf16+x:evict:window"

    def run(name: str, wrong: float, sha256: str) -> Run:
        asked = {"outside": [{"name": "x:evict:window", "sha256": sha256 * 64}]}
        own = made({arm: wrong}, name=name, model={"name": "m"})
        return dataclasses.replace(own, header=Header(own.header | {"arms": [{"name": arm, "asked": asked}]}))

    (found,) = compare([run("one", 0.0, "c"), run("two", 0.3, "d")])
    assert (found.arm, found.baseline) == (f"{arm} (source dddddddd)", f"{arm} (source cccccccc)")
    assert f"{arm} is not one arm: it is from another source dddddddd, and source cccccccc" in table_of(found)
    assert found.pooled.word == "worse"


def test_a_copy_of_a_run_whose_records_changed_is_another_subject() -> None:
    run, copy = (dataclasses.replace(made({"a": wrong}), path=Path(f"/runs/{path}"))
                 for wrong, path in ((0.0, "x"), (0.3, "y")))  # fmt: skip
    (found,) = compare([run, copy])
    assert (found.arm, found.baseline, found.pooled.word) == ("a (/runs/y)", "a (/runs/x)", "worse")


def test_runs_without_a_common_sample_are_refused() -> None:
    other = made({"a": 0.3}, name="two")
    moved = tuple(dataclasses.replace(one, sample_id=f"x{one.sample_id}") for one in other.records)
    with pytest.raises(RunError, match="no sample in common"):
        compare([made({"a": 0.0}), dataclasses.replace(other, records=moved)])


def test_log_probabilities_of_two_tokenizers_are_not_compared() -> None:
    (one,) = compare([made({"a": 0.0}), made({"a": 0.3}, name="two", tokenizer={"sha256": "u"})])
    assert one.pooled.difference.logprob is None and any("tokenizers differ" in note for note in one.notes)


def test_an_unknown_baseline_and_a_single_arm_are_named() -> None:
    with pytest.raises(UnknownName, match="did you mean native"):
        compare(made({"native": 0.0, "fp32": 0.0}), baseline="natve")
    with pytest.raises(RunError, match="one arm"):
        compare(made({"native": 0.0}))


def test_the_csv_and_the_json_hold_every_row_in_points(tmp_path: Path) -> None:
    found = compare(made({"a": 0.0, "b": 0.3, "a~placebo": 0.0}))
    table, body = write_compare(found, tmp_path / "out")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    read = json.loads(body.read_text())
    assert [row["says"] for row in rows] == [row["says"] for one in read["contrasts"] for row in one["rows"]]
    assert float(rows[0]["difference"]) == pytest.approx(100 * (found[0].cells[0].difference.difference or 0))
    assert {row["scope"] for row in rows} == {"cell", "length", "pooled"} and rows[0]["floor_discordant"] == "0.0"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TABLE, BODY}


def test_rows_with_pairs_alone_are_in_the_table_and_names_cannot_break_it() -> None:
    first, second = made({"a\x1b[31m": 0.0}), made({"a\x1b[31m": 0.3}, n=50, name="two")
    some = tuple(one for one in second.records if one.task == "ruler/vt")
    (found,) = compare([first, dataclasses.replace(second, records=some)])
    text = table_of(found)
    assert "1 of 2 cells have no pair" in text and "ruler/cwe" not in text and "\x1b" not in text
    assert found.cells[0].difference.left_out == 50


def test_a_table_too_wide_stands_in_two_blocks_with_the_same_numbers() -> None:
    (one,) = compare([made({"ruler/vt": 0.0, "ruler/cwe": 0.3})])
    wide, narrow = table_of(one), table_of(one, 140)
    assert max(map(len, wide.splitlines()[:6])) > 140 >= max(map(len, narrow.splitlines()[:6]))
    assert narrow.count("task ") == 2 and wide.count("task ") == 1
    assert {word for word in wide.split() if "--" not in word} == {word for word in narrow.split() if "--" not in word}


def test_the_command_prints_the_committed_runs_verdict_and_writes_both_files(tmp_path: Path) -> None:
    done = cli("compare", str(COMMITTED / "3ea75cb9ef6b0c93"), "--baseline", "native", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "bf16-angle minus native" in done.stdout and "-100.0" in done.stdout and "worse" in done.stdout
    assert (tmp_path / TABLE).exists() and str(tmp_path / BODY) in done.stderr


def test_other_seeds_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    runs = [
        evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=3, backend="fake", seed=seed, output=tmp_path)
        for seed in (42, 43)
    ]
    done = cli("compare", *(str(run.path) for run in runs))
    assert done.returncode == 2 and not done.stdout
    assert "3 of 3 samples" in done.stderr and "different seed: 42 and 43" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--margin", "0"], "--margin"),
        (["--margin", "x"], "points above 0"),
        (["--baseline", "fp31"], "unknown arm"),
        (["/nowhere"], "no run here"),
        ([str(COMMITTED)], "name one run folder"),
    ],
)
def test_bad_input_is_named_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = cli("compare", str(COMMITTED / "3ea75cb9ef6b0c93"), *arguments)
    assert done.returncode == 2 and says in done.stderr.strip().splitlines()[-1] and not done.stdout


def trained(variant: str, seed: int, wrong: float, **card: Any) -> Run:
    name = f"{variant}-{seed}"
    said = {"variant": variant, "rope": "fp32", "seed": seed, "step": 16, "steps": 16, "data_sha256": "d"} | card
    return made({"fp32": wrong}, name=name, model={"name": name, "trained": said})


def test_variants_with_several_seeds_are_compared_over_seeds() -> None:
    lost = {0: 0.10, 1: 0.20, 2: 0.12, 3: 0.16}
    runs = [trained("full", seed, 0.0) for seed in lost] + [trained("anchor", seed, lost[seed]) for seed in lost]
    *of_runs, over = compare(runs)
    assert len(of_runs) == 7
    assert (over.arm, over.baseline) == ("fp32 (anchor-fp32)", "fp32 (full-fp32)")
    means = [compare([runs[seed], runs[4 + seed]])[0].pooled.difference for seed in lost]
    theirs = stats.ttest_1samp([each.difference for each in means], 0)
    pooled = over.pooled.difference
    assert (pooled.pairs, pooled.p) == (4, pytest.approx(theirs.pvalue))
    assert (pooled.low, pooled.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert pooled.logprob == pytest.approx(sum(each.logprob or 0.0 for each in means) / 4)
    assert [row.difference.task for row in over.cells] == ["ruler/vt", "ruler/cwe"]
    assert over.pooled.says == "worse" and over.pooled.logprob_says == "lower"
    text = table_of(over)
    assert "pairs are 4 seeds: samples are averaged inside a seed, t intervals over seeds" in text
    assert "lacks" not in text


def test_a_difference_over_seeds_counts_only_above_the_noise_floor_of_the_runs() -> None:
    def noisy(variant: str, seed: int, wrong: float, floor: float) -> Run:
        run = trained(variant, seed, wrong)
        return made({"fp32": wrong, "fp32~placebo": wrong + floor}, name=run.name, model=dict(run.header.model))

    for floor, says in ((0.0, "worse"), (0.5, "cannot tell (not above the noise floor)")):
        runs = [noisy("full", seed, 0.0, floor) for seed in range(3)]
        runs += [noisy("anchor", seed, 0.2 + seed / 100, floor) for seed in range(3)]
        over = next(each for each in compare(runs) if each.arm == "fp32 (anchor-fp32)")
        assert over.pooled.says == says


def test_a_seed_that_one_variant_lacks_is_named_and_not_used() -> None:
    runs = [trained("full", seed, 0.0) for seed in (0, 1, 2)] + [trained("anchor", seed, 0.2) for seed in (1, 2, 5)]
    over = compare(runs)[-1]
    assert over.pooled.difference.pairs == 2
    assert "anchor-fp32 lacks seed 0; full-fp32 lacks seed 5" in over.notes
    single = compare([trained("full", 0, 0.0), trained("anchor", 0, 0.1), trained("anchor", 1, 0.1)])
    assert len(single) == 2  # one seed is no spread


@pytest.mark.parametrize("other", [{"data_sha256": "e"}, {"step": 8}, {"hyper": {"lr": 1.0}}])
def test_models_that_differ_in_more_than_the_seed_are_no_seeds_of_one_variant(other: dict[str, Any]) -> None:
    runs = [trained("full", seed, 0.0) for seed in (0, 1)]
    runs += [trained("anchor", 0, 0.2), trained("anchor", 1, 0.2, **other)]
    assert len(compare(runs)) == 3
    runs += [trained("anchor", 1, 0.2), trained("anchor", 0, 0.2, **other)]
    names = [contrast.arm for contrast in compare(runs)[5:]]
    assert len(set(names)) == 2 and all(name.startswith("fp32 (anchor-fp32 ") for name in names)
