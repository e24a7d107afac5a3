"""The numerics probe of a model: what a shift of all positions, and each RoPE precision, does to its attention.

study    which runs are made and compared, over which texts -> rows
parts    what one text shows under one level -> a line of probe.jsonl, and back
sheet    rows -> probe.csv, texts.csv
reading  rows -> the paragraph and the tables of the page
page     probe.html (imports jinja2)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anchoreval.diagnostics.probe.sheet import Study, csv_text, texts_csv
from anchoreval.errors import LengthError
from anchoreval.files import write_whole
from anchoreval.prompt import Anchor
from anchoreval.records.kept import Kept
from anchoreval.schema import Watch, unwatched

__all__ = ["Study", "csv_text", "probe", "write_probe"]


def probe(
    model: str,
    lengths: list[int],
    *,
    shift: tuple[int, ...] = (0, 16),
    levels: str = "all",
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
    tell: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
) -> Study:
    """The measured study of `model` (a card of models/, a folder or a hub id).

    `lengths` are tokens, the anchor token included; `shift` is the pair of offsets of all positions, or more: the last
    is compared with the first at every length, and with those between at `curve_length`. `levels` are RoPE levels,
    comma separated, or `all`; `text` is a UTF-8 file or a folder of *.txt (default: generated prose); `texts` is how
    many texts at each length, or pairs (from this length on, so many) (default: two up to 512 tokens, one above);
    `queries` is how many query rows of a longer text are measured; `dtype` is that of the model that is probed first
    (default: the checkpoint's, for a card's own dtype says how tasks run); `max_length` is what the model was trained
    at, where its card and configuration do not say;
    `random_init` adds the same architecture with random weights also where the model is large (up to 100 million
    parameters it is always there); `copy=False` leaves out the float32 copy of a model of 16 bits; `anchor="none"`
    puts no anchor token in front. What is measured is appended to the file `kept`, from which a study that was cut
    goes on. Raises AnchorEvalError, one line, for what cannot be done.
    """
    from anchoreval.diagnostics.probe.study import Settings, investigate

    if curve_length is not None and curve_length not in lengths:
        raise LengthError(f"--curve-length {curve_length}: not one of --lengths")
    counts = ((0, texts),) if isinstance(texts, int) else tuple(sorted(texts or ()))
    settings = Settings(
        tuple(sorted(set(lengths))), shift, levels, counts, queries, seed, random_init, curve_length, copy
    )
    how = (dtype or "auto", device, kernel, trust_remote_code, max_length)
    return investigate(model, settings, text, *how, tell, Kept(kept), watch, anchor)


def write_probe(study: Study, folder: Path) -> tuple[Path, Path]:
    """Paths of probe.csv and probe.html, written whole or not at all; probe.svg and texts.csv lie beside.

    probe.svg has the paper's three panels, texts.csv the totals of every text. The same study gives the same bytes.
    """
    from anchoreval.diagnostics.probe.page import page, picture

    write_whole(folder / "probe.svg", [picture(study)])
    write_whole(folder / "texts.csv", [texts_csv(study)])
    return write_whole(folder / "probe.csv", [csv_text(study)]), write_whole(folder / "probe.html", [page(study)])
