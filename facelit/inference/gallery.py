"""A gallery of people and the search for the most similar ones: exact, or through FAISS if very large."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facelit.errors import FacelitError
from facelit.inference.photos import Crops
from facelit.storage.files import replace_file

if TYPE_CHECKING:
    from facelit.inference.faiss_index import CodeIndex

Embeddings = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Template = Literal["mean", "all"]

VERSION = 1
"""Version of the file format."""

_ROUNDING = 1e-5
"""Bound on the error of a float32 dot product of unit vectors: rows this close to the k-th best are compared in float64."""
_BLOCK, _CHUNK = 1 << 25, 1 << 14
"""Scores, and float64 rows, held in memory at a time."""

_FIRST_ROWS = 4096
"""Number of rows first requested from FAISS."""


class Match(NamedTuple):
    """A person of the gallery and their cosine similarity to the query face."""

    name: str
    score: float


class Gallery:
    """People and their embeddings.

    Args:
        names: The people's names.
        embeddings: float32 (T, D), L2-normalised: one row for each person (template "mean") or each photo ("all").
        owners: Index in `names` of each row's person, int64 (T,), non-decreasing; each person has a row.
        fingerprint: The fingerprint of the network that made the embeddings.
        flip_average: Whether the embeddings are averages with the mirror image's.
        template: What the rows are: "mean" or "all".
        examples: A crop of each person, uint8 (people, 112, 112, 3), for pictures.
        skipped: Photos left out at enrolment, and why.

    Attributes:
        several: Number of faces by photo, for enrolled photos with more than one; not saved.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: Embeddings,
        owners: Indices,
        fingerprint: str,
        flip_average: bool = False,
        template: Template = "mean",
        examples: Crops | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        self.names = list(names)
        self.embeddings = np.ascontiguousarray(embeddings, np.float32)
        self.owners = owners
        self.fingerprint = fingerprint
        self.flip_average = flip_average
        self.template = template
        self.examples = examples
        self.skipped = list(skipped)
        self.several: dict[str, int] = {}
        self._starts = np.searchsorted(owners, np.arange(len(self.names)))
        self._index: CodeIndex | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Gallery of {len(self):,} people, {len(self.embeddings):,} rows>"

    def check_fingerprint(self, fingerprint: str, checkpoint: object) -> None:
        """Checks that the gallery was made with this network: embeddings of different networks cannot be compared.

        Raises:
            FacelitError: The gallery was made with another network.
        """
        if self.fingerprint != fingerprint:
            raise FacelitError(
                f"the gallery was not made with {checkpoint}, and embeddings of different networks cannot be compared. Enrol"
                " the photos again with this checkpoint."
            )

    def use_faiss(self) -> Gallery:
        """Switches to searching through FAISS, for galleries of hundreds of thousands, or for many photos to identify.

        Short codes of all rows are scanned, and the best rows are compared exactly: scores and order are those of exact search.
        A row is missed only if its code is off by more than four times the usual error. A gallery of fewer than 10,000 rows is
        still searched exactly. See docs/recognition.md for cost and gain.

        Returns:
            The gallery itself.

        Raises:
            FacelitError: FAISS is not installed.
        """
        from facelit.inference.faiss_index import WORTH_AN_INDEX, build_index

        if len(self.embeddings) >= WORTH_AN_INDEX:
            self._index = build_index(self.embeddings)
        return self

    def search(self, queries: Embeddings, k: int = 5) -> list[list[Match]]:
        """Finds the most similar people.

        Args:
            queries: Embeddings, float32 (Q, D), normalised or not.
            k: The most people to list for each query, at least 1.

        Returns:
            For each query min(k, people) matches, best first; equal scores in the order of the gallery's names.

        Raises:
            FacelitError: `k` is below 1, or the embeddings have a different length.
        """
        if k < 1:
            raise FacelitError(f"option k: must be at least 1, not {k}.")
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise FacelitError(
                f"the gallery's embeddings have {self.embeddings.shape[1]} numbers, but the queries' shape is {queries.shape}."
            )
        k = min(k, len(self))
        unit = (queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
        found = self._candidates(unit, k)
        return [self._rank(query, people, k) for query, people in zip(queries, found, strict=True)]

    def save(self, path: str | Path) -> None:
        """Writes the gallery to an `.npz` file, atomically.

        Raises:
            FacelitError: The file cannot be written.
        """
        arrays: dict[str, Any] = {
            "version": np.array(VERSION),
            "names": np.array(self.names, dtype=np.str_),
            "embeddings": self.embeddings,
            "owners": self.owners,
            "fingerprint": np.array(self.fingerprint),
            "flip_average": np.array(self.flip_average),
            "template": np.array(self.template),
            "skipped": np.array(self.skipped, dtype=np.str_),
        }
        if self.examples is not None:
            arrays["examples"] = self.examples
        with replace_file(Path(path)) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Gallery:
        """Reads a file that `save` wrote; nothing in it is executed.

        Raises:
            FacelitError: The file does not exist, is damaged or is not a gallery.
        """
        path = Path(path)
        if not path.is_file():
            raise FacelitError(f"gallery not found: {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls._restore(arrays)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            EOFError,
            MemoryError,
            zipfile.BadZipFile,
        ) as error:
            raise FacelitError(f"{path}: not a gallery saved by facelit, or damaged ({error}).") from None

    @classmethod
    def _restore(cls, arrays: dict[str, Any]) -> Gallery:
        if int(arrays["version"]) != VERSION:
            raise ValueError(f"its format is version {int(arrays['version'])}; this facelit reads version {VERSION}")
        names, embeddings, owners = arrays["names"], arrays["embeddings"], arrays["owners"]
        whole = (
            names.dtype.kind == "U"
            and embeddings.dtype == np.float32
            and embeddings.ndim == 2
            and owners.dtype == np.int64
            and owners.shape == (len(embeddings),)
            and np.array_equal(np.unique(owners), np.arange(len(names)))
            and bool((np.diff(owners) >= 0).all())
        )
        template, examples = str(arrays["template"]), arrays.get("examples")
        whole &= template in ("mean", "all") and (examples is None or len(examples) == len(names))
        if not whole:
            raise ValueError("its arrays do not fit together")
        return cls(
            names.tolist(),
            embeddings,
            owners,
            str(arrays["fingerprint"]),
            bool(arrays["flip_average"]),
            "mean" if template == "mean" else "all",
            examples,
            arrays["skipped"].tolist(),
        )

    def _candidates(self, queries: Embeddings, k: int) -> list[Indices]:
        """For each query, the indices of the people who may be among the `k` best."""
        if self._index is not None:
            return self._through_index(self._index, queries, k)
        found: list[Indices] = []
        step = max(1, _BLOCK // len(self.embeddings))
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ self.embeddings.T
            if len(self.embeddings) != len(self):
                scores = np.maximum.reduceat(scores, self._starts, axis=1)
            least = np.partition(scores, -k, axis=1)[:, -k]
            found += [np.flatnonzero(row >= limit - _ROUNDING) for row, limit in zip(scores, least, strict=True)]
        return found

    def _through_index(self, index: CodeIndex, queries: Embeddings, k: int) -> list[Indices]:
        """As `_candidates`; asks for more rows until the codes' errors cannot have hidden any of the `k` best."""
        wanted = min(k + _FIRST_ROWS, len(self.embeddings))
        found = []
        for query, scores, rows in zip(queries, *index.search(queries, wanted), strict=True):
            asked = wanted
            while (people := self._near_best(scores, rows, k, index.slack)) is None:
                asked = min(4 * asked, len(self.embeddings))
                scores, rows = (one[0] for one in index.search(query[None], asked))
            found.append(people)
        return found

    def _near_best(self, scores: Embeddings, rows: Indices, k: int, slack: float) -> Indices | None:
        """The people within `slack` of the k-th best; None if rows not yet found may hold more of them."""
        # Scores descend, so a person's first row is the best one.
        people: Indices
        people, first = np.unique(self.owners[rows], return_index=True)
        if len(people) >= k:
            least = np.sort(scores[first])[-k] - slack
            if scores[-1] < least or len(rows) == len(self.embeddings):
                near: Indices = people[scores[first] >= least]
                return near
        return people if len(rows) == len(self.embeddings) else None

    def _rank(self, query: Embeddings, people: Indices, k: int) -> list[Match]:
        """The best `k` of these people by float64 scores, which do not depend on who else is compared."""
        counts = np.diff(np.append(self._starts, len(self.embeddings)))[people]
        begins = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(self._starts[people] - begins, counts)
        direction = query.astype(np.float64)
        direction /= np.sqrt((direction * direction).sum())
        scores = np.concatenate(
            [
                _cosines(self.embeddings[rows[start : start + _CHUNK]], direction)
                for start in range(0, len(rows), _CHUNK)
            ]
        )
        best = np.maximum.reduceat(scores, begins)
        order = np.argsort(-best, kind="stable")[:k]
        return [Match(self.names[people[place]], float(best[place])) for place in order]


def _cosines(rows: Embeddings, direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine similarities in float64, each row summed by itself: with BLAS, rounding would depend on a row's position."""
    wide = rows.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (wide * direction).sum(axis=1) / np.sqrt((wide * wide).sum(axis=1))
    return cosines


def mean_templates(embeddings: Embeddings, owners: Indices) -> Embeddings:
    """Computes one row for each person: the normalised mean of the normalised embeddings.

    Args:
        embeddings: float32 (T, D), L2-normalised.
        owners: Index of each row's person, int64 (T,), non-decreasing.

    Returns:
        float32 (distinct owners, D), L2-normalised, in ascending order of the owners.
    """
    _, starts = np.unique(owners, return_index=True)
    sums = np.add.reduceat(embeddings.astype(np.float64), starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    templates: Embeddings = (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
    return templates
