"""Pairs of crops that are nearly one picture, against a plain loop and Pillow's shrinking."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from facelit.check import near_copies as copies_module
from facelit.check.near_copies import SAME_FACE, SAME_PICTURE, find_near_copies, thumbnails
from numbered_people import axis, unit


@pytest.mark.parametrize("block", [3, 1_024])
def test_near_copies_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(copies_module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    for _ in range(20):
        embeddings = unit(rng, 14, 3)
        kept: list[int] = []
        literal = []
        for number, one in enumerate(embeddings):
            alike = [(float(one @ embeddings[other]), other) for other in kept]
            best = max(alike, key=lambda pair: pair[0], default=(-2.0, -1))
            if best[0] > 0.9:
                literal.append((number, best[1]))
            else:
                kept.append(number)
        found = find_near_copies(embeddings, unread, 0.9)
        assert [pair[:2] for pair in found] == literal
        assert all(score == pytest.approx(float(embeddings[a] @ embeddings[b]), abs=1e-6) for a, b, score, _ in found)
    assert find_near_copies(embeddings[:0], unread) == []


def unread(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    raise AssertionError(f"nobody needs the pictures {numbers}")


def correlation(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Of two pictures, shrunk to 28x28 and grey, by Pillow and NumPy's `corrcoef`."""
    small = [
        np.asarray(Image.fromarray(p.mean(2).astype(np.float32)).resize((28, 28), Image.Resampling.BOX))
        for p in (one, other)
    ]
    return float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1])


def scene(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((112, 112)))


@pytest.mark.parametrize("block", [2, 1_024])
def test_pictures_decide_where_cosines_do_not(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(copies_module, "_BLOCK", block)
    rng = np.random.default_rng(5)
    found_by = dict.fromkeys((*SAME_PICTURE, "cosine"), 0)
    for _ in range(60):
        one, noise = scene(rng), scene(rng)
        share = rng.choice([0, 0.1, 0.25, 0.4, 1])
        other = (one[:, ::-1] if rng.random() < 0.5 else one) * (1 - share) + noise * share
        crops = np.stack([one, scene(rng), other.round().astype(np.uint8)])
        cosine = rng.choice([0.84, 0.86, 0.94, 0.96, 0.99])
        embeddings = np.stack([axis(0), axis(1), axis(0, 2, cosine)]).astype(np.float32)
        shown = max(correlation(crops[0], crops[2]), correlation(crops[0], crops[2][:, ::-1]))
        reasons = [pair for pair in SAME_PICTURE if cosine > pair[0] and shown > pair[1]]
        reasons += ["cosine"] if cosine > SAME_FACE else []
        found = find_near_copies(embeddings, crops.__getitem__)
        assert [copy[:2] for copy in found] == ([(2, 0)] if reasons else [])
        for copy in found:
            assert (copy.score, copy.correlation) == (pytest.approx(cosine, abs=1e-5), pytest.approx(shown, abs=1e-3))
        for reason in reasons:
            found_by[reason] += 1
        alone = find_near_copies(embeddings, unread, 0.95)
        assert [copy[:2] for copy in alone] == ([(2, 0)] if cosine > 0.95 else [])
    assert all(found_by.values())


def test_a_blank_picture_is_like_no_other() -> None:
    blank = thumbnails(np.full((2, 112, 112, 3), 200, np.uint8))
    assert not blank.any()
    rng = np.random.default_rng(6)
    crops = np.stack([scene(rng), scene(rng)])
    small = thumbnails(crops)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-6)
    assert float(small[0] @ small[1]) == pytest.approx(correlation(crops[0], crops[1]), abs=1e-5)
