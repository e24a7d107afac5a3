"""`anchoreval verify`: rebuild prompts and scores of runs and report differences."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown
from anchoreval.errors import AnchorEvalError
from anchoreval.schema import work


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    shared.outside_suites(parser)
    shared.add(parser, "data_dir", "text")
    shared.add(parser, "tokenizer", kind=Path, about="folder with the run's tokenizer, if its checkpoint is gone")


def main(options: argparse.Namespace) -> int:
    """Print differences and a summary of each run on stdout, notices on stderr.

    Return 0 if nothing differs, 1 if anything does, 2 if a run could not be verified at all.
    """
    from anchoreval.records.run import find_runs
    from anchoreval.runs.verify.records import findings, steps_of
    from anchoreval.suites.outside import name_suites

    name_suites(options.tasks or "")
    code, paths = 0, find_runs(options.runs)
    with work(partial(shown, unit="prompts and records"), sum(map(steps_of, paths))) as progress:
        for path in paths:
            differing, unreadable = 0, False
            try:
                for finding in findings(path, options.data_dir, options.tokenizer, progress, options.text):
                    differing, unreadable = differing + finding.differs, unreadable or finding.unreadable
                    (say if finding.differs else note)(str(finding))
            except AnchorEvalError as error:
                note(f"anchoreval: {error}")
                code = 2
                continue
            say(f"{path}: {f'{differing} differences' if differing else 'as its header says'}")
            code = max(code, 2 if unreadable else min(differing, 1))
    return code
