"""Write docs/commands.md and docs/cards.md: `make pages`."""

from __future__ import annotations

from pathlib import Path

from pages.cards import cards
from pages.commands import commands

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"commands.md": commands, "cards.md": cards}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
