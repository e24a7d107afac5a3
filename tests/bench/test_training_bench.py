"""`bench train-attention` at toy sizes on the CPU: its kernels, its windows, its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anchoreval.bench import training_kernels as kernels
from anchoreval.bench.training import drawn, mix_of_length
from anchoreval.cli.parser import main
from anchoreval.training.recipes import mix_of

TOY = kernels.Form("toy", 2, 64, 96, 2, 1, 128)
ASKED = ["bench", "train-attention", "--device", "cpu", "--shapes", "toy", "--slices", "1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.FORMS, "toy", TOY)


def test_the_table_has_every_row_and_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    assert main([*ASKED, "--lengths", "512", "--windows", "3", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    made = json.loads(path.read_text("utf-8"))
    rows = {(row["what"], row["kernel"]): row for row in made["figures"]}
    for what in ("flex intra-doc", "flex, one shared anchor"):
        assert rows.pop((what, "flex"))["absent"] == "no backward on a CPU"
    assert printed.count("no backward on a CPU") == 2
    assert {what for what, _ in rows} == {
        "full", "intra-doc, mean of 3", "intra-doc, densest of 3", "anchor, mean of 3", "anchor, densest of 3",
        "dense mask, median window", "layer, full", "layer, intra-doc", "layer, anchor", "layer, full, checkpointed",
        "layer, intra-doc, checkpointed", "layer, anchor, checkpointed",
    }  # fmt: skip
    assert all(row["seconds"] > 0 and row["ratio"] > 0 and row["failed"] is None for row in rows.values())
    assert min(row["ratio"] for (what, _), row in rows.items() if what == "full") == 1
    split, mean = rows["full", "split"], rows["intra-doc, mean of 3", "split"]
    assert mean["limit"] == pytest.approx(split["seconds"] * mean["pairs"] / split["pairs"])
    assert mean["reached"] == pytest.approx(mean["limit"] / mean["seconds"])
    assert mean["tflops"] == pytest.approx(14e-12 * 128 * 2 * mean["pairs"] / mean["seconds"])
    (notes,) = made["notes"]
    assert notes["least_reached"] <= rows["intra-doc, densest of 3", "split"]["reached"] <= notes["most_reached"]
    assert "single windows reach" in printed
    assert notes["days_per_billion_tokens"]["masked"] < notes["days_per_billion_tokens"]["full"]
    assert all(word in printed for word in ("for any document mask", "densest of 8 in a step", "days per billion"))
    assert "--lengths 512" in made["command"] and str(tmp_path) not in made["command"]


@pytest.mark.parametrize("lengths", [[5], [1, 7, 2], [3] * 9])
def test_the_training_kernel_is_the_mask_between_documents(lengths: list[int]) -> None:
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, dtype=torch.float64) for heads in (2, 1, 1))
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    seen = (document[:, None] == document[None]).tril()
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(~seen, -torch.inf)
    want = scores.softmax(-1) @ v
    made = kernels.by_documents(lengths, torch.device("cpu"))(q, k, v).transpose(1, 2)
    assert (made - want).abs().max() < 1e-12
    assert (kernels.by_sdpa(q, k, v, seen) - want).abs().max() < 1e-12


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, tuple | list) else [out]
        sizes = (part.numel() for part in parts if isinstance(part, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_nothing_but_the_dense_mask_has_an_array_of_all_pairs() -> None:
    length = 1024
    inputs = kernels.Place(torch.device("cpu"), 1).inputs(TOY, length)
    works = kernels.full_kernels(inputs, length)
    works["masked"] = kernels.both_ways(inputs, length, kernels.by_documents([24, 1000], torch.device("cpu")))
    works["dense"] = kernels.dense(inputs, [24, 1000])
    most = {}
    for name, work in works.items():
        with Largest() as largest:
            work()
        most[name] = largest.elements
    assert most.pop("dense") >= length**2
    assert max(most.values()) <= 2 * length * kernels.HEAD, most


def test_a_full_kernel_that_is_absent_is_named_and_a_masked_one_that_fails_is_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise RuntimeError("No available kernel. Aborting execution.\nsecond line")

    asked = [*ASKED, "--lengths", "64", "--windows", "1", "--no-layer", "--mix", "long"]
    monkeypatch.setattr(kernels, "by_sdpa", none)
    assert main(asked) == 1  # of the dense mask, which is torch's own too
    printed = capsys.readouterr()
    assert "RuntimeError: No available kernel. Aborting execution." in printed.out and "second line" not in printed.out
    assert "1 of 9 measurements failed" in printed.err and "full attention (split)" in printed.out


def test_wrong_shapes_mixes_and_slices_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for more, says in (
        (["--shapes", "llama-2-8b"], "unknown shape 'llama-2-8b': did you mean llama-3-8b"),
        (["--mix", "slimpyjama"], "unknown mix of documents 'slimpyjama': did you mean slimpajama"),
        (["--slices", "3"], "--slices 3: toy has 1 key heads to divide"),
        (["--data", "nowhere"], "nowhere is no store of tokens"),
    ):
        assert main([*ASKED, "--lengths", "64", *more]) == 2
        assert says in capsys.readouterr().err


def test_windows_of_the_mixes_are_as_dense_as_their_source_says() -> None:
    # of the token shares and means on the card, log-normal, cut at a window's end; each within a tenth and a half
    for length, density in ((8192, 0.31), (65536, 0.09)):
        mix = mix_of_length("slimpajama", None, length, 8)
        assert mix.mean == pytest.approx(density, rel=0.15)
        assert mix.mean < mix.balanced < mix.unsorted <= 1
        assert all(sum(window) <= length for window in mix.windows) and len(mix.windows) == 8
    more = mix_of_length("upsampled", None, 65536, 1)
    assert more.mean > mix.mean
    one = mix_of_length("long", None, 4096, 2)
    assert one.windows == ((4096,), (4096,)) and one.mean == one.unsorted == one.balanced == 1


def test_short_documents_of_the_upsampled_mix_are_thinned_and_shares_stay() -> None:
    card = mix_of("upsampled")
    lengths = drawn(card, 8192)
    counts = {name: source.share for name, source in card.documents.items()}
    assert sum(counts.values()) == pytest.approx(1.02)  # as the paper rounds them
    plain = drawn(card.model_copy(update={"under": 0, "keep": 1.0}), 8192)
    assert (lengths < 4096).mean() < (plain < 4096).mean()
    assert lengths.sum() == pytest.approx(plain.sum(), rel=0.05)
