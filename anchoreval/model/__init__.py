"""A model as it is asked for, opened once: card, folder, tokenizer, what its config.json states. Imports no torch."""

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
    """What is evaluated: its name on boards, what was asked for, the card whose tokenizer and limits hold.

    `checkpoint` is what a backend is opened with, `reader` what its tokenizer was asked for as, where it is not the
    checkpoint's own. Folder, tokenizer and configuration are looked up when they are first needed, and only once;
    without `download` on this machine alone.
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
        """Return the model of a card, folder or hub id; UnknownName where there is none."""
        name, card = find_model(asked)
        return cls(name, asked, card, card.checkpoint, reader, max_length, download)

    @classmethod
    def served(cls, asked: str, reader: str, max_length: int | None = None) -> Model:
        """Return the model that a server knows by a name; tokenizer and limits are those of the card of `reader`."""
        card = find_model(reader)[1].model_copy(update={"about": f"{asked}, behind a server", "dtype": "auto"})
        return cls(asked.rstrip("/").rpartition("/")[2], asked, card, asked, reader, max_length)

    @classmethod
    def of_tokenizer(cls, tokenizer: TextTokenizer, window: int | None = None) -> Model:
        """Return a tokenizer and so many positions (None: any number) as a model whose checkpoint nobody opens."""
        card = ModelCard(about="a tokenizer", checkpoint=tokenizer.name or "tokenizer")
        model = cls(tokenizer.name, tokenizer.name, card, card.checkpoint, max_length=window)
        vars(model).update(tokenizer=tokenizer, config={})
        return model

    @cached_property
    def folder(self) -> Path:
        """The folder of configuration and tokenizer, without the weights; `ModelError` where it is not to be had."""
        return folder_of(self.card.checkpoint, weights=False, download=self.download)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that lengths are counted with."""
        if self.reader is None:
            return self.folder
        return folder_of(find_model(self.reader)[1].checkpoint, weights=False, download=self.download)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that lengths are counted with."""
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def config(self) -> dict[str, Json]:
        """What config.json holds; nothing where there is none that can be read."""
        try:
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    @property
    def window(self) -> int | None:
        """The positions that the model has: asked for, else the card's, else those that it states; None: unknown."""
        return self.max_length or self.card.max_length or positions_of(self.config)

    def within(self, window: int | None) -> Model:
        """Return the model with no more positions than its server has; the model itself where that says nothing."""
        if window is None or (self.window is not None and window >= self.window):
            return self
        fewer = replace(self, max_length=window)
        known = ("folder", "tokenizer_folder", "tokenizer", "config")
        vars(fewer).update({name: value for name, value in vars(self).items() if name in known})
        return fewer


def tokenizer_of(asked: str | Path, download: bool = True) -> TextTokenizer:
    """Return the tokenizer that is asked for: of a file, a folder, a card, or an id of the hub."""
    if Path(asked).expanduser().is_file():
        return load_tokenizer(asked)
    return load_tokenizer(folder_of(find_model(str(asked))[1].checkpoint, weights=False, download=download))
