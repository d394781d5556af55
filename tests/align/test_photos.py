"""Photos are read upright, in RGB, whatever they are stored as; what is none is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from facelit.align.photos import read_photo, shrink
from facelit.storage.images import BadImageError
from facelit.storage.photo_files import why_unreadable


def picture(size: tuple[int, int] = (40, 24)) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif", "heic"])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    if why := why_unreadable(path.name):
        pytest.skip(why)
    picture().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    found = read_photo(path)
    np.testing.assert_array_equal(found, upright)
    assert found.flags.c_contiguous
    if suffix != "heic":  # whose plugin turns the picture when it is saved
        assert found.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "bmp", "gif", "tif", "ppm", "jp2", "avif", "heic", "mpo"])
def test_what_cameras_and_browsers_write(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    if why := why_unreadable(path.name):
        pytest.skip(why)
    wanted = picture()
    if suffix == "gif":
        wanted.save(path, save_all=True, append_images=[Image.new("RGB", wanted.size, "red")])
    else:
        wanted.save(path, {"jfif": "JPEG", "JPE": "JPEG"}.get(suffix))
    assert np.abs(read_photo(path).astype(int) - np.asarray(wanted)).mean() < 8


def test_kinds_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "raw.dng", "TIFF")  # Pillow would give the thumbnail
    with pytest.raises(BadImageError, match=r"raw\.dng: a camera's raw file \(\.dng\), which is not read: convert"):
        read_photo(tmp_path / "raw.dng")
    # A decoder may raise anything.
    picture().save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(RuntimeError("no box")))
    with pytest.raises(BadImageError, match=r"x\.png: cannot read this image \(no box\)"):
        read_photo(tmp_path / "x.png")


def test_colours(tmp_path: Path) -> None:
    rgb = picture()
    grey = np.asarray(rgb.convert("L"))
    rgb.convert("L").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    rgb.convert("L").save(tmp_path / "grey.jpg", quality=100)
    assert np.abs(read_photo(tmp_path / "grey.jpg") - grey[..., None].astype(int)).max() < 6
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read_photo(tmp_path / "cmyk.jpg") - np.asarray(rgb).astype(int)).mean() < 4
    palette = rgb.convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = read_photo(tmp_path / "deep.png")
    assert np.abs(found[..., 0].astype(float) - values / 257).max() <= 0.5
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[-1, -1].tolist() == [255, 255, 255]


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (200, 100, 0, 0))
    image.putpixel((1, 1), (200, 100, 0, 255))
    image.putpixel((2, 1), (200, 100, 0, 51))
    image.save(tmp_path / "cut-out.png")
    found = read_photo(tmp_path / "cut-out.png")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [200, 100, 0]
    np.testing.assert_allclose(found[1, 2], [244, 224, 204], atol=1)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    rows = png_chunk(b"IDAT", zlib.compress(bytes(20_001)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + png_chunk(b"IEND", b""))
    with pytest.raises(BadImageError, match=r"bomb\.png: cannot read this image \(it has more than 89 million pixels"):
        read_photo(tmp_path / "bomb.png")


def jpeg() -> bytes:
    file = io.BytesIO()
    picture((200, 200)).save(file, "JPEG")
    return file.getvalue()


def other_format() -> bytes:
    file = io.BytesIO()
    picture().save(file, "PCX")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is not an image\n", "not an image, or of an unknown format"),
        (jpeg()[: len(jpeg()) // 2], "cannot read this image"),
        (other_format(), "not an image, or of an unknown format"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "image"),
    ],
)
def test_no_photo(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(BadImageError, match=reason) as caught:
        read_photo(tmp_path / "x.jpg")
    assert str(caught.value).startswith(str(tmp_path / "x.jpg"))


def test_an_absent_photo(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no such image file"):
        read_photo(tmp_path / "x.jpg")


def test_shrinking() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    assert shrink(image, 0) is image
    assert shrink(image, 120) is image
    half = shrink(image, 60)
    assert half.shape == (30, 60, 3)
    assert np.abs(half - image.reshape(30, 2, 60, 2, 3).mean(axis=(1, 3))).max() <= 1
    assert shrink(np.zeros((1, 5000, 3), np.uint8), 100).shape == (1, 100, 3)
