"""docs/commands.md: every command with its options, as `--help` has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from anchoreval.cli.parser import kinds_of, parser


def commands() -> str:
    """Return the page."""
    top = parser()
    lines = [
        "# Commands",
        "",
        "`make pages` makes this page from the command line itself; `anchoreval COMMAND --help` prints the same. Any",
        "option may stand in a file, `--config FILE.yaml`, by its name with underscores; flags win over the file.",
    ]
    for name, command in kinds_of(top).items():
        lines += _section(f"anchoreval {name}", command, 2)
        for kind, below in kinds_of(command).items():
            lines += _section(f"anchoreval {name} {kind}", below, 3)
    return "\n".join(lines) + "\n"


def _section(title: str, command: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield from ("", f"{'#' * level} {title}", "", _plain(command.description or ""))
    for group in command._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if actions:
            yield from ("", f"| {_title(group, command)} | |", "|---|---|")
            yield from (f"| {_name(action)} | {_about(action)} |" for action in actions)


def _title(group: argparse._ArgumentGroup, command: argparse.ArgumentParser) -> str:
    """Return the heading of a group of options."""
    first = {command._positionals: "argument", command._optionals: "option"}
    return first.get(group, group.title or "option")


def _is_shown(action: argparse.Action) -> bool:
    hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    values = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    if action.choices is not None:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    return f"{flags} {_plain(f'`{values}`') if values else ''}".strip()


def _about(action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter(prog="anchoreval")
    return _plain(formatter._expand_help(action) if action.help else "")


def _plain(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
