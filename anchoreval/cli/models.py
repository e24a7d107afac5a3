"""`anchoreval models`: list the model cards."""

from __future__ import annotations

import argparse

from anchoreval.cli.console import say


def flags(_: argparse.ArgumentParser) -> None:
    """Add no flags."""


def main(_: argparse.Namespace) -> int:
    """Print a line for each model card on stdout."""
    from anchoreval.cards import load_models

    for name, card in load_models().items():
        say(f"{name:24} {card.about}")
    return 0
