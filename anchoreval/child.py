"""Work of transformers done in a short-lived process without torch (transformers_child.py), and answers kept on disk.

Importing what is needed costs 0.5 to 0.8 CPU seconds there; with torch it would be four.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from anchoreval.errors import ModelError
from anchoreval.files import clear_parts, part_of

_SCRIPT = Path(__file__).with_name("transformers_child.py")
_PATIENCE_S = 120  # for the imports on a busy machine; a job has limits of its own
_kept: dict[str, dict[str, Any]] = {}


def answer_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the child makes of a job; where it dies of it, `error` says how."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_SCRIPT)],
            input=json.dumps(job).encode(),
            capture_output=True,
            env=os.environ | offline,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it takes longer than {_PATIENCE_S} s", "died": True}
    if done.returncode == -signal.SIGALRM:
        return {"error": f"it takes longer than {job.get('seconds')} s", "died": True}
    with contextlib.suppress(ValueError):
        answer = json.loads(done.stdout)
        if isinstance(answer, dict):
            return answer
    if b"MemoryError" in done.stderr or done.returncode == -signal.SIGKILL:
        return {"error": f"it takes more than {job.get('megabytes')} MB", "died": True}
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
    if "No module named 'transformers'" in lines[-1] or "No module named 'jinja2'" in lines[-1]:
        raise ModelError(f"reading a checkpoint needs transformers and jinja2: {lines[-1]}")
    return {"error": lines[-1], "died": True}


def kept_answer(job: dict[str, Any], facts: Any) -> dict[str, Any]:
    """Return the answer to a job whose outcome follows from `facts`: this process's, else the disk's, else the child's.

    A cache that cannot be read or written costs the work again and nothing else.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if key not in _kept:
        root = os.environ.get("XDG_CACHE_HOME")
        file = Path(root or "~/.cache") / "anchoreval" / "tokenizers" / f"{key}.json"
        try:
            answer = json.loads(file.expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RuntimeError):
            answer = answer_of(job)
            if "died" not in answer:
                _keep(file, answer)
        _kept[key] = answer
    return _kept[key]


def _keep(file: Path, answer: dict[str, Any]) -> None:
    """Write an answer whole or not at all."""
    with contextlib.suppress(OSError, RuntimeError):
        file = file.expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(file)
        part = part_of(file)
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(file)
