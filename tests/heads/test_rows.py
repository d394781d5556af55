"""How identities are shared out, and that their first vectors do not depend on it."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from facelit.heads import rows as rows_module
from facelit.heads.rows import Rows, draw_rows, own_rows, random_seed


def draw(vectors: Tensor, generator: torch.Generator) -> None:
    vectors.normal_(0, 0.5, generator=generator)


@pytest.mark.parametrize(("identities", "processes"), [(10, 1), (10, 3), (7, 8), (2_059_906, 8)])
def test_every_identity_lies_on_one_process(identities: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "world_size", lambda: processes)
    found = []
    for rank in range(processes):
        monkeypatch.setattr(rows_module, "rank", lambda rank=rank: rank)
        found.append(own_rows(identities))
    ends = [rows.first + rows.size for rows in found]
    assert [rows.first for rows in found] == [0, *ends[:-1]]
    assert ends[-1] == identities
    sizes = [rows.size for rows in found]
    assert max(sizes) - min(sizes) <= 1


def test_a_single_process_holds_all() -> None:
    assert own_rows(12) == Rows(0, 12)


@pytest.mark.parametrize("cuts", [[], [1], [1024], [1023, 1024, 1025], [700, 1400, 2100], [2048, 2499]])
def test_vectors_do_not_depend_on_how_rows_are_shared_out(cuts: list[int]) -> None:
    whole = draw_rows(Rows(0, 2500), 3, 7, draw)
    edges = [0, *cuts, 2500]
    parts = [draw_rows(Rows(a, b - a), 3, 7, draw) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


def test_vectors_are_drawn_from_the_distribution() -> None:
    drawn = draw_rows(Rows(0, 5000), 4, 7, draw)
    assert drawn.dtype == torch.float32
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, rel=0.03)
    assert len(drawn.unique(dim=0)) == 5000  # blocks differ


def test_seeds_make_the_difference() -> None:
    rows = Rows(5, 4)
    assert torch.equal(draw_rows(rows, 3, 7, draw), draw_rows(rows, 3, 7, draw))
    assert not torch.equal(draw_rows(rows, 3, 7, draw), draw_rows(rows, 3, 8, draw))
    assert draw_rows(Rows(0, 2), 3, 2**62 + 2**61, draw).isfinite().all()


def test_no_rows() -> None:
    assert draw_rows(Rows(5, 0), 3, 7, draw).shape == (0, 3)


def test_torchs_state_is_where_seeds_come_from_and_no_more() -> None:
    torch.manual_seed(0)
    first, second = random_seed(), random_seed()
    state = torch.get_rng_state()
    draw_rows(Rows(0, 3), 2, first, draw)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert (random_seed(), random_seed()) == (first, second)
    assert first != second


def test_whole_default_dtype_changes_nothing() -> None:
    expected = draw_rows(Rows(0, 5), 3, 7, draw)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(draw_rows(Rows(0, 5), 3, 7, draw), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_default_device_changes_nothing() -> None:
    """Lightning configures models with the GPU as the default device; "meta" stands for it here."""
    torch.manual_seed(0)
    seed, expected = random_seed(), draw_rows(Rows(0, 5), 3, 7, draw)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert random_seed() == seed
        assert torch.equal(draw_rows(Rows(0, 5), 3, 7, draw), expected)
