"""Python code from outside the package that a user named: a file or a module, with the SHA-256 of its source.

Both functions raise ImportError with one line.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

_HASH = "__anchoreval_sha256__"  # attribute of a module: the hash of its source when it was first asked for


def imported(name: str) -> tuple[ModuleType, str]:
    """Import a module by name; return it with the SHA-256 of its source file.

    A module that was imported before its source changed still computes what the source said then, so it is refused.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"no module {error.name!r}: install it, or put its folder on PYTHONPATH") from error
    except (Exception, SystemExit) as error:
        raise ImportError(f"importing {name} failed: {line_of(error)}") from error
    source = getattr(module.__spec__, "origin", None)
    if source is None or not Path(source).is_file():
        raise ImportError(f"{name} has no source file to hash")
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if vars(module).setdefault(_HASH, digest) != digest:
        raise ImportError(f"{source} changed since it was imported: start Python anew")
    return module, digest


def executed(path: Path) -> tuple[ModuleType, str]:
    """Run a file as a module, once for each content; return it with the SHA-256 of the bytes that ran."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ImportError(f"{path} cannot be read: {error.strerror or error}") from error
    digest = hashlib.sha256(source).hexdigest()
    name = f"anchoreval_outside_{digest}"  # dataclasses find their module under it
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception | SystemExit):
                raise
            raise ImportError(f"running {path} failed: {line_of(error)}") from error
    return sys.modules[name], digest


def line_of(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
