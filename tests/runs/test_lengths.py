"""A length is everything that the model is fed and its answer: the same for every task, form, backend and command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import write_folder
from tokenizers import Tokenizer

from anchoreval import evaluate
from anchoreval.backends.openai.answers import Asking, Unanswerable
from anchoreval.backends.openai.server import Identity, Offers
from anchoreval.cards import Task, load_tasks
from anchoreval.errors import LengthError
from anchoreval.model import Model
from anchoreval.records.run import Run, header_alone
from anchoreval.reports.board import run_table
from anchoreval.runs.evaluate import as_served
from anchoreval.runs.prompts import ANCHOR_TOKENS, LengthRule, Prompts, Spec, template_tokens
from anchoreval.runs.rebuild import Remake
from anchoreval.runs.verify.records import findings
from anchoreval.schema import Request, Sample, Segment
from anchoreval.stats.cells import underfilled
from anchoreval.suites import generator_of
from anchoreval.suites.longbench_v2 import generate as longbench_v2
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

FOLDER = Path(__file__).parents[2] / "models" / "anchor-tiny"
TINY = load_tokenizer(FOLDER)
CARDS = load_tasks()[0]
OURS = ("ruler-balanced", "niah", "recall")
FILLED = [address for address, task in CARDS.items() if task.suite in OURS]
RULER = [address for address, task in CARDS.items() if task.suite == "ruler"]
TEMPLATE = "{{ bos_token }}<user>{% for m in messages %}{{ m['content'] }}{% endfor %}</user>\nAnswer it now:"
LENGTH = 1024


def with_template(template: str | None = TEMPLATE) -> TextTokenizer:
    config = {"chat_template": template} if template else {}
    return TextTokenizer(Tokenizer.from_file(str(FOLDER / "tokenizer.json")), TINY._config | config)


def spec(*addresses: str, **changes: Any) -> Spec:
    fields: dict[str, Any] = {
        "tasks": tuple(CARDS[address] for address in addresses), "lengths": (LENGTH,), "arms": (), "limit": 4,
        "seed": 42, "template": "base", "sources": Sources(haystack="generated", offline=True),
    }  # fmt: skip
    return Spec(**fields | changes)


def asked(which: Spec, tokenizer: TextTokenizer = TINY, window: int | None = None) -> Iterator[tuple[Sample, Request]]:
    prompts = Prompts(which, Model.of_tokenizer(tokenizer, window))
    for cell in prompts.cells():
        yield from ((sample, prompts.request(cell.task, sample)) for sample in cell.samples)


@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize("address", [*FILLED, *RULER])
def test_anchor_template_prompt_and_answer_are_within_the_length(address: str, template: str) -> None:
    for sample, request in asked(spec(address, template=template, limit=2), with_template()):
        total = len(request.token_ids) + request.max_new_tokens
        assert total == sample.facts["tokens"] + ANCHOR_TOKENS <= sample.length == LENGTH
        less = sample.facts.get("budget_less", 0)
        assert request.max_new_tokens == sample.max_new_tokens == CARDS[address].max_new_tokens - less


@pytest.mark.parametrize("address", ["recall/passkey", "ruler/vt", "ruler-balanced/niah_single_2"])
def test_a_servers_own_template_is_within_the_length_where_the_tokenizer_has_it(address: str) -> None:
    tokenizer = with_template()
    around = template_tokens(tokenizer)
    assert around == tokenizer.count("<user>") + tokenizer.count("</user>\nAnswer it now:") > 8
    for sample, request in asked(spec(address, served=True), tokenizer):
        assert sample.facts["template_tokens"] == around
        total = len(request.token_ids) + around + request.max_new_tokens
        assert total == sample.facts["tokens"] + ANCHOR_TOKENS + around <= LENGTH


@pytest.mark.parametrize("address", ["recall/passkey", "ruler-balanced/niah_single_2"])
def test_the_token_that_a_server_puts_in_front_is_within_the_length_without_an_anchor_of_ours(address: str) -> None:
    for tokenizer in (with_template(), TINY):
        around = template_tokens(tokenizer)
        assert template_tokens(tokenizer, "none") == around + 1
        for _, request in asked(spec(address, served=True, anchor="none"), tokenizer):
            assert 1 + len(request.token_ids) + around + request.max_new_tokens <= LENGTH


@pytest.mark.parametrize("address", RULER)
def test_published_prompts_keep_their_bytes_and_one_over_by_the_anchor_is_asked_for_a_token_less(address: str) -> None:
    new = list(asked(spec(address, limit=3, lengths=(1008, 1010))))
    old = list(asked(spec(address, limit=3, lengths=(1008, 1010), length_rule="published")))
    assert [sample.prompt for sample, _ in new] == [sample.prompt for sample, _ in old]
    for (sample, request), (before, _) in zip(new, old, strict=True):
        over = before.facts["tokens"] == sample.length
        assert sample.facts.get("budget_less") == (1 if over else None) and "budget_less" not in before.facts
        assert request.max_new_tokens == before.max_new_tokens - over
        assert sample.facts["tokens"] == before.facts["tokens"] - over


def test_there_are_published_prompts_that_are_over_by_the_anchor() -> None:
    found = asked(spec("ruler/niah_single_2", "ruler/qa_1", "ruler/qa_2", limit=3, lengths=(1008, 1010)))
    assert sum("budget_less" in sample.facts for sample, _ in found) >= 3


@pytest.mark.parametrize("address", ["recall/passkey", "niah/single", "ruler-balanced/qa_1"])
def test_filled_prompts_of_before_are_made_by_the_rule_of_before(address: str) -> None:
    new, old = list(asked(spec(address))), list(asked(spec(address, length_rule="published")))
    for (sample, request), (before, was) in zip(new, old, strict=True):
        assert len(was.token_ids) - ANCHOR_TOKENS + was.max_new_tokens == before.facts["tokens"] <= LENGTH
        assert sample.prompt != before.prompt and len(request.token_ids) <= len(was.token_ids)


def test_what_keeps_its_published_count_is_ruler_and_the_published_babilong() -> None:
    assert {task.suite for task in CARDS.values() if generator_of(task).published} == {"ruler", "babilong_published"}


@pytest.mark.parametrize("backend", ["fake", "hf"])
def test_a_sample_that_fills_its_length_runs_where_the_window_is_that_length(tmp_path: Path, backend: Any) -> None:
    tasks = "recall/passkey,ruler-balanced/niah_single_1,ruler/niah_single_2"
    run = evaluate(
        "anchor-tiny",
        tasks,
        lengths=[512],
        max_length=512,
        limit=2,
        backend=backend,
        haystack="generated",
        output=tmp_path,
    )
    assert [record.outcome for record in run.records if record.outcome not in ("answered", "cut")] == []
    most = {f"{row['suite']}/{row['name']}": row["max_new_tokens"] for row in run.header["identity"]["tasks"]}
    for record in run.records:
        assert record.prompt_tokens + most[record.task] - record.facts.get("budget_less", 0) <= 512
    assert {record.facts["tokens"] for record in run.records if record.task != "ruler/niah_single_2"} == {511}


def server(window: int, logprobs: Any = "none") -> Asking:
    return Asking(Identity("m"), Offers(True, logprobs, False), "completions", TINY, 0, window)


@pytest.mark.parametrize("address", [*FILLED, *RULER])
def test_a_server_whose_window_is_the_length_takes_every_sample(address: str) -> None:
    for _, request in asked(spec(address, limit=2)):
        assert server(LENGTH).generation(request)["max_tokens"] == request.max_new_tokens
        with pytest.raises(Unanswerable):
            server(len(request.token_ids) + request.max_new_tokens - 1).generation(request)


def test_an_answer_that_fills_the_window_is_not_lost_where_scoring_it_needs_a_token_more() -> None:
    assert server(20, "echo+1").scoring([1] * 12, [2] * 8, 8) is None
    assert server(21, "echo+1").scoring([1] * 12, [2] * 8, 8)
    assert server(20, "echo").scoring([1] * 12, [2] * 8, 8)
    with pytest.raises(Unanswerable):
        server(19, "echo+1").scoring([1] * 12, [2] * 8, 8)


class Served:
    """An engine that states so many positions."""

    def __init__(self, positions: int | None, engine: str = "openai") -> None:
        self._said = {"engine": engine, "max_length": positions}

    def describe(self) -> dict[str, Any]:
        return self._said


def served_of(engine: Served, window: int | None) -> Prompts:
    return as_served(Prompts(spec("recall/passkey", lengths=(512,)), Model.of_tokenizer(TINY, window)), engine)  # type: ignore[arg-type]


def test_a_server_of_fewer_positions_than_the_card_runs_what_it_has_room_for() -> None:
    for served, window in ((512, 512), (600, 600), (9000, 8192), (None, 8192)):
        assert served_of(Served(served), 8192).model.window == window
    assert served_of(Served(512), None).model.window == 512
    with pytest.raises(LengthError, match="length 512 is over the model's limit of 511 positions: --lengths up to 511"):
        served_of(Served(511), 8192).cells()


def test_the_header_names_the_form_and_the_rule(tmp_path: Path) -> None:
    run = evaluate("anchor-tiny", "recall/passkey", lengths=[256], limit=1, backend="fake", output=tmp_path)
    assert run.header["form"] == run.header["identity"]["form"] == "base"
    assert run.header["identity"]["length_rule"] == "fed"
    assert spec("recall/passkey", template="chat").form == "chat"
    assert spec("recall/passkey", served=True).form == "server"


def test_a_run_without_a_rule_is_made_again_by_the_published_one() -> None:
    (path,) = (FOLDER.parents[1] / "leaderboards/results/anchor-tiny").glob("3ea75*")
    remake = Remake(header_alone(path))
    assert remake.spec.length_rule == "published" and remake.spec.form == remake.spec.template
    assert remake.prompts.rule == LengthRule(anchor=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("longbench_v2"))


def two_steps(output: Path, folder: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"lengths": [8000], "limit": 6, "backend": "fake", "rope": "native"} | changes
    return evaluate(
        "anchor-tiny",
        "longbench_v2/questions",
        output=output,
        data_dir=folder,
        settings={"prompting": "cot"},
        **settings,
    )


def test_a_prompt_that_does_not_fit_gets_that_outcome_and_the_others_run(tmp_path: Path, folder: Path) -> None:
    whole = two_steps(tmp_path / "whole", folder)
    sizes = {record.sample_id: record.prompt_tokens for record in whole.records}
    least, most = min(sizes.values()), max(sizes.values())
    assert least < most
    window = least - 1 + longbench_v2.REASONING_TOKENS
    run = two_steps(tmp_path / "less", folder, max_length=window)
    for record in run.records:
        assert (record.outcome == "does_not_fit") == (sizes[record.sample_id] > least)
        assert (record.score is None) == (record.outcome == "does_not_fit")
    assert not [str(one) for one in findings(run.path, folder) if one.differs]
    with pytest.raises(LengthError, match="no prompt is shorter"):
        two_steps(tmp_path / "none", folder, max_length=window - 2)


def test_a_second_prompt_that_does_not_fit_leaves_the_run_going(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longbench_v2, "REASONING_TOKENS", 2)
    whole = two_steps(tmp_path / "whole", folder, lengths=[160])
    assert all(record.facts["second_prompt_tokens"] > 100 for record in whole.records)
    run = two_steps(tmp_path / "less", folder, lengths=[160], max_length=200)
    assert len(run.records) == len(whole.records)
    for record in run.records:
        assert record.outcome == "does_not_fit" and record.score is None
        assert str(record.why).startswith("second prompt: ") and "the model has 200" in str(record.why)
    assert not [str(one) for one in findings(run.path, folder) if one.differs]


def test_a_cut_prompt_that_is_over_the_window_by_the_anchor_alone_is_asked_for_a_token_less() -> None:
    task: Task = CARDS["longbench/qasper"]
    text = "What stood beside the oak, and why was it there at all?"
    sample = Sample(task.address, 100, 0, (Segment("query", text),), ("x",), 128, {})
    tokens, rule = TINY.count(text), LengthRule()
    for room, less in ((tokens + 129, None), (tokens + 128, 1), (tokens + 127, None), (None, None)):
        settled = rule.settled(sample, task, TINY, room)
        assert settled.facts.get("budget_less") == less and settled.max_new_tokens == 128 - (less or 0)


def test_fill_is_the_mean_share_of_a_length_and_the_table_names_what_is_below_nine_tenths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluate("anchor-tiny", "recall/passkey", lengths=[512], limit=2, backend="fake", output=tmp_path)
    assert not underfilled(run.records)
    assert "of their lengths" not in run_table(run)
    less = [
        replace(record, facts=record.facts | {"tokens": tokens})
        for record, tokens in zip(run.records, (256, 512), strict=True)
    ]
    assert underfilled(less) == {("recall/passkey", 512): 0.75}
    said = run_table(replace(run, records=tuple(less)))
    assert "Prompts and answers fill, of their lengths: recall/passkey at 512 75%." in said
    natural = [replace(record, length=0) for record in less]
    assert not underfilled(natural) and not underfilled([replace(record, facts={}) for record in less])
    monkeypatch.setitem(underfilled.__globals__, "ENOUGH", 1.0)
    assert underfilled(run.records) == {("recall/passkey", 512): 511 / 512}
