"""`facelit identify`: says who in a gallery of people is in a photo."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facelit.align.detectors import DetectorName
from facelit.errors import FacelitError
from facelit.inference.console import (
    check_output,
    open_model,
    remark,
    remark_drawings,
    remark_other_weights,
    remark_several_faces,
)
from facelit.storage.images import BadImageError, Crop
from facelit.storage.text import one_line

if TYPE_CHECKING:
    from facelit.inference import FaceModel, Gallery, Identification, Threshold


def identify(
    photos: list[str],
    gallery: str | None = None,
    checkpoint: str | None = None,
    k: int = 5,
    aligned: bool = False,
    which: Literal["largest", "central", "all"] | None = None,
    threshold: float | None = None,
    at: str = "best_accuracy",
    on: str | None = None,
    template: Literal["mean", "all"] = "mean",
    on_bad_photo: Literal["error", "skip"] = "error",
    save_gallery: str | None = None,
    faiss: bool = False,
    show: str | None = None,
    json: bool = False,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    device: str | None = None,
) -> int:
    """Says who in a gallery of people is in a photo.

    Finds the face in each photo and ranks the people in the gallery by cosine similarity. A face whose best score is below the
    threshold is unknown. Exit status 1 means that there is no answer for some photo: it cannot be read, or shows no face.

    Args:
        photos: Photos of people to identify.
        gallery: The known people: a folder root/<person>/<photo> (a photo directly below the root is a person named after the
            file), or a file that --save_gallery wrote.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        k: The number of people to list for each face.
        aligned: All photos, including the gallery's, are aligned 112x112 crops already.
        which: The face to use if a photo has several: the largest (the default, with a remark), the most central, or all, for
            an answer for each. In the gallery's photos always one.
        threshold: The lowest score of a match, instead of the checkpoint's threshold.
        at: Which of the checkpoint's thresholds: best_accuracy, or far_1e-2, far_1e-3 and so on for a false accept rate (FAR)
            of at most that.
        on: The verification set on which that threshold was measured; by default the checkpoint's first.
        template: How a person with several photos is compared: by the mean of their embeddings, or by all of them, of which
            the most similar counts.
        on_bad_photo: A photo in the gallery that cannot be used: error stops, skip leaves it out and says so.
        save_gallery: Save the gallery to this file (.npz), for later use with --gallery.
        faiss: Search through FAISS, for hundreds of thousands of people; see docs/recognition.md.
        show: Write a picture (.png) of the faces and their matches.
        json: Print the answers as JSON.
        detector: The face detector. YuNet and SCRFD need --detector_model.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0, or 1 if there is no answer for some photo.

    Raises:
        FacelitError: The gallery cannot be used, or there is no threshold.
    """
    check_output(show, "show", (".png",))
    check_output(save_gallery, "save_gallery", (".npz",))
    if gallery is None:
        raise FacelitError("the gallery is missing: --gallery FOLDER (root/<person>/<photo>).")
    if k < 1:
        raise FacelitError(f"--k must be at least 1, not {k}.")
    model = open_model(checkpoint, device, detector, detector_model)
    limit = model.choose_threshold(threshold, at, on)
    remark_drawings(model, limit)
    remark_other_weights(model, limit)
    people = _open_gallery(model, gallery, aligned, which, template, on_bad_photo, show is not None)
    if save_gallery is not None:
        people.save(save_gallery)
        remark(f"Gallery: {save_gallery}")
    if faiss:
        people.use_faiss()
    asked = _Questions(model, people, aligned, which)
    for photo in photos:
        asked.answer(photo, {"k": k, "threshold": threshold, "at": at, "on": on})
    print(asked.as_json(limit) if json else "\n".join([_heading(limit, people), *asked.lines()]))
    if show is not None and asked.answers:
        _draw(Path(show), asked)
    return 1 if asked.failed else 0


identify.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
identify.examples = [  # type: ignore[attr-defined]  # likewise
    "--gallery people photo.jpg",
    "party/*.jpg --gallery people --which all --at far_1e-3 --show answers.png",
    "crops/Ann/Ann_0003.png --aligned --gallery people-aligned --save_gallery people.npz",
    "another.jpg --gallery people.npz --json",
]


class _Questions:
    """The answers, face by face, and the photos without one."""

    def __init__(self, model: FaceModel, gallery: Gallery, aligned: bool, which: Any) -> None:
        self.model, self.gallery, self.aligned, self.which = model, gallery, aligned, which
        self.names: list[str] = []
        self.crops: list[Crop] = []
        self.answers: list[Identification] = []
        self.failed: list[BadImageError] = []

    def answer(self, photo: str, options: dict[str, Any]) -> None:
        try:
            found = self.model.find_faces(photo, self.aligned, self.which or "largest")
        except BadImageError as error:
            self.failed.append(error)
            return
        remark_several_faces({photo: found.in_photo}, self.which is not None)
        self.answers += self.model.identify(found.crops, self.gallery, **options)
        self.crops += found.crops
        several = len(found.crops) > 1
        self.names += [f"{photo}, face {number}" if several else photo for number in range(1, len(found.crops) + 1)]

    def lines(self) -> list[str]:
        lines = []
        for name, answer in zip(self.names, self.answers, strict=True):
            ranked = ", ".join(f"{number}. {one.name} {one.score:.3f}" for number, one in enumerate(answer.matches, 1))
            lines.append(f"{name}: {answer.identity or 'unknown'}  ({ranked})")
        return [one_line(line) for line in [*lines, *(f"no answer: {error}" for error in self.failed)]]

    def as_json(self, limit: Threshold) -> str:
        answers = [
            {"photo": name, "identity": answer.identity, "matches": [one._asdict() for one in answer.matches]}
            for name, answer in zip(self.names, self.answers, strict=True)
        ]
        return dumps(
            {
                "answers": answers,
                "failed": [{"photo": error.place, "reason": error.reason} for error in self.failed],
                "threshold": limit._asdict(),
                "people": len(self.gallery),
                "checkpoint": str(self.model.checkpoint_path),
            }
        )


def _open_gallery(
    model: FaceModel,
    gallery: str,
    aligned: bool,
    which: str | None,
    template: Literal["mean", "all"],
    on_bad_photo: Literal["error", "skip"],
    keep_examples: bool,
) -> Gallery:
    from facelit.inference import Gallery

    if gallery.endswith(".npz"):
        return Gallery.load(gallery)
    people = model.enrol(
        gallery,
        template=template,
        aligned=aligned,
        which="central" if which == "central" else "largest",
        on_bad_photo=on_bad_photo,
        keep_examples=keep_examples,
    )
    remark_several_faces(people.several, which == "central")
    for reason in people.skipped:
        remark(f"left out of the gallery: {reason}")
    return people


def _heading(limit: Threshold, gallery: Gallery) -> str:
    heading = f"{len(gallery):,} people, threshold {limit.value:.3f}: {limit.explanation()}."
    if limit.far:
        from facelit.inference.thresholds import percent

        # Each person in the gallery is one chance of a false accept, here taken to be independent.
        strangers = 1 - (1 - limit.far) ** len(gallery)
        heading += (
            f" Among {len(gallery):,} people about {percent(strangers)} of strangers would be matched to somebody."
        )
    return heading


def _draw(path: Path, asked: _Questions) -> None:
    from facelit.inference.figures import identification_figure, save_png  # matplotlib
    from facelit.storage.files import replace_file

    examples = asked.gallery.examples
    pictures = {} if examples is None else dict(zip(asked.gallery.names, examples, strict=True))
    with replace_file(path) as file:
        save_png(identification_figure(asked.crops, asked.names, asked.answers, pictures), file)
    remark(f"Picture: {path}")
