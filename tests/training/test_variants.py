"""How windows are laid out: the figure of the module, and what holds for any documents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anchoreval.errors import AnchorEvalError, UnknownName
from anchoreval.training.variants import NO_TARGET, VARIANTS, Piece, Row, documents_of, lay, variant_of, without_front

ANCHOR = 99
SAME_TARGETS = ("full", "intra-doc", "intra-doc-reset", "anchor", "anchor-tag")


def pieces(*lengths: int, tag: int = 0) -> list[Piece]:
    ids = itertools.count(1000)
    tags = np.arange(1, tag + 1) if tag else None
    return [Piece(np.array([next(ids) for _ in range(length)]), tags) for length in lengths]


def row(name: str, *lengths: int, **named: object) -> Row:
    return lay(pieces(*lengths, tag=2), variant_of(name), ANCHOR, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "positions", "lengths"),
    [
        ("full", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], (15,)),
        ("intra-doc", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], (5, 4, 6)),
        ("intra-doc-reset", [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5], (5, 4, 6)),
        ("anchor", [0, 1, 2, 3, 4, 0, 5, 6, 7, 0, 8, 9, 10, 11, 12], (5, 4, 6)),
        ("anchor-tag", [0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 0, 12, 13, 14, 15, 16, 17, 18], (7, 6, 8)),
    ],
)
def test_positions_and_cuts_are_those_of_the_figure(name: str, positions: list[int], lengths: tuple[int, ...]) -> None:
    laid = row(name, 4, 3, 5)
    assert (laid.positions.tolist(), laid.lengths) == (positions, lengths)


def test_every_variant_has_the_same_targets_and_none_on_an_anchor_a_tag_or_a_first_token() -> None:
    targets = {name: [label for label in row(name, 4, 3, 5).labels.tolist() if label != NO_TARGET] for name in VARIANTS}
    assert {tuple(targets[name]) for name in SAME_TARGETS} == {(1001, 1002, 1003, 1005, 1006, 1008, 1009, 1010, 1011)}
    for name in VARIANTS:
        laid = row(name, 4, 3, 5)
        wanted = laid.labels != NO_TARGET
        assert (laid.labels[wanted] == laid.ids[wanted]).all() and ANCHOR not in laid.labels


def test_baselines_can_do_without_an_anchor_and_keep_their_targets() -> None:
    bare = row("intra-doc", 4, 3, start="none")
    assert ANCHOR not in bare.ids and bare.lengths == (4, 3)
    assert bare.labels[bare.labels != NO_TARGET].tolist() == [1001, 1002, 1003, 1005, 1006]
    with pytest.raises(AnchorEvalError, match="--document-start none: anchor needs"):
        row("anchor", 4, start="none")


@pytest.mark.parametrize("name", ["intra-doc-interleaved", "anchor-interleaved"])
def test_interleaving_keeps_every_token_once_and_the_order_inside_documents(name: str) -> None:
    for seed in range(20):
        laid = row(name, 300, 40, 900, 2500, 64, seed=(seed,))
        plain = row("anchor" if name.startswith("anchor") else "intra-doc", 300, 40, 900, 2500, 64)
        assert (laid.ids == plain.ids).all() and laid.lengths == plain.lengths
        assert sorted(laid.positions.tolist()) == sorted(plain.positions.tolist())
        starts = np.cumsum((0, *laid.lengths))
        cuts = 0
        for first, stop in itertools.pairwise(starts.tolist()):
            own = laid.positions[first:stop]
            steps = np.diff(own)
            inside = steps[1:] if name.startswith("anchor") else steps
            assert (steps > 0).all()
            jumps = np.flatnonzero(inside != 1) + (2 if name.startswith("anchor") else 1)
            assert (laid.labels[first + jumps] == NO_TARGET).all()  # no target across a cut
            cuts += len(jumps)
        assert cuts  # documents of 64 to 2,048 tokens are cut


def test_the_chunks_of_a_window_follow_from_its_seed() -> None:
    same, other = (row("anchor-interleaved", 300, 900, seed=(seed,)) for seed in (3, 4))
    again = row("anchor-interleaved", 300, 900, seed=(3,))
    assert (same.positions == again.positions).all() and not (same.positions == other.positions).all()


def test_a_loss_is_taken_where_it_is_wanted_alone() -> None:
    piece = Piece(np.arange(4), wanted=np.array([True, False, True, False]))
    assert lay([piece], variant_of("anchor"), ANCHOR).labels.tolist() == [NO_TARGET] * 3 + [2, NO_TARGET]


def test_rows_of_users_are_documents_or_packed_ids() -> None:
    packed = documents_of({"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]})
    assert [piece.ids.tolist() for piece in packed] == [[1, 2], [3, 4, 5]]
    assert [piece.ids.tolist() for piece in documents_of([[1, 2], [3]])] == [[1, 2], [3]]
    with pytest.raises(AnchorEvalError, match="this one has text"):
        documents_of({"text": "x"})
    with pytest.raises(AnchorEvalError, match="add up to 4, input_ids has 5"):
        documents_of({"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 2]})


def test_an_anchor_in_front_is_taken_off_and_one_inside_is_refused() -> None:
    assert without_front(Piece(np.array([ANCHOR, 1, 2])), ANCHOR).ids.tolist() == [1, 2]
    with pytest.raises(AnchorEvalError, match="stands 1 times inside"):
        without_front(Piece(np.array([1, ANCHOR, 2])), ANCHOR)


def test_a_variant_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="intra-doc"):
        variant_of("intradoc")
