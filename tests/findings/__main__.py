"""Write the page named on the command line: `make findings`."""

from __future__ import annotations

import sys
from pathlib import Path

from findings.evidence import read
from findings.page import rendered

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(rendered(read()), encoding="utf-8")
