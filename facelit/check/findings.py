"""Finds what is wrong with a training set from the facts about its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.check.scan import Scan
from facelit.check.verification_set import VerificationSet
from facelit.pictures.findings import Finding, Item, Picture
from facelit.storage.base import CropStore, ImageStore
from facelit.storage.images import CROP_SIZE
from facelit.storage.people import comparable, same_people, why_incomparable

Rows = npt.NDArray[np.int64]

MUCH_BLACK = 25
"""Percentage of a crop's pixels in a black border from which it is reported; `align` lists its crops from the same share on."""
_OFTEN_BLACK = 10
"""Percentage of all images with such a border from which the table is followed by a warning."""


def find_all(
    store: CropStore, scan: Scan, against: Sequence[VerificationSet], min_images: int, empty: Sequence[str] = ()
) -> list[Finding]:
    """Looks for everything that `facelit check` reports.

    Args:
        store: The training set.
        scan: The facts about all its images.
        against: Verification sets; without any, the two findings that need one are omitted.
        min_images: Identities with fewer readable images are reported.
        empty: Identities without any image, hence not in the store; reported with those.

    Returns:
        Findings in a fixed order, including empty ones.
    """
    findings = [
        _unreadable(store, scan),
        _wrong_size(store, scan),
        _grey(store, scan),
        _black_border(store, scan),
        *_duplicates(store, scan),
        _few_images(store, scan, min_images, empty),
        _same_names(store),
    ]
    if against:
        findings += [_by_name(store, against), _by_image(store, scan, against)]
    return findings


def _of_images(
    store: CropStore, key: str, title: str, explanation: str, rows: Rows, note: Callable[[int], Any]
) -> Finding:
    """A finding of single images; `note` returns what the report adds about a row, and the same in words."""

    def item(number: int) -> Item:
        row = int(rows[number])
        entry, words = note(row)
        name = store.name(row)
        detail = entry.get("reason") or words
        return Item({"image": name, **entry}, f"{name}: {detail}" if detail else name, [Picture(store, row, words)])

    return Finding(key, title, explanation, len(rows), _identities_of(store, rows), len(rows), item)


def _identities_of(store: CropStore, rows: Rows) -> int:
    return len(np.unique(store.labels[rows]))


def _unreadable(store: CropStore, scan: Scan) -> Finding:
    explanation = "The file is empty, truncated, not an image, or absurdly large. Training stops at it."
    rows = np.flatnonzero(~scan.is_readable)
    return _of_images(
        store, "unreadable", "Unreadable", explanation, rows, lambda row: ({"reason": scan.reasons[row]}, "")
    )


def _wrong_size(store: CropStore, scan: Scan) -> Finding:
    explanation = f"Not {CROP_SIZE}x{CROP_SIZE} pixels. Training stops at it unless told to resize: align the photos."
    width, height = scan.facts["width"], scan.facts["height"]
    rows = np.flatnonzero(scan.is_readable & ((width != CROP_SIZE) | (height != CROP_SIZE)))

    def note(row: int) -> tuple[dict[str, int], str]:
        return {"width": int(width[row]), "height": int(height[row])}, f"{width[row]}x{height[row]}"

    return _of_images(store, "wrong_size", "Wrong size", explanation, rows, note)


def _grey(store: CropStore, scan: Scan) -> Finding:
    explanation = "Red, green and blue are exactly equal in every pixel. Harmless if few; a bias if they are of one kind of person."
    rows = np.flatnonzero(scan.facts["is_grey"])
    return _of_images(store, "grey", "Grey", explanation, rows, lambda row: ({}, ""))


def _black_border(store: CropStore, scan: Scan) -> Finding:
    explanation = (
        f"{MUCH_BLACK} % of the pixels or more are black, from the edges inwards: the photo ended there (rarely: a black"
        " background). A network learns such shapes. See option border of align."
    )
    black = scan.facts["black"]
    rows = np.flatnonzero(scan.is_readable & (black >= MUCH_BLACK))

    def note(row: int) -> tuple[dict[str, int], str]:
        return {"black_percent": int(black[row])}, f"{black[row]} % black"

    return _of_images(store, "black_border", "Black border", explanation, rows, note)


def border_warning(scan: Scan) -> str:
    """A line about a set of which a good part has black borders; empty if it has not."""
    num_black = int((scan.is_readable & (scan.facts["black"] >= MUCH_BLACK)).sum())
    percent = 100 * num_black / max(1, int(scan.is_readable.sum()))
    if percent < _OFTEN_BLACK:
        return ""
    return (
        f"{percent:.0f} % of the images are black by a quarter or more, where their photos ended. `align PHOTOS CROPS --border"
        " replicate` repeats the photos' edges there instead; with --recrop it makes the crops of an earlier run again without"
        " looking for faces."
    )


def _duplicates(store: CropStore, scan: Scan) -> tuple[Finding, Finding]:
    rows, starts = equal_groups(scan)
    labels = store.labels[rows]
    firsts = np.repeat(labels[starts[:-1]], np.diff(starts))
    is_mixed = np.logical_or.reduceat(labels != firsts, starts[:-1]) if len(rows) else np.empty(0, np.bool_)
    within = "The same pixels several times in one identity. Triplets of them teach nothing: keep one."
    across = "The same pixels under several identities: at least one label is wrong."
    return (
        _of_groups(store, "duplicates_within", "Duplicates in one identity", within, rows, starts, ~is_mixed),
        _of_groups(store, "duplicates_across", "Duplicates across identities", across, rows, starts, is_mixed),
    )


def equal_groups(scan: Scan) -> tuple[Rows, Rows]:
    """Groups of readable images with the same pixels.

    Returns:
        The rows of all images in a group, group by group in the order of their first rows, ascending within each; and the
        start of each group and the end of the last, shape (num_groups + 1,).
    """
    readable = np.flatnonzero(scan.is_readable)
    digest = scan.facts["digest"][readable]
    order = np.lexsort((digest[:, 1], digest[:, 0]))  # stable: rows ascend where digests are equal
    is_new = np.ones(len(order) + 1, np.bool_)
    is_new[1:-1] = (digest[order[1:]] != digest[order[:-1]]).any(1)
    starts = np.flatnonzero(is_new)
    sizes = np.diff(starts)
    groups = np.flatnonzero(sizes > 1)
    groups = groups[np.argsort(order[starts[groups]], kind="stable")]
    rows = [readable[order[starts[group] : starts[group + 1]]] for group in groups]
    return np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([[0], np.cumsum(sizes[groups])]).astype(
        np.int64
    )


def _of_groups(
    store: CropStore, key: str, title: str, explanation: str, rows: Rows, starts: Rows, chosen: npt.NDArray[np.bool_]
) -> Finding:
    groups = np.flatnonzero(chosen)
    concerned = rows[np.repeat(chosen, np.diff(starts))]

    def item(number: int) -> Item:
        group = rows[starts[groups[number]] : starts[groups[number] + 1]]
        names = [store.name(int(row)) for row in group]
        identities = [store.identities[int(label)] for label in np.unique(store.labels[group])]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        label = f"{names[0]} = {names[1]}{more}"
        return Item({"images": names, "identities": identities}, label, [Picture(store, int(row)) for row in group])

    return Finding(key, title, explanation, len(concerned), _identities_of(store, concerned), len(groups), item)


def _few_images(store: CropStore, scan: Scan, min_images: int, empty: Sequence[str]) -> Finding:
    explanation = f"Fewer than {min_images} readable images: nothing to pull together. See min_images_per_identity."
    counts = np.bincount(store.labels[scan.is_readable], minlength=len(store.identities))
    few = np.flatnonzero(counts < min_images)
    first = _first_rows(store)

    def item(number: int) -> Item:
        if number >= len(few):
            name = empty[number - len(few)]
            return Item({"identity": name, "images": 0}, f"{name}: 0 images", [])
        label = int(few[number])
        name, images = store.identities[label], int(counts[label])
        words = f"{images} image{'' if images == 1 else 's'}"
        pictures = [Picture(store, int(first[label]), words)] if first[label] >= 0 else []
        return Item({"identity": name, "images": images}, f"{name}: {words}", pictures)

    count = len(few) + len(empty)
    return Finding("few_images", "Too few images", explanation, int(counts[few].sum()), count, count, item)


def _same_names(store: CropStore) -> Finding:
    explanation = (
        "Identities whose names are one person's: they differ in case, in spaces and underscores, or in how accents are stored."
        " Training would push them apart: put their images into one folder, or rename them if they are two people."
    )
    groups = same_people(store.identities)
    counts = np.bincount(store.labels, minlength=len(store.identities))
    first = _first_rows(store)

    def item(number: int) -> Item:
        group = groups[number]
        names = [store.identities[label] for label in group]
        pictures = [Picture(store, int(first[label])) for label in group if first[label] >= 0]
        return Item({"identities": names, "images": int(counts[group].sum())}, " = ".join(names), pictures)

    labels = [label for group in groups for label in group]
    images = int(counts[labels].sum()) if labels else 0
    return Finding("same_name", "One person by name", explanation, images, len(labels), len(groups), item)


def _by_name(store: CropStore, against: Sequence[VerificationSet]) -> Finding:
    explanation = (
        "Identities with the name of a person in a verification set: they would be verified on people seen in training."
        " See exclude_identities."
    )
    people: dict[str, list[_Person]] = defaultdict(list)
    for one in against:
        for person in _people(one):
            people[comparable(person.name)].append(person)
    found = np.array(
        [label for label, name in enumerate(store.identities) if comparable(name) in people], dtype=np.int64
    )
    counts = np.bincount(store.labels, minlength=len(store.identities))
    first = _first_rows(store)

    def item(number: int) -> Item:
        label = int(found[number])
        name = store.identities[label]
        twins = people[comparable(name)]
        verification = [{"set": twin.path, "name": twin.name} for twin in twins]
        pictures = [Picture(store, int(first[label]))] if first[label] >= 0 else []
        pictures += [picture for twin in twins for picture in twin.pictures]
        return Item({"identity": name, "images": int(counts[label]), "verification": verification}, name, pictures)

    images = int(counts[found].sum())
    title = "In a verification set by name"
    note = "" if len(found) else _why_nothing(store, against)
    explanation = f"{explanation} {note}".rstrip()
    return Finding("in_verification_by_name", title, explanation, images, len(found), len(found), item, note)


def _why_nothing(store: CropStore, against: Sequence[VerificationSet]) -> str:
    """Says why a count of 0 means nothing for sets whose names cannot be compared; empty if there is no such set."""
    reasons = {one.path: why_incomparable(store.identities, one.people) for one in against}
    told = "; ".join(f"{path}: {reason}" for path, reason in reasons.items() if reason)
    return f"This 0 means nothing: names cannot be compared ({told})." if told else ""


class _Person(NamedTuple):
    """A person in a verification set, with their first image if the set has one."""

    path: str
    name: str
    pictures: list[Picture]


def _people(one: VerificationSet) -> Iterator[_Person]:
    if one.store is None:
        yield from (_Person(one.path, name, []) for name in one.people)
        return
    wanted = frozenset(one.people)
    for name, row in zip(one.store.identities, _first_rows(one.store).tolist(), strict=True):
        if name in wanted:
            yield _Person(one.path, name, [Picture(one.store, row, "verification set")] if row >= 0 else [])


def _first_rows(store: ImageStore) -> Rows:
    """The first image of each identity, int64, shape (num_identities,); -1 for an identity without images."""
    first = np.full(len(store.identities), -1, np.int64)
    first[store.labels[::-1]] = np.arange(len(store) - 1, -1, -1)
    return first


def _by_image(store: CropStore, scan: Scan, against: Sequence[VerificationSet]) -> Finding:
    explanation = "The same pixels as an image in a verification set, under whatever name."
    places: dict[tuple[int, int], list[tuple[VerificationSet, int]]] = defaultdict(list)
    for one in against:
        if one.scan is not None:
            readable = one.scan.is_readable
            for digest, row in zip(one.scan.facts["digest"][readable].tolist(), one.rows[readable], strict=True):
                places[tuple(digest)].append((one, int(row)))
    digests = scan.facts["digest"]
    likely = np.isin(digests[:, 0], np.array([half for half, _ in places], np.uint64)) & scan.is_readable
    rows = np.array([row for row in np.flatnonzero(likely) if tuple(digests[row].tolist()) in places], dtype=np.int64)

    def item(number: int) -> Item:
        row = int(rows[number])
        twins = [Picture(one.store, place) for one, place in places[tuple(digests[row].tolist())] if one.store]
        names = [twin.store.place(twin.row) for twin in twins]
        name = store.name(row)
        shown = [Picture(store, row), *(twin._replace(note="verification set") for twin in twins)]
        return Item({"image": name, "verification": names}, f"{name} = {names[0]}", shown)

    title = "In a verification set by image"
    identities = _identities_of(store, rows)
    return Finding("in_verification_by_image", title, explanation, len(rows), identities, len(rows), item)
