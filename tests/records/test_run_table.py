"""A run as a pandas table: a row per record, a column per field and per simple fact."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import pytest

from anchoreval.errors import MissingExtra
from anchoreval.records.lines import RECORDS, each_record
from anchoreval.records.run import Run, header_alone
from anchoreval.schema import Record

PATH = Path(__file__).parents[2] / "leaderboards" / "results" / "anchor-tiny" / "31bf25797b7ffa79"


@pytest.fixture(scope="module")
def run() -> Run:
    return replace(header_alone(PATH), records=tuple(islice(each_record(PATH / RECORDS), 0, 2000, 40)))


def test_a_table_has_a_row_per_record_in_their_order_and_every_field_but_facts(run: Run) -> None:
    table = run.to_pandas()
    assert len(table) == len(run.records) and {field.name for field in fields(Record)} - {"facts"} <= {*table.columns}
    for column in ("sample_id", "task", "length", "arm", "score", "outcome", "reference_logprob", "references"):
        assert table[column].tolist() == [getattr(record, column) for record in run.records]
    means = table.groupby(["task", "arm"])["score"].mean()
    task, arm = run.records[0].task, run.records[0].arm
    own = [record.score for record in run.records if (record.task, record.arm) == (task, arm)]
    assert means[task, arm] == pytest.approx(sum(own) / len(own), abs=1e-12)


def test_numbers_texts_and_flags_among_facts_are_columns_and_lists_are_none(run: Run) -> None:
    facts = [{"depth": 0.5, "cut": True, "depths": [0.1], "doc": {}, "form": None}, {"form": "noise"}, {}]
    records = tuple(replace(record, facts=each) for record, each in zip(run.records, facts, strict=False))
    table = replace(run, records=records).to_pandas()
    assert [name for name in table.columns if name.startswith("facts.")] == ["facts.depth", "facts.cut", "facts.form"]
    assert table["facts.depth"].tolist()[0] == 0.5 and table["facts.depth"].isna().tolist() == [False, True, True]


def test_a_run_without_records_has_a_table_without_rows(run: Run) -> None:
    table = replace(run, records=()).to_pandas()
    assert len(table) == 0 and "logprob_per_token" in table.columns


def test_without_pandas_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'anchoreval\[export\]'"):
        run.to_pandas()
