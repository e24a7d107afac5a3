"""Write the pages named on the command line, findings and variants: `make findings`."""

from __future__ import annotations

import sys
from pathlib import Path

import report

from findings import family
from findings.evidence import read
from findings.page import rendered

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(rendered(read()), encoding="utf-8")
    if (found := family.found()) is not None:
        (family.RESULTS / "family.svg").write_text(report.picture(found), encoding="utf-8")
    Path(sys.argv[2]).write_text(family.page(), encoding="utf-8")
