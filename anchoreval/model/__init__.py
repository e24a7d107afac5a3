"""`Model`: the model that a user asks for, opened once: card, folder, tokenizer, config.json. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from anchoreval.arms.configuration import positions_of
from anchoreval.cards import ModelCard, find_model
from anchoreval.model.checkpoint import folder_of
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer, load_tokenizer


@dataclass(eq=False)
class Model:
    """The model under evaluation, without its weights: card, tokenizer, configuration and number of positions.

    Everything that a run needs to know about a model before a backend loads it comes from here. Folder, tokenizer and
    configuration are looked up when they are first used, and only once. Make a Model with `of` (a card, folder or hub
    id), `served` (a name at a server) or `of_tokenizer` (a bare tokenizer).

    `name`          the name on boards and of the folder of runs
    `asked`         the card, folder, hub id or server's name that the user gave
    `card`          the card whose tokenizer and limits hold
    `checkpoint`    what a backend is opened with
    `reader`        the card, folder or hub id of the tokenizer, if it is not the checkpoint's own
    `max_length`    overrides the number of positions
    `download`      False looks on this machine only
    """

    name: str
    asked: str
    card: ModelCard
    checkpoint: str
    reader: str | None = None
    max_length: int | None = None
    download: bool = True

    @classmethod
    def of(
        cls, asked: str, reader: str | None = None, max_length: int | None = None, *, download: bool = True
    ) -> Model:
        """Return the model of a card, folder or hub id; raise UnknownName if there is none."""
        name, card = find_model(asked)
        return cls(name, asked, card, card.checkpoint, reader, max_length, download)

    @classmethod
    def served(cls, asked: str, reader: str, max_length: int | None = None) -> Model:
        """Return the model that a server knows by a name; tokenizer and limits are those of the card of `reader`."""
        card = find_model(reader)[1].model_copy(update={"about": f"{asked}, behind a server", "dtype": "auto"})
        return cls(asked.rstrip("/").rpartition("/")[2], asked, card, asked, reader, max_length)

    @classmethod
    def of_tokenizer(cls, tokenizer: TextTokenizer, window: int | None = None) -> Model:
        """Return a model of a tokenizer and a number of positions (None: no limit); it has no checkpoint to open."""
        card = ModelCard.model_construct(about="a tokenizer", checkpoint=tokenizer.name)
        model = cls(tokenizer.name, tokenizer.name, card, card.checkpoint, max_length=window)
        vars(model).update(tokenizer=tokenizer, config={})
        return model

    @cached_property
    def folder(self) -> Path:
        """The folder of configuration and tokenizer, without the weights; ModelError if it is not available."""
        return folder_of(self.card.checkpoint, weights=False, download=self.download)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that counts lengths."""
        if self.reader is None:
            return self.folder
        return folder_of(find_model(self.reader)[1].checkpoint, weights=False, download=self.download)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that counts lengths."""
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def config(self) -> dict[str, Json]:
        """The content of config.json; empty if there is none or it cannot be read."""
        try:
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    @property
    def window(self) -> int | None:
        """The number of positions: `max_length`, else the card's, else the one in config.json; None: unknown."""
        return self.max_length or self.card.max_length or positions_of(self.config)

    def within(self, window: int | None) -> Model:
        """Return the model with at most `window` positions; the model itself if it has no more, or `window` is None."""
        if window is None or (self.window is not None and window >= self.window):
            return self
        fewer = replace(self, max_length=window)
        known = ("folder", "tokenizer_folder", "tokenizer", "config")
        vars(fewer).update({name: value for name, value in vars(self).items() if name in known})
        return fewer


def tokenizer_of(asked: str | Path, download: bool = True) -> TextTokenizer:
    """Return the tokenizer of a file, a folder, a card, or a hub id."""
    if Path(asked).expanduser().is_file():
        return load_tokenizer(asked)
    return load_tokenizer(folder_of(find_model(str(asked))[1].checkpoint, weights=False, download=download))
