"""Reading a pickle that comes from a stranger, and may hold plain data only.

A pickle is a program. Here none is ever given to `pickle`: of its instructions (the standard library's `pickletools` lists
them) those are followed that lists, tuples, bytes, strings, bools, numbers, None and NumPy's arrays of numbers are made with; all others are refused. Even
an `Unpickler` that finds no class would build sets and dicts, and sets aside tens of gigabytes where a file of ten bytes
asks it to remember something under the number 4,294,967,295.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from facelit.storage.plain_arrays import NAMES, PlainArray, PlainDtype, fill, make

_ENCODE, _BYTES = "_codecs.encode", ("__builtin__.bytes", "builtins.bytes")
"""How Python 3 writes bytes in the protocols before 3. Only this, and `facelit.storage.plain_arrays`, is ever done by a name."""
_ONLY = "only lists, tuples, bytes, bools, numbers and NumPy's arrays of numbers may be in it"
_MARK = object()


class RefusedError(Exception):
    """What a pickle has, or asks for, that plain data does not."""


def load_plain(data: bytes) -> object:
    """Unpickles plain data: tuples, lists, bytes, strings, bools, numbers, None and NumPy's arrays (`PlainArray`) of numbers.

    Python 2's strings are bytes. Takes memory in proportion to the pickle's length, whatever it asks for.

    Args:
        data: A pickle of any protocol.

    Raises:
        RefusedError: It asks for anything else, or is not a pickle.
        EOFError: It ends too early.
    """
    return _Unpickler(data).load()


class _Name(str):
    """What a pickle wants looked up: `module.name`. Nothing ever is."""


class _Unpickler:
    """Follows the few instructions of a pickle that data is made with.

    Args:
        data: The pickle.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def load(self) -> object:
        """What the pickle stands for; see `load_plain`."""
        while True:
            at, code = self._at, self._take(1)
            if code == b".":
                return self._pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise RefusedError(f"byte {at} {_asks_for(code)}, and {_ONLY}")
            instruction(self)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise EOFError
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise EOFError
        return self._take(end + 1 - self._at)[:-1]

    def _line_number(self) -> int:
        line = self._line()
        if not line.isdigit() or len(line) > 18:
            raise RefusedError(f"byte {self._at} should end a number")
        return int(line)

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError(f"byte {self._at} takes what was never made: this is not a pickle, or a damaged one")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise RefusedError(f"byte {self._at} takes what was never made: this is not a pickle, or a damaged one")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    # Instructions.

    def _protocol(self) -> None:
        version = self._number(1)
        if version > 5:
            raise RefusedError(f"it is a pickle of protocol {version}, which is not known yet")

    def _frame(self) -> None:
        self._take(8)  # how much may be read at once

    def _extend(self, items: list[Any]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise RefusedError(f"byte {self._at} adds to something else than a list")
        target.extend(items)
        self._push(target)

    def _remember(self, number: int) -> None:
        value = self._pop()
        self._memo[number] = value
        self._push(value)

    def _recall(self, number: int) -> None:
        if number not in self._memo:
            raise RefusedError(f"byte {self._at} recalls what was never made: this is not a pickle, or a damaged one")
        self._push(self._memo[number])

    def _tuple(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._push(tuple(reversed(items)))

    def _integer(self) -> None:
        line = self._line()
        if line in (b"00", b"01"):  # how the protocols before 2 write bools
            self._push(line == b"01")
        elif line.removeprefix(b"-").isdigit() and len(line) <= 18:
            self._push(int(line))
        else:
            raise RefusedError(f"byte {self._at} should end a number")

    def _float_line(self) -> None:
        line = self._line()
        self._push(self._decoded(lambda: float(line[:40])))

    def _quoted(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise RefusedError(f"byte {self._at} should end a quoted string")
        self._push(self._decoded(lambda: codecs.escape_decode(line[1:-1])[0]))

    def _text(self, data: bytes, encoding: str) -> None:
        self._push(self._decoded(lambda: data.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")))

    def _decoded(self, decode: Callable[[], object]) -> object:
        try:
            return decode()
        except ValueError:
            raise RefusedError(f"byte {self._at} ends a string that cannot be decoded") from None

    def _name(self, module: object, name: object) -> None:
        """Notes which function a pickle names: a few are known, and the others refused."""
        if type(module) is not str or type(name) is not str:
            raise RefusedError(f"byte {self._at} asks for something that has no name, and {_ONLY}")
        full = f"{module}.{name}"
        if full != _ENCODE and full not in _BYTES and full not in NAMES:
            raise RefusedError(f"byte {self._at} asks for {full[:100]!r}, and {_ONLY}")
        self._push(_Name(full))

    def _named_by_lines(self) -> None:
        module, name = self._line(), self._line()
        self._name(module.decode("ascii", "replace"), name.decode("ascii", "replace"))

    def _instance(self) -> None:
        module, name = self._line(), self._line()
        raise RefusedError(f"byte {self._at} asks for {(module + b'.' + name)[:100]!r}, and {_ONLY}")

    def _named_by_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _call(self) -> None:
        """`_codecs.encode(text, "latin1")`, `bytes()` and what makes arrays, done here: nothing that a pickle names is called."""
        arguments, name = self._pop(), self._pop()
        if type(name) is _Name and name in _BYTES and arguments == ():
            self._push(b"")
        elif type(name) is _Name and name == _ENCODE and isinstance(arguments, tuple) and len(arguments) == 2:
            self._encode(*arguments)
        elif type(name) is _Name and name in NAMES:
            try:
                made = make(name, arguments)
            except ValueError:
                raise RefusedError(
                    f"byte {self._at} makes something of {name!s} that is not plain, and {_ONLY}"
                ) from None
            if isinstance(made, bytearray):
                self._count(len(made))
            self._push(made)
        else:
            raise RefusedError(f"byte {self._at} calls something, and {_ONLY}")

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if not isinstance(target, (PlainArray, PlainDtype)):
            raise RefusedError(f"byte {self._at} asks for BUILD, and {_ONLY}")
        try:
            fill(target, state)
        except ValueError:
            raise RefusedError(
                f"byte {self._at} fills an array with something that is not plain, and {_ONLY}"
            ) from None
        self._push(target)

    def _encode(self, text: object, encoding: object) -> None:
        if type(text) is not str or encoding != "latin1":
            raise RefusedError(f"byte {self._at} makes bytes in an unknown way")
        self._count(len(text))
        self._push(self._decoded(lambda: text.encode("latin-1")))

    def _count(self, copied: int) -> None:
        self._copied += copied
        if self._copied > 2 * len(self._data):  # in protocol 0 bytes are made of a text, and a bytearray of those
            raise RefusedError(f"byte {self._at} makes more bytes than the file has")  # of one text, again and again


_INSTRUCTIONS: dict[bytes, Callable[[_Unpickler], None]] = {
    b"\x80": _Unpickler._protocol,
    b"\x95": _Unpickler._frame,
    b"(": lambda self: self._push(_MARK),
    # bytes: of Python 3, then Python 2's strings
    b"C": lambda self: self._push(self._take(self._number(1))),
    b"B": lambda self: self._push(self._take(self._number(4))),
    b"\x8e": lambda self: self._push(self._take(self._number(8))),
    b"U": lambda self: self._push(self._take(self._number(1))),
    b"T": lambda self: self._push(self._take(self._number(4))),
    b"S": _Unpickler._quoted,
    # strings, which only stand in the way in which old protocols write bytes
    b"\x8c": lambda self: self._text(self._take(self._number(1)), "utf-8"),
    b"X": lambda self: self._text(self._take(self._number(4)), "utf-8"),
    b"\x8d": lambda self: self._text(self._take(self._number(8)), "utf-8"),
    b"V": lambda self: self._text(self._line(), "raw-unicode-escape"),
    b"c": _Unpickler._named_by_lines,
    b"\x93": _Unpickler._named_by_stack,
    b"i": _Unpickler._instance,
    b"R": _Unpickler._call,
    b"b": _Unpickler._build,
    b"\x96": lambda self: self._push(bytearray(self._take(self._number(8)))),
    # None, bools and numbers
    b"N": lambda self: self._push(None),
    b"F": _Unpickler._float_line,
    b"G": lambda self: self._push(struct.unpack(">d", self._take(8))[0]),
    b"\x88": lambda self: self._push(True),
    b"\x89": lambda self: self._push(False),
    b"I": _Unpickler._integer,
    b"K": lambda self: self._push(self._number(1)),
    b"M": lambda self: self._push(self._number(2)),
    b"J": lambda self: self._push(int.from_bytes(self._take(4), "little", signed=True)),
    # lists and tuples
    b"]": lambda self: self._push([]),
    b"l": lambda self: self._push(self._pop_to_mark()),
    b"a": lambda self: self._extend([self._pop()]),
    b"e": lambda self: self._extend(self._pop_to_mark()),
    b")": lambda self: self._push(()),
    b"t": lambda self: self._push(tuple(self._pop_to_mark())),
    b"\x85": lambda self: self._tuple(1),
    b"\x86": lambda self: self._tuple(2),
    b"\x87": lambda self: self._tuple(3),
    # memory
    b"p": lambda self: self._remember(self._line_number()),
    b"q": lambda self: self._remember(self._number(1)),
    b"r": lambda self: self._remember(self._number(4)),
    b"\x94": lambda self: self._remember(len(self._memo)),
    b"g": lambda self: self._recall(self._line_number()),
    b"h": lambda self: self._recall(self._number(1)),
    b"j": lambda self: self._recall(self._number(4)),
}


_KNOWN = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


def _asks_for(code: bytes) -> str:
    return f"asks for {_KNOWN[code]}" if code in _KNOWN else f"({code!r}) is not part of a pickle"
