"""`facelit pack`: turns a training set into a few large files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from facelit.errors import FacelitError
from facelit.storage.base import CropStore
from facelit.storage.open import open_store
from facelit.storage.packed import MANIFEST, Manifest, PackedStore
from facelit.storage.packing import SKIPPED
from facelit.storage.packing import pack as write_pack
from facelit.storage.packing import verify as compare
from facelit.storage.processes import default_jobs

_SHOWN = 10


def pack(
    src: str,
    dst: str | None = None,
    verify: bool = False,
    format: Literal["arrow", "recordio", "bin"] = "arrow",
    pairs: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    any_size: bool = False,
    images_per_shard: int | None = None,
    identity_depth: int = 1,
    jobs: int | None = None,
) -> int:
    """Turns a training set into a few large files.

    To train from them, name the folder: --data.train.root DST. Images keep their bytes, names and identities; each shard is
    read back before it counts as written. After an interruption, the same command continues where it stopped.

    Args:
        src: The training set: root/<identity>/<image>, an InsightFace set (train.rec), or a pack.
        dst: The folder to write, new or empty; the file for --format bin. With --verify it may be omitted: SRC is then the pack.
        verify: Write nothing; read every image of the pack DST again and compare it with SRC, byte by byte.
        format: arrow: shards that facelit trains from fastest. recordio: train.rec, train.idx and property, for InsightFace and
            MXNet. bin: the pairs of a verification set, like InsightFace's lfw.bin.
        pairs: For --format bin: the pairs file, in LFW's format.
        on_bad_image: error: stop at an image that cannot be read. skip: leave it out, and list it in DST/skipped.tsv.
        any_size: Accept images of sizes other than 112x112 (training then needs `resize: true`).
        images_per_shard: The number of images in a file; by default 65,536, or fewer so that every process has one to write.
        identity_depth: The number of folder levels that name an identity in SRC: 2 for SRC/F0001/MID1/<image>, identity F0001/MID1.
        jobs: The number of processes; by default one per core.

    Returns:
        0, or 1 if --verify found a difference.

    Raises:
        FacelitError: SRC is damaged, DST holds something else, or the disk is full.
    """
    for name, value in (("images_per_shard", images_per_shard), ("jobs", jobs)):
        if value is not None and value < 1:
            raise FacelitError(f"--{name} must be at least 1, not {value}.")
    jobs = jobs or default_jobs()
    if format != "arrow" and (verify or any_size or images_per_shard or on_bad_image == "skip"):
        raise FacelitError(
            f"--format {format} copies the images unchanged: --verify, --on_bad_image, --any_size and --images_per_shard are for the"
            " arrow format only."
        )
    if verify:
        return _verify(src, dst, jobs, identity_depth)
    if dst is None:
        raise FacelitError("DST is missing: facelit pack SRC DST")
    if format == "bin":
        return _write_bin(src, pairs, Path(dst))
    if pairs is not None:
        raise FacelitError("--pairs is for --format bin only.")
    source = open_store(src, identity_depth)
    if format == "recordio":
        return _write_recordio(source, Path(dst))
    was_complete = Path(dst, MANIFEST).is_file() and Manifest.read(Path(dst)).complete
    packed = write_pack(source, Path(dst), jobs, images_per_shard, any_size, on_bad_image == "skip")
    size = sum(bytes_ for _, bytes_ in packed.manifest.shards)
    print(
        f"{dst}{' is complete' if was_complete else ''}: {len(packed):,} images of {len(packed.identities):,} identities in {len(packed.shards)} shard(s),"
        f" {size / 1e6:,.1f} MB. Train from it: --data.train.root {dst}"
    )
    if packed.manifest.skipped:
        print(f"{len(packed.manifest.skipped):,} image(s) were left out: {Path(dst, SKIPPED)}")
    return 0


pack.positional = ("dst",)  # type: ignore[attr-defined]  # read by facelit.cli.parser
pack.examples = [  # type: ignore[attr-defined]  # likewise
    "datasets/vggface2/train datasets/vggface2-packed",
    "datasets/vggface2/train datasets/vggface2-packed --verify",
    "datasets/faces_emore datasets/ms1mv2-packed --on_bad_image skip",
    "datasets/fiw datasets/fiw-packed --identity_depth 2",
    "datasets/lfw/aligned_112 lfw.bin --format bin --pairs datasets/lfw/pairs.txt",
]


def _verify(src: str, dst: str | None, jobs: int, identity_depth: int) -> int:
    source = None if dst is None else open_store(src, identity_depth)
    packed = open_store(dst or src)
    if not isinstance(packed, PackedStore):
        raise FacelitError(f"{packed.path}: not a folder that `facelit pack` wrote.")
    wrong = compare(packed, source, jobs)
    for line in wrong[:_SHOWN]:
        print(line)
    if len(wrong) > _SHOWN:
        print(f"... and {len(wrong) - _SHOWN:,} more")
    against = "their checksums" if source is None else f"{source.path}"
    outcome = f"{len(wrong):,} difference(s)" if wrong else "no difference"
    print(
        f"{packed.path}: {len(packed):,} images of {len(packed.identities):,} identities compared with {against}: {outcome}."
    )
    return int(bool(wrong))


def _write_recordio(source: CropStore, target: Path) -> int:
    from facelit.storage.recordio import write_recordio

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FacelitError(f"{target} exists and is not an empty folder.")
    if target.resolve().is_relative_to(source.path.resolve()):
        raise FacelitError(f"{target} is inside {source.path}. Write to another folder.")
    write_recordio(source, target, progress=True)
    print(
        f"{target}: train.rec, train.idx and property with {len(source):,} images of {len(source.identities):,} identities."
    )
    return 0


def _write_bin(src: str, pairs: str | None, target: Path) -> int:
    if pairs is None:
        raise FacelitError("--format bin needs the pairs file: --pairs FILE")
    if target.exists():
        raise FacelitError(f"{target} exists already.")
    from facelit.data.pairs import PairsFolder
    from facelit.data.pairs_bin import write_bin_of

    source = PairsFolder(src, pairs)
    write_bin_of(source, target)
    print(f"{target}: {len(source.is_same):,} pairs of {len(source):,} images.")
    return 0
