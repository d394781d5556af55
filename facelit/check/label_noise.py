"""Crops that are probably somebody else's, and crops that are nearly one picture, as findings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facelit.check.faces import Faces
from facelit.check.near_copies import SAME_FACE, SAME_PICTURE, Rows
from facelit.pictures.findings import Finding, Item, Picture
from facelit.storage.base import ImageStore


def noise_findings(store: ImageStore, faces: Faces, outlier: float, near_copy: float | None) -> list[Finding]:
    """Outliers and near copies, as the report, the table and the contact sheet have them; see `facelit.check.faces`."""
    return [_outliers(store, faces, outlier), _near_copies(store, faces, near_copy)]


def _outliers(store: ImageStore, faces: Faces, limit: float) -> Finding:
    explanation = (
        f"Cosine to the mean of their identity under {limit:.2f}, or under {limit + 0.1:.2f} and 0.30 below its median: probably"
        " somebody else."
    )

    def item(number: int) -> Item:
        one = faces.outliers[number]
        name = store.name(one.row)
        entry = {"image": name, "score": round(one.score, 4), "median": round(one.median, 4)}
        typical = int(faces.central[store.labels[one.row]])
        pictures = [Picture(store, one.row, f"{one.score:.2f}"), Picture(store, typical, f"median {one.median:.2f}")]
        return Item(entry, f"{name}: {one.score:.2f} (median {one.median:.2f})", pictures)

    rows = np.array([one.row for one in faces.outliers], np.int64)
    return _finding(store, "outliers", "Far from their identity", explanation, rows, item)


def _near_copies(store: ImageStore, faces: Faces, limit: float | None) -> Finding:
    cosine = f"above {SAME_FACE if limit is None else limit:g}"
    if limit is None:
        cosine += "".join(
            f", or above {one:g} where the pictures correlate above {shown:g}" for one, shown in SAME_PICTURE
        )
    explanation = f"Cosine to another crop of the identity, which is kept, {cosine}: one picture, re-encoded, recoloured, shifted or mirrored."

    def item(number: int) -> Item:
        one = faces.near_copies[number]
        name, kept = store.name(one.row), store.name(one.of)
        entry = {"image": name, "kept": kept, "score": round(one.score, 4), "correlation": round(one.correlation, 4)}
        pictures = [Picture(store, one.row, f"{one.score:.4f}"), Picture(store, one.of, "kept")]
        return Item(entry, f"{name} ~ {kept}: {one.score:.4f}", pictures)

    rows = np.array([one.row for one in faces.near_copies], np.int64)
    return _finding(store, "near_copies", "Nearly one picture", explanation, rows, item)


def _finding(
    store: ImageStore, key: str, title: str, explanation: str, rows: Rows, item: Callable[[int], Item]
) -> Finding:
    return Finding(key, title, explanation, len(rows), len(np.unique(store.labels[rows])), len(rows), item)
