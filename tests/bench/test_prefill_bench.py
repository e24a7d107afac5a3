"""`bench prefill` end to end on the CPU at the toy shape, and the layers that fit a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchoreval.bench import prefill as prefill_bench
from anchoreval.cli.parser import main

GIB = 1 << 30


def test_every_length_and_pattern_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "cpu.json"
    asked = ["bench", "prefill", "--device", "cpu", "--shape", "toy", "--lengths", "512,1k", "--documents", "4"]
    assert main([*asked, "--output", str(path)]) == 0
    printed, made = capsys.readouterr(), json.loads(path.read_text("utf-8"))
    found = [(figure["pattern"], figure["tokens"]) for figure in made["figures"]]
    assert found == [("full", 509), ("anchor", 509), ("full", 1021), ("anchor", 1021)]
    assert all(figure["seconds"] > 0 and figure["failed"] is None for figure in made["figures"])
    assert "anchor" in printed.out and made["layers"] == 2 and "--shape toy" in made["command"]
    assert str(tmp_path) not in made["command"]


def test_layers_fill_the_device_beside_the_cache_of_the_longest_prompt() -> None:
    """70B layers of 1.71e9 bytes and 4,096 bytes a token each, embeddings of 4.2e9 bytes: by hand, 54 at 128K."""
    layer = (8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)) * 2 + 4096 * 131072
    by_hand = int((0.85 * 139 * GIB - 2 * 128_256 * 8192 * 2) // layer)
    assert prefill_bench.layers_that_fit("70b", 131_072, 139 * GIB) == by_hand == 54
    assert prefill_bench.layers_that_fit("70b", 131_072, None) == 80
    assert prefill_bench.layers_that_fit("8b", 131_072, 139 * GIB) == 32


def test_a_prompt_has_its_documents_and_begins_with_the_anchor() -> None:
    asked = prefill_bench.request(100, 3, 512, 1)
    assert len(asked.token_ids) == len(asked.segment_ids) == 1 + 3 * 11 + 64 <= 100
    assert asked.segment_ids[0] == -1 and asked.roles == ("document",) * 3 + ("query",)
