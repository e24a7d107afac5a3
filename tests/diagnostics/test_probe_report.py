"""The probe end to end on a checkpoint of two layers: rows, CSV, page, command line."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
import transformers

from anchoreval.arms.rope import LEVELS, parse_level
from anchoreval.cli.options import counts, lengths, shifts
from anchoreval.cli.parser import main
from anchoreval.diagnostics.probe import Study, csv_text, probe, write_probe
from anchoreval.diagnostics.probe import study as study_module
from anchoreval.diagnostics.probe.page import number, reading, slope
from anchoreval.diagnostics.probe.sheet import MEASURES, Part, Row, Setting, packed, unpacked
from anchoreval.diagnostics.probe.study import bins, isolated, parse_rungs, read_texts
from anchoreval.errors import LengthError, SourceError, UnknownName
from anchoreval.reports.plots import Axis, Curve, Powers, chart, decades, power_text
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY

TOKENIZER = REPOSITORY / "models" / "anchor-tiny"
PLACE: tuple[Any, ...] = ("one-layer", "oracle", 0, 0, "all", "all")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama stored in bf16, with the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("model") / "random-llama"
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(20)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def study(checkpoint: Path) -> Study:
    """Two lengths, four rungs, one text."""
    return probe(
        str(checkpoint), [64, 32], haystack="generated", levels="native,fp32-qk,fp32,bf16-angle", texts=1, queries=48
    )


def value(study: Study, measure: str, **wanted: Any) -> float:
    asked: dict[str, Any] = {"mode": "one-layer", "against": "shift", "length": 64, "shift": 0} | wanted
    (row,) = study.totals(**asked)
    return row.values[measure]


@pytest.mark.half
def test_every_setting_is_there_once_with_every_head_and_key(study: Study) -> None:
    settings = {row.setting for row in study.rows if row.head != "all"}
    pairs = {(s.dtype, s.mode, s.against, s.level, s.length) for s in settings}
    assert len(settings) == len(pairs) == 3 * 2 * 4 * 2 + 2 * 2  # and random weights, end to end
    assert {(row.layer, row.head) for row in study.rows} == {
        ("all", "all"), ("0", "all"), ("1", "all"), *((layer, head) for layer in "01" for head in "01")
    }  # fmt: skip
    keys = [row.key for row in study.keys(length=64, level="fp32", dtype="fp32", mode="one-layer", against="shift")]
    assert keys == ["0", "1", "2", "3", "4-7", "8-15", "16-31", "32-63"]
    assert len({(row.setting, row.layer, row.head, row.key) for row in study.rows}) == len(study.rows)
    assert {(s.length, s.texts, s.queries) for s in settings} == {(32, 1, 32), (64, 1, 48)}


@pytest.mark.half
def test_totals_are_sums_of_the_heads_and_the_profile_adds_up_to_d(study: Study) -> None:
    wanted: dict[str, Any] = {"dtype": "bf16", "mode": "end-to-end", "against": "shift", "length": 64}
    wanted["level"] = "native"
    (whole,), heads = study.totals(**wanted, shift=0), study.heads(**wanted)
    for measure in ("D", "D_logit"):
        assert whole.values[measure] == pytest.approx(sum(row.values[measure] for row in heads))
    sizes = dict(zip(("0", "1", "2", "3", "4-7", "8-15", "16-31", "32-63"), (1, 1, 1, 1, 4, 8, 16, 32), strict=True))
    profile = sum(sizes[row.key] * row.values["key_weight"] for row in study.keys(**wanted))
    assert profile == pytest.approx(whole.values["D"])
    first = next(row for row in study.keys(**wanted) if row.key == "0")
    assert first.values["key_logit"] == pytest.approx(whole.values["D_logit"])


@pytest.mark.half
def test_the_ladder_holds_in_the_float32_copy(study: Study) -> None:
    """There `fp32` still rounds q and k to bf16: it is the rung that is isolated, not undone."""
    wanted: dict[str, Any] = {"dtype": "fp32"}
    drift = [value(study, "D_logit", level=level, **wanted) for level in ("fp32-qk", "fp32", "native", "bf16-angle")]
    assert 20 * drift[0] < drift[1] <= 1.05 * drift[2] < 0.5 * drift[3]
    far = [value(study, "D", level=n, against="oracle", **wanted) for n in ("fp32-qk", "fp32", "bf16-angle")]
    assert 20 * far[0] < far[1] < far[2]


def test_random_weights_are_one_more_series_of_the_model_as_stored(study: Study) -> None:
    found = {(r.setting.dtype, r.setting.mode, r.setting.against) for r in study.select(level="random weights")}
    assert found == {("bf16", "end-to-end", "shift"), ("bf16", "end-to-end", "oracle")}
    assert "With its own weights against random ones in bf16: D " in reading(study)


def test_the_sweep_shares_its_second_shift_and_holds_the_pair_asked_for(study: Study) -> None:
    wanted: dict[str, Any] = {"dtype": "bf16", "mode": "end-to-end", "level": "fp32", "against": "shift"}
    shifts = sorted(row.setting.shift for row in study.totals(length=64, **wanted))
    assert shifts == [0, 8, 15, 17, 20, 100, 1000]
    assert {row.setting.other for row in study.select(against="shift")} == {16}
    only_pair = study.totals(length=32, **wanted)
    assert [row.setting.shift for row in only_pair] == [0]


def test_levels_in_the_copy_keep_the_stored_model_s_roundings() -> None:
    assert str(isolated(LEVELS["fp32"], "bf16", "bf16", "fp32")) == "rope:product=bf16"
    assert str(isolated(LEVELS["native"], "bf16", "bf16", "fp32")) == "bf16"
    assert str(isolated(LEVELS["native"], "bf16", "fp32", "fp32")) == "rope:product=bf16"
    assert isolated(LEVELS["native"], "bf16", None, "fp32").native
    assert isolated(LEVELS["native"], "bf16", "bf16", "bf16").native
    assert str(isolated(LEVELS["native"], "bf16", "bf16", "bf16", "bf16")) == "bf16"
    assert isolated(LEVELS["fp32-qk"], "bf16", "bf16", "fp32") == LEVELS["fp32-qk"]
    assert isolated(LEVELS["fp32"], "fp32", "fp32", "fp32") == LEVELS["fp32"]


def test_level_names_are_read_as_lists_and_all_leaves_out_the_oracle() -> None:
    assert {rung.name for rung in parse_rungs("all")} == set(LEVELS) - {"fp64", "fp16-table"}
    assert [rung.name for rung in parse_rungs("bf16, fp32,bf16")] == ["bf16", "fp32"]
    rungs = parse_rungs("native rope:table=bf16,rotate=fp32")
    assert rungs[1].level == parse_level("rope:table=bf16,rotate=fp32")
    with pytest.raises(UnknownName, match="fp32"):
        parse_rungs("fp31")


def test_texts_have_the_length_asked_for_with_the_anchor_first(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    prose = Sources(haystack="generated")
    made = read_texts(prose, tokenizer, 100, 3, 1)
    assert [len(ids) for ids in made] == [100] * 3 and {ids[0] for ids in made} == {tokenizer.bos[1]}  # type: ignore[index]
    assert made == read_texts(prose, tokenizer, 100, 3, 1) != read_texts(prose, tokenizer, 100, 3, 2)
    assert made[0] == read_texts(prose, tokenizer, 200, 1, 1)[0][:100]
    file = tmp_path / "text.txt"
    file.write_text("The harbour was quiet in the morning. " * 12)
    ids = tokenizer.encode(file.read_text())
    parts = read_texts(Sources(text=file), tokenizer, 21, 3, 1)
    assert [part[1:] for part in parts] == [ids[:20], ids[20:40], ids[40:60]]
    with pytest.raises(LengthError, match=f"{len(ids)} tokens"):
        read_texts(Sources(text=file), tokenizer, len(ids) + 2, 1, 1)
    with pytest.raises(SourceError, match="absent"):
        read_texts(Sources(text=tmp_path / "absent.txt"), tokenizer, 8, 1, 1)


def test_the_haystack_is_that_of_a_run_published_essays_or_generated_prose(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match=r"PaulGrahamEssays\.json.*--haystack generated"):
        probe(str(checkpoint), [8], levels="fp32")
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": "The harbour was quiet in the morning. " * 9}))
    tokenizer, essays = load_tokenizer(TOKENIZER), Sources(tmp_path)
    (part,) = read_texts(essays, tokenizer, 21, 1, 1)
    assert part[1:] == tokenizer.encode("The harbour was quiet in the morning. " * 9)[:20]
    with pytest.raises(LengthError, match=r"PaulGrahamEssays\.json has"):
        read_texts(essays, tokenizer, 10_000, 1, 1)
    study = probe(str(checkpoint), [8], levels="fp32", data_dir=tmp_path, dtype="float32")
    assert str(study.facts["text"]).startswith("PaulGrahamEssays.json, not the published file: sha256")


def test_key_bins_cover_every_key_once() -> None:
    for length in (1, 3, 4, 5, 64, 100):
        assert [key for low, high in bins(length) for key in range(low, high)] == list(range(length))


@pytest.mark.half
def test_the_csv_is_tidy_and_the_same_bytes_again(study: Study, checkpoint: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(study))))
    assert len(rows) == len(study.rows) and set(MEASURES) < set(rows[0])
    one = write_probe(study, tmp_path / "one")
    two = write_probe(study, tmp_path / "two")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    again = probe(str(checkpoint), [32, 64], haystack="generated", levels="native", texts=1, queries=48)
    kept = [row for row in study.rows if row.setting.level in ("native", "random weights")]
    assert csv_text(Study(study.model, again.rows)) == csv_text(Study(study.model, tuple(kept)))


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_nothing(study: Study, tmp_path: Path) -> None:
    hostile = Study("<script>alert(1)</script>", study.rows, {**study.facts, "text": "<img/>"})
    page = write_probe(hostile, tmp_path)[1].read_text("utf-8")
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)=|url\(|@import""", page)
    assert page.count("<figure>") == 5 * 3 and "default-src &#39;none&#39;" not in page
    assert "D against the shift" in page and "Difference per key" in page and "D_logit against the length" in page
    assert reading(study)[:40] in page


def made(first: float, other: float, weights: tuple[float, float], growth: float) -> Study:
    """Two lengths of one level and one head, with these measures at the longer."""
    rows = []
    for length, factor in ((64, 1.0), (128, growth)):
        for against, end in (("shift", 16), ("oracle", 0)):
            for mode in ("end-to-end", "one-layer"):
                at = Setting("fp32", mode, against, "native", "fp32", length, 0, end, 1, 64)  # type: ignore[arg-type]
                values = {"D": 1.0, "D_logit": factor, "share_first": 0.5, "mass_first": 0.4}
                values |= {"logit_first": first, "logit_other": other}
                values |= {"weight_first": weights[0], "weight_other": weights[1]}
                rows += [Row(at, "all", "all", "all", values), Row(at, "0", "0", "all", values)]
    return Study("m", tuple(rows), {"stored": "fp32"})


def test_the_reading_says_what_the_numbers_say() -> None:
    text = reading(made(1.0, 2.0, (3.0, 1.0), 2.0))
    assert "before softmax the first key's is smaller (0.5 times), and the larger one in 0 of 1 heads" in text
    assert "the first key's is larger (3 times)" in text and "D_logit grows from 64 to 128 tokens" in text
    assert "to the power +1.00" in text and "1 of 1 heads put 30% or more" in text
    text = reading(made(2.0, 1.0, (1.0, 3.0), 0.5))
    assert "first key's is larger (2 times), and the larger one in 1 of 1" in text
    assert "first key's is smaller (0.33 times)" in text and "D_logit falls" in text
    assert "about the same (1.1 times)" in reading(made(1.1, 1.0, (1.0, 1.0), 1.1))
    assert "D_logit stays about the same" in reading(made(1.1, 1.0, (1.0, 1.0), 1.1))


def test_numbers_and_slopes_are_plain() -> None:
    assert [number(x) for x in (0, 0.25, 1.234e-5, 4321.0)] == ["0", "0.25", "1.2e-05", "4.3e+03"]
    assert slope([(64, 3.0), (128, 12.0), (256, 48.0)]) == pytest.approx(2.0)
    assert power_text(-5) == "10⁻⁵" and power_text(0) == "1"


def test_a_chart_puts_powers_of_ten_and_doublings_at_even_steps() -> None:
    curve = Curve("a<b", 0, ((64, 1.0), (128, 10.0), (256, 100.0), (512, 0.0)))
    assert decades([curve]) == (0, 2)
    drawn = chart([curve], Axis("tokens", ((64, "64"),)), Powers(0, 2), "label")
    (points,) = re.findall(r'polyline points="([^"]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y1 < y0
    assert "a&lt;b" in drawn


def test_lengths_and_shifts_are_read_from_the_command_line() -> None:
    assert lengths("64..8k") == [64 << at for at in range(8)]
    assert lengths("100..399") == [100, 200] and lengths("512,4k") == [512, 4096]
    assert shifts("0, 16") == (0, 16) and shifts("0,8,2,16") == (0, 8, 2, 16)
    for wrong in ("8k..64", "a..b"):
        with pytest.raises(Exception, match="length"):
            lengths(wrong)
    for wrong in ("16", "3,3", "0,-1"):
        with pytest.raises(Exception, match="different offsets"):
            shifts(wrong)


def test_the_command_prints_the_reading_and_writes_both_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--lengths", "16..32", "--levels", "fp32", "--texts", "1", "--dtype", "float32"]
    arguments += ["--haystack", "generated", "--output", str(tmp_path)]
    assert main(["probe", "--model", str(checkpoint), *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("In the fp32 model, end to end, at 32 tokens under fp32")
    assert (tmp_path / "probe.csv").is_file() and str(tmp_path / "probe.html") in printed.err
    assert main(["probe", "--model", str(checkpoint), *arguments[:2], "--levels", "fp31"]) == 2


def test_a_study_that_was_cut_goes_on_and_measures_nothing_twice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, runs = tmp_path / "probe.jsonl", 0
    record = study_module.record

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs > most:
            raise KeyboardInterrupt
        return record(*given, **named)

    def measured() -> Study:
        asked: dict[str, Any] = {"levels": "fp32,bf16", "texts": 2, "dtype": "float32", "shift": (0, 4, 16)}
        return probe(str(checkpoint), [24, 32], haystack="generated", queries=16, kept=kept, **asked)

    monkeypatch.setattr(study_module, "record", counted)
    most = 10**9
    whole, total = csv_text(measured()), runs
    kept.unlink()
    runs = 0
    for _ in range(total):
        most = runs + 9  # a text under one level takes up to 8 runs, one of them the oracle's
        try:
            assert csv_text(measured()) == whole
            break
        except KeyboardInterrupt:
            with kept.open("a") as torn:
                torn.write('{"name": "half a li')
    else:
        pytest.fail("never ended")
    before, most = runs, 10**9
    assert csv_text(measured()) == whole and runs == before


def test_lines_of_plain_json_are_read_as_those_that_are_packed() -> None:
    parts = [Part(*PLACE, "all", {"D": 0.125}), Part(*PLACE, "3", {"key_logit": 1e-6})]
    plain = [
        [p.mode, p.against, p.shift, p.other, p.layer, p.head, p.key, [p.values.get(name) for name in MEASURES]]
        for p in parts
    ]
    assert unpacked(plain) == unpacked(packed(parts)) == parts
    for wrong in ("no base85 \x00", packed(parts)[:-9], [["end-to-end"]], 7):
        with pytest.raises(ValueError, match="expected"):
            unpacked(wrong)


@pytest.mark.half
def test_without_the_copy_a_model_of_16_bits_is_measured_as_it_is_stored(checkpoint: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"levels": "fp32-qk", "texts": 1, "queries": 16, "kept": tmp_path / "k"}
    alone = probe(str(checkpoint), [24], haystack="generated", copy=False, **asked)
    assert {(row.setting.dtype, row.setting.mode) for row in alone.rows} == {("bf16", "end-to-end")}
    assert "In the bf16 model, end to end" in reading(alone) and "float32" not in reading(alone)
    assert write_page(alone).count("<figure>") == 5
    names = {json.loads(line)["name"] for line in (tmp_path / "k").read_text().splitlines()}
    probe(str(checkpoint), [24], haystack="generated", **asked)
    both = {json.loads(line)["name"] for line in (tmp_path / "k").read_text().splitlines()}
    probe(
        str(checkpoint), [24], haystack="generated", **asked | {"dtype": "float32"}
    )  # other weights than those of the copy
    every = {json.loads(line)["name"] for line in (tmp_path / "k").read_text().splitlines()}
    assert names < both < every and len(every) - len(both) == 2  # the level, and random weights


@pytest.fixture(scope="module")
def several(checkpoint: Path) -> Study:
    """Three texts of one length, with a curve over shifts of our own."""
    return probe(
        str(checkpoint),
        [32],
        haystack="generated",
        levels="bf16",
        texts=3,
        queries=16,
        dtype="float32",
        shift=(0, 2, 50, 16),
    )


def test_numbers_of_several_texts_are_means_with_the_t_interval_over_them(several: Study) -> None:
    (row,) = several.totals(dtype="fp32", mode="end-to-end", against="shift", shift=2, level="bf16")
    each = [one.values["D"] for one in several.texts if replace(one.setting, texts=3) == row.setting]
    assert len(each) == row.setting.texts == 3
    assert row.values["D"] == pytest.approx(statistics.fmean(each))
    ends = scipy.stats.t.interval(0.95, 2, row.values["D"], statistics.stdev(each) / 3**0.5)
    assert row.halves["D"] == pytest.approx((ends[1] - ends[0]) / 2)
    written = list(csv.DictReader(io.StringIO(csv_text(several))))
    assert all((line["D_half"] == "") == (line["head"] != "all" or line["key"] != "all") for line in written)
    assert "±" in write_page(several)


def write_page(study: Study) -> str:
    from anchoreval.diagnostics.probe.page import page

    return page(study)


def test_all_shifts_between_the_first_and_the_last_make_the_curve(several: Study) -> None:
    swept = several.totals(dtype="fp32", mode="one-layer", against="shift", level="bf16")
    assert sorted(row.setting.shift for row in swept) == [0, 2, 50] and {row.setting.other for row in swept} == {16}


def test_layers_add_up_to_the_model(several: Study) -> None:
    wanted: dict[str, Any] = {"dtype": "fp32", "mode": "one-layer", "against": "shift", "shift": 0, "level": "bf16"}
    layers = [row for row in several.select(**wanted) if row.layer != "all" and row.head == "all"]
    (whole,) = several.totals(**wanted)
    assert len(layers) == 2
    assert whole.values["D"] == pytest.approx(sum(row.values["D"] for row in layers), rel=1e-5)


def test_a_folder_gives_the_first_part_of_each_text_before_the_second_of_any(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    for name, word in (("b", "river "), ("a", "harbour ")):
        (tmp_path / f"{name}.txt").write_text(word * 40)
    parts = read_texts(Sources(text=tmp_path), tokenizer, 11, 3, 1)
    first, second = (tokenizer.encode(word * 40) for word in ("harbour ", "river "))
    assert [part[1:] for part in parts] == [first[:10], second[:10], first[10:20]]


def test_the_number_of_texts_may_depend_on_the_length(checkpoint: Path) -> None:
    assert counts("20") == ((0, 20),) and counts("20,5@4k") == ((0, 20), (4096, 5))
    for wrong in ("0", "a", "5@", "3,4", "3,4@x"):
        with pytest.raises(argparse.ArgumentTypeError):
            counts(wrong)
    found = probe(
        str(checkpoint),
        [16, 32],
        haystack="generated",
        levels="fp32",
        texts=counts("3,2@32"),
        dtype="float32",
        curve_length=32,
    )
    assert {(row.setting.length, row.setting.texts) for row in found.totals()} == {(16, 3), (32, 2)}
    assert {row.setting.length for row in found.totals(against="shift", shift=20)} == {32}
    with pytest.raises(LengthError, match="--curve-length 64"):
        probe(str(checkpoint), [16, 32], curve_length=64)


def test_kept_parts_come_back_and_what_is_none_of_them_is_refused() -> None:
    part = Part("one-layer", "oracle", 0, 16, "all", "all", "all", {MEASURES[0]: 0.5})
    assert unpacked(packed([part])) == [part]
    row = ["one-layer", "oracle", 0, 16, "all", "all", "all", [0.5, *[None] * (len(MEASURES) - 1)]]
    place = [*row[:2], "16", *row[3:]]
    for wrong in (None, {}, [[]], ["x"], [row[:-1]], [["other", *row[1:]]], [place], [[*row[:-1], [1.0]]]):
        with pytest.raises(ValueError, match="expected"):
            unpacked(wrong)
