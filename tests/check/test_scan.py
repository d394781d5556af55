"""The scan of a set: facts against Pillow, what is unreadable, and any number of processes and chunks."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facelit.check import scan as scan_module
from facelit.check.scan import FORMATS, scan_images
from facelit.storage import images
from facelit.storage.images import BadImageError, read_crop, read_image
from facelit.storage.open import open_store
from facelit.storage.processes import run_in_processes
from planted_crops import clean_tree, face


def damaged(kind: str) -> bytes:
    buffer = io.BytesIO()
    size = (96, 128) if "wide" in kind else (112, 112)
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind.split("_")[0], "RGB")
    suffix = "png" if "png" in kind else "webp" if "webp" in kind else "jpeg"
    face(1, size).convert(mode).save(buffer, suffix, **({"progressive": True} if "progressive" in kind else {}))
    data = buffer.getvalue()
    if "cut" in kind:
        return data[: int(len(data) * 0.6)]
    if "tail" in kind:
        return data[:-2]  # no end-of-image mark
    if "flipped" in kind:
        return data[:400] + bytes(255 - value for value in data[400:440]) + data[440:]
    return data


@pytest.mark.parametrize("shape", ["rgb", "grey", "cmyk", "progressive", "png", "webp", "wide", "wide_png"])
@pytest.mark.parametrize("damage", ["whole", "cut", "tail", "flipped"])
def test_unreadable_is_what_a_training_run_would_refuse(tmp_path: Path, shape: str, damage: str) -> None:
    """The oracle is `read_crop`, with resizing, as sizes are another finding."""
    path = tmp_path / "data" / "a" / "x.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged(f"{shape}_{damage}"))
    scan = scan_images(open_store(tmp_path / "data"))
    refusal, crop = None, None
    try:
        crop = read_crop(path, resize=True)
    except BadImageError as error:
        refusal = error.reason
    assert scan.reasons == ({} if refusal is None else {0: refusal})
    assert scan.is_readable[0] == (refusal is None)
    if damage == "cut":
        assert refusal is not None
    if damage == "whole":
        assert (scan.facts["width"][0], scan.facts["height"][0]) == ((96, 128) if "wide" in shape else (112, 112))
    if crop is not None and "wide" not in shape:
        np.testing.assert_array_equal(read_image(path.read_bytes(), ""), crop)


def test_bombs_and_errors_that_no_one_expects_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = clean_tree(tmp_path / "data", 1, 2)
    Image.new("1", (10_000, 10_000)).save(root / "person_0" / "bomb.png")
    scan = scan_images(open_store(root))
    assert scan.is_readable.tolist() == [True, True, False]
    assert "decompression bomb" in scan.reasons[2]

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a decoder's own mistake")

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg_header", fails)
    monkeypatch.setattr(Image, "open", fails)
    scan = scan_images(open_store(root))
    assert not scan.is_readable.any()
    assert "a decoder's own mistake" in scan.reasons[0]


def test_facts_against_pillow(planted: tuple[Path, Path]) -> None:
    """Pixels are equal where digests are; grey is where three channels are equal; all by Pillow, one file at a time."""
    store = open_store(planted[0])
    scan = scan_images(store)
    pixels = []
    for row in range(len(store)):
        if scan.is_readable[row]:
            with Image.open(store.place(row)) as image:
                rgb = image.convert("RGB")
                pixels.append((rgb.size, rgb.tobytes()))
                red, green, blue = (band.tobytes() for band in rgb.split())
                facts = scan.facts[row]
                assert facts["is_grey"] == (red == green == blue)
                assert (facts["width"], facts["height"]) == rgb.size
                assert FORMATS[facts["format"]] == {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}[str(image.format)]
    digests = [tuple(digest) for digest in scan.facts["digest"][scan.is_readable].tolist()]
    for one, digest in zip(pixels, digests, strict=True):
        assert [other == one for other in pixels] == [other == digest for other in digests]


def test_any_number_of_processes_finds_the_same(planted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_CHUNK", 4)
    store = open_store(planted[0])
    alone = scan_images(store, jobs=1)
    monkeypatch.setattr(scan_module, "_WORTH_A_POOL", 0)
    several = scan_images(store, jobs=2)
    np.testing.assert_array_equal(alone.facts, several.facts)
    assert alone.reasons == several.reasons
    assert sorted(alone.reasons) == np.flatnonzero(~alone.is_readable).tolist()
    for row, reason in alone.reasons.items():
        with pytest.raises(BadImageError) as refused:
            read_crop(store.place(row))
        assert refused.value.reason == reason
    some = scan_images(store, np.array([5, 2, 0]), jobs=1)
    np.testing.assert_array_equal(some.facts, alone.facts[[5, 2, 0]])
    # A digest is of the size and the pixels, and nothing else.
    row = int(np.flatnonzero(alone.is_readable)[0])
    with Image.open(store.place(row)) as image:
        plain = hashlib.blake2b(b"112x112" + image.convert("RGB").tobytes(), digest_size=16).digest()
    assert alone.facts["digest"][row].astype("<u8").tobytes() == plain


@pytest.mark.parametrize(
    ("window", "most", "expected"),
    [
        (100, 3, [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]),
        (100, 9, [[[0, 1], [2, 3], [4, 5], [6, 7], [8]]]),
        (5, 1, [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8]]]),
    ],
)
def test_a_large_set_is_read_in_a_limited_number_of_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, most: int, expected: list[list[list[int]]]
) -> None:
    root = clean_tree(tmp_path / "data")
    (root / "person_2" / "2.webp").write_bytes(b"")
    store = open_store(root)
    whole = scan_images(store)
    assert list(whole.reasons) == [8]
    pools: list[list[list[int]]] = []

    def spy(function: Any, tasks: Any, *options: Any) -> Any:
        pools.append([list(map(int, task)) for task in tasks])
        return run_in_processes(function, tasks, *options)

    monkeypatch.setattr(scan_module, "run_in_processes", spy)
    for name, value in (("_CHUNK", 2), ("_MOST_CHUNKS", most), ("_WINDOW", window)):
        monkeypatch.setattr(scan_module, name, value)
    scan = scan_images(store)
    np.testing.assert_array_equal(scan.facts, whole.facts)
    assert scan.reasons == whole.reasons
    assert pools == expected
    np.testing.assert_array_equal(scan_images(store, np.arange(9)[::-1]).facts, whole.facts[::-1])
