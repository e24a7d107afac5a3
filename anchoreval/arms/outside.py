"""Arms from outside: a context manager on the transformers model, made by a factory of a module or a package.

`+x:package.module:factory[:value]` names a factory in any module that Python finds. `+name[:value]` names one that an
installed package offers in the entry point group `anchoreval.arms`. The factory is called with the model and, if a
value is given, with that value as text. Parsing the spelling imports nothing, so headers and records never run what
they name; only `Outside.settled` and `installed` import, for an arm that a user typed.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.files.source import imported, line_of
from anchoreval.schema import Json

GROUP = "anchoreval.arms"
X = "x"

Factory = Callable[..., Any]  # must return a context manager; checked when it is called

_IDENTIFIER = r"[A-Za-z_]\w*"
_SPELLED = re.compile(
    rf"(?P<name>x:{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*|(?!x(:|$))[A-Za-z][\w.-]*)"
    r"(:(?P<value>[\w.-]+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, order=True)
class Outside:
    """A factory's name, `x:package.module:factory` or that of an entry point, and the value that it is given.

    `sha256` is that of the module's source file; it is empty until `settled`.
    """

    name: str
    value: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.value}" if self.value else self.name

    def as_json(self) -> dict[str, Json]:
        """Return the spelling and the hash, which identify the factory."""
        return {"name": str(self), "sha256": self.sha256}

    def settled(self) -> Outside:
        """Return a copy with the hash of the source, which is imported; raise UnsupportedArm if there is no factory."""
        return replace(self, sha256=self.load()[1])

    def load(self) -> tuple[Factory, str]:
        """Return the factory and the hash of its module's source file; raise a one-line UnsupportedArm without one."""
        module_name, attribute = self._place()
        try:
            module, digest = imported(module_name)
        except ImportError as error:
            raise self._refused(str(error)) from error
        try:
            factory = operator.attrgetter(attribute)(module)
        except AttributeError:
            raise self._refused(f"{module_name} has no {attribute}") from None
        if not callable(factory):
            raise self._refused(f"{attribute} of {module_name} cannot be called: it is {type(factory).__name__}")
        return factory, digest

    def _place(self) -> tuple[str, str]:
        """Return the module and the factory's name in it."""
        if self.name.startswith(f"{X}:"):
            _, module, attribute = self.name.split(":")
            return module, attribute
        offered = list(metadata.entry_points(group=GROUP, name=self.name))
        if len({(point.module, point.attr) for point in offered}) != 1:
            raise self._refused(f"{len(offered)} installed packages offer it in the entry point group {GROUP}")
        return offered[0].module, offered[0].attr

    def _refused(self, why: str) -> UnsupportedArm:
        return UnsupportedArm(f"arm from outside '+{self}': {why}")

    @contextlib.contextmanager
    def _naming(self, step: str) -> Iterator[None]:
        """Turn what the code from outside raises into a one-line UnsupportedArm."""
        try:
            yield
        except UnsupportedArm:
            raise
        except (Exception, SystemExit) as error:
            raise self._refused(f"{step} failed: {line_of(error)}") from error

    @contextlib.contextmanager
    def on(self, model: Any) -> Iterator[dict[str, Json]]:
        """Enter the factory's context manager around the block. It does not hear of errors in the block."""
        factory, digest = self.load()
        if self.sha256 not in ("", digest):
            raise self._refused(f"its source here has sha256 {digest[:16]}, that of the run {self.sha256[:16]}")
        with self._naming("its factory"):
            block = factory(model, self.value) if self.value else factory(model)
        if not isinstance(block, AbstractContextManager):
            raise self._refused(f"its factory returned {type(block).__name__}, which is no context manager")
        with self._naming("entering it"):
            block.__enter__()
        try:
            yield {**self.as_json(), "sha256": digest, "factory": ":".join(self._place())}
        except BaseException:
            with contextlib.suppress(Exception):
                block.__exit__(None, None, None)
            raise
        with self._naming("leaving it"):
            block.__exit__(None, None, None)


def offered() -> frozenset[str]:
    """Return the names that installed packages offer; this reads only their metadata."""
    return frozenset(metadata.entry_points(group=GROUP).names)


def parse_outside(text: str) -> Outside:
    """Return what `text` spells, without checking that it exists; raise AnchorEvalError for another grammar."""
    if (match := _SPELLED.fullmatch(text)) is None:
        raise AnchorEvalError(f"an arm from outside is spelled +x:package.module:factory[:value], not +{text}")
    return Outside(match["name"], match["value"] or "")


@contextlib.contextmanager
def installed(model: Any, chosen: Sequence[Outside]) -> Iterator[list[Json]]:
    """Put each of `chosen` on the model, the first outermost; yield a description of each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(item.on(model)) for item in chosen]
