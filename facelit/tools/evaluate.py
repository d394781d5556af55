"""`facelit evaluate`: measures a checkpoint on your own people."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from facelit.align.detectors import DetectorName
from facelit.errors import FacelitError
from facelit.inference.console import check_output, open_model, remark, remark_drawings, remark_several_faces
from facelit.storage.files import check_writable

if TYPE_CHECKING:
    from facelit.inference import FaceModel
    from facelit.inference.photo_embedding import Faces
    from facelit.verification.evaluation import PeopleEvaluation

_WANTED = (1e-3, 1e-2)
_SHOWN, _WORTH_A_BAR = 5, 20_000_000


def evaluate(
    folder: str,
    checkpoint: str | None = None,
    aligned: bool = False,
    which: Literal["largest", "central"] | None = None,
    far: float | None = None,
    write_threshold: bool = False,
    name: str | None = None,
    enrolled: int = 1,
    flip_average: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    show: str | None = None,
    json: str | None = None,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    device: str | None = None,
) -> int:
    """Measures a checkpoint on a folder of your own people, and recommends a threshold.

    Verification compares all pairs of photos: accuracy, and the true accept rate (TAR) at false accept rates (FAR) from 1e-2 to
    1e-6, as far as the number of pairs allows. Identification searches for each photo among all people, and for strangers: people
    left out of the gallery in turn. Every rate has a 95 % interval. Photos without a face are left out and listed, and the exit
    status is 1.

    Args:
        folder: The people: root/<person>/<photo>.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        aligned: The photos are aligned 112x112 crops already.
        which: The face to use if a photo has several: the largest (the default, with a remark) or the most central.
        far: The false accept rate to recommend a threshold for; by default 1e-3, or 1e-2 if there are too few pairs for that.
        write_threshold: Store the thresholds in the checkpoint, for verify and identify: best_accuracy, and one for each FAR.
        name: The checkpoint's name for these people (option --on of verify and identify); by default the folder's name.
        enrolled: The number of photos of each person in the gallery for identification; the others are searched for.
        flip_average: Average each embedding with the mirror image's; always done if the checkpoint's thresholds require it.
        batch_size: The number of photos that go through the network at once.
        seed: The random seed for the folds and the photos to enrol.
        show: Write a picture (.png) of the ROC and DET curves.
        json: Write the figures to this file (.json).
        detector: The face detector. YuNet and SCRFD need --detector_model.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0, or 1 if photos were left out.

    Raises:
        FacelitError: There are too few people or photos, or no photo can be used.
    """
    check_output(show, "show/--out", (".png",))
    check_output(json, "json", (".json",))
    if far is not None and not 0 < far < 1:
        raise FacelitError(f"--far {far:g}: a false accept rate is between 0 and 1, such as 1e-3.")
    for option, value in (("enrolled", enrolled), ("batch_size", batch_size)):
        if value < 1:
            raise FacelitError(f"--{option} must be at least 1, not {value}.")
    from facelit.inference.enrolment import list_people
    from facelit.inference.photo_embedding import embed_photos
    from facelit.verification.evaluation import check_people
    from facelit.verification.evaluation_report import recommendation, report_lines

    root = Path(folder)
    if not root.is_dir():
        raise FacelitError(f"folder not found: {root}. The expected layout is root/<person>/<photo>.")
    people = list_people(root)
    check_people(root, [len(photos) for photos in people.values()], far)
    model = open_model(checkpoint, device, detector, detector_model)
    remark_drawings(model)
    if write_threshold:
        check_writable(model.checkpoint_path, "checkpoint")
    flip = flip_average or model.flip_average
    paths = [path for photos in people.values() for path in photos]
    faces = embed_photos(model, paths, aligned, which or "largest", flip, batch_size).require_any(len(paths))
    remark_several_faces(faces.several, which is not None)
    found = _evaluate(root, people, paths, faces, far, enrolled, seed)
    carried = [point for wanted in ((far,) if far else _WANTED) if (point := found.at_far.get(wanted))]
    print("\n".join(report_lines(found)))
    print(
        f"\n{recommendation(carried[0], found)}"
        if carried
        else "\nNo threshold: there are too few pairs for a FAR of 1e-2."
    )
    _remark_skipped(faces, len(paths))
    if json is not None:
        _write_json(Path(json), found, faces, model)
    if show is not None:
        _draw(Path(show), found, f"{root.absolute().name}: {model.checkpoint_path}")
    if write_threshold:
        _store(model, found, name or root.absolute().name, flip, [point.target for point in carried[:1]])
    return int(bool(faces.skipped))


evaluate.aliases = {"checkpoint": ("--ckpt_path",), "show": ("--out",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
evaluate.examples = [  # type: ignore[attr-defined]  # likewise
    "people --checkpoint runs/center/version_0/checkpoints/last.ckpt",
    "crops --aligned --far 1e-4 --show curves.png --json figures.json",
    "people --far 1e-3 --write_threshold --name staff",
]


def _evaluate(
    root: Path,
    people: dict[str, list[Path]],
    paths: list[Path],
    faces: Faces,
    far: float | None,
    enrolled: int,
    seed: int,
) -> PeopleEvaluation:
    """Evaluates the photos that can be used."""
    from facelit.storage.progress import progress_bar
    from facelit.verification.evaluation import FARS, check_people, evaluate_people

    owner = np.repeat(np.arange(len(people)), [len(photos) for photos in people.values()])[faces.photos]
    present, owner = np.unique(owner, return_inverse=True)
    names = list(people)
    check_people(
        f"{root}, without the photos that cannot be used" if faces.skipped else root, np.bincount(owner).tolist(), far
    )
    return evaluate_people(
        faces.embeddings,
        owner.astype(np.int64),
        [names[number] for number in present],
        [paths[number].relative_to(root).as_posix() for number in faces.photos],
        FARS if far is None else (*FARS, far),
        enrolled,
        seed,
        lambda text, total: progress_bar(text, total, _WORTH_A_BAR),
    )


def _remark_skipped(faces: Faces, count: int) -> None:
    if faces.skipped:
        remark(f"{len(faces.skipped):,} of {count:,} photos left out of the figures above:")
    for error in faces.skipped[:_SHOWN]:
        remark(f"  {error.place}: {error.reason}")
    if len(faces.skipped) > _SHOWN:
        remark(f"  and {len(faces.skipped) - _SHOWN:,} more (--json lists all)")


def _write_json(path: Path, found: PeopleEvaluation, faces: Faces, model: FaceModel) -> None:
    from facelit.storage.files import replace_file

    answer: dict[str, Any] = {
        **found.as_dict(),
        "checkpoint": str(model.checkpoint_path),
        "skipped": [{"photo": error.place, "reason": error.reason} for error in faces.skipped],
    }
    with replace_file(path) as file:
        file.write((dumps(answer, indent=2) + "\n").encode())
    remark(f"Figures: {path}")


def _draw(path: Path, found: PeopleEvaluation, title: str) -> None:
    from facelit.inference.figures import save_png
    from facelit.storage.files import replace_file
    from facelit.verification.evaluation_report import trade_off_figure

    with replace_file(path) as file:
        save_png(trade_off_figure(found, title), file)
    remark(f"Picture: {path}")


def _store(model: FaceModel, found: PeopleEvaluation, name: str, flip: bool, wanted: list[float]) -> None:
    from facelit.checkpoints import store_calibration
    from facelit.verification.evaluation import far_name

    store_calibration(model.checkpoint_path, {name: found.calibration_entry(model.step, flip)})
    best = f" --at {far_name(wanted[0])}" if wanted else ""
    print(f"Stored in {model.checkpoint_path}. To use it: verify A.jpg B.jpg --on {name}{best}")
