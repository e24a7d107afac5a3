"""Cards: strict parsing, one-line errors, selection by suite, set, task and glob."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchoreval.cards import (
    ModelCard,
    SuiteCard,
    find_model,
    load_card,
    load_models,
    load_tasks,
    select_tasks,
    with_settings,
)
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.suites import generators, scorers

CARD = """about: a suite
source: nowhere
license: none
version: 1
defaults: {samples: 3, lengths: [512], scorer: match_all}
tasks:
  one: {generator: ruler_niah, args: {haystack: noise}, max_new_tokens: 8}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("max_new_tokens: 8", "max_new_token: 8", ["tasks > one > max_new_token"]),
        ("max_new_tokens: 8", "max_new_tokens: eight", ["tasks > one > max_new_tokens"]),
        ("max_new_tokens: 8", "max_new_tokens: -1", ["tasks > one > max_new_tokens"]),
        ("version: 1", "version: 1\nversion: 2", [":5:", "'version' is repeated"]),
        ("version: 1", "version: [", [":"]),
        ("  one:", "  one: {generator: g, max_new_tokens: 1}\n  one:", ["'one' is repeated"]),
        ("about: a suite\n", "", ["about"]),
        ("tasks:", "sets: {few: [two]}\ntasks:", ["sets > few", "'two'"]),
    ],
)
def test_a_wrong_card_is_refused_with_file_entry_and_key(tmp_path: Path, old: str, new: str, names: list[str]) -> None:
    written(tmp_path, CARD.replace(old, new, 1))
    with pytest.raises(CardError) as caught:
        load_tasks(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "suite.yaml") in message
    assert all(name in message for name in names), message
    assert "\n" not in message


def test_a_right_card_is_read(tmp_path: Path) -> None:
    card = load_card(written(tmp_path, CARD), SuiteCard)
    assert card.tasks["one"].args == {"haystack": "noise"}


def test_a_missing_card_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"none\.yaml: cannot be read"):
        load_card(tmp_path / "none.yaml", ModelCard)


def test_every_task_names_a_generator_and_a_scorer_that_exist() -> None:
    tasks, _ = load_tasks()
    assert {task.generator for task in tasks.values()} <= set(generators())
    assert {task.scorer for task in tasks.values()} <= set(scorers())


def test_the_named_sets_have_the_sizes_of_the_benchmark_and_the_paper() -> None:
    _, sets = load_tasks()
    assert len(sets["ruler"]) == 13
    assert set(sets["ruler"]) - set(sets["ruler-11-wang"]) == {"ruler/cwe", "ruler/niah_multikey_3"}


def test_tasks_are_selected_by_set_task_and_glob_each_once_in_the_order_asked() -> None:
    chosen, single = select_tasks("ruler/vt, ruler/niah_single_* ruler/vt")
    assert [task.name for task in chosen] == ["vt", "niah_single_1", "niah_single_2", "niah_single_3"]
    assert single == {"ruler/vt"}


def test_a_task_that_one_suite_has_needs_no_suite() -> None:
    chosen, single = select_tasks("hellaswag,gsm8k")
    assert [task.address for task in chosen] == ["general/hellaswag", "general/gsm8k"]
    assert single == {"general/hellaswag", "general/gsm8k"}
    assert {task.suite for task in select_tasks("mmlu")[0]} == {"general"}, "the name of a set is the set"


def test_a_task_that_several_suites_have_is_answered_with_all_of_them() -> None:
    with pytest.raises(AnchorEvalError, match="task vt: name one of ruler-balanced/vt, ruler/vt"):
        select_tasks("vt")


def test_an_unknown_task_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UnknownName, match="ruler/niah_single_1"):
        select_tasks("ruler/niah_singel_1")


def test_a_model_is_a_card_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    name, card = find_model("anchor-tiny")
    assert name == "anchor-tiny" and Path(card.checkpoint).is_dir()
    assert find_model(str(tmp_path))[0] == tmp_path.name
    assert find_model("meta-llama/Llama-3.1-8B")[1].checkpoint == "meta-llama/Llama-3.1-8B"


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UnknownName, match="anchor-tiny"):
        find_model("anchor-tinny")


def test_every_model_card_is_read() -> None:
    assert "anchor-tiny" in load_models()


def test_a_setting_goes_to_the_tasks_whose_suite_has_it_and_to_no_other(tmp_path: Path) -> None:
    written(tmp_path, CARD.replace("tasks:", "settings: [depths]\ntasks:"))
    (tmp_path / "other.yaml").write_text(CARD, encoding="utf-8")
    tasks = list(load_tasks(tmp_path)[0].values())
    with_depths = {task.suite: task.args for task in with_settings(tasks, {"depths": 11})}
    assert with_depths == {"other": {"haystack": "noise"}, "suite": {"haystack": "noise", "depths": 11}}
    assert with_settings(tasks, {}) == tasks


def test_a_setting_that_no_chosen_task_has_is_an_error_that_names_its_flag() -> None:
    ruler, _ = select_tasks("ruler/vt")
    with pytest.raises(CardError, match="--depth-spacing is no setting of the chosen tasks"):
        with_settings(ruler, {"depth_spacing": "linear"})


def test_a_card_whose_file_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("about: first\ncheckpoint: here\n")
    first = load_card(path, ModelCard)
    assert load_card(path, ModelCard) is first and first.about == "first"
    path.write_text("about: the second\ncheckpoint: here\n")
    assert load_card(path, ModelCard).about == "the second"
