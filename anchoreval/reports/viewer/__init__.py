"""The samples of a run as a page that opens from a disk: `write_view(run)` writes `<run folder>/view/index.html`.

prompts  records -> one row per sample, and the prompts, rebuilt and kept if their hash is the recorded one
write    data files and index.html on disk, whole or not at all (imports jinja2); a viewer for every run, for boards to
         link to, with prompts if they are few
serve    viewers over HTTP on 127.0.0.1
"""

from __future__ import annotations

from anchoreval.reports.viewer.write import write_view

__all__ = ["write_view"]
