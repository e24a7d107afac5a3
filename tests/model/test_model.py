"""A model is opened once: what it is called, how many positions it has, and which tokenizer counts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from anchoreval.errors import ModelError, UnknownName
from anchoreval.model import Model, tokenizer_of
from anchoreval.tokenizer import load_tokenizer

TINY = Path(__file__).parents[2] / "models" / "anchor-tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without weights."""
    place = tmp_path / "own"
    shutil.copytree(TINY, place, ignore=shutil.ignore_patterns("*.safetensors"))
    return place


def test_positions_are_those_asked_for_else_the_cards_else_those_of_the_configuration(
    folder: Path,
) -> None:
    stated = json.loads((folder / "config.json").read_text("utf-8"))["max_position_embeddings"]
    assert Model.of(str(folder)).window == stated
    assert Model.of(str(folder), max_length=77).window == 77
    carded = Model.of(str(folder))
    carded.card = carded.card.model_copy(update={"max_length": 99})
    assert carded.window == 99
    (folder / "config.json").unlink()
    assert Model.of(str(folder)).window is None


def test_a_server_takes_positions_away_and_gives_none(folder: Path) -> None:
    model = Model.of(str(folder), max_length=100)
    assert model.within(None) is model and model.within(100) is model
    tokenizer = model.tokenizer
    fewer = model.within(60)
    assert (fewer.window, model.window) == (60, 100) and fewer.tokenizer is tokenizer


def test_a_model_behind_a_server_has_the_tokenizer_and_the_limits_of_another(folder: Path) -> None:
    model = Model.served("owner/big/", str(folder))
    assert (model.name, model.checkpoint, model.card.dtype) == ("big", "owner/big/", "auto")
    assert model.tokenizer.sha256 == load_tokenizer(folder).sha256 and model.folder == folder


def test_what_no_card_folder_or_hub_id_names_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        Model.of("no such model")
    with pytest.raises(ModelError, match="neither a folder nor in the hub's cache"):
        _ = Model.of("owner/never-downloaded", download=False).tokenizer


def test_a_tokenizer_is_a_file_a_folder_or_a_card(folder: Path) -> None:
    assert {tokenizer_of(place).sha256 for place in ("anchor-tiny", folder)} == {tokenizer_of(TINY).sha256}
    assert tokenizer_of(TINY / "tokenizer.json").reading is not None


def test_a_tokenizer_is_shared_until_one_of_its_files_changes(folder: Path) -> None:
    first = load_tokenizer(folder)
    assert load_tokenizer(folder) is first
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    second = load_tokenizer(folder)
    assert second.chat_template == "{{ messages[0]['content'] }}"
    os.utime(folder / "tokenizer.json", ns=(1, 1))
    assert load_tokenizer(folder) is not second
