"""Photos and crops are decoded by one rule; pictures that are not what was taken are refused."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from facelit.align.photos import read_photo
from facelit.data.identity_folder import IdentityFolder
from facelit.data.pairs_bin import PairsBin
from facelit.storage.decoding import decode_image
from facelit.storage.images import BadImageError, decode_crop, read_crop, read_image
from facelit.storage.pairs_bin import write_pairs_bin

SIZE = (112, 112)
Image.init()  # Image.SAVE names every format


def picture(seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def readers(data: bytes, path: Path) -> list[np.ndarray]:
    """What every way of reading makes of the same bytes."""
    path.write_bytes(data)
    return [
        decode_crop(data, "x"),
        decode_crop(memoryview(data), "x"),
        read_image(data, "x"),
        read_photo(path),
        read_crop(path),
    ]


def refused(data: bytes, path: Path) -> set[str]:
    """The reasons that every way of reading gives; a picture that is read is an error."""
    path.write_bytes(data)
    reasons = set()
    for read in (
        lambda: decode_crop(data, "x"),
        lambda: decode_crop(data, "x", resize=True),
        lambda: read_image(data, "x"),
        lambda: read_photo(path),
    ):
        with pytest.raises(BadImageError) as caught:
            read()
        reasons.add(caught.value.reason)
    return reasons


def deep_grey() -> tuple[bytes, np.ndarray]:
    values = np.linspace(0, 65535, 112 * 112).astype(np.uint16).reshape(SIZE)
    return encoded(Image.fromarray(values), "PNG"), np.repeat((values / 257).round()[..., None], 3, 2)


def cut_out() -> tuple[bytes, np.ndarray]:
    """Left half transparent."""
    image = picture().convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 56, 112))
    wanted = np.asarray(picture()).copy()
    wanted[:, :56] = 255
    return encoded(image, "PNG"), wanted


def transparent_palette() -> tuple[bytes, np.ndarray]:
    image = Image.new("P", SIZE, 0)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.paste(1, (0, 0, 112, 50))
    wanted = np.full((112, 112, 3), 255)
    wanted[:50] = 200, 100, 50
    return encoded(image, "PNG", transparency=0), wanted


def on_its_side(form: str) -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as stored:
        return data, np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))


def on_its_side_by_xmp() -> tuple[bytes, np.ndarray]:
    """As photo editors write it that leave EXIF data out."""
    plain, (_, wanted) = encoded(picture()), on_its_side("JPEG")
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    return plain[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + plain[2:], wanted


def deep_with_white_0() -> tuple[bytes, np.ndarray]:
    data, wanted = deep_grey()
    with Image.open(io.BytesIO(data)) as image:
        tiff = encoded(image, "TIFF")
    black_0 = b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00"  # PhotometricInterpretation, one short number: 1
    assert tiff.count(black_0) == 1
    return tiff.replace(black_0, black_0[:-2] + bytes(2)), 255 - wanted


def deep_with_a_transparent_grey() -> tuple[bytes, np.ndarray]:
    data, wanted = deep_grey()
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image)
        wanted[values == values[50, 60]] = 255
        return encoded(image, "PNG", transparency=int(values[50, 60])), wanted


MADE = {
    "deep": deep_grey,
    "alpha": cut_out,
    "palette": transparent_palette,
    "xmp": on_its_side_by_xmp,
    "white 0": deep_with_white_0,
    "transparent grey": deep_with_a_transparent_grey,
}


@pytest.mark.parametrize("kind", [*MADE, "JPEG", "PNG", "WEBP"])
def test_crops_are_what_photos_are(tmp_path: Path, kind: str) -> None:
    data, wanted = MADE[kind]() if kind in MADE else on_its_side(kind)
    for pixels in readers(data, tmp_path / "x.jpg"):
        np.testing.assert_array_equal(pixels, wanted)


def scan_of(data: bytes) -> int:
    """Where the entropy-coded part of a JPEG begins."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def cut_to_a_third(data: bytes) -> bytes:
    start = scan_of(data)
    return data[: start + (len(data) - start) // 3] + b"\xff\xd9"


# 112 x 112 grey blobs with restart markers, which Pillow writes from 10.2 on.
WITH_RESTARTS = base64.b64decode(
    b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAKBueIx4ZKCMgoy0qqC+8P//8Nzc8P//////////////////////////////////////"
    b"////////////////////wAALCABwAHABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAAAAECA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/"
    b"3QAEADH/2gAIAQEAAD8AyACgKAyACgKAyAKAoAyAoP/QigAgAKAoDIKAoACAKAoAP//RoAoCgCAAoACoAAKACACj/9LoAoMigAKA"
    b"IAAKACAAKAA//9k="
)


def missing_restart(data: bytes) -> bytes:
    at = data.index(b"\xff\xd1", scan_of(data))
    return data[:at] + b"\xff\xd5" + data[at + 2 :]


@pytest.mark.parametrize(
    ("data", "damage"),
    [
        (cut_to_a_third(encoded(picture())), "premature end"),
        (cut_to_a_third(encoded(picture().convert("L"))), "premature end"),
        (cut_to_a_third(encoded(picture().convert("CMYK"))), "premature end"),
        (cut_to_a_third(encoded(picture(), progressive=True)), "premature end"),
        (cut_to_a_third(encoded(picture().resize((200, 300)))), "premature end"),
        (missing_restart(WITH_RESTARTS), "RST"),
        (encoded(picture(), quality=90).replace(b"\n", b"\r\n"), "copied as text"),
    ],
    ids=["colour", "grey", "cmyk", "progressive", "another size", "restart", "text"],
)
def test_damaged_jpegs_are_bad_images(tmp_path: Path, data: bytes, damage: str) -> None:
    """Pillow reads each of them, and fills in grey."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    reasons = refused(data, tmp_path / "x.jpg")
    assert all(damage in reason or "200x300" in reason for reason in reasons)
    assert any(damage in reason for reason in reasons)


def test_a_damaged_scan_is_refused_wherever_pictures_are_read(tmp_path: Path) -> None:
    good, bad = encoded(picture()), cut_to_a_third(encoded(picture(1)))
    for name, data in {"a/1.jpg": good, "b/1.jpg": bad}.items():
        (tmp_path / "crops" / name).parent.mkdir(parents=True)
        (tmp_path / "crops" / name).write_bytes(data)
    with pytest.raises(BadImageError, match=r"1\.jpg: cannot read this image \(it is damaged: Corrupt JPEG data"):
        IdentityFolder(tmp_path / "crops").read_into(1, np.empty((112, 112, 3), np.uint8))
    write_pairs_bin([good, bad, good, good] * 2, [False, True] * 2, tmp_path / "x.bin")
    with pytest.raises(BadImageError, match=r"x\.bin, image 1: cannot read"):
        PairsBin(tmp_path / "x.bin", folds=2).image(1)


def test_harmless_oddities_of_jpegs_are_read(tmp_path: Path) -> None:
    plain = encoded(picture())
    tables = plain.index(b"\xff\xdb")
    end = plain.rindex(b"\xff\xd9")
    for data in (
        plain + b"\0" * 100,  # filling after the end
        plain[:tables] + b"\0\0\0" + plain[tables:],  # and between the parts of the head
        plain[:end] + b"\0" * 16 + plain[end:],  # and before the end
        encoded(picture(), exif=b"Exif\0\0 no EXIF data at all"),
    ):
        for pixels in readers(data, tmp_path / "x.jpg"):
            np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(plain, "RGB"))


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="Pillow has AVIF from 11.3 on")
def test_foreign_and_damaged_containers_are_bad_images(tmp_path: Path) -> None:
    """libavif raises RuntimeError on a damaged box, which went past every `except BadImageError`."""
    avif, webp, tiff = encoded(picture(), "AVIF"), encoded(picture(), "WEBP"), encoded(picture(), "TIFF")
    for data in (
        avif[:40] + bytes(255 - byte for byte in avif[40:200]) + avif[200:],
        avif[: len(avif) // 2],
        webp[: len(webp) // 2],
        tiff[: len(tiff) // 2],
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
    ):
        assert len(refused(data, tmp_path / "x.jpg")) == 1


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, IndexError, OverflowError, ZeroDivisionError])
def test_whatever_a_decoder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fails)
    assert refused(encoded(picture(), "PNG"), tmp_path / "x.png") == {f"cannot read this image ({error.__name__})"}


def test_numbers_whose_white_is_unknown(tmp_path: Path) -> None:
    unit = np.random.default_rng(0).random(SIZE, np.float32)
    (reason,) = refused(encoded(Image.fromarray(unit), "TIFF"), tmp_path / "x.tif")
    assert "floating-point" in reason
    for value in (2**20, 200):
        (reason,) = refused(encoded(Image.fromarray(np.full(SIZE, value, np.int32)), "TIFF"), tmp_path / "x.tif")
        assert "32 bits, or signed" in reason


def test_decoding_needs_nothing_of_align() -> None:
    code = "import sys, facelit.storage.decoding; assert not any(n.startswith(('torch', 'facelit.align')) for n in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("before", [b"", b"\xff\xfe\0\x08 hello", b"\xff\xe2\xff\xff" + bytes(65533), b"\0\0"])
def test_a_jpeg_is_turned_wherever_its_exif_data_stand(tmp_path: Path, before: bytes) -> None:
    """After a comment, a colour profile, or bytes that belong nowhere."""
    turned, wanted = on_its_side("JPEG")
    at = turned.index(b"\xff\xe1")
    for pixels in readers(turned[:at] + before + turned[at:], tmp_path / "x.jpg"):
        np.testing.assert_array_equal(pixels, wanted)


def test_sizes_are_told_before_anything_is_decoded() -> None:
    seen = []
    decode_image(encoded(picture().resize((30, 20))), lambda width, height: seen.append((width, height)))
    assert seen == [(30, 20)]
