"""The samples of a run as a page that opens from a disk: `write_view(run)` writes `<run folder>/view/index.html`.

rows     records -> one row per sample
prompts  the prompts, rebuilt and kept if their hash is the recorded one
files    data as script files, which a page may load from a disk
page     index.html: markup, style, script, content policy (imports jinja2)
write    all of it on disk, whole or not at all
beside   a viewer for every run, for boards to link to, with prompts if they are few
serve    viewers over HTTP on 127.0.0.1
"""

from __future__ import annotations

from anchoreval.reports.viewer.write import write_view

__all__ = ["write_view"]
