"""docs/ as a site, its generated pages, and every command that README and docs print."""

from __future__ import annotations

import pytest
from pages.__main__ import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_says_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "make pages writes it anew"
