"""The numerics probe of a model: how a shift of all positions, and each RoPE precision, changes its attention.

study    which runs are made and compared, over which texts -> rows
record   the q and k of every layer of a run, and how those of two runs differ
sheet    the measures by name; rows -> probe.csv, texts.csv; lines of probe.jsonl
page     rows -> the paragraph, the tables and the charts of probe.html (imports jinja2)
"""

from __future__ import annotations

from pathlib import Path

from anchoreval.diagnostics.probe.sheet import Study, csv_text, texts_csv
from anchoreval.errors import LengthError
from anchoreval.files import write_whole
from anchoreval.model import Model
from anchoreval.prompt import Anchor
from anchoreval.records.kept import Kept
from anchoreval.schema import Watch, unwatched
from anchoreval.texts.sources import HaystackKind, Sources

__all__ = ["Study", "csv_text", "probe", "write_probe"]


def probe(
    model: str,
    lengths: list[int],
    *,
    shift: tuple[int, ...] = (0, 16),
    levels: str = "all",
    haystack: HaystackKind | None = None,
    data_dir: Path | None = None,
    text: Path | None = None,
    texts: int | tuple[tuple[int, int], ...] | None = None,
    queries: int = 128,
    dtype: str | None = None,
    device: str = "auto",
    kernel: str = "default",
    seed: int = 42,
    trust_remote_code: bool = False,
    max_length: int | None = None,
    random_init: bool = False,
    curve_length: int | None = None,
    copy: bool = True,
    kept: Path | None = None,
    anchor: Anchor = "auto",
    watch: Watch = unwatched,
) -> Study:
    """Measure `model` (a card of models/, a folder or a hub id) and return the study.

    `lengths`       in tokens, the anchor token included
    `shift`         offsets of all positions, two or more: the last is compared with the first at every length, and with
                    those between at `curve_length`
    `levels`        RoPE levels, separated by commas, or `all`
    `haystack`      "generated" prose or the "published" essays, which are looked for in `data_dir` and the user's cache
                    (default: the model card's, else published)
    `text`          a UTF-8 file or a folder of *.txt in place of the haystack
    `texts`         number of texts at each length, or pairs (from this length on, number of texts) (default: two up to
                    512 tokens, one above)
    `queries`       number of query rows of a longer text that are measured
    `dtype`         of the model that is probed first (default: the checkpoint's, because a card's dtype is for tasks)
    `max_length`    the trained length, if the model's card and configuration do not state it
    `random_init`   adds the same architecture with random weights for a large model too; a model of up to 100 million
                    parameters always has it
    `copy`          False leaves out the float32 copy of a model of 16 bits
    `anchor`        "none" puts no anchor token in front
    `kept`          a file to which all measures are appended, and from which a cut study resumes

    Raise AnchorEvalError, with one line, for settings or models that cannot be measured.
    """
    from anchoreval.diagnostics.probe.study import Settings, investigate

    if curve_length is not None and curve_length not in lengths:
        raise LengthError(f"--curve-length {curve_length}: not one of --lengths")
    counts = ((0, texts),) if isinstance(texts, int) else tuple(sorted(texts or ()))
    settings = Settings(
        tuple(sorted(set(lengths))), shift, levels, counts, queries, seed, random_init, curve_length, copy
    )
    opened = Model.of(model, max_length=max_length)
    sources = Sources(data_dir, haystack or opened.card.haystack, text=text)
    how = (dtype or "auto", device, kernel, trust_remote_code)
    return investigate(opened, settings, sources, *how, Kept(kept), watch, anchor)


def write_probe(study: Study, folder: Path) -> tuple[Path, Path]:
    """Write probe.csv, probe.html, probe.svg and texts.csv, each whole or not at all; return the first two paths.

    probe.svg has the paper's three panels, texts.csv the totals of every text. The same study gives the same bytes.
    """
    from anchoreval.diagnostics.probe.page import page, picture

    write_whole(folder / "probe.svg", [picture(study)])
    write_whole(folder / "texts.csv", [texts_csv(study)])
    return write_whole(folder / "probe.csv", [csv_text(study)]), write_whole(folder / "probe.html", [page(study)])
