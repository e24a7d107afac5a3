"""Texts scored token by token: numbers against a full float64 pass, the run behind `nll`, and the files it writes."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import logit_tolerance
from checkpoints import BOS, SHAPE, save_model
from tiny_models import build
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm
from anchoreval.backends.fake import FakeBackend
from anchoreval.backends.hf import answer as hf_answer
from anchoreval.backends.hf.answer import Scoring
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.cli.parser import main
from anchoreval.errors import AnchorEvalError, LengthError, RunError, SourceError, UnsupportedArm
from anchoreval.prompt import to_request
from anchoreval.records.lines import LOGPROBS
from anchoreval.records.run import Run, find_runs, load_run
from anchoreval.reports.nll.rows import Row, interval, table_of
from anchoreval.reports.nll.tables import BY_TEXT, HEADER, PICTURE, TABLE, losses_of
from anchoreval.runs import nll
from anchoreval.runs.rebuild import Remake
from anchoreval.schema import Output, Sample
from anchoreval.suites.nll.generate import generate, read_texts, size, taken, too_short
from anchoreval.suites.recipe import Recipe
from anchoreval.texts.prose import paragraphs
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import load_tokenizer

EPS = 2.0**-24
CPU = torch.device("cpu")


@contextlib.contextmanager
def unwatched(_: int) -> Iterator[Any]:
    yield lambda _: None


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("llama"), LlamaConfig(**SHAPE))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three generated texts, of about 2,500, 1,500 and 900 bytes (one token each)."""
    folder = tmp_path_factory.mktemp("texts")
    for seed, length in enumerate((2500, 1500, 900)):
        text, source = "", paragraphs(seed)
        while len(text) < length:
            text += " ".join(next(source)) + "\n"
        (folder / f"{seed}.txt").write_text(text[:length], "utf-8")
    return folder


def measure(model: Path, text: Path, output: Path, **settings: Any) -> list[Row]:
    told: list[str] = []
    settings = {"lengths": [256], "arms": "native", "chunk_tokens": 64, **settings}
    return nll.measure(str(model), text, output=output, watch=unwatched, tell=told.append, **settings)


# the log-probabilities


def scored(network: StockNetwork, ids: list[int], positions: range, chunk: int) -> torch.Tensor:
    """Log-probabilities of all tokens but the first, in one prefill on an empty cache."""
    cache = KvStore(network.layers, 1, len(ids)).row(0, 0, 0)
    with torch.inference_mode():
        if network.growth is not None:
            network.restart()
        each = Scoring(network, Limits(chunk_tokens=chunk)).text(cache, ids, positions, 1, chunk)
    return torch.tensor(each, dtype=torch.float64)


@torch.no_grad()
def reference(model: Any, ids: list[int], positions: Sequence[int]) -> tuple[torch.Tensor, float]:
    """Log-probabilities in float64 of one full pass, and the largest logit."""
    row = torch.tensor([ids[:-1]])  # the last token is never given: rotations that grow depend on how many are
    places = torch.tensor([list(positions)])[:, :-1]
    logits = model(row, attention_mask=torch.ones_like(row), position_ids=places, use_cache=False).logits[0]
    chosen = logits.double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return chosen, float(logits.abs().max())


FAMILIES = [
    "llama", "llama-dynamic", "mistral-window", "qwen2", "qwen3", "gemma3-local", "phi3-longrope", "olmo2", "mixtral",
    "gpt-neox", "smollm3", "gemma2", "granite",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_is_scored_as_by_one_full_pass_in_float64(name: str) -> None:
    model = build(name).double()
    model.config._experts_implementation = "eager"  # the grouped product takes no float64
    network = StockNetwork(model, CPU)
    ids = [BOS, *torch.randint(3, 128, (149,), generator=torch.Generator().manual_seed(2)).tolist()]
    # models whose rotation grows are refused position schemes, so their positions begin at 0
    positions = range(150) if network.growth else range(37, 187)
    want, largest = reference(model, ids, positions)
    got = scored(network, ids, positions, 32)
    # both runs share norms and tables; rounding logits and log-sum-exp to fp32 is 4 units of the largest
    tolerance = EPS * (4 * largest + 4 * math.log(128) + 16)
    assert got.shape == (149,)
    assert float((got - want).abs().max()) <= tolerance


def test_a_prompt_before_the_text_is_not_scored() -> None:
    network, ids = StockNetwork(build("llama"), CPU), list(range(5, 105))
    whole, cache = scored(network, ids, range(100), 16), KvStore(network.layers, 1, 100).row(0, 0, 0)
    with torch.inference_mode():
        behind = Scoring(network, Limits(chunk_tokens=16)).text(cache, ids, range(100), 40, 16)
    # the same chunks; logits of fewer rows of one chunk, 64 products each, and a loss is below 16
    torch.testing.assert_close(torch.tensor(behind).double(), whole[39:], rtol=0, atol=(64 + 128 + 16) * EPS)


def test_the_rows_that_are_widened_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = StockNetwork(build("llama"), CPU)
    ids = torch.randint(3, 128, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    whole = scored(network, ids, range(100), 100)
    monkeypatch.setattr(hf_answer, "REFERENCE_TOKENS", 7)
    again = scored(network, ids, range(100), 100)
    # the same logits; log-sum-exp of 128 of them may sum in another order, and a loss is below 16
    torch.testing.assert_close(again, whole, rtol=0, atol=(128 + 16) * EPS)


def test_a_model_whose_rotation_grows_runs_its_layers_once_and_is_left_as_it_was() -> None:
    model, calls = build("llama-dynamic"), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    network = StockNetwork(model, CPU)
    scored(network, list(range(100)), range(100), 16)
    assert len(calls) == 2  # the restart at one token, and the text
    assert "forward" not in vars(model.model)
    assert torch.equal(*(scored(network, list(range(100)), range(100), 99) for _ in range(2)))


class Largest(TorchDispatchMode):
    """The most elements of any tensor made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("name", ["llama", "phi3-longrope"])
def test_no_tensor_is_length_by_vocabulary_or_length_by_length(name: str) -> None:
    length, chunk, rows = 1024, 32, []
    model = build(name)
    model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[1]))
    with Largest() as seen:
        scored(StockNetwork(model, CPU), [5] * length, range(length), chunk)
    assert max(rows) == chunk and sum(rows) >= length - 1
    widest = {"llama": 64, "phi3-longrope": 192}[name]  # keys of all heads; gate and up projections in one
    assert seen.elements <= length * widest  # of a length x length mask there would be 1024 times the length


def test_a_text_that_is_not_finite_is_lost_and_its_place_named(llama: Path) -> None:
    backend = HfBackend.open(str(llama), chunk_tokens=1)
    with torch.no_grad():
        backend.model.get_input_embeddings().weight[7] = float("nan")
    sample = Sample("nll/text", 6, 0, (), (), 0, ids=(5, 5, 7, 5, 5))
    (output,) = backend.answer([to_request(sample, load_tokenizer(llama), "comma", None)])
    assert output.outcome == "not_finite" and output.token_logprobs is None and "position 4" in str(output.why)


# arms


def test_arms_differ_where_their_arithmetic_does_and_are_removed(llama: Path, texts: Path, tmp_path: Path) -> None:
    arms = "native,fp32,bf16-angle,native+shift:64,native+anchor-shift:64"
    rows = measure(llama, texts, tmp_path / "a", arms=arms)
    overall = {row.arm: row for row in rows if row.baseline and (row.first, row.last) == (1, 255)}
    assert overall["fp32"].differing == 0.0
    assert overall["bf16-angle"].differing > 0.9
    assert overall["native+shift:64"].differing > 0 and abs(overall["native+shift:64"].value) < 1e-4
    assert abs(overall["native+anchor-shift:64"].value) > 1e-4
    means = {row.arm: row.value for row in rows if not row.baseline and (row.first, row.last) == (1, 255)}
    assert overall["bf16-angle"].value == pytest.approx(means["bf16-angle"] - means["native"], abs=1e-12)


def test_auto_is_one_kernel_for_all_arms_of_the_table(llama: Path, texts: Path, tmp_path: Path) -> None:
    for arms, kernel in (("native,fp64", "fused"), ("native,bf16", "sdpa")):
        measure(llama, texts, tmp_path / kernel, arms=arms, limit=1, kernel="auto", dtype="bfloat16")
        header = json.loads((tmp_path / kernel / HEADER).read_text("utf-8"))
        assert {arm["kernel"] for arm in header["applied"].values()} == {kernel}
        assert header["engine"]["kernel"] == kernel


def test_a_placebo_of_an_arm_is_computed_in_other_chunks_and_differs_by_rounding_alone(
    llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    stock = Scoring.text
    monkeypatch.setattr(Scoring, "text", lambda *given: (chunks.append(given[-1]), stock(*given))[1])
    rows = measure(llama, texts, tmp_path, lengths=[300], arms="fp32,fp32~placebo")
    moved = [abs(row.value) for row in rows if row.arm == "fp32~placebo" and row.baseline is not None]
    assert set(chunks) == {64, 24}
    # a loss is the difference of two logits, and a mean of losses no farther off than the worst of them
    assert max(moved) < logit_tolerance(HfBackend.open(str(llama)).model)


@pytest.mark.parametrize(("arm", "positions"), [("anchor-shift:9", (0, 10, 11, 12)), ("shift:9", (9, 10, 11, 12))])
def test_a_shift_moves_the_text_behind_the_anchor(llama: Path, arm: str, positions: tuple[int, ...]) -> None:
    backend, tokenizer = HfBackend.open(str(llama)), load_tokenizer(llama)
    request = to_request(Sample("nll/text", 4, 0, (), (), 0, ids=(5, 6, 7)), tokenizer, "comma", None)
    with backend.under(parse_arm(f"native+{arm}")):
        (output,) = backend.answer([request])
    want, _ = reference(backend.model, [BOS, 5, 6, 7], positions)
    assert output.token_logprobs == pytest.approx(want.tolist(), abs=2 * logit_tolerance(backend.model))


def test_a_shift_beyond_the_window_is_computed_and_said(llama: Path, texts: Path, tmp_path: Path) -> None:
    told: list[str] = []
    settings: dict[str, Any] = {"lengths": [64, 128], "limit": 1, "watch": unwatched, "tell": told.append}
    arms = "native,native+shift:3968,native+anchor-shift:3969,native+shift:3969"
    rows = nll.measure(str(llama), texts, output=tmp_path, arms=arms, **settings)
    beyond = [line for line in told if "beyond" in line]
    assert beyond == [
        f"arm 'native+{positions}:3969': beyond the model's 4096 positions at lengths 128"
        for positions in ("anchor-shift", "shift")
    ]
    assert len({row.arm for row in rows}) == 4


@pytest.mark.parametrize("arm", ["anchor/fp32", "fp32+reset"])
def test_arms_without_meaning_for_one_text_are_refused(llama: Path, texts: Path, tmp_path: Path, arm: str) -> None:
    with pytest.raises(UnsupportedArm, match="nll"):
        measure(llama, texts, tmp_path / "out", arms=arm)
    assert not (tmp_path / "out").exists()


# the files


def test_the_same_settings_give_the_same_bytes(llama: Path, texts: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        measure(llama, texts, tmp_path / name, arms="bf16,fp32", lengths=[128, 256])
    for name in (HEADER, TABLE, BY_TEXT, PICTURE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    measure(llama, texts, tmp_path / "c", arms="bf16,fp32", lengths=[128, 256], limit=1)
    assert (tmp_path / "a" / TABLE).read_bytes() != (tmp_path / "c" / TABLE).read_bytes()


def test_a_measurement_that_was_cut_goes_on_and_computes_no_window_twice(
    llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"arms": "bf16,fp32", "lengths": [128, 256], "limit": 2}
    whole = measure(llama, texts, tmp_path / "whole", **asked)
    computed, stock = [], Scoring.text

    def cut(*given: Any) -> Any:
        if len(computed) % 4 == 3:
            computed.append(None)
            raise KeyboardInterrupt
        computed.append(given[2])
        return stock(*given)

    monkeypatch.setattr(Scoring, "text", cut)
    for _ in range(30):
        try:
            assert measure(llama, texts, tmp_path / "cut", **asked) == whole
            break
        except KeyboardInterrupt:
            continue
    else:
        pytest.fail("never ended")
    each = [ids for ids in computed if ids is not None]
    assert len(each) == 2 * 2 * 6  # arms, lengths, windows
    for name in (HEADER, TABLE, BY_TEXT, PICTURE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_table_of_texts_adds_up_to_the_rows_and_their_intervals(llama: Path, texts: Path, tmp_path: Path) -> None:
    rows = measure(llama, texts, tmp_path, arms="bf16,fp32")
    with (tmp_path / BY_TEXT).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for row in (one for one in rows if (one.first, one.last) != (1, 255)):
        place = [str(row.first), str(row.last), row.arm]
        own = [line for line in lines if [line["first"], line["last"], line["arm"]] == place]
        counts = [int(line["tokens"]) for line in own]
        means = [float(line["difference" if row.baseline else "value"]) for line in own]
        sums = [mean * count for mean, count in zip(means, counts, strict=True)]
        assert len(own) == row.units == 3 and sum(counts) == row.tokens
        # nine digits of losses below 16 and of differences below 1
        assert math.fsum(sums) / sum(counts) == pytest.approx(row.value, rel=1e-7, abs=1e-8)
        if row.low is not None and row.high is not None:
            assert interval(sums, counts) == pytest.approx((row.low, row.high), rel=1e-5, abs=1e-7)


def test_the_header_says_what_was_asked_and_applied(llama: Path, texts: Path, tmp_path: Path) -> None:
    import hashlib

    rows = measure(llama, texts, tmp_path, arms="bf16,fp32")
    header = json.loads((tmp_path / HEADER).read_text("utf-8"))
    assert [arm["name"] for arm in header["asked"]["arms"]] == ["bf16", "fp32"]
    assert header["applied"]["bf16"]["rope"]["sites"]["rotate"] == "bf16"
    sha = hashlib.sha256((texts / "0.txt").read_bytes()).hexdigest()
    assert header["asked"]["texts"][0] == {"name": "0.txt", "sha256": sha, "tokens": 2500}
    assert header["windows"] == [{"length": 256, "by_text": {"0.txt": 9, "1.txt": 5, "2.txt": 3}}]
    assert header["engine"]["versions"]["transformers"] and header["anchor"] == {"text": "<s>", "id": BOS}
    assert len(header["rows"]) == len(rows) == len((tmp_path / TABLE).read_text("utf-8").splitlines()) - 1
    assert {row.unit for row in rows} == {"text"} and {row.units for row in rows} == {3}


def test_results_of_other_settings_are_not_overwritten(llama: Path, texts: Path, tmp_path: Path) -> None:
    measure(llama, texts, tmp_path, limit=1)
    before = (tmp_path / TABLE).read_bytes()
    with pytest.raises(RunError, match="other settings"):
        measure(llama, texts, tmp_path, limit=2)
    assert (tmp_path / TABLE).read_bytes() == before
    measure(llama, texts, tmp_path, limit=1)
    (tmp_path / HEADER).write_text("[]")
    with pytest.raises(RunError, match=r"nll\.json: cannot be read"):
        measure(llama, texts, tmp_path, limit=1)


def test_what_an_older_version_kept_is_named_and_left(llama: Path, texts: Path, tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / nll.OLD).write_text("")
    nll.measure(str(llama), texts, output=tmp_path, lengths=[256], limit=1, watch=unwatched, tell=told.append)
    assert any("losses.jsonl was kept by an older version and is not read" in line for line in told)


# windows


def recipe(model: Path, text: Path, length: int, anchor: bool = True, **args: int) -> Recipe:
    front = ("<s>", BOS) if anchor else None
    tokenizer, sources = load_tokenizer(model), Sources(text=text, offline=True)
    return Recipe("nll/text", length, 0, 10**6, args, tokenizer, sources, outside=int(anchor), front=front)


def test_windows_cover_each_text_once_and_come_in_turn(llama: Path, texts: Path) -> None:
    asked = recipe(llama, texts, 1000)
    first, second, third = generate(asked)
    (whole, other, _) = read_texts(texts, asked.tokenizer)
    assert first.ids + third.ids == whole.ids[:1998] and second.ids == other.ids[:999]
    assert first.prompt + third.prompt == whole.text[:1998]  # one token a byte, ASCII
    assert [sample.facts["first"] for sample in (first, second, third)] == [0, 0, 999]
    assert first.facts["source"] == third.facts["source"] != second.facts["source"]
    assert too_short(asked) == ["left out: 2.txt has 901 tokens with the anchor, a window 1000"]
    assert size(asked) == 3 and size(recipe(llama, texts, 1000, windows=1)) == 2


@pytest.mark.parametrize("anchor", [True, False])
def test_a_window_is_scored_behind_the_anchor_or_behind_its_own_first_token(
    llama: Path, texts: Path, anchor: bool
) -> None:
    asked = recipe(llama, texts, 700, anchor)
    sample = next(generate(asked))
    request = to_request(sample, load_tokenizer(llama), "comma", 700, anchor="auto" if anchor else "none")
    whole = read_texts(texts, asked.tokenizer)[0].ids
    ids = (BOS, *whole[:699]) if anchor else whole[:700]
    assert (*request.token_ids, *request.reference_ids) == ids and len(request.token_ids) == 1
    assert request.scores_text and request.max_new_tokens == 0


def test_a_window_is_cut_from_the_tokens_of_the_whole_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Straße – naïve café " * 200, "utf-8")
    model = Path(__file__).parents[3] / "models" / "anchor-tiny"
    asked = recipe(model, tmp_path / "a.txt", 64)
    whole = load_tokenizer(model).encode((tmp_path / "a.txt").read_text("utf-8"))
    samples = list(generate(asked))
    assert [token for sample in samples for token in sample.ids] == whole[: 63 * len(samples)]


def test_without_an_anchor_windows_are_the_text_alone(llama: Path, texts: Path, tmp_path: Path) -> None:
    rows = measure(llama, texts, tmp_path, anchor="none", limit=1)
    header = json.loads((tmp_path / HEADER).read_text("utf-8"))
    assert rows and header["anchor"] is None and header["asked"]["anchor"] == "none"
    with pytest.raises(RunError, match="made with other settings"):
        measure(llama, texts, tmp_path, limit=1)
    with pytest.raises(UnsupportedArm, match="needs the anchor token"):
        measure(llama, texts, tmp_path / "b", anchor="none", arms="fp32,fp32+anchor-shift:16")


def test_a_text_that_fills_its_window_to_the_last_token_counts(llama: Path, texts: Path) -> None:
    assert len(taken(recipe(llama, texts / "2.txt", 901))) == 1
    with pytest.raises(LengthError, match="901 tokens"):
        taken(recipe(llama, texts / "2.txt", 902))


@pytest.mark.parametrize(
    ("content", "length", "error", "says"),
    [
        (b"", 64, SourceError, "empty"),
        (b" \n", 64, SourceError, "empty"),
        (b"abc\xff\xfe", 64, SourceError, "byte 3 is not UTF-8"),
        (b"abc", 64, LengthError, "4 tokens"),
        (b"spelled <s> out" * 10, 64, SourceError, "anchor token '<s>'"),
        (b"a" * 9000, 8192, LengthError, "4096 positions"),
        (b"a" * 100, 1, LengthError, "at least one more"),
    ],
)
def test_bad_texts_are_one_line(
    llama: Path, tmp_path: Path, content: bytes, length: int, error: type[Exception], says: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(error, match=says) as caught:
        measure(llama, tmp_path / "text.txt", tmp_path / "out", lengths=[length])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_absent_files_empty_folders_and_unwritable_ones_are_one_line(llama: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        measure(llama, tmp_path / "absent.txt", tmp_path / "out")
    with pytest.raises(SourceError, match=r"no \*\.txt"):
        measure(llama, tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot"):
        measure(llama, texts, tmp_path / "file")


def test_the_table_names_units_baseline_and_every_bucket(llama: Path, texts: Path, tmp_path: Path) -> None:
    text = table_of(measure(llama, texts, tmp_path, arms="bf16,fp32"))
    assert "difference to bf16, 95% intervals over 3 texts" in text
    assert [line.split()[0] for line in text.splitlines()[2::2]] == ["1-63", "64-127", "128-255", "1-255"]
    assert max(len(line) for line in text.splitlines()) <= 100


# the run


def fake(texts: Path, output: Path, **more: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [128, 256], "rope": "bf16,fp32", "backend": "fake", "text": texts} | more
    return evaluate("anchor-tiny", "nll", output=output, **asked)


@pytest.fixture(scope="module")
def run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fake(texts, tmp_path_factory.mktemp("nll"), placebo=True)


def test_a_run_scores_every_window_and_samples_of_a_text_share_their_source(run: Run) -> None:
    assert {record.outcome for record in run.records} == {"answered"} and run.arms == ("bf16", "fp32", "bf16~placebo")
    logprobs = run.token_logprobs()
    for record in run.records:
        each = logprobs[record.key]
        assert len(each) == record.reference_tokens == record.length - 1 and record.prompt_tokens == 1
        assert record.reference_logprob is not None and record.score is not None
        assert math.log(record.score) == pytest.approx(record.reference_logprob / len(each), rel=1e-12)
    assert len({record.facts["source"] for record in run.records}) == 3
    assert sum(row["samples"] for row in run.header["asked"]) * 3 == len(run.records)
    assert "nats per token, more is better" in run.header["incomparable"]["nll/text"]


def test_a_run_is_verified_with_its_texts_and_with_no_other(
    run: Run, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run.path), "--text", str(texts)]) == 0
    assert main(["verify", str(run.path)]) == 2
    assert "scores 0.txt, 3 files in all: name their file or folder with --text" in capsys.readouterr().err
    assert main(["verify", str(run.path), "--text", str(texts / "0.txt")]) == 2
    assert "texts/1.txt is not in both" in capsys.readouterr().err
    shutil.copytree(texts, tmp_path / "changed")
    (tmp_path / "changed" / "1.txt").write_text("Another text. " * 200)
    assert main(["verify", str(run.path), "--text", str(tmp_path / "changed")]) == 2
    assert "texts/1.txt has sha256" in capsys.readouterr().err
    made = {sample.id: sample for sample in Remake(run, text=texts).samples()}
    assert {record.sample_id for record in run.records} == set(made)


def test_more_windows_than_the_texts_have_show(run: Run, texts: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    header = json.loads((path / "header.json").read_text())
    header["asked"][0]["samples"] -= 1
    (path / "header.json").write_text(json.dumps(header))
    assert main(["verify", str(path), "--text", str(texts)]) == 1


def test_a_limit_takes_windows_of_all_texts_and_grows(texts: Path, tmp_path: Path) -> None:
    few = fake(texts, tmp_path, limit=3, rope="native", lengths=[128])
    assert {record.facts["text"] for record in few.records} == {"0.txt", "1.txt", "2.txt"}
    more = fake(texts, tmp_path, limit=5, rope="native", lengths=[128])
    assert more.path == few.path and len(more.records) == 5
    assert list(more.token_logprobs()) == [record.key for record in more.records]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"text": None}, "name their file or folder with --text"),
        ({"rope": "fp32,anchor/fp32"}, "a text is one document to nll/text; attention 'anchor' needs several"),
        ({"rope": "fp32+reset"}, "restart at each of several"),
        ({"settings": {"windows": 0}}, "not positive"),
        ({"template": "chat"}, "chat template"),
    ],
)
def test_what_a_text_cannot_be_scored_with_is_one_line(
    texts: Path, tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(AnchorEvalError, match=re.escape(says)) as caught:
        fake(texts, tmp_path / "out", **more)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_window_whose_losses_are_lost_is_asked_again(texts: Path, tmp_path: Path) -> None:
    run = fake(texts, tmp_path, lengths=[128])
    whole = (run.path / LOGPROBS).read_bytes()
    for lost in (whole[:-30], b"".join(whole.splitlines(keepends=True)[3:]), b""):
        header = json.loads((run.path / "header.json").read_text())
        del header["seal"], header["finished"]
        (run.path / "header.json").write_text(json.dumps(header))
        (run.path / LOGPROBS).write_bytes(lost)
        again = fake(texts, tmp_path, lengths=[128])
        assert again.path == run.path and (run.path / LOGPROBS).read_bytes() == whole
        assert [record.key for record in load_run(run.path).records] == [record.key for record in run.records]


def test_the_same_call_goes_on_whatever_the_texts_are_called(llama: Path, texts: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a/b.txt", "a-b.txt", "a.txt")):  # paths and names sort in other orders
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(texts / f"{number}.txt", tmp_path / "t" / name)
    rows = measure(llama, tmp_path / "t", tmp_path / "out", limit=1)
    before = (tmp_path / "out" / HEADER).read_bytes()
    assert measure(llama, tmp_path / "t", tmp_path / "out", limit=1) == rows
    assert (tmp_path / "out" / HEADER).read_bytes() == before


def test_a_name_that_is_not_utf_8_is_one_line(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    shutil.copy(texts / "0.txt", folder / "b\udcff.txt")
    for place in (folder, folder / "b\udcff.txt"):
        with pytest.raises(SourceError, match=r"the name 'b\\udcff\.txt' is not UTF-8: rename the file"):
            fake(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_says_once_that_a_text_is_left_out(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(texts, tmp_path / "t")
    (tmp_path / "t" / "short.txt").write_text("short")
    asked = ["--model", "anchor-tiny", "--gpus", "1xA100", "--tasks", "nll", "--lengths", "64", "--windows", "1"]
    assert main(["plan", *asked, "--text", str(tmp_path / "t")]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "short.txt" in line]
    assert said.startswith("left out: short.txt has ")


def test_a_window_without_losses_is_named_and_asked_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = FakeBackend._answer

    def fails(self: FakeBackend, request: Any) -> Output:
        made = stock(self, request)
        if not request.sample_id.endswith("#1"):
            return made
        return Output(request.sample_id, "", (), "error", None, 0.0, "it broke", lost="failed")

    with monkeypatch.context() as broken:
        broken.setattr(FakeBackend, "_answer", fails)
        run = fake(texts, tmp_path, lengths=[128])
    with pytest.raises(RunError, match=r"nll/text@128#1 under bf16 has no losses: it broke"):
        losses_of(run)
    again = fake(texts, tmp_path, lengths=[128])
    ((losses, names),) = losses_of(again)
    assert again.path == run.path and names == ["0.txt", "1.txt", "2.txt"]
    assert {arm: each.shape for arm, each in losses.by_arm.items()} == {
        "bf16": (len(losses.text_of), 127),
        "fp32": (len(losses.text_of), 127),
    }


def test_a_run_whose_tables_are_made_lies_beside_them(llama: Path, texts: Path, tmp_path: Path) -> None:
    measure(llama, texts, tmp_path, limit=1)
    (path,) = find_runs([tmp_path])
    assert (path / LOGPROBS).is_file() and load_run(path).changed == ""
    assert json.loads((tmp_path / HEADER).read_text())["run"] == path.name


def test_every_command_takes_a_run_of_texts(
    run: Run, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["--text", str(texts), "--windows", "1"]
    asked = ["--tasks", "nll", "--lengths", "128", *made]
    assert main(["run", "--model", "anchor-tiny", "--backend", "fake", *asked, "--output", str(tmp_path / "r")]) == 0
    assert "more is better" in capsys.readouterr().out
    (path,) = find_runs([tmp_path / "r"])
    assert len(load_run(path).records) == 3
    assert main(["plan", "--model", "anchor-tiny", "--gpus", "1xA100", *asked]) == 0
    assert main(["samples", "--tokenizer", "anchor-tiny", *asked, "--output", str(tmp_path / "prompts.jsonl")]) == 0
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert prompts == [sample.prompt for sample in Remake(load_run(path), text=texts).samples()]
    assert main(["show", "nll/text@128#0", "--tokenizer", "anchor-tiny", *made]) == 0
    assert prompts[0][:40] in capsys.readouterr().out
    out = str(tmp_path / "out")
    for words in (
        ["board", str(run.path), "--output", out], ["compare", str(run.path)], ["score", str(run.path)],
        ["view", str(run.path), "--output", out, "--text", str(texts)], ["view", str(path), "--output", f"{out}2"],
        *(["export", str(run.path), "--format", form, "--output", out] for form in ("csv", "lm-eval")),
    ):  # fmt: skip
        assert main(words) == 0, words
    page = (tmp_path / "out" / "board.html").read_text()
    assert "log-probabilities nats per token, more is better" in page
