"""How well groups of faces match the people in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class ClusterScores(NamedTuple):
    """Agreement of groups with people.

    Pairwise: of all pairs of faces in one group the share of one person (precision), and of all pairs of one person the share in one group
    (recall). BCubed: the same for each face with the faces around it, itself included, averaged over faces, and F, their
    harmonic mean. Amigó, Gonzalo, Artiles & Verdejo, Information Retrieval 12, 2009.
    """

    pair_precision: float
    pair_recall: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float
    groups: int
    people: int


def score_clusters(groups: npt.NDArray[np.integer[Any]], people: npt.NDArray[np.integer[Any]]) -> ClusterScores:
    """Scores groups by counts of (group, person), not by pairs: n log n.

    Args:
        groups: Group of each face, (N,), N at least 1; a face that is alone has a group of its own.
        people: Person of each face, (N,).
    """
    _, group = np.unique(groups, return_inverse=True)
    _, person = np.unique(people, return_inverse=True)
    cells, counts = np.unique(np.stack([group, person]), axis=1, return_counts=True)
    in_group, of_person = np.bincount(group), np.bincount(person)
    together, same_group, same_person = (int((c * (c - 1)).sum()) for c in (counts, in_group, of_person))
    squares = counts.astype(np.float64) ** 2 / len(group)
    precision = float((squares / in_group[cells[0]]).sum())
    recall = float((squares / of_person[cells[1]]).sum())
    return ClusterScores(
        together / same_group if same_group else 1.0,
        together / same_person if same_person else 1.0,
        precision,
        recall,
        2 * precision * recall / (precision + recall),
        len(in_group),
        len(of_person),
    )
