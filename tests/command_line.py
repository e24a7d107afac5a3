"""The command line as a process of its own, and in this process, which saves the second or four that a start takes."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m anchoreval ...`, as a user starts it."""
    return subprocess.run([sys.executable, "-m", "anchoreval", *arguments], capture_output=True, text=True, check=False)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the same command prints where, and its exit code."""
    from anchoreval.cli.parser import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
