"""IdentityPairs: against every pair listed literally; balance, folds without common people, and the same pairs everywhere."""

import pickle
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from facelit.cli import main
from facelit.data import FaceDataModule, IdentityPairs
from facelit.errors import FacelitError
from facelit.verification.pair_drawing import Pairs, deal_people, draw_pairs, name_keys

Key = tuple[str, str]


def write_people(root: Path, counts: dict[str, int]) -> Path:
    """Crops of one colour each, `root/<name>/<number>.png`, made in the order that is given."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (112, 112), (len(name), number, 7)).save(root / name / f"{number}.png")
    return root


def named(source: IdentityPairs) -> set[tuple[int, bool, frozenset[Key]]]:
    """Fold, kind, and the two images of each pair by identity and file; no pair may come twice."""
    keys = [(Path(name).parent.name, Path(name).name) for name in source.names]
    rows = [
        (int(fold), bool(same), frozenset((keys[a], keys[b])))
        for fold, same, a, b in zip(source.folds, source.is_same, source.first, source.second, strict=True)
    ]
    assert len(set(rows)) == len(rows)
    return set(rows)


COUNTS = {"zoe": 4, "ann": 1, "bob": 7, "Çelik": 2, "eve": 3, "ida": 2, "kim": 1, "leo": 5, "moe": 2, "Zed": 3}


def test_all_pairs_are_those_of_a_literal_loop(tmp_path: Path) -> None:
    source = IdentityPairs(write_people(tmp_path, COUNTS), impostors="all", folds=3)
    found = named(source)
    images = [(name, f"{number}.png") for name, count in COUNTS.items() for number in range(count)]
    fold_of = {name: fold for fold, _, pair in found for name, _ in pair}
    assert set(fold_of) == set(COUNTS)  # every identity has an impostor pair, in one fold only:
    assert all({fold_of[name] for name, _ in pair} == {fold} for fold, _, pair in found)
    literal = {
        (fold_of[a[0]], a[0] == b[0], frozenset((a, b)))
        for a, b in combinations(images, 2)
        if fold_of[a[0]] == fold_of[b[0]]
    }
    assert found == literal
    assert source.folds.tolist() == sorted(source.folds.tolist())
    assert Counter(Counter(fold_of.values()).values()) == {3: 2, 4: 1}


@pytest.mark.parametrize("genuine", [5, 20, 31, 44])
def test_samples_are_balanced(genuine: int) -> None:
    """Nobody gives pair number n + 1 while somebody of the fold who has as many gives fewer; the same for couples."""
    rng = np.random.default_rng(genuine)
    counts = rng.integers(1, 8, 20)
    counts[:6] = 4
    people = np.repeat(np.arange(20), counts)
    keys = name_keys(map(str, people), 0) + rng.permutation(len(people)).astype(np.uint64)
    persons = name_keys(map(str, range(20)), 0)
    pairs = draw_pairs(people, persons, keys, genuine, 3 * genuine, 3)
    for fold in (1, 2, 3):
        for same, wanted in ((True, genuine), (False, 3 * genuine)):
            rows = (pairs.folds == fold) & (pairs.is_same == same)
            couples = np.sort(np.stack([people[pairs.first], people[pairs.second]])[:, rows], axis=0).T
            given = Counter(map(tuple, couples.tolist()))
            inside = np.flatnonzero(deal_people(counts, persons, 3) == fold - 1).tolist()
            available = (
                {(p, p): counts[p] * (counts[p] - 1) // 2 for p in inside if counts[p] > 1}
                if same
                else {(a, b): counts[a] * counts[b] for a, b in combinations(inside, 2)}
            )
            share = wanted // 3 + (fold <= wanted % 3)
            assert sum(given.values()) == min(share, sum(available.values()))
            most = max(given.values())
            assert all(given[group] >= min(most - 1, size) for group, size in available.items())
            assert all(given[group] <= available[group] for group in given)
    images = np.sort(np.stack([pairs.first, pairs.second]), axis=0).T
    assert len({(a, b) for a, b in images.tolist()}) == len(images)


def test_draws_are_spread_over_images_and_couples() -> None:
    """2,000 seeds: each of the 6 pairs of four images, and each of 3 couples, about as often as the others."""
    people = np.repeat(np.arange(4), 4)
    drawn: Counter[tuple[int, int]] = Counter()
    partners: Counter[int] = Counter()
    for seed in range(2000):
        persons, images = name_keys(map(str, range(4)), seed), name_keys(map(str, range(100, 116)), seed)
        pairs = draw_pairs(people, persons, images, 2, 2, 2)
        drawn.update(
            (int(a) % 4, int(b) % 4)
            for a, b in np.sort(np.stack([pairs.first, pairs.second])[:, pairs.is_same], axis=0).T
        )
        partners.update(
            int(people[a]) + int(people[b]) for a, b in zip(*np.stack(pairs[:2])[:, ~pairs.is_same], strict=True)
        )
    assert len(drawn) == 6
    assert max(abs(count - 4000 / 6) for count in drawn.values()) < 5 * np.sqrt(4000 * 5 / 36)
    # Couples 0+1, 0+2, 0+3 | 1+2, 1+3, 2+3: sums 1, 2, 3, 3, 4, 5, of 4,000 impostor pairs.
    assert max(abs(partners[total] - 4000 / 6) for total in (1, 2, 4, 5)) < 5 * np.sqrt(4000 * 5 / 36)


def test_the_same_pairs_whatever_the_order_of_listing_and_the_form_of_names(tmp_path: Path) -> None:
    one = IdentityPairs(write_people(tmp_path / "a", COUNTS), genuine=20, folds=3, seed=5)
    decomposed = {unicodedata.normalize("NFD", name): count for name, count in reversed(COUNTS.items())}
    assert list(decomposed) != list(reversed(COUNTS))
    other = IdentityPairs(write_people(tmp_path / "b", decomposed), genuine=20, folds=3, seed=5)

    def composed(source: IdentityPairs) -> set[object]:
        return {
            (fold, same, frozenset((unicodedata.normalize("NFC", name), file) for name, file in pair))
            for fold, same, pair in named(source)
        }

    assert composed(one) == composed(other)
    main(["pack", str(tmp_path / "a"), str(tmp_path / "packed")])
    packed = IdentityPairs(tmp_path / "packed", genuine=20, folds=3, seed=5)
    for mine, theirs in zip(pairs_of(one), pairs_of(packed), strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(one.image(3), packed.image(3))
    assert named(IdentityPairs(tmp_path / "a", genuine=20, folds=3, seed=6)) != named(one)


def pairs_of(source: IdentityPairs) -> Pairs:
    return Pairs(source.first, source.second, source.is_same, source.folds)


def test_the_pairs_of_a_seed_stay_what_they_are() -> None:
    """Figures of two releases are comparable: written down from the first one."""
    people = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    pairs = draw_pairs(people, name_keys("abcd", 1), name_keys("0123456789", 1), 4, 4, 2)
    assert pairs.first.tolist() == [0, 5, 0, 2, 9, 4, 7, 9]
    assert pairs.second.tolist() == [2, 6, 6, 5, 7, 3, 3, 3]
    assert pairs.is_same.tolist() == 2 * [True, True, False, False]
    assert pairs.folds.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_images_and_pickling(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(IdentityPairs(write_people(tmp_path, COUNTS), folds=2)))
    for number, name in enumerate(source.names):
        assert np.array_equal(source.image(number), np.asarray(Image.open(name)))
    assert len(source.names) == len(set(source.names)) == len(source)
    assert set(source.first) | set(source.second) == set(range(len(source)))
    assert [array.dtype for array in (source.first, source.is_same, source.folds)] == [np.int64, np.bool_, np.int64]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"ann": 5}, {}, "found 1 identity with images; pairs need several"),
        ({"ann": 1, "bob": 1, "eve": 1}, {}, "each of its 3 identities has one image, and a genuine pair takes two"),
        ({"ann": 2, "bob": 1, "eve": 1}, {"folds": 2}, "are too few for 2 folds: .*. Add people.$"),
        (COUNTS, {"folds": 6}, "10 identities, 8 of them with two images or more, .* Ask for at most 5 "),
        (COUNTS, {"folds": 1}, "folds=1: verification needs at least two"),
        (COUNTS, {"folds": 3, "genuine": 2}, "genuine=2: each of the 3 folds needs a pair"),
        (COUNTS, {"folds": 3, "impostors": 0}, "impostors=0: each of the 3 folds"),
        (COUNTS, {"folds": 3, "genuine": "most"}, "genuine=most: a number of pairs, or all"),
    ],
)
def test_refusals(tmp_path: Path, counts: dict[str, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(FacelitError, match=message) as caught:
        IdentityPairs(write_people(tmp_path / "people", counts), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(FacelitError, match="verification folder not found: "):
        IdentityPairs(tmp_path / "absent")


def test_too_many_pairs_are_refused_before_they_are_listed() -> None:
    people = np.repeat(np.arange(4), 20_000)
    keys = name_keys(map(str, range(len(people))), 0)
    with pytest.raises(ValueError, match="more than 50,000,000 pairs"):
        draw_pairs(people, keys[:4], keys, "all", "equal", 2)
    assert len(draw_pairs(people, keys[:4], keys, 100_000, "equal", 2).first) == 200_000


def test_in_a_configuration(tmp_path: Path) -> None:
    root = write_people(tmp_path / "people", COUNTS)
    config = tmp_path / "mine.yaml"
    options = f"{{root: {root}, genuine: 12, impostors: all, folds: 2, seed: 3}}"
    config.write_text(f"data: {{verification: {{mine: {{class_path: IdentityPairs, init_args: {options}}}}}}}")
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(FaceDataModule, "data")
    made = parser.instantiate_classes(parser.parse_args(["--config", str(config)]))
    source = made.data.verification["mine"]
    assert named(source) == named(IdentityPairs(root, 12, "all", 2, 3))
