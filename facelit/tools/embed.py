"""`facelit embed`: turns a folder of photos into a file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from facelit.align.detectors import DetectorName
from facelit.errors import FacelitError
from facelit.inference.console import check_output, open_model, photos_in, remark, remark_drawings, remark_several_faces
from facelit.storage.images import BadImageError

if TYPE_CHECKING:
    from facelit.inference import FaceModel

_SHOWN = 10


def embed(
    folder: str,
    checkpoint: str | None = None,
    out: str = "embeddings.npz",
    aligned: bool = False,
    which: Literal["largest", "central"] | None = None,
    flip_average: bool = False,
    batch_size: int = 64,
    detector: DetectorName = "mtcnn",
    detector_model: str | None = None,
    device: str | None = None,
) -> int:
    """Writes the embeddings of all photos in a folder to a file.

    Finds the face in each photo. The file holds the names (paths below the folder) and the embeddings, float32, of unit length.
    Photos that cannot be read or show no face are listed on the screen and in OUT.skipped.tsv, and the exit status is then 1.
    For thousands of photos it is faster to run `facelit align`, which uses all cores, and to embed its crops with --aligned.

    Args:
        folder: The photos, in any tree of folders.
        checkpoint: A trained checkpoint; by default the best one of the newest run below runs/.
        out: The file to write: .npz (arrays `names` and `embeddings`) or .parquet (columns `name` and `embedding`).
        aligned: The photos are aligned 112x112 crops already.
        which: The face to use if a photo has several: the largest (the default, with a remark) or the most central.
        flip_average: Average each embedding with the mirror image's.
        batch_size: The number of crops that go through the network at once.
        detector: The face detector. YuNet and SCRFD need --detector_model.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: The device for the network, such as cpu or cuda; by default a GPU if there is one.

    Returns:
        0, or 1 if photos were left out.

    Raises:
        FacelitError: The folder holds no photo, none can be used, or the file cannot be written.
    """
    check_output(out, "out", (".npz", ".parquet"))
    if batch_size < 1:
        raise FacelitError(f"--batch_size must be at least 1, not {batch_size}.")
    from facelit.inference.photo_embedding import embed_photos

    root = Path(folder)
    paths = photos_in(root)
    model = open_model(checkpoint, device, detector, detector_model)
    remark_drawings(model)
    faces = embed_photos(model, paths, aligned, which or "largest", flip_average, batch_size).require_any(len(paths))
    remark_several_faces(faces.several, which is not None)
    names = [paths[number].relative_to(root).as_posix() for number in faces.photos]
    _write(Path(out), names, faces.embeddings, model)
    count, length = faces.embeddings.shape
    print(f"{out}: {count:,} embeddings of {length} numbers, {model.checkpoint_path}")
    _report(Path(f"{out}.skipped.tsv"), faces.skipped, len(paths))
    return int(bool(faces.skipped))


embed.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
embed.examples = [  # type: ignore[attr-defined]  # likewise
    "photos",
    "crops --aligned --checkpoint runs/center/version_0/checkpoints/last.ckpt --out crops.parquet",
]


def _write(path: Path, names: list[str], embeddings: npt.NDArray[np.float32], model: FaceModel) -> None:
    from facelit.storage.files import replace_file

    with replace_file(path) as file:
        if path.suffix.lower() == ".npz":
            np.savez(file, names=np.array(names), embeddings=embeddings)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        length = embeddings.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float32()), length)
        # Bytes of a name that are not UTF-8 are replaced: Parquet's strings hold nothing else.
        readable = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]
        table = pa.table({"name": pa.array(readable, pa.string()), "embedding": column})
        origin = {"checkpoint": str(model.checkpoint_path), "fingerprint": model.fingerprint}
        pq.write_table(table.replace_schema_metadata(origin), file)


def _report(path: Path, skipped: list[BadImageError], count: int) -> None:
    """Lists the photos left out; if there are none, removes the list of an earlier run."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    from facelit.storage.files import replace_file
    from facelit.storage.text import table_of

    with replace_file(path) as file:
        file.write(table_of([("photo", "reason"), *((error.place, error.reason) for error in skipped)]))
    remark(f"{len(skipped):,} of {count:,} photos left out:")
    for error in skipped[:_SHOWN]:
        remark(f"  {error.place}: {error.reason}")
    if len(skipped) > _SHOWN:
        remark(f"  and {len(skipped) - _SHOWN:,} more")
    remark(f"All of them: {path}")
