"""Pickles of plain data are read as `pickle` reads them; all others are refused, and nothing in them runs."""

import copyreg
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from facelit.storage.plain_arrays import PlainArray, PlainDtype
from facelit.storage.plain_pickle import RefusedError, load_plain


def _plain(rng: np.random.Generator, depth: int = 0) -> object:
    kind = int(rng.integers(0, 4 if depth > 3 else 7))
    if kind == 0:
        return bool(rng.integers(2))
    if kind in (1, 2):
        return rng.bytes(int(rng.choice([0, 1, 3, 255, 256, 700])))
    if kind == 3:
        return int(rng.integers(2))
    items = [_plain(rng, depth + 1) for _ in range(rng.integers(0, 5))]
    if items:
        items.append(items[0])  # the same object: recalled from memory
    return tuple(items) if kind == 6 else items


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("optimized", [False, True])
def test_plain_data_is_read_as_pickle_reads_it(protocol: int, optimized: bool) -> None:
    rng = np.random.default_rng(protocol)
    for _ in range(60):
        data = _plain(rng)
        pickled = pickle.dumps(data, protocol)
        if optimized:
            pickled = pickletools.optimize(pickled)
        found = load_plain(pickled)
        assert found == data
        assert repr(found) == repr(data)  # True is not 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_and_arrays(protocol: int) -> None:
    """NumPy's own functions are the oracle; none of them is called."""
    rng = np.random.default_rng(protocol)
    for dtype in ("u1", "b1", "i8", "f4", "f8"):
        array = rng.integers(0, 2, 300).astype(dtype)
        found = load_plain(pickle.dumps([array, array[:0], array], protocol))
        assert isinstance(found, list)
        assert found[0] is found[2]
        np.testing.assert_array_equal(found[0].values, array)
        assert found[0].values.dtype == array.dtype
        assert len(found[1].values) == 0
        scalar = load_plain(pickle.dumps(array[1], protocol))
        assert scalar == array[1]
        assert type(scalar) is type(array[1].item())
    plain = [None, 1.5, -3, 77, bytearray(b"abc"), float("inf")]
    assert load_plain(pickle.dumps(plain, protocol)) == plain
    objects = load_plain(pickle.dumps(np.array([b"a", b"bc"], dtype=object), protocol))
    assert objects.values == [b"a", b"bc"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_long_bytes_and_long_lists(protocol: int) -> None:
    data = ([bytes(range(256)) * 400, b"\n'\"\\"] * 1200, [True, False] * 1200)
    assert load_plain(pickle.dumps(data, protocol)) == data


def test_python_2_strings_are_bytes() -> None:
    """What cPickle of Python 2 wrote in protocols 0, 1 and 2, by hand."""
    short = b"\xff\xd8\x00'\n"
    long = bytes(range(256)) * 2
    lists = b"(U\x05" + short + b"q\x02T" + struct.pack("<i", 512) + long + b"q\x03e"
    assert load_plain(b"\x80\x02]q\x01" + lists + b"]q\x04(\x88\x89e\x86q\x05.") == ([short, long], [True, False])
    assert load_plain(b"(]q\x01" + lists + b"]q\x02(I01\nI00\netq\x03.") == ([short, long], [True, False])
    protocol_0 = b"((lp1\nS'\\xff\\xd8\\x00\\'\\n'\np2\naS\"it's\"\np3\na(lp4\nI01\naI00\natp5\n."
    assert load_plain(protocol_0) == ([short, b"it's"], [True, False])
    for pickled in (protocol_0, b"\x80\x02]q\x01" + lists + b"]q\x04(\x88\x89e\x86q\x05."):
        assert load_plain(pickled) == pickle.loads(pickled, encoding="bytes")


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> object:
        return self.reduced


def _hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that would make the file `marker`."""
    touch = f"touch {marker}"
    command = touch.encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return {
        "GLOBAL": b"cos\nsystem\n(" + text + b"tR.",
        "GLOBAL in a list": b"\x80\x02]cos\nsystem\n" + text + b"\x85Ra]\x86.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n]"
        + b"".join([b"(" + b"X\x05\0\0\0touch", _text(marker), b"e"])
        + b"\x85\x81.",
        "eval": pickle.dumps(_Call(eval, f"open({str(marker)!r}, 'w').close()"), 4),
        "BUILD": pickle.dumps(_Call(os.system, touch), 2)[:-1] + b"}b.",
        **{f"protocol {p}": pickle.dumps(([_Call(os.system, touch)], [True]), p) for p in range(6)},
    }


def _text(path: Path) -> bytes:
    return b"X" + struct.pack("<I", len(str(path))) + str(path).encode()


HOSTILE = list(_hostile(Path("marker")))


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_is_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    pickled = _hostile(marker)[kind]
    with pytest.raises(RefusedError, match=r"os\.system|posix\.system|subprocess\.Popen|builtins\.eval|INST"):
        load_plain(pickled)
    assert not marker.exists()


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind not in ("BUILD", "NEWOBJ")])
def test_those_pickles_are_dangerous(tmp_path: Path, kind: str) -> None:
    """So that the test above shows something."""
    marker = tmp_path / "marker"
    pickle.loads(_hostile(marker)[kind])
    assert marker.exists()


def test_registered_extensions_are_not_called(tmp_path: Path) -> None:
    """`pickle` takes them from a cache, without asking `find_class`."""
    marker = tmp_path / "marker"
    copyreg.add_extension("os", "system", 200)  # type: ignore[no-untyped-call]
    try:
        call = b"X" + struct.pack("<I", len(f"touch {marker}")) + f"touch {marker}".encode() + b"\x85R."
        for code in (b"\x82\xc8", b"\x83\xc8\0", b"\x84\xc8\0\0\0"):
            pickle.loads(b"\x80\x02" + code + call)
            assert marker.exists()
            marker.unlink()
            with pytest.raises(RefusedError, match="asks for EXT"):
                load_plain(b"\x80\x02" + code + call)
            assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 200)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"Psomething\n.", "PERSID"),
        (b"\x80\x02X\x01\0\0\0aQ.", "BINPERSID"),
        (pickle.dumps({"a": 1}), "EMPTY_DICT"),
        (pickle.dumps({1, 2}), "EMPTY_SET"),
        (pickle.dumps(frozenset([1])), "FROZENSET"),
        (pickle.dumps(2**40), "LONG1"),
        (pickle.dumps(pickle.PickleBuffer(b"a"), 5, buffer_callback=lambda _: False), "NEXT_BUFFER"),
        (b"\x80\x06]].", "protocol 6"),
        (b"c_codecs\nencode\n(X\1\0\0\0aX\5\0\0\0utf-8tR.", "unknown way"),
        (b"c_codecs\nencode\n(]X\6\0\0\0latin1tR.", "unknown way"),
        (b"c_codecs\nencode\n(X\2\0\0\0\xc4\x80X\6\0\0\0latin1tR.", "cannot be decoded"),
        (b"c_codecs\ndecode\n.", "_codecs.decode"),
        (b"c__builtin__\nbytes\n(K\5tR.", "calls something"),
        (b"X\5\0\0\0bytesX\0\0\0\0\x85R.", "calls something"),
        (b"\x8c\x0e_codecs.encode(X\1\0\0\0aX\6\0\0\0latin1tR.", "calls something"),
        (b"]]\x93.", "no name"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not part of a pickle"),
        (b"version https://git-lfs", "not part of a pickle"),
        (b"<html>", "not part of a pickle"),
        (b".", "never made"),
        (b"a.", "never made"),
        (b"(.", "never made"),
        (b"]e.", "never made"),
        (b"h\0.", "never made"),
        (b"q\0.", "never made"),
        (b"K\1K\1a.", "something else than a list"),
        (b"I5x\n.", "end a number"),
        (b"I" + b"5" * 5000 + b"\n.", "end a number"),
        (b"F1,5\n.", "cannot be decoded"),
        (pickle.dumps(np.array(["a"])), "numpy.dtype that is not plain"),
        (pickle.dumps(np.zeros(2, ">i4")), "fills an array"),
        (pickle.dumps(np.zeros(2, [("a", "u1")])), "not plain"),
        (pickle.dumps(np.ma.zeros(3)), r"numpy\.ma"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\ntR.", "not plain"),
        (b"cnumpy\nndarray\n(K\xfftR.", "not plain"),
        (b"cnumpy\nload\n(X\1\0\0\0atR.", "asks for 'numpy.load'"),
        (b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.", "not plain"),
        (b"]Nb.", "BUILD"),
        (b"Sabc\n.", "quoted"),
        (b"S'\\x4'\n.", "cannot be decoded"),
        (b"X\1\0\0\0\xff.", "cannot be decoded"),
        (b"]p-1\n.", "end a number"),
        (b"]p" + b"9" * 5000 + b"\n.", "end a number"),
    ],
)
def test_everything_else_is_refused(pickled: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        load_plain(pickled)


@pytest.mark.parametrize("protocol", range(6))
def test_cut_short_anywhere(protocol: int) -> None:
    pickled = pickle.dumps(([b"\0" * 300, b"abc"], [True]), protocol)
    for size in range(len(pickled)):
        with pytest.raises(EOFError):
            load_plain(pickled[:size])


@pytest.mark.parametrize(
    "pickled",
    [
        b"]r\xff\xff\xff\xff.",  # remembered under a number for which `pickle` makes room
        b"]p999999999999999999\n.",
        b"B\xff\xff\xff\xffabc",  # more bytes than there are
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        b"T\xff\xff\xff\xffabc",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff].",
        b"(" * 100_000 + b".",
        b")" + b"\x85" * 100_000 + b".",  # deep
        b"]q\0" + b"h\0a" * 1000 + b".",  # a list in itself
        b")q\0" + b"h\0h\0\x86q\0" * 1000 + b"h\0h\0\x93.",  # 2**1000 items, if it were printed as a name
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\ntR(K\1(J\xff\xff\xff\x7ftcnumpy\ndtype\n(X\2\0\0\0u1tR\x89C\1atb.",
        b"X\x10\x27\0\0" + b"a" * 10_000 + b"q\0" + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 1000 + b".",
        b"B\x10\x27\0\0" + b"a" * 10_000 + b"q\0" + b"c__builtin__\nbytearray\nq\1" + b"h\1h\0\x85R" * 1000 + b".",
    ],
    ids=lambda pickled: repr(pickled[:12]),
)
def test_memory_stays_in_proportion(pickled: bytes) -> None:
    tracemalloc.start()
    try:
        load_plain(pickled)
    except (RefusedError, EOFError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000 + 100 * len(pickled)


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_refused_or_harmless(seed: int) -> None:
    """Random bytes changed: what is read is plain, and no other exception than ours is raised."""
    rng = np.random.default_rng(seed)
    for protocol in range(6):
        content = ([b"abc", b"defg" * 70, np.arange(9), bytearray(b"a")], [True, np.bool_(False), 1.5])
        pickled = bytearray(pickle.dumps(content, protocol))
        for _ in range(60):
            damaged = pickled.copy()
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(damaged))] = rng.integers(256)
            try:
                found = load_plain(bytes(damaged))
            except (RefusedError, EOFError):
                continue
            assert isinstance(
                found, (tuple, list, bytes, bytearray, str, int, float, PlainArray, PlainDtype, type(None))
            )


def test_what_follows_the_end_is_not_read() -> None:
    """As `pickle` does: files of several pickles are read one by one."""
    pickled = pickle.dumps([b"a"]) + b"what is this"
    assert load_plain(pickled) == [b"a"] == pickle.load(io.BytesIO(pickled))
