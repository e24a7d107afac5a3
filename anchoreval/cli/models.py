"""`anchoreval models`: the model cards."""

from __future__ import annotations

import argparse

from anchoreval.cli.console import say


def flags(_: argparse.ArgumentParser) -> None:
    """The command has no flags."""


def main(_: argparse.Namespace) -> int:
    """A line on stdout for each."""
    from anchoreval.cards import load_models

    for name, card in load_models().items():
        say(f"{name:24} {card.about}")
    return 0
