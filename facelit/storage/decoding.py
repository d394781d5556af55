"""Image files to pixels: one rule for photos and crops, wherever they are read."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from facelit.errors import FacelitError
from facelit.storage.downloads import NUM_BYTES
from facelit.storage.photo_files import readable_formats, why_unidentified

Pixels = npt.NDArray[np.uint8]
"""An image of any size: uint8, RGB, shape (height, width, 3)."""

JPEG_START = b"\xff\xd8\xff"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_ORIENTATION = 0x0112
"""The EXIF tag."""
_PHOTOMETRIC = 0x0106
"""The TIFF tag; 0 where the smallest value is white."""
_TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}
"""What turns a stored picture upright, by its EXIF orientation."""

_DAMAGE = ("corrupt jpeg data", "premature end", "inconsistent progression")
"""How libjpeg-turbo begins to say that it made up a part of the picture."""
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


class UndecodableError(Exception):
    """What is wrong with an image file.

    Attributes:
        way_out: What the user can do; empty for nothing in particular.
    """

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(reason)
        self.way_out = way_out


def decode_image(data: bytes | memoryview, check_size: Callable[[int, int], None] | None = None) -> Pixels:
    """Decodes an image of any of the formats that `facelit.storage.photo_files` names, by its content.

    EXIF orientation is applied, and XMP's where there is none. Grey, palette and CMYK pictures become RGB; of 16 bits the upper 8 are kept; transparent pixels
    are laid on white; colour profiles are not applied; of several pictures in a file the first is taken. A JPEG of which
    libjpeg-turbo says that a part is damaged is refused, although decoders make up something grey for it.

    Args:
        data: The file's bytes.
        check_size: Called with width and height as they are stored, before the pixels are decoded; may raise a
            `FacelitError`, which passes.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        UndecodableError: It is empty, damaged, not an image, of a format that cannot be read here, or has more than 89 million pixels
            (PIL's `MAX_IMAGE_PIXELS`), which may be a decompression bomb. Whatever a decoder raises becomes this.
    """
    if not len(data):
        raise UndecodableError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
                # Filters of warnings are all threads': another one may just have put them back.
                if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise Image.DecompressionBombError
                if check_size is not None:
                    check_size(*image.size)
                pixels = _pixels(data, image)
                # Afterwards: TIFF's decoder turns the picture itself, and then forgets the tag.
                return _upright(pixels, image)
    except (UndecodableError, FacelitError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UndecodableError(
            f"it has more than {limit:.0f} million pixels, which may be a decompression bomb", "Shrink or remove it."
        ) from None
    except UnidentifiedImageError:
        raise UndecodableError(why_unidentified(bytes(data[:NUM_BYTES]))) from None
    except Exception as error:  # decoders, and plugins, raise all kinds on damaged files
        raise UndecodableError(_words(error)) from None


def pixels_of(image: Image.Image) -> Pixels:
    """An opened image by the same rule; without a file's bytes, damage in a JPEG cannot be told.

    Raises:
        UndecodableError: It cannot be decoded, or its white is unknown.
    """
    try:
        return _upright(_in_rgb(image), image)
    except (UndecodableError, MemoryError):
        raise
    except Exception as error:
        raise UndecodableError(_words(error)) from None


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    orientation = 1
    with suppress(Exception):  # EXIF data may be damaged without any harm to the picture
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    turn = _TURNED.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def may_be_turned(jpeg: bytes) -> bool:
    """Whether a JPEG has EXIF or XMP data, which may say how to turn it; found by hopping over the parts of its head."""
    at = 2
    while True:
        marker = jpeg[at : at + 2]
        if not (b"\xff\xe0" <= marker <= b"\xff\xef" or marker == b"\xff\xfe"):
            # The tables follow, as a rule; where something else does, it may be anywhere.
            return marker != b"\xff\xdb" and (_EXIF in jpeg or _XMP in jpeg)
        if marker == b"\xff\xe1" and jpeg.startswith((_EXIF, _XMP), at + 4):
            return True
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")


def damage_of_jpeg(error: Exception, data: bytes | memoryview) -> str:
    """What simplejpeg says about a damaged picture; empty where it says something else, or nothing is lost.

    Surplus bytes do no harm before the picture begins, or if they are mere filling before the end.
    """
    message = str(error)
    if not message.lower().startswith(_DAMAGE):
        return ""
    padding = _PADDING.search(message)
    if padding and not 0xD0 <= int(padding[2], 16) <= 0xD9:
        lines = bytes(data).count(b"\n")  # a picture has them without a CR before, unless it has hardly any
        is_text = lines > 2 and lines == bytes(data).count(b"\r\n")
        return "its line feeds were made CR LF: it was copied as text, such as in FTP's ASCII mode" if is_text else ""
    if padding and int(padding[2], 16) == 0xD9:
        end = bytes(data).rfind(b"\xff\xd9")
        if len(set(bytes(data)[max(0, end - int(padding[1])) : end])) == 1:
            return ""
    return "the file is truncated" if "end of jpeg file" in message.lower() else f"it is damaged: {message.rstrip('.')}"


def _pixels(data: bytes | memoryview, image: Image.Image) -> Pixels:
    """The pixels as they are stored, in RGB; `image` was opened from `data`."""
    if image.format in ("JPEG", "MPO"):
        try:
            if image.mode in ("RGB", "L"):  # the same pixels as Pillow's, in half the time
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
            simplejpeg.decode_jpeg(data, "CMYK")
        except ValueError as error:
            if reason := damage_of_jpeg(error, data):
                raise UndecodableError(reason) from None
    return _in_rgb(image)


def _in_rgb(image: Image.Image) -> Pixels:
    """Pillow's pixels as they are stored, whatever the mode."""
    if image.mode == "F":
        raise UndecodableError("its pixels are floating-point numbers, whose white is unknown", "Convert it to 8 bits.")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _from_16_bits(image: Image.Image) -> Pixels:
    """PIL would cut values above 255 off, and forget which of them is white or transparent."""
    if image.mode == "I" and image.format == "TIFF":
        raise UndecodableError(
            "its pixels are numbers of 32 bits, or signed ones, whose white is unknown", "Convert it to 8 bits."
        )
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise UndecodableError("its pixels have more than 16 bits", "Convert it to 8 bits.")
    grey = (values / 257).round().astype(np.uint8)
    if image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _words(error: Exception) -> str:
    """PIL names its own buffer where it would name a file: that says nothing to anybody."""
    text = str(error).replace("<_io.BytesIO object", "").split(" at 0x")[0].strip()
    return text or type(error).__name__
