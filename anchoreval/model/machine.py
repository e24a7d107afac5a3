"""What of a machine changes the last bits of what it computes. Imports no torch."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The name of the processor as the system states it, else its architecture."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        text = ""
    said = dict(reversed(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE)))
    arm = [f"{name} {said[name]}" for name in ("CPU implementer", "CPU part") if name in said]
    return said.get("model name") or ", ".join([platform.machine(), *arm])
