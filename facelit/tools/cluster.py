"""`facelit cluster`: sorts the faces in unlabelled photos by person."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from facelit.align.detectors import DetectorName
from facelit.errors import FacelitError
from facelit.inference.console import open_model, photos_in, remark, remark_drawings
from facelit.storage.images import BadImageError
from facelit.storage.progress import progress_bar

if TYPE_CHECKING:
    from facelit.inference import FaceModel
    from facelit.inference.album import Album, Likeness

_CHUNK, _SHOWN, _ROWS, _USUAL = 1000, 5, 40, "far_1e-3"


def cluster(
    photos: str,
    out: str,
    checkpoint: str | None = None,
    aligned: bool = False,
    which: Literal["all", "largest", "central"] = "all",
    threshold: float | None = None,
    at: str | None = None,
    on: str | None = None,
    fewest: int = 2,
    copy: bool = False,
    labels: bool = False,
    batch_size: int = 64,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    device: str | None = None,
) -> int:
    """Sorts the faces in unlabelled photos by person.

    Writes a folder for each person with links to their photos, noise/ for faces in no group, faces.tsv with scores, and
    people.png, a sheet of faces to look through. On a second call, with the same or more photos, everybody keeps their folder,
    even if renamed: new photos go to known people, or make new ones. Photos that cannot be read or show no face are listed in
    skipped.tsv, and the exit status is 1.

    Args:
        photos: The photos, in any tree of folders.
        out: The folder to write; the folder of an earlier run is continued.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        aligned: The photos are aligned 112x112 crops already.
        which: The faces to use in a photo: all, the largest, or the most central.
        threshold: The lowest mean score at which two groups of faces are joined, instead of the checkpoint's threshold.
        at: Which of the checkpoint's thresholds: far_1e-2, far_1e-3 and so on, or best_accuracy; a lower FAR splits people sooner.
            By default far_1e-3, or best_accuracy if the checkpoint has no far_1e-3.
        on: The verification set on which that threshold was measured; by default the checkpoint's first.
        fewest: The fewest faces that make a new person; smaller groups go to noise/.
        copy: Copy photos into the people's folders instead of linking to them.
        labels: The photos are in a folder for each person: say how well the groups match (by the largest face of each photo).
        batch_size: The number of photos that go through the network at once.
        detector: The face detector. YuNet and SCRFD need --detector_model.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0, or 1 if photos were left out.

    Raises:
        FacelitError: There are no photos, none can be used, or the folder cannot be written or belongs to another network.
    """
    for option, value in (("fewest", fewest), ("batch_size", batch_size)):
        if value < 1:
            raise FacelitError(f"--{option} must be at least 1, not {value}.")
    root = Path(photos)
    if Path(out).absolute().is_relative_to(root.absolute()):
        raise FacelitError(f"{out} is inside {photos}: its links would be sorted as photos. Name a folder outside.")
    paths = photos_in(root)
    if labels:
        _check_labels(root, paths)
    model = open_model(checkpoint, device, detector, detector_model)
    measured = model.calibration.get(on or next(iter(model.calibration), ""), {}).get("thresholds", {})
    # Nearly all pairs in an album are of different people: the threshold for best accuracy on balanced pairs would mix them.
    usual = _USUAL if _USUAL in measured else "best_accuracy"
    limit = model.choose_threshold(threshold, at or usual, on)
    remark_drawings(model, limit)
    from facelit.inference.album import Album
    from facelit.inference.thresholds import averages_mirror_images

    flip = averages_mirror_images(model.calibration, on)
    album = Album(Path(out), f"{model.fingerprint} {flip} {aligned} {which} {detector}")
    digests, skipped = _embed_new(album, model, paths, aligned, which, flip, batch_size)
    if not album.digests:
        raise FacelitError(f"none of the {len(paths):,} photos can be used, for example {skipped[0]}")
    known = int(album.people.max(initial=0))
    album.sort(limit.value, fewest)
    folders = album.place(copy)
    album.save()
    likeness = album.likeness()
    _write(album, likeness, folders, skipped)
    _report(album, out, known, f"{limit.value:.3f}: {limit.explanation()}")
    if labels:
        _score(album, root, digests)
    for error in skipped[:_SHOWN]:
        remark(f"left out: {error.place}: {error.reason}")
    if len(skipped) > _SHOWN:
        remark(f"and {len(skipped) - _SHOWN:,} more: {Path(out) / 'skipped.tsv'}")
    return int(bool(skipped))


cluster.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
cluster.examples = [  # type: ignore[attr-defined]  # likewise
    "photos sorted",
    "photos sorted --checkpoint runs/center/version_0/checkpoints/last.ckpt --at far_1e-4 --copy",
    "crops sorted --aligned --labels",
]


def _embed_new(
    album: Album,
    model: FaceModel,
    paths: Sequence[Path],
    aligned: bool,
    which: Literal["all", "largest", "central"],
    flip: bool,
    batch_size: int,
) -> tuple[dict[str, Path], list[BadImageError]]:
    """Adds photos that are new to the album; returns each photo's path by its hash, and the photos that cannot be used.

    Saves the album every thousand photos, so that an interrupted run continues from there.
    """
    from facelit.inference.album import digest_of
    from facelit.inference.photo_embedding import embed_photos

    digests: dict[str, Path] = {}
    content: dict[str, str] = {}
    skipped: list[BadImageError] = []
    with progress_bar("Reading", len(paths), _CHUNK) as show:
        for done, path in enumerate(paths):
            try:
                content[os.path.abspath(path)] = digest = digest_of(path)
                digests.setdefault(digest, path)
            except BadImageError as error:
                skipped.append(error)
            show(done)
    copies = len(paths) - len(skipped) - len(digests)
    if copies:
        remark(f"{copies:,} photos are identical copies of others; each picture is sorted once.")
    replaced = [
        row
        for row, (digest, photo) in enumerate(zip(album.digests, album.photos, strict=True))
        if digest not in digests and photo in content
    ]
    if replaced:
        names = {album.photos[row] for row in replaced}
        remark(f"{len(names):,} photo(s) have changed since they were sorted, and are sorted again.")
        album.forget(replaced)
    known = set(album.digests)
    album.photos = [
        str(digests[digest].absolute()) if digest in digests else photo
        for digest, photo in zip(album.digests, album.photos, strict=True)
    ]
    new = [(digest, path) for digest, path in digests.items() if digest not in known]
    for start in range(0, len(new), _CHUNK):
        chunk = new[start : start + _CHUNK]
        crops: dict[int, np.ndarray] = {}
        found = embed_photos(model, [path for _, path in chunk], aligned, which, flip, batch_size, crops.__setitem__)
        skipped += found.skipped
        album.add(((*chunk[number], faces) for number, faces in crops.items()), found.embeddings)
        album.save()
    return digests, skipped


def _write(album: Album, likeness: Likeness, folders: dict[int, str], skipped: list[BadImageError]) -> None:
    from facelit.inference.album import sorted_lines
    from facelit.pictures.contact_sheet import contact_sheet, save_png
    from facelit.pictures.findings import Finding, Item, Picture
    from facelit.storage.files import replace_file
    from facelit.storage.text import table_of

    with replace_file(album.out / "faces.tsv") as file:
        file.write(("\n".join(sorted_lines(album, likeness, folders)) + "\n").encode("utf-8", "surrogateescape"))
    (album.out / "skipped.tsv").unlink(missing_ok=True)
    if skipped:
        with replace_file(album.out / "skipped.tsv") as file:
            file.write(table_of([("photo", "reason"), *((error.place, error.reason) for error in skipped)]))
    store = album.crop_store()
    numbers, counts = np.unique(album.people, return_counts=True)
    findings = []
    for number in sorted(numbers.tolist(), key=lambda one: (one == 0, -counts[numbers == one][0], one)):
        faces: Any = np.flatnonzero(album.people == number)
        scores = likeness.other[faces] if number == 0 else likeness.own[faces]
        faces, scores = faces[np.argsort(-scores, kind="stable")], np.sort(scores)[::-1]
        noted = ["" if np.isnan(one) else f"{one:.2f}" for one in scores.tolist()]

        def item(place: int, faces: Any = faces, noted: list[str] = noted) -> Item:
            return Item({}, "", [Picture(store, int(faces[place]), noted[place])])

        what = "in no group; scores with the nearest person" if number == 0 else "best first; scores with the others"
        findings.append(Finding(str(number), folders[number], what, len(faces), 0, len(faces), item))
    shown = [*findings[:_ROWS], *(one for one in findings[_ROWS:] if one.key == "0")]
    people = len(findings) - int(0 in numbers)
    title = f"{len(album.people):,} faces, {people:,} people" + (
        "" if people <= _ROWS else f"; the {_ROWS} largest groups"
    )
    with replace_file(album.out / "people.png") as file:
        save_png(contact_sheet(shown, title), file)


def _report(album: Album, out: str, known: int, limit: str) -> None:
    people = np.unique(album.people[album.people > 0])
    alone = int((album.people == 0).sum())
    new = int((people > known).sum())
    print(f"{out}: {len(album.people):,} faces, {len(people):,} people ({new:,} new), {alone:,} faces in noise/.")
    print(f"Mean score within a group at least {limit}.")


def _check_labels(root: Path, paths: Sequence[Path]) -> None:
    loose = [path for path in paths if path.parent == root]
    if loose:
        raise FacelitError(
            f"--labels takes {root}/<person>/<photo>; {len(loose):,} photos are in no folder ({loose[0].name})."
        )


def _score(album: Album, root: Path, digests: dict[str, Path]) -> None:
    from facelit.verification.clustering import score_clusters

    rows = [row for row, digest in enumerate(album.digests) if album.faces[row] == 0 and digest in digests]
    groups = album.people[rows]
    groups[groups == 0] = -1 - np.arange((groups == 0).sum())  # each alone
    names = np.unique([digests[album.digests[row]].relative_to(root).parts[0] for row in rows], return_inverse=True)[1]
    found = score_clusters(groups, names)
    print(f"Against the {found.people:,} folders, {len(rows):,} photos by their largest face:")
    print(f"  pairs   precision {found.pair_precision:.4f}  recall {found.pair_recall:.4f}")
    print(f"  BCubed  precision {found.bcubed_precision:.4f}  recall {found.bcubed_recall:.4f}  F {found.bcubed_f:.4f}")
