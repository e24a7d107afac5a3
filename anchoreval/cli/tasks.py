"""`anchoreval tasks`: list sets with their size, then tasks."""

from __future__ import annotations

import argparse

from anchoreval.cli.console import say


def flags(_: argparse.ArgumentParser) -> None:
    """Add no flags."""


def main(_: argparse.Namespace) -> int:
    """Print a line for each set and each task on stdout."""
    from anchoreval.cards import load_tasks

    known, sets = load_tasks()
    for name, members in sets.items():
        say(f"{name:24} {len(members)} tasks")
    for task in known.values():
        args = " ".join(f"{key}={value}" for key, value in task.args.items())
        say(f"{task.address:24} {task.scorer:10} {task.max_new_tokens:4} new tokens  {args}")
    return 0
