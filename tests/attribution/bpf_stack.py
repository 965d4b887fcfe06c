"""Stack that the functions of a BPF object file need, as the kernel adds it up along a call.

Formats: ELF (elf(5)), and Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")
_INSTRUCTION: Final = struct.Struct("<BBhi")
_SYMTAB, _REL = 2, 9
_FUNCTION: Final = 2
_UNDEFINED: Final = 0
_IS_EXECUTABLE: Final = 4
_LOAD, _STORE, _STORE_REGISTER = 1, 2, 3  # classes of instructions
_MOVE_REGISTER, _ADD, _CALL, _WIDE = 0xBF, 0x07, 0x85, 0x18
_FRAME_POINTER: Final = 10
_OF_PROGRAM: Final = 1  # source register of a call to another function of the object
#: Before Linux 6.9 the kernel rounds each frame up to this (check_max_stack_depth).
_ROUNDING: Final = 32


class _Function(NamedTuple):
    section: int
    start: int
    size: int
    name: str


class _Object:
    """Functions of an object file, with their instructions and calls."""

    def __init__(self, content: bytes) -> None:
        header = _HEADER.unpack_from(content)
        at, size, number = header[6], header[11], header[12]
        sections = [_SECTION.unpack_from(content, at + size * each) for each in range(number)]
        self._content = {
            index: content[each[4] : each[4] + each[5]] for index, each in enumerate(sections)
        }
        symbols: list[tuple[str, int, int, int, int]] = []
        for index, each in enumerate(sections):
            if each[1] == _SYMTAB:
                names = self._content[each[6]]
                for name, info, _, of, value, length in _SYMBOL.iter_unpack(self._content[index]):
                    text = names[name:].split(b"\0", 1)[0].decode()
                    symbols.append((text, info & 15, of, value, length))
        self._code = {index for index, each in enumerate(sections) if each[2] & _IS_EXECUTABLE}
        self.functions = [
            _Function(of, value, length, name)
            for name, kind, of, value, length in symbols
            if kind == _FUNCTION and of in self._code
        ]
        #: Sections and offsets of the symbols that instructions refer to, by their own place.
        self._referred = {
            (each[7], place): symbols[info >> 32][2:4]
            for index, each in enumerate(sections)
            if each[1] == _REL
            for place, info in _RELOCATION.iter_unpack(self._content[index])
        }

    def _instructions(self, function: _Function) -> Iterator[tuple[int, int, int, int, int, int]]:
        code = self._content[function.section]
        at = function.start
        while at < function.start + function.size:
            opcode, registers, offset, number = _INSTRUCTION.unpack_from(code, at)
            yield at, opcode, registers & 15, registers >> 4, offset, number
            at += 16 if opcode == _WIDE else 8

    def frame(self, function: _Function) -> int:
        """Return the bytes of a function's stack frame."""
        lowest = 0
        pointers = {_FRAME_POINTER: 0}
        for _, opcode, to, source, offset, number in self._instructions(function):
            kind = opcode & 7
            base = source if kind == _LOAD else to
            if kind in {_LOAD, _STORE, _STORE_REGISTER} and base in pointers:
                lowest = min(lowest, pointers[base] + offset)
            if opcode == _MOVE_REGISTER and source in pointers:
                pointers[to] = pointers[source]
            elif opcode == _ADD and to in pointers:
                pointers[to] += number
                lowest = min(lowest, pointers[to])
            elif kind not in {_STORE, _STORE_REGISTER} and to != _FRAME_POINTER:
                pointers.pop(to, None)
        return -lowest

    def called(self, function: _Function) -> Iterator[_Function]:
        """Yield the functions of the object that a function calls, or lets the kernel call."""
        for at, opcode, _, source, _, number in self._instructions(function):
            referred = self._referred.get((function.section, at))
            if opcode == _CALL and source == _OF_PROGRAM:
                section, start = referred or (function.section, at)
                if section != _UNDEFINED:  # a function of the kernel
                    yield self._at(section, start + 8 * (number + 1))
            elif opcode == _WIDE and referred is not None and referred[0] in self._code:
                yield self._at(referred[0], referred[1] + number)  # for bpf_loop()

    def _at(self, section: int, start: int) -> _Function:
        return next(each for each in self.functions if each[:2] == (section, start))

    def deepest(self, function: _Function) -> int:
        """Return the bytes of the deepest stack below a call of a function, with its frame."""
        below = max(map(self.deepest, self.called(function)), default=0)
        frame = max(self.frame(function), 1)
        return below + frame + -frame % _ROUNDING


def depths(content: bytes) -> dict[str, int]:
    """Return the deepest stack of each function of an object file, in bytes."""
    found = _Object(content)
    return {each.name: found.deepest(each) for each in found.functions}
