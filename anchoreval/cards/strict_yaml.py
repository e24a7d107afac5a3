"""Read YAML that somebody else may have written, within bounds: the result is values, or one error with a line number.

Refused are texts that take long to read (nesting, aliases of aliases, keys that are not text) and values that no card
has: numbers that are not finite or beyond 18 digits, halves of characters, repeated keys, tags.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from anchoreval.errors import CardError

MOST_BYTES, MOST_DEEP, MOST_VALUES = 1 << 18, 40, 50_000  # our longest card has 22 KB and 1,200 values
_LARGEST = 10**18


def read_yaml(path: Path) -> Any:
    """Return the content of a file; CardError names the file and the line that cannot be read."""
    try:
        return yaml.load(read_text(path), _Bounded)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise CardError(f"{path}:{line}: {one_line(str(error.problem))}") from None
    except yaml.reader.ReaderError as error:
        raise CardError(f"{path}: cannot be read: U+{int(error.character):04X} is no character of YAML") from None
    except CardError:
        raise
    except Exception as error:  # whatever YAML's own code raises for a value that does not fit its tag
        raise CardError(f"{path}: cannot be read: {one_line(str(error) or type(error).__name__)}") from error


def read_text(path: Path) -> str:
    """Return the text of a file of at most MOST_BYTES; raise CardError for a device or pipe, and for a longer file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CardError(f"{path}: cannot be read: it is no file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise CardError(f"{path}: cannot be read: it has more than {MOST_BYTES >> 10} KiB")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise CardError(f"{one_line(str(path))}: cannot be read: {one_line(str(error))}") from error


def one_line(text: str) -> str:
    """Return the text on one line, cut to 600 characters, with everything that drives a terminal escaped."""
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:600])
    return "".join(shown)


class _Bounded(yaml.SafeLoader):
    """A loader that refuses repeated keys and bounds nesting and what aliases stand for."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._deep = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return one node; raise ComposerError if it stands too deep or is one too many."""
        self._deep, self._count = self._deep + 1, self._count + 1
        if self._deep > MOST_DEEP or self._count > MOST_VALUES:
            what = f"nested more than {MOST_DEEP} deep" if self._deep > MOST_DEEP else f"more than {MOST_VALUES} values"
            raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._deep -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Return the whole document, weighed before anything is built from it."""
        node = super().get_single_node()
        if node is not None:
            _weigh(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; raise ConstructorError, with its line, if no card may hold that value."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            what = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
        if isinstance(value, int | float) and not (abs(value) <= _LARGEST):
            what = "a number that is not finite, or beyond 18 digits"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the entries; raise ConstructorError for a key that is not a scalar, or that is repeated."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "no mapping, though its tag says so", node.start_mark)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key[:80]!r} is repeated", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _weigh(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node stands for and how deep it is; an alias counts as what it stands for."""
    if id(node) not in known:
        known[id(node)] = (MOST_VALUES + 1, 0)  # a node inside itself has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        weights = [_weigh(part, known) for part in parts]
        known[id(node)] = 1 + sum(count for count, _ in weights), 1 + max((deep for _, deep in weights), default=0)
    count, deep = known[id(node)]
    if count > MOST_VALUES or deep > MOST_DEEP:
        what = f"aliases that stand for more than {MOST_VALUES:,} values, or {MOST_DEEP} deep"
        raise yaml.composer.ComposerError(None, None, what, node.start_mark)
    return known[id(node)]
