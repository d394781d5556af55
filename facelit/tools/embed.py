"""`facelit embed`: a folder of photos as a file of embeddings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from facelit.align.detectors import DetectorName
from facelit.errors import FacelitError
from facelit.inference.console import check_output, open_model, remark, remark_several_faces
from facelit.storage.images import BadImageError, Crop
from facelit.storage.photo_files import photo_files
from facelit.storage.processes import default_jobs
from facelit.storage.progress import progress_bar

if TYPE_CHECKING:
    from facelit.inference import FaceModel

_SHOWN, _WORTH_A_BAR = 10, 200


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

    Finds the face in each photo. The file holds the names (paths below the folder) and the embeddings, float32, of length 1 each.
    Photos that cannot be read or show no face are listed on the screen and in OUT.skipped.tsv, and the exit status is then 1.
    Thousands of photos are aligned faster by `facelit align`, on all cores, and then embedded with --aligned.

    Args:
        folder: The photos, in any tree of folders.
        checkpoint: A trained checkpoint; the best one of the newest run below runs/ where not given.
        out: The file to write: .npz (arrays `names` and `embeddings`) or .parquet (columns `name` and `embedding`).
        aligned: The photos are aligned 112x112 crops already.
        which: Which face, where a photo has several: the largest (taken, and said, where not given) or the most central one.
        flip_average: Average each embedding with the mirror image's.
        batch_size: Crops that go through the network at once.
        detector: What finds the faces. YuNet and SCRFD need a file.
        detector_model: The ONNX file of YuNet (OpenCV's model zoo) or SCRFD (InsightFace's det_*.onnx).
        device: Where the network runs, cpu or cuda, say; on a GPU where there is one, where not given.

    Returns:
        0, or 1 where photos were left out.

    Raises:
        FacelitError: The folder holds no photo, none can be used, or the file cannot be written.
    """
    check_output(out, "out", (".npz", ".parquet"))
    if batch_size < 1:
        raise FacelitError(f"--batch_size must be at least 1, not {batch_size}.")
    root = Path(folder)
    paths = list(photo_files(root))
    if not paths:
        state = "holds no photo" if root.is_dir() else "does not exist"
        raise FacelitError(f"{root} {state}.")
    model = open_model(checkpoint, device, detector, detector_model)
    names, rows, skipped = _embed_all(model, root, paths, aligned, which, flip_average, batch_size)
    if not names:
        raise FacelitError(f"none of {len(paths):,} photos can be used, for example {skipped[0]}")
    embeddings = np.concatenate(rows)
    _write(Path(out), names, embeddings, model)
    print(f"{out}: {len(embeddings):,} embeddings of {embeddings.shape[1]} numbers, {model.checkpoint_path}")
    _report(Path(f"{out}.skipped.tsv"), skipped, len(paths))
    return int(bool(skipped))


embed.aliases = {"checkpoint": ("--ckpt_path",)}  # type: ignore[attr-defined]  # read by facelit.cli.parser
embed.examples = [  # type: ignore[attr-defined]  # likewise
    "photos",
    "crops --aligned --checkpoint runs/center/version_0/checkpoints/last.ckpt --out crops.parquet",
]


def _embed_all(
    model: FaceModel,
    root: Path,
    paths: Sequence[Path],
    aligned: bool,
    which: Literal["largest", "central"] | None,
    flip_average: bool,
    batch_size: int,
) -> tuple[list[str], list[npt.NDArray[np.float32]], list[BadImageError]]:
    """Names and embeddings of the photos that can be used, batch by batch, and what is wrong with the others."""
    several: dict[str, int] = {}

    def read(path: Path) -> Crop | BadImageError:
        try:
            found = model.find_faces(path, aligned, which or "largest")
        except BadImageError as error:
            return error
        several[str(path)] = found.in_photo
        return found.crops[0]

    names: list[str] = []
    rows: list[npt.NDArray[np.float32]] = []
    skipped: list[BadImageError] = []
    # Crops are decoded ahead, in threads; a detector is not asked by two of them at once.
    results = read_ahead(read, paths, default_jobs(), 4 * batch_size) if aligned else map(read, paths)
    pairs = zip(paths, results, strict=True)
    with progress_bar("Embedding", len(paths), _WORTH_A_BAR) as show:
        done = 0
        while batch := list(islice(pairs, batch_size)):
            crops = [(path, crop) for path, crop in batch if not isinstance(crop, BadImageError)]
            skipped += [error for _, error in batch if isinstance(error, BadImageError)]
            if crops:
                names += [path.relative_to(root).as_posix() for path, _ in crops]
                rows.append(model.embed(np.stack([crop for _, crop in crops]), batch_size, flip_average))
            done += len(batch)
            show(done)
    remark_several_faces(several, which is not None)
    return names, rows, skipped


def read_ahead(read: Callable[[Any], Any], items: Sequence[Any], threads: int, ahead: int) -> Iterator[Any]:
    """`map(read, items)` by several threads, in order, with at most `ahead` results waiting."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
        # A name that is no UTF-8 has its bytes replaced: Parquet's strings take nothing else.
        readable = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]
        table = pa.table({"name": pa.array(readable, pa.string()), "embedding": column})
        origin = {"checkpoint": str(model.checkpoint_path), "fingerprint": model.fingerprint}
        pq.write_table(table.replace_schema_metadata(origin), file)


def _report(path: Path, skipped: list[BadImageError], count: int) -> None:
    """Lists what was left out; removes the list of an earlier run where nothing was."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    from facelit.storage.files import replace_file

    with replace_file(path) as file:
        rows = ["photo\treason", *(f"{error.place}\t{error.reason}" for error in skipped)]
        file.write(("\n".join(rows) + "\n").encode("utf-8", "surrogateescape"))
    remark(f"{len(skipped):,} of {count:,} photos left out:")
    for error in skipped[:_SHOWN]:
        remark(f"  {error.place}: {error.reason}")
    if len(skipped) > _SHOWN:
        remark(f"  and {len(skipped) - _SHOWN:,} more")
    remark(f"All of them: {path}")
