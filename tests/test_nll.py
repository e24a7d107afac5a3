"""Loss by position: the numbers against a full float64 pass, the intervals against simulated texts, the files."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention.tiny_models import build
from backends.agreement import logit_tolerance
from backends.checkpoints import BOS, SHAPE, save_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from anchoreval import nll, nll_report, token_losses
from anchoreval.arms import parse_arm
from anchoreval.backends.hf import HfBackend
from anchoreval.backends.hf_load import StockNetwork
from anchoreval.data.prose import paragraphs
from anchoreval.errors import AnchorEvalError, LengthError, ModelError, RunError, SourceError, UnsupportedArm
from anchoreval.nll_report import Losses, interval, rows_of, spans, table_of
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
    for seed, size in enumerate((2500, 1500, 900)):
        text, source = "", paragraphs(seed)
        while len(text) < size:
            text += " ".join(next(source)) + "\n"
        (folder / f"{seed}.txt").write_text(text[:size], "utf-8")
    return folder


def measure(model: Path, text: Path, output: Path, **settings: Any) -> list[nll_report.Row]:
    told: list[str] = []
    settings = {"lengths": [256], "arms": "native", "chunk_tokens": 64, **settings}
    return nll.measure(str(model), text, output=output, watch=unwatched, tell=told.append, **settings)


# the losses


@torch.no_grad()
def reference(model: Any, ids: list[int], positions: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Losses in float64 of one full pass, and the largest logit."""
    row = torch.tensor([ids[:-1]])  # the last token is never given: rotations that grow depend on how many are
    logits = model(row, attention_mask=torch.ones_like(row), position_ids=positions[None, :-1], use_cache=False).logits[
        0
    ]
    chosen = logits.double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return -chosen, float(logits.abs().max())


FAMILIES = [
    "llama", "llama-dynamic", "mistral-window", "qwen2", "qwen3", "gemma3-local", "phi3-longrope", "olmo2", "mixtral",
    "gpt-neox", "smollm3", "gemma2", "granite",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_one_full_pass_in_float64(name: str) -> None:
    model = build(name).double()
    model.config._experts_implementation = "eager"  # the grouped product takes no float64
    ids = [BOS, *torch.randint(3, 128, (149,), generator=torch.Generator().manual_seed(2)).tolist()]
    positions = torch.arange(150) + 37
    want, largest = reference(model, ids, positions)
    got = token_losses.token_losses(StockNetwork(model, CPU), ids, positions, 32)
    # both runs share norms and tables; rounding logits and log-sum-exp to fp32 is 4 units of the largest
    tolerance = EPS * (4 * largest + 4 * math.log(128) + 16)
    assert got.dtype == torch.float64 and got.shape == (149,)
    assert float((got - want).abs().max()) <= tolerance


def test_the_rows_that_are_widened_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network, positions = StockNetwork(build("llama"), CPU), torch.arange(100)
    ids = torch.randint(3, 128, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    whole = token_losses.token_losses(network, ids, positions, 100)
    monkeypatch.setattr(token_losses, "ROWS", 7)
    again = token_losses.token_losses(network, ids, positions, 100)
    # the same logits; log-sum-exp of 128 of them may sum in another order, and a loss is below 16
    torch.testing.assert_close(again, whole, rtol=0, atol=(128 + 16) * EPS)


def test_a_model_whose_rotation_grows_runs_its_layers_once_and_is_left_as_it_was() -> None:
    model, calls = build("llama-dynamic"), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    network = StockNetwork(model, CPU)
    token_losses.token_losses(network, list(range(100)), torch.arange(100), 16)
    assert len(calls) == 2  # the restart at one token, and the text
    assert "forward" not in vars(model.model)
    again = token_losses.token_losses(network, list(range(100)), torch.arange(100), 99)
    assert torch.equal(again, token_losses.token_losses(network, list(range(100)), torch.arange(100), 99))


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
        token_losses.token_losses(StockNetwork(model, CPU), [5] * length, torch.arange(length), chunk)
    assert max(rows) == chunk and sum(rows) >= length - 1
    widest = {"llama": 64, "phi3-longrope": 192}[name]  # keys of all heads; gate and up projections in one
    assert seen.elements <= length * widest  # of a length x length mask there would be 1024 times the length


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_place() -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    with pytest.raises(ModelError, match="position 4"):
        token_losses.token_losses(StockNetwork(model, CPU), [1, 5, 5, 7, 5, 5], torch.arange(6), 1)


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
        header = json.loads((tmp_path / kernel / nll.HEADER).read_text("utf-8"))
        assert {arm["kernel"] for arm in header["applied"].values()} == {kernel}
        assert header["engine"]["kernel"] == kernel


def test_a_placebo_of_an_arm_is_computed_in_other_chunks_and_differs_by_rounding_alone(
    llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    stock = token_losses.token_losses
    monkeypatch.setattr(token_losses, "token_losses", lambda *given: (chunks.append(given[-1]), stock(*given))[1])
    rows = nll.measure(
        str(llama), texts, lengths=[300], arms="fp32,fp32~placebo", output=tmp_path, chunk_tokens=64, watch=unwatched,
        tell=print,
    )  # fmt: skip
    moved = [abs(row.value) for row in rows if row.arm == "fp32~placebo" and row.baseline is not None]
    assert set(chunks) == {64, 24}
    # a loss is the difference of two logits, and a mean of losses no farther off than the worst of them
    assert max(moved) < logit_tolerance(HfBackend.open(str(llama)).model)


def test_an_anchor_shift_leaves_the_first_position_at_zero() -> None:
    assert nll._positions(parse_arm("fp32+anchor-shift:9"), 4) == (0, 10, 11, 12)
    assert nll._positions(parse_arm("fp32+shift:9"), 4) == (9, 10, 11, 12)


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
    for name in (nll.HEADER, nll.TABLE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    measure(llama, texts, tmp_path / "c", arms="bf16,fp32", lengths=[128, 256], limit=1)
    assert (tmp_path / "a" / nll.TABLE).read_bytes() != (tmp_path / "c" / nll.TABLE).read_bytes()


def test_a_measurement_that_was_cut_goes_on_and_computes_no_window_twice(
    llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"arms": "bf16,fp32", "lengths": [128, 256], "limit": 2}
    whole = measure(llama, texts, tmp_path / "whole", **asked)
    computed, stock = [], token_losses.token_losses

    def cut(*given: Any) -> Any:
        if len(computed) % 4 == 3:
            computed.append(None)
            raise KeyboardInterrupt
        computed.append(given[1])
        return stock(*given)

    monkeypatch.setattr(token_losses, "token_losses", cut)
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
    for name in (nll.HEADER, nll.TABLE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_header_says_what_was_asked_and_applied(llama: Path, texts: Path, tmp_path: Path) -> None:
    import hashlib

    rows = measure(llama, texts, tmp_path, arms="bf16,fp32")
    header = json.loads((tmp_path / nll.HEADER).read_text("utf-8"))
    assert [arm["name"] for arm in header["asked"]["arms"]] == ["bf16", "fp32"]
    assert header["applied"]["bf16"]["rope"]["sites"]["rotate"] == "bf16"
    sha = hashlib.sha256((texts / "0.txt").read_bytes()).hexdigest()
    assert header["asked"]["texts"][0] == {"name": "0.txt", "sha256": sha, "tokens": 2500}
    assert header["windows"] == [{"length": 256, "by_text": {"0.txt": 9, "1.txt": 5, "2.txt": 3}}]
    assert header["engine"]["versions"]["transformers"] and header["anchor"] == {"text": "<s>", "id": BOS}
    assert len(header["rows"]) == len(rows) == len((tmp_path / nll.TABLE).read_text("utf-8").splitlines()) - 1
    assert {row.unit for row in rows} == {"text"} and {row.units for row in rows} == {3}


def test_results_of_other_settings_are_not_overwritten(llama: Path, texts: Path, tmp_path: Path) -> None:
    measure(llama, texts, tmp_path, limit=1)
    before = (tmp_path / nll.TABLE).read_bytes()
    with pytest.raises(RunError, match="other settings"):
        measure(llama, texts, tmp_path, limit=2)
    assert (tmp_path / nll.TABLE).read_bytes() == before
    measure(llama, texts, tmp_path, limit=1)


def test_windows_begin_with_the_anchor_and_cover_each_text_once(llama: Path, texts: Path) -> None:
    tokenizer = load_tokenizer(llama)
    read = nll.read_texts(texts, tokenizer)
    (cut,), short = nll.cut_all(read, [1000], ("<s>", BOS), None, 4096)
    assert all(len(ids) == 1000 and ids[0] == BOS and BOS not in ids[1:] for ids in cut.ids)
    assert cut.ids[0][1:] + cut.ids[1][1:] == read[0].ids[:1998] and cut.text_of == (0, 0, 1)
    assert short == ["2.txt has 901 tokens with the anchor, a window 1000"]


def test_without_an_anchor_windows_are_the_text_alone(llama: Path, texts: Path, tmp_path: Path) -> None:
    read = nll.read_texts(texts, load_tokenizer(llama))
    (cut,), short = nll.cut_all(read, [1000], None, None, 4096)
    assert cut.ids[0] + cut.ids[1] == read[0].ids[:2000] and short == ["2.txt has 900 tokens, a window 1000"]
    rows = measure(llama, texts, tmp_path, anchor="none", limit=1)
    header = json.loads((tmp_path / nll.HEADER).read_text("utf-8"))
    assert rows and header["anchor"] is None and header["asked"]["anchor"] == "none"
    with pytest.raises(RunError, match="made with other settings"):
        measure(llama, texts, tmp_path, limit=1)
    with pytest.raises(UnsupportedArm, match="needs the anchor token"):
        measure(llama, texts, tmp_path / "b", anchor="none", arms="fp32,fp32+anchor-shift:16")


def test_a_text_that_fills_its_window_to_the_last_token_counts(llama: Path, texts: Path) -> None:
    read = nll.read_texts(texts / "2.txt", load_tokenizer(llama))
    (cut,), _ = nll.cut_all(read, [901], ("<s>", BOS), None, None)
    assert len(cut.ids) == 1
    with pytest.raises(LengthError, match="901 tokens"):
        nll.cut_all(read, [902], ("<s>", BOS), None, None)


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
    with pytest.raises(RunError, match="cannot write") as caught:
        measure(llama, texts, tmp_path / "file")
    assert caught.value.__cause__


# buckets and intervals


def test_buckets_cover_every_position_once() -> None:
    assert spans(8192) == [
        (1, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 1024),
        (1024, 2048),
        (2048, 4096),
        (4096, 8192),
    ]
    for length in (2, 3, 64, 65, 100, 1000):
        for buckets in (spans(length), spans(length, 1), spans(length, min(7, length - 1))):
            assert [p for first, end in buckets for p in range(first, end)] == list(range(1, length))
    with pytest.raises(AnchorEvalError, match="--buckets 9"):
        spans(9, 9)


def test_rows_hold_the_means_of_their_positions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, (4, 199)), rng.normal(2, 1, (4, 199))
    b[:, 10] = a[:, 10]
    rows = {(r.first, r.last, r.arm, r.baseline): r for r in rows_of(Losses(200, {"a": a, "b": b}, (0, 0, 1, 2)))}
    assert rows[64, 127, "a", None].value == pytest.approx(a[:, 63:127].mean())
    assert rows[1, 63, "b", "a"].value == pytest.approx((b - a)[:, :63].mean())
    assert rows[1, 63, "b", "a"].differing == pytest.approx(62 / 63)
    assert rows[1, 199, "b", "a"].tokens == 4 * 199 and len(rows) == 4 * 3
    per_text = [(b - a)[0:2].mean(), (b - a)[2].mean(), (b - a)[3].mean()]
    row = rows[1, 199, "b", "a"]
    assert row.low < min(per_text) and max(per_text) < row.high  # three units: wider than their range


def test_equal_units_give_the_ordinary_t_interval() -> None:
    values = [1.0, 2.0, 4.0, 3.5, 0.5]
    low, high = interval([10 * value for value in values], [10] * 5)
    half = 2.7764451051977987 * np.std(values, ddof=1) / math.sqrt(5)  # t(0.975, 4), tables
    assert low == pytest.approx(np.mean(values) - half) and high == pytest.approx(np.mean(values) + half)


def test_one_text_counts_windows_and_one_window_counts_blocks() -> None:
    rng = np.random.default_rng(1)
    many, one = rng.normal(size=(5, 1023)), rng.normal(size=(1, 1023))
    assert [(r.unit, r.units) for r in rows_of(Losses(1024, {"a": many}, (0,) * 5), 1)] == [("window", 5)]
    blocks = {r.first: r for r in rows_of(Losses(1024, {"a": one}, (0,)))}
    assert (blocks[512].unit, blocks[512].units) == ("block", 4) and blocks[512].low is not None
    assert blocks[64].units == 1 and blocks[64].low is None


def test_the_same_bits_give_no_interval_and_say_so() -> None:
    a = np.random.default_rng(2).normal(size=(3, 99))
    rows = rows_of(Losses(100, {"a": a, "b": a.copy()}, (0, 1, 2)), 1)
    assert (rows[-1].value, rows[-1].low, rows[-1].differing) == (0.0, None, 0.0)
    assert "same bits" in table_of(rows)


def simulated(rng: np.random.Generator, windows: list[int], between: float) -> tuple[list[float], list[int]]:
    """Sums and counts of texts of so many windows of 20 tokens; `between` is the deviation between texts."""
    sums = []
    for count in windows:
        of_windows = between * rng.normal() + 0.3 * rng.normal(size=count)
        tokens = of_windows[:, None] + rng.standard_exponential((count, 20)) - 1
        sums.append(float(tokens.sum()))
    return sums, [20 * count for count in windows]


@pytest.mark.parametrize(
    ("windows", "least", "most"),
    [([3] * 6, 0.93, 0.97), ([2] * 30, 0.93, 0.97), ([1, 2, 3, 4, 6, 8, 1, 2], 0.93, 0.985)],
)
def test_intervals_over_texts_cover_the_truth_as_often_as_they_say(
    windows: list[int], least: float, most: float
) -> None:
    rng, hits, by_window = np.random.default_rng(3), 0, 0
    for _ in range(2000):
        low, high = interval(*simulated(rng, windows, 0.5))
        hits += low <= 0 <= high
    assert least <= hits / 2000 <= most
    for _ in range(500):  # windows taken for independent: far too narrow, so the units matter
        shared = np.repeat(0.5 * rng.normal(size=len(windows)), windows) + 0.3 * rng.normal(size=sum(windows))
        low, high = interval(shared.tolist(), [1] * len(shared))
        by_window += low <= 0 <= high
    assert by_window / 500 < least - 0.03


def test_the_table_names_units_baseline_and_every_bucket(llama: Path, texts: Path, tmp_path: Path) -> None:
    text = table_of(measure(llama, texts, tmp_path, arms="bf16,fp32"))
    assert "difference to bf16, 95% intervals over 3 texts" in text
    assert [line.split()[0] for line in text.splitlines()[2::2]] == ["1-63", "64-127", "128-255", "1-255"]
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("content", [None, 7, [], "x", "é", "\ud800", "AAAA", "AACAfwAAgH8="])
def test_kept_losses_of_another_kind_number_or_size_are_none(content: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        nll.unpacked(content, 2)


def test_kept_losses_come_back_as_they_were() -> None:
    assert list(nll.unpacked(nll.packed(np.array([0.5, 3.0])), 2)) == [0.5, 3.0]
