"""Compute what transformers makes of a checkpoint's files, in a separate process (child.py): no torch, no package.

A chat template is a program that a checkpoint brings. It is rendered here under limits of time and memory, so that one
that never ends, or that fills the memory, ends this process and not the run.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

#: The date that `strftime_now` of a chat template gives: prompts are the same on every day.
TODAY = datetime.datetime(2025, 1, 1)
_limited: list[int] = []  # the bytes that this process may have, once it is limited
_LONGEST = 200_000  # characters that a template may write around a turn; prompts are counted with them


class FixedDate(datetime.datetime):
    """A `datetime` whose `now` stands still."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> FixedDate:
        """Return TODAY."""
        return cls(TODAY.year, TODAY.month, TODAY.day, tzinfo=tz)


def render(job: dict[str, Any]) -> dict[str, Any]:
    """Return one text per conversation in `chats`, rendered by a template that may never have run before.

    `kind` are arguments of `apply_chat_template`; with `today`, `strftime_now` gives the date of today. In an error,
    `jinja` says whether it is one of Jinja's own.
    """
    import jinja2
    from transformers.utils import chat_template_utils

    if not job.get("today"):
        chat_template_utils.datetime = FixedDate
    _limit(job["seconds"], job["megabytes"])
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            job["chats"],
            chat_template=job["template"],
            **job.get("kind", {"add_generation_prompt": True}),
            **job["values"],
        )
    except MemoryError:
        return {"error": f"it takes more than {job['megabytes']} MB", "died": True}
    except Exception as error:  # a stranger's program may raise anything
        raised = type(error) is jinja2.exceptions.TemplateError  # the template raised it, with raise_exception
        failure = {"refused" if raised else "error": str(error) if raised else f"{type(error).__name__}: {error}"}
        return failure | {"jinja": isinstance(error, jinja2.exceptions.TemplateError)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    longest, given = max(map(len, texts)), len(json.dumps(job["chats"]))
    if longest > _LONGEST + 4 * given:
        return {"error": f"it writes {longest:,} characters around a turn"}
    if any("\ud800" <= char <= "\udfff" for text in texts if not text.isascii() for char in text):
        return {"error": "it writes half a character"}
    return {"texts": texts}


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Return the special tokens, and the token ids of `texts`, as AutoTokenizer gives them for the folder."""
    from transformers import AutoTokenizer

    _limit(job["seconds"], job["megabytes"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=False)
        ids = [list(tokenizer.encode(text, add_special_tokens=False)) for text in job["texts"]]
        decoded = [tokenizer.decode(each, skip_special_tokens=False) for each in ids]
        tokens = [tokenizer.convert_ids_to_tokens(each) for each in ids]
    except Exception as error:  # a class that needs another package, or code of the checkpoint
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    named = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    return {"class": type(tokenizer).__name__, "special": named, "ids": ids, "tokens": tokens, "decoded": decoded}


def _limit(seconds: int, megabytes: int) -> None:
    """Let this process live for so many seconds more, and have so many megabytes more than it has now."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    sizes = Path("/proc/self/statm")
    if sizes.is_file() and not _limited:
        size = int(sizes.read_text().split()[0]) * resource.getpagesize() + (megabytes << 20)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        _limited.append(size)


def main() -> None:
    """Answer each job (a line of JSON on stdin) by a line of JSON on stdout; what libraries print goes to stderr."""
    answer, sys.stdout = sys.stdout, sys.stderr
    sys.modules["torch"] = None  # type: ignore[assignment]  # tokenizers and templates do not need it
    for line in sys.stdin:
        job = json.loads(line)
        json.dump({"render": render, "read": read}[job["do"]](job), answer)
        answer.write("\n")
        answer.flush()


if __name__ == "__main__":
    main()
