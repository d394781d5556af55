"""An album sorted by person: its faces, and the folders with each person's photos.

The state is stored in `OUT/.facelit-cluster.npz`. A photo is recognised by its bytes, so it may be renamed or moved; a person by
the file `.facelit-person` in their folder, so the folder may be renamed too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from facelit.errors import FacelitError
from facelit.inference.linkage import link_faces
from facelit.inference.photos import Crops
from facelit.storage.base import ImageStore
from facelit.storage.files import cannot_write, replace_file
from facelit.storage.images import read_file

STATE, CROPS, MARKER, NOISE = ".facelit-cluster.npz", ".facelit-crops", ".facelit-person", "noise"
_VERSION, _QUALITY, _BLOCK = 1, 92, 4096

Indices = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]


class Likeness(NamedTuple):
    """How similar each face is to its own person and to the nearest other person, as mean cosine similarities.

    `own` and `other` are float32 (N,), NaN if there is nobody; `nearest` is the other person's number, int64 (N,), 0 if there is
    nobody.
    """

    own: Embeddings
    other: Embeddings
    nearest: Indices


class Album:
    """The faces in an album, and who they are.

    Args:
        out: The folder of the sorted album; created if it does not exist.
        fingerprint: Identifies the network and how it is used: only embeddings with the same fingerprint can be compared.

    Attributes:
        digests: The hash of each face's photo, (N,).
        faces: The index of each face in its photo, the largest first, from 0, (N,).
        photos: The path of each face's photo when it was last seen, (N,).
        placed: The path below `out` of each face's link or copy, "" if there is none yet, (N,).
        people: The number of each face's person, from 1; 0 for nobody, int64 (N,).
        embeddings: float32 (N, D).

    Raises:
        FacelitError: The folder cannot be created, or its state is damaged or belongs to another network.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out, self.fingerprint = out, fingerprint
        self.digests: list[str] = []
        self.faces: list[int] = []
        self.photos: list[str] = []
        self.placed: list[str] = []
        self.people: Indices = np.empty(0, np.int64)
        self.embeddings: Embeddings = np.empty((0, 0), np.float32)
        self._last_person = 0
        try:
            (out / CROPS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(out, error) from None
        if (out / STATE).is_file():
            self._load()

    def add(self, photos: Iterable[tuple[str, Path, Crops]], embeddings: Embeddings) -> None:
        """Adds the faces of photos, who are nobody yet.

        Args:
            photos: For each photo its hash (see `digest_of`), path, and crops of its faces, the largest first.
            embeddings: The embeddings of all these crops, in their order, float32 (n, D).
        """
        for digest, photo, crops in photos:
            for number, crop in enumerate(crops):
                with replace_file(self._crop(digest, number)) as file:
                    file.write(simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=_QUALITY))
            self.digests += [digest] * len(crops)
            self.faces += range(len(crops))
            self.photos += [os.path.abspath(photo)] * len(crops)
            self.placed += [""] * len(crops)
        self.people = np.append(self.people, np.zeros(len(embeddings), np.int64))
        self.embeddings = np.concatenate([self.embeddings.reshape(-1, embeddings.shape[1]), embeddings])

    def forget(self, rows: Sequence[int]) -> None:
        """Drops faces whose photos have another content by now; links to these would show it among their people.

        Raises:
            FacelitError: A link cannot be removed.
        """
        for row in rows:
            path = self.out / self.placed[row]
            try:
                if self.placed[row] and path.is_symlink():
                    path.unlink()
            except OSError as error:
                raise cannot_write(path, error) from None
        keep = np.setdiff1d(np.arange(len(self.digests)), rows)
        for values in (self.digests, self.faces, self.photos, self.placed):
            values[:] = [values[row] for row in keep.tolist()]
        self.people, self.embeddings = self.people[keep], self.embeddings[keep]

    def sort(self, cut: float, fewest: int) -> None:
        """Assigns faces without a person to a known or a new one.

        Args:
            cut: The lowest mean cosine similarity between the faces of two groups that are the same person.
            fewest: The fewest faces that make a new person; smaller groups stay unassigned.
        """
        groups = link_faces(self.embeddings, cut, self.people)
        before = int(self.people.max(initial=0))
        found, first, counts = np.unique(groups, return_index=True, return_counts=True)
        number = np.where(found <= before, found, 0)
        is_new = np.flatnonzero((found > before) & (counts >= fewest))
        largest_first = is_new[np.lexsort((first[is_new], -counts[is_new]))]
        number[largest_first] = self._last_person + 1 + np.arange(len(largest_first))
        self._last_person += len(largest_first)
        self.people = number[np.searchsorted(found, groups)]

    def likeness(self) -> Likeness:
        """Computes how similar every face is to its own and the nearest other person; see `Likeness`."""
        count = len(self.people)
        numbers = np.unique(self.people[self.people > 0])
        own, other = np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)
        nearest = np.zeros(count, np.int64)
        if not len(numbers):
            return Likeness(own, other, nearest)
        column = np.searchsorted(numbers, self.people)
        known = self.people > 0
        sums = np.zeros((len(numbers), self.embeddings.shape[1]))
        np.add.at(sums, column[known], self.embeddings[known])
        sizes = np.bincount(column[known], minlength=len(numbers))
        for start in range(0, count, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, count))
            scores = self.embeddings[rows] @ (sums / sizes[:, None]).astype(np.float32).T
            mine = np.flatnonzero(known[rows])
            size = sizes[column[rows[mine]]]
            mean = scores[mine, column[rows[mine]]]
            # Leave out the face itself, whose product with itself is 1.
            own[rows[mine]] = np.where(size > 1, (mean * size - 1) / np.maximum(size - 1, 1), np.nan)
            scores[mine, column[rows[mine]]] = -np.inf
            best = np.argmax(scores, axis=1)
            top = scores[np.arange(len(rows)), best]
            there = np.isfinite(top)
            other[rows[there]], nearest[rows[there]] = top[there], numbers[best[there]]
        return Likeness(own, other, nearest)

    def place(self, copy: bool) -> dict[int, str]:
        """Puts a link to each photo, or a copy, into its people's folders; files already there are left alone.

        Returns:
            The folder of each person, and of nobody (0).

        Raises:
            FacelitError: A folder or file cannot be written.
        """
        folders = self._folders()
        moved: set[str] = set()
        try:
            for row, person in enumerate(self.people.tolist()):
                if self.placed[row]:
                    if person == 0 or not self.placed[row].startswith(f"{NOISE}/"):
                        continue
                    moved.add(self.placed[row])  # was in noise/ until now
                self.placed[row] = self._put(row, folders[person], copy)
            for path in moved.difference(self.placed):  # unless another face in the photo is still nobody's
                (self.out / path).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(Path(error.filename or self.out), error) from None
        return folders

    def save(self) -> None:
        """Writes the state, atomically."""
        with replace_file(self.out / STATE) as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                fingerprint=np.array(self.fingerprint),
                last_person=np.array(self._last_person),
                digests=np.array(self.digests, np.str_),
                faces=np.array(self.faces, np.int64),
                photos=np.array([os.fsencode(photo).hex() for photo in self.photos], np.str_),
                placed=np.array([os.fsencode(path).hex() for path in self.placed], np.str_),
                people=self.people,
                embeddings=self.embeddings,
            )

    def _load(self) -> None:
        path = self.out / STATE
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    raise ValueError(
                        f"its format is version {int(file['version'])}; this facelit reads version {_VERSION}"
                    )
                fingerprint = str(file["fingerprint"])
                self.digests, self.faces = file["digests"].tolist(), file["faces"].tolist()
                self.photos = [os.fsdecode(bytes.fromhex(one)) for one in file["photos"].tolist()]
                self.placed = [os.fsdecode(bytes.fromhex(one)) for one in file["placed"].tolist()]
                self.people, self.embeddings = file["people"], file["embeddings"]
                self._last_person = int(file["last_person"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise FacelitError(
                f"{path} is damaged, or of another version ({error}). Sort into another folder."
            ) from None
        if fingerprint != self.fingerprint:
            raise FacelitError(
                f"{self.out} was sorted with another network, or with other settings for alignment or averaging: such embeddings"
                " cannot be compared. Use the same checkpoint and options, or sort into another folder."
            )

    def _folders(self) -> dict[int, str]:
        """Finds the folder of each person by its marker, or creates it."""
        folders = {0: NOISE}
        for marker in sorted(self.out.glob(f"*/{MARKER}")):
            text = marker.read_text(encoding="utf-8", errors="replace").strip()
            if text.isdigit():
                folders[int(text)] = marker.parent.name
        for person in np.unique(self.people).tolist():
            name = folders.setdefault(person, f"person_{person:04d}")
            try:
                (self.out / name).mkdir(exist_ok=True)
                if person:
                    (self.out / name / MARKER).write_text(f"{person}\n", encoding="utf-8")
            except OSError as error:
                raise cannot_write(self.out / name, error) from None
        return folders

    def _put(self, row: int, folder: str, copy: bool) -> str:
        """Links or copies a face's photo, unless another face in the same photo has put it there already."""
        photo = Path(self.photos[row])
        digest = self.digests[row]
        for name in (photo.name, f"{photo.stem}_{digest[:8]}{photo.suffix}"):
            target = self.out / folder / name
            if not os.path.lexists(target):
                if copy:
                    shutil.copy2(photo, target)
                else:
                    target.symlink_to(os.path.relpath(photo.resolve(), target.parent.resolve()))
                break
            if target.is_file() and digest_of(target) == digest:
                break
        return f"{folder}/{name}"

    def _crop(self, digest: str, face: int) -> Path:
        return self.out / CROPS / f"{digest}_{face}.jpg"

    def crop_store(self) -> ImageStore:
        """The crops of all faces, in their order, for pictures."""
        return _Faces(self)


class _Faces(ImageStore):
    """The crops of an album."""

    def __init__(self, album: Album) -> None:
        self.path = album.out
        self.identities: Sequence[str] = []
        self.labels = album.people.astype(np.int32)
        self._album = album

    def encoded(self, row: int) -> bytes:
        """The crop's encoded bytes."""
        return read_file(self._album._crop(self._album.digests[row], self._album.faces[row]))

    def name(self, row: int) -> str:
        """The photo's folder and name, and the number of the face unless it is the first."""
        photo, face = Path(self._album.photos[row]), self._album.faces[row]
        return f"{photo.parent.name}/{photo.name}{f' face {face + 1}' if face else ''}"


def digest_of(path: Path) -> str:
    """Hashes a file's bytes.

    Raises:
        BadImageError: The file cannot be read.
    """
    return hashlib.blake2b(read_file(path), digest_size=16).hexdigest()


def sorted_lines(album: Album, likeness: Likeness, folders: dict[int, str]) -> Iterator[str]:
    """The lines of `faces.tsv`: where each face is, and how certain that is."""
    yield "photo\tface\tperson\tscore\tnearest_other\tother_score"
    for row, (own, other, nearest) in enumerate(zip(*likeness, strict=True)):
        person = folders[int(album.people[row])]
        rival = folders[int(nearest)] if nearest else ""
        scores = ("" if np.isnan(one) else f"{one:.4f}" for one in (own, other))
        mine, theirs = scores
        photo = album.photos[row].replace("\t", " ").replace("\n", " ")
        yield f"{photo}\t{album.faces[row] + 1}\t{person}\t{mine}\t{rival}\t{theirs}"
