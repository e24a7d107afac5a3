"""Find what about a machine changes the last bits of its results. Imports no torch."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name as the system states it, or else its architecture."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        text = ""
    fields = dict(reversed(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE)))
    arm = [f"{name} {fields[name]}" for name in ("CPU implementer", "CPU part") if name in fields]
    return fields.get("model name") or ", ".join([platform.machine(), *arm])
