"""`facelit verify`: says whether two photos show the same person."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from facelit.align.detectors import DetectorName
from facelit.inference.console import (
    check_output,
    open_model,
    remark,
    remark_drawings,
    remark_other_weights,
    remark_several_faces,
)

if TYPE_CHECKING:
    from facelit.inference import FaceModel, Verdict


def verify(
    first: str,
    second: str,
    checkpoint: str | None = None,
    aligned: bool = False,
    which: Literal["largest", "central"] | None = None,
    threshold: float | None = None,
    at: str = "best_accuracy",
    on: str | None = None,
    show: str | None = None,
    json: bool = False,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    device: str | None = None,
) -> int:
    """Says whether two photos show the same person.

    Finds the face in each photo and compares their embeddings: the score is their cosine similarity, and the threshold is one
    that validation stored in the checkpoint. Exit status 0 means the same person, 1 different people, 2 no answer.

    Args:
        first: A photo.
        second: Another photo.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        aligned: The photos are aligned 112x112 crops already.
        which: The face to use if a photo has several: the largest (the default, with a remark) or the most central.
        threshold: The lowest score of a pair that is the same person, instead of the checkpoint's threshold.
        at: Which of the checkpoint's thresholds: best_accuracy, or far_1e-2, far_1e-3 and so on for a false accept rate (FAR)
            of at most that.
        on: The verification set on which that threshold was measured; by default the checkpoint's first.
        show: Write a picture (.png) of the two crops and the verdict.
        json: Print the answer as JSON.
        detector: The face detector. YuNet and SCRFD need --detector_model.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0 for the same person, 1 for different people.

    Raises:
        FacelitError: A photo cannot be used, or there is no threshold.
    """
    check_output(show, "show", (".png",))
    model = open_model(checkpoint, device, detector, detector_model)
    remark_drawings(model, model.choose_threshold(threshold, at, on))  # before the detector is opened
    crops = []
    for photo in (first, second):
        found = model.find_faces(photo, aligned, which or "largest")
        remark_several_faces({photo: found.in_photo}, which is not None)
        crops.append(found.crops[0])
    verdict = model.verify(crops[0], crops[1], threshold, at, on)
    remark_other_weights(model, verdict.details)
    print(_as_json(model, (first, second), verdict) if json else sentence(verdict))
    if show is not None:
        from facelit.inference.figures import save_png, verdict_figure  # matplotlib
        from facelit.storage.files import replace_file

        with replace_file(Path(show)) as file:
            save_png(verdict_figure(crops, (first, second), verdict), file)
        remark(f"Picture: {show}")
    return 0 if verdict.same else 1


verify.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
verify.examples = [  # type: ignore[attr-defined]  # likewise
    "A.jpg B.jpg",
    "A.jpg B.jpg --checkpoint runs/center/version_0/checkpoints/last.ckpt --at far_1e-3 --show pair.png",
    "crops/Ann/Ann_0001.png crops/Ann/Ann_0002.png --aligned --json",
]


def sentence(verdict: Verdict) -> str:
    """The answer in one line, with an explanation of its threshold."""
    who, sign = ("same person", ">=") if verdict.same else ("different people", "<")
    score, limit = f"{verdict.score:.3f}", f"{verdict.threshold:.3f}"
    if score == limit:
        score, limit = f"{verdict.score:.7f}", f"{verdict.threshold:.7f}"
    return f"{who}: score {score} {sign} {limit}, {verdict.details.explanation()}"


def _as_json(model: FaceModel, photos: tuple[str, str], verdict: Verdict) -> str:
    answer = {
        "photos": photos,
        "same": verdict.same,
        "score": verdict.score,
        "threshold": verdict.details._asdict(),
        "checkpoint": str(model.checkpoint_path),
    }
    return dumps(answer)
