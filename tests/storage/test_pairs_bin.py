"""InsightFace's verification sets: whatever Python pickled them, and what is no such set."""

import bz2
import gzip
import lzma
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facelit.errors import FacelitError
from facelit.storage.pairs_bin import read_pairs_bin, write_pairs_bin

IMAGES = [b"\xff\xd8\xff first", b"second", bytes(range(256)) * 3, b""]
IS_SAME = [True, False]


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "some.bin"
    path.write_bytes(data)
    return path


def _python_2() -> bytes:
    """`cPickle.dump((images, is_same), file, 2)` of Python 2, by hand: its strings are SHORT_BINSTRING and BINSTRING."""
    strings = b"".join(
        b"U" + bytes([len(image)]) + image if len(image) < 256 else b"T" + struct.pack("<i", len(image)) + image
        for image in IMAGES
    )
    return b"\x80\x02]q\x01(" + strings + b"e]q\x02(\x88\x89e\x86q\x03."


@pytest.mark.parametrize(
    "pickled",
    [
        *(pickle.dumps((IMAGES, IS_SAME), protocol) for protocol in range(6)),
        pickle.dumps([IMAGES, [1, 0]], 4),
        _python_2(),
    ],
    ids=[*(f"protocol {protocol}" for protocol in range(6)), "lists-ints", "python 2"],
)
def test_sets_are_read(tmp_path: Path, pickled: bytes) -> None:
    images, is_same = read_pairs_bin(_write(tmp_path, pickled))
    assert images == IMAGES
    assert is_same.dtype == np.bool_
    assert is_same.tolist() == IS_SAME


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "content",
    [
        ([np.frombuffer(image, np.uint8) for image in IMAGES], [np.bool_(same) for same in IS_SAME]),
        ([bytearray(image) for image in IMAGES], np.array(IS_SAME)),
        (tuple(IMAGES), tuple(IS_SAME)),
        (np.array(IMAGES, dtype=object), np.array(IS_SAME, np.float32)),
        ([np.frombuffer(image, np.uint8)[None] for image in IMAGES], [1.0, 0.0]),
        ([one if one.isascii() else one.decode("latin-1") for one in IMAGES], np.array(IS_SAME)[:, None]),
    ],
    ids=["numpy", "bytearrays", "tuples", "arrays", "floats", "latin-1"],
)
def test_sets_of_posted_recipes_are_read(tmp_path: Path, content: object, protocol: int) -> None:
    images, is_same = read_pairs_bin(_write(tmp_path, pickle.dumps(content, protocol)))
    assert images == IMAGES
    assert is_same.tolist() == IS_SAME


def test_the_line_that_converts_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of somebody's own class is refused with a line that, put into a shell, makes a set that is read."""
    monkeypatch.chdir(tmp_path)
    Path("OLD.bin").write_bytes(pickle.dumps((dict.fromkeys(IMAGES), IS_SAME)))
    with pytest.raises(FacelitError) as caught:
        read_pairs_bin("OLD.bin")
    line = str(caught.value).partition('python -c "')[2].rstrip('"')
    exec(line, {})
    assert read_pairs_bin("NEW.bin")[0] == IMAGES


@pytest.mark.parametrize("is_same", [IS_SAME, np.array(IS_SAME)], ids=["list", "array"])
def test_what_is_written_pickle_reads(tmp_path: Path, is_same: list[bool]) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(b"old")
    write_pairs_bin([memoryview(IMAGES[0]), *IMAGES[1:]], is_same, path)
    found = pickle.loads(path.read_bytes())
    assert found == (IMAGES, IS_SAME)
    assert [type(same) for same in found[1]] == [bool, bool]
    assert path.read_bytes()[:2] == b"\x80\x04"
    assert read_pairs_bin(path)[0] == IMAGES
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 images for 2 pairs"):
        write_pairs_bin(IMAGES[:3], IS_SAME, tmp_path / "some.bin")
    with pytest.raises(FacelitError, match=r"absent/some\.bin: cannot write this file"):
        write_pairs_bin(IMAGES, IS_SAME, tmp_path / "absent" / "some.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (IMAGES, "something else than two lists"),
        ((IMAGES, IS_SAME, []), "something else than two lists"),
        (True, "something else than two lists"),
        ((IMAGES[:3], IS_SAME), "3 images for 2 pairs"),
        (([], []), "0 images for 0 pairs"),
        (([*IMAGES[:3], "text"], IS_SAME), "image 3 is not of type bytes"),
        (([*IMAGES[:3], [b""]], IS_SAME), "image 3 is not of type bytes"),
        ((IMAGES, [True, 2]), "pair 1 is neither"),
        ((IMAGES, [b"", True]), "pair 0 is neither"),
        ((IMAGES, np.array([0.5, 1])), "pair 0 is neither"),
        ((IMAGES, [None, True]), "pair 0 is neither"),
        ((IMAGES, [1, -1]), "pair 1 is neither.*: -1"),
        ((IMAGES, ["True", "False"]), "pair 0 is neither.*'True'"),
        (([np.zeros((4, 4, 3), np.uint8)] * 4, IS_SAME), r"image 0 is an array of pixels, \(4, 4, 3\)"),
        (([*IMAGES[:3], "caf\u00e9 \u4e2d"], IS_SAME), "image 3 is not of type bytes"),
        (([*IMAGES[:3], np.zeros(3)], IS_SAME), "image 3 is not of type bytes"),
        ((dict(enumerate(IMAGES)), IS_SAME), "asks for EMPTY_DICT"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = _write(tmp_path, pickle.dumps(content, 4))
    with pytest.raises(FacelitError, match=rf"some\.bin: .*{reason}.*write_pairs_bin") as caught:
        read_pairs_bin(path)
    # A line that would end in the same, or make genuine pairs of -1 and "False", is offered only where something else is in the way.
    assert ("python -c" in str(caught.value)) == ("asks for" in reason)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_file_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(FacelitError, match=r"this is a (gzip|bzip2|xz) file, not a pickle\. Unpack it first"):
        read_pairs_bin(_write(tmp_path, pack(pickle.dumps((IMAGES, IS_SAME)))))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\n<!DOCTYPE html><html><title>Virus scan warning</title></html>", "a web page"),
        (b"\xef\xbb\xbf\r\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS: `git lfs pull`"),
    ],
)
def test_what_a_download_left_instead(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(FacelitError, match=rf"some\.bin: this is {what}"):
        read_pairs_bin(_write(tmp_path, data))


def test_one_array_is_not_copied_again_and_again(tmp_path: Path) -> None:
    """Of an image that is listed often there is one copy, and arrays that share their bytes are refused."""
    image = bytearray(b"a" * 10_000)
    images, _ = read_pairs_bin(_write(tmp_path, pickle.dumps(([image] * 200, [True] * 100), 4)))
    assert images == [bytes(image)] * 200
    assert len(set(map(id, images))) == 1
    name = b"cnumpy.core.numeric\n_frombuffer\nq\1"
    dtype = b"cnumpy\ndtype\nX\2\0\0\0u1\x85Rq\2"
    shared = b"h\1(h\0h\2M\x10\x27\x85X\1\0\0\0CtR"
    head = b"B\x10\x27\0\0" + bytes(image) + b"q\0" + name + dtype
    data = b"\x80\3" + head + b"](" + shared * 200 + b"e](" + b"\x88" * 100 + b"e\x86."
    with pytest.raises(FacelitError, match="it holds more bytes than the file has"):
        read_pairs_bin(_write(tmp_path, data))


def test_a_malicious_set_is_refused(tmp_path: Path) -> None:
    """What it would run is named, and not run."""
    marker = tmp_path / "marker"
    command = f"touch {marker}".encode()
    hostile = b"\x80\x02]cos\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85Ra](\x88e\x86."
    with pytest.raises(FacelitError, match=r"some\.bin: refused: byte \d+ asks for 'os\.system'"):
        read_pairs_bin(_write(tmp_path, hostile))
    assert not marker.exists()
    pickle.loads(hostile)
    assert marker.exists()  # the test's own pickle is dangerous


def test_files_that_are_absent_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(FacelitError, match=r"absent\.bin: cannot read"):
        read_pairs_bin(tmp_path / "absent.bin")
    pickled = pickle.dumps((IMAGES, IS_SAME), 4)
    for size in (0, 1, 20, len(pickled) - 1):
        with pytest.raises(FacelitError, match=rf"some\.bin: is cut short: it ends at byte {size}\. Download"):
            read_pairs_bin(_write(tmp_path, pickled[:size]))
