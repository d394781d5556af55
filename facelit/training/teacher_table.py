"""The table of a teacher's embeddings of a training set, computed once and kept beside the set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from facelit.data.augmentation import normalize
from facelit.data.reading import CropReader
from facelit.distributed import all_gather, part_sizes, rank, world_size
from facelit.errors import FacelitError
from facelit.storage.files import cannot_write, replacing, temporary_path
from facelit.storage.progress import progress_bar
from facelit.training.teacher import Teacher

Table = npt.NDArray[np.float32]

_BATCH = 128
"""Crops that each process embeds at once."""
_CHECKED = 16
"""How many rows of a kept table are computed again: an image may have changed under its name."""
_TOLERANCE = 1e-3
"""Of their cosine, for another machine's rounding."""


def teacher_table(teacher: Teacher, reader: CropReader, device: torch.device, writes: bool) -> Table:
    """The teacher's embeddings of all crops of a training set, as they are stored; kept beside the set for the next run.

    Every process calls this, and embeds its share unless there is a table on every machine. The file lies beside the training
    set, or in the user's cache folder where that is read-only.

    Args:
        teacher: The network.
        reader: Reads the training set.
        device: Where to run the network.
        writes: Whether this process writes the file: one does on each machine.

    Returns:
        float32 (num_images, T), L2-normalised, mapped from the file.

    Raises:
        BadImageError: A crop cannot be read, and is not to be skipped.
        FacelitError: The table cannot be written.
    """
    places = _places(teacher, reader)
    shape = (len(reader.source), teacher.embedding_dim)
    kept = _open_table(places, shape)
    if not _all_agree(kept is not None and _is_current(kept, teacher, reader, device), device):
        rank_zero_info(f"Embedding {shape[0]:,} crops with the teacher {teacher.path}, once for this set.")
        batches = _embed_all(teacher, reader, device)
        if writes:
            _write_table(_writable(places), shape, batches)
        else:
            for _ in batches:
                pass
        _all_agree(True, device)  # nobody opens the table before it is there
        kept = _open_table(places, shape)
    if kept is None:
        raise FacelitError(f"{places[-1]}: the table of the teacher's embeddings was written, and cannot be read.")
    return kept


def _places(teacher: Teacher, reader: CropReader) -> list[Path]:
    """Where the table may lie, under a name that tells the network, the images and their order."""
    source = reader.source
    root = getattr(source, "root", None)
    prefix = "" if root is None else str(root)  # the same set, however its path is written
    digest = hashlib.blake2b(f"{teacher.fingerprint} {len(source)} {reader.on_bad_image}".encode(), digest_size=8)
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index).removeprefix(prefix)) + b"\0")
    name = f"teacher-{digest.hexdigest()}.npy"
    places = [] if root is None else [Path(root).absolute().with_name(f"{Path(root).absolute().name}.{name}")]
    with suppress(RuntimeError):  # a user without a home has no cache
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(caches / "facelit" / name)
    return places


def _open_table(places: list[Path], shape: tuple[int, int]) -> Table | None:
    for place in places:
        with suppress(OSError, ValueError):
            found: Table = np.load(place, mmap_mode="r", allow_pickle=False)
            if found.shape == shape and found.dtype == np.float32:
                return found
    return None


def _is_current(table: Table, teacher: Teacher, reader: CropReader, device: torch.device) -> bool:
    rows = np.unique(np.linspace(0, len(table) - 1, _CHECKED).astype(np.int64))
    cosines = (_embed(teacher, reader, rows, device).cpu() * torch.from_numpy(table[rows])).sum(dim=1)
    return bool((cosines > 1 - _TOLERANCE).all())


def _all_agree(here: bool, device: torch.device) -> bool:
    votes = torch.tensor([here], dtype=torch.int64, device=device)
    return bool(all_gather(votes, parts=[1] * world_size()).all())


def _embed(teacher: Teacher, reader: CropReader, rows: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    crops = reader.read(rows).images
    assert isinstance(crops, np.ndarray)
    return teacher.embed(normalize(torch.from_numpy(crops).permute(0, 3, 1, 2).to(device)))


def _embed_all(teacher: Teacher, reader: CropReader, device: torch.device) -> Iterator[Table]:
    """Yields the rows of the table in order; each process embeds a part of each piece, and gets all of it."""
    total, processes = len(reader.source), world_size()
    piece = processes * _BATCH
    with progress_bar("teacher's embeddings", total) as show:
        for start in range(0, total, piece):
            parts = part_sizes(min(piece, total - start), processes)
            first = start + sum(parts[: rank()])
            rows = np.arange(first, first + parts[rank()])
            own = (
                _embed(teacher, reader, rows, device) if len(rows) else torch.empty(0, teacher.embedding_dim).to(device)
            )
            yield all_gather(own, parts).cpu().numpy()
            show(start + sum(parts))


def _writable(places: list[Path]) -> Path:
    """The first place where a file can be made."""
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary_path(place).touch()
            return place
    raise FacelitError(
        f"the table of the teacher's embeddings (model.distillation.view stored) can be written to none of"
        f" {', '.join(str(place) for place in places)}. Set XDG_CACHE_HOME to a folder with room for it."
    )


def _write_table(place: Path, shape: tuple[int, int], batches: Iterator[Table]) -> None:
    try:
        with replacing(place) as temporary:
            table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            done = 0
            for rows in batches:
                table[done : done + len(rows)] = rows
                done += len(rows)
            table.flush()
    except OSError as error:
        raise cannot_write(place, error) from None
