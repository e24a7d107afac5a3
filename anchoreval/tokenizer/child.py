"""Do transformers' work in a separate process without torch (transformers_child.py), and keep answers on disk.

The imports that it needs cost 0.5 to 0.8 CPU seconds there; with torch they would cost four.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from anchoreval.errors import ModelError, RunError
from anchoreval.files import write_whole

_SCRIPT = Path(__file__).with_name("transformers_child.py")
_PATIENCE_S = 120  # for the imports on a busy machine; each job has its own limits
_kept: dict[str, dict[str, Any]] = {}


def answer_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return a new child's answer to a job; if the child dies of the job, `error` says how."""
    with Child() as child:
        return child.answer(job)


class Child:
    """A process that answers jobs one after the other, as a context manager. If it dies of a job, a new one starts."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
        self._said.close()

    def close(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of bytes that the process never read
                    if pipe:
                        pipe.close()

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the process's answer to a job; if the process dies of the job, `error` says how."""
        if self._process is None:
            offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
            self._said.truncate(0)
            self._said.seek(0)
            command, pipe = [sys.executable, "-P", str(_SCRIPT)], subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._said, env=os.environ | offline
            )
        process = self._process
        late = threading.Timer(_PATIENCE_S, process.kill)
        late.start()
        try:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # the process died before it had read the whole job
            line = b""
        finally:
            in_time = late.is_alive()
            late.cancel()
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer

        # The process ends itself if it could not read a job, or could not answer it.
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        self._said.seek(0)
        stderr = self._said.read().decode("utf-8", "replace")
        if not in_time:
            return {"error": f"it takes longer than {_PATIENCE_S} s", "died": True}
        if code == -signal.SIGALRM:
            return {"error": f"it takes longer than {job.get('seconds')} s", "died": True}
        if "MemoryError" in stderr or "memory allocation of" in stderr or code == -signal.SIGKILL:
            return {"error": f"it takes more than {job.get('megabytes')} MB", "died": True}
        lines = stderr.strip().splitlines() or [f"exit code {code}"]
        if "No module named 'transformers'" in lines[-1] or "No module named 'jinja2'" in lines[-1]:
            raise ModelError(f"reading a checkpoint needs transformers and jinja2: {lines[-1]}")
        return {"error": lines[-1], "died": True}


def kept_answer(job: dict[str, Any], facts: Any) -> dict[str, Any]:
    """Return the answer to a job that follows from `facts` alone: from this process, the disk, or else a child.

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
                with contextlib.suppress(RunError, RuntimeError):
                    write_whole(file.expanduser(), [json.dumps(answer)])
        _kept[key] = answer
    return _kept[key]
