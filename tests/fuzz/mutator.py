"""Deterministic generator of hostile inputs: mutations of seeds.

Each input is a function of the target, the seed of the campaign, and its number. So any of 100
million inputs is made again from three values, on any machine.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fuzz.parts import Part

#: Inputs of one random state: to make one input again, at most these are generated.
BLOCK: Final = 1024
#: Parents of a block that are mutated seeds: their parts are those of hostile inputs.
_EVOLVED: Final = 12
_EVOLVED_CHANGES: Final = 3
#: Share of inputs with such a parent.
_EVOLVED_SHARE: Final = 0.25
#: Share of inputs that grow to the limit of the target, for faults of time and memory.
_LARGE: Final = 0.002
_NUMBERS: Final = tuple(
    each
    for bits in (8, 16, 32, 64)
    for each in (
        b"\0" * (bits // 8),
        *(
            number.to_bytes(bits // 8, order)
            for number in (
                1,
                2,
                3,
                4,
                5,
                7,
                8,
                16,
                20,
                28,
                40,
                (1 << bits - 1) - 1,
                1 << bits - 1,
                (1 << bits - 1) + 1,
                (1 << bits) - 4,
                (1 << bits) - 2,
                (1 << bits) - 1,
            )
            for order in ("little", "big")
        ),
    )
)
_LENGTHS: Final = {2: struct.Struct("=H"), 4: struct.Struct("=I")}


class Mutator:
    """Generator of hostile inputs from the seeds of one target.

    ``parts`` splits an input into parts. ``hostile`` are values to put in their place. No input is
    longer than ``limit`` bytes.
    """

    def __init__(
        self,
        seeds: Sequence[bytes],
        parts: Callable[[bytes], Sequence[Part]],
        hostile: Sequence[bytes],
        limit: int,
    ) -> None:
        self._seeds = [(seed, parts(seed)) for seed in seeds]
        self._parts = parts
        self._hostile = (*hostile, b"", b"\0", b"\xff\xff\xff\xff", b"A" * 300)
        self._limit = limit

    def inputs(self, state: str) -> Iterator[bytes]:
        """Yield the inputs of a block, whose random state is ``state``."""
        rng = random.Random(state)
        number = rng.random
        evolved = []
        for _ in range(_EVOLVED):
            data = self._mutated(self._seeds, self._seeds, number)
            for _ in range(int(number() * _EVOLVED_CHANGES)):
                data = self._mutated([(data, self._parts(data))], self._seeds, number)
            evolved.append((data, self._parts(data)))
        parents = self._seeds + evolved
        for _ in range(BLOCK):
            chosen = evolved if number() < _EVOLVED_SHARE else self._seeds
            yield self._mutated(chosen, parents, number)

    def _mutated(
        self,
        parents: list[tuple[bytes, Sequence[Part]]],
        others: list[tuple[bytes, Sequence[Part]]],
        number: Callable[[], float],
    ) -> bytes:
        parent, parts = parents[int(number() * len(parents))]
        data = bytearray(parent)
        choice = number()
        if parts and choice < 0.7:
            self._change_part(data, parts, others, number)
            changes = 0 if choice < 0.5 else 1
        else:
            changes = 1 + int(number() * 2.5)
        for _ in range(changes):
            self._change_bytes(data, others, number)
        if number() < _LARGE and data:
            self._enlarge(data, number)
        del data[self._limit :]
        return bytes(data)

    def _change_part(
        self,
        data: bytearray,
        parts: Sequence[Part],
        others: list[tuple[bytes, Sequence[Part]]],
        number: Callable[[], float],
    ) -> None:
        """Replace, repeat or remove a part; most times, correct the lengths around it."""
        start, end, lengths, is_item = parts[int(number() * len(parts))]
        choice = number()
        if choice < 0.35 and not is_item:
            new = self._hostile[int(number() * len(self._hostile))]
        elif choice < 0.6:
            other, its_parts = others[int(number() * len(others))]
            if not its_parts:
                return
            part = its_parts[int(number() * len(its_parts))]
            if part.is_item is not is_item:
                return
            new = other[part.start : part.end]
        elif choice < 0.75:
            new = bytes(data[start:end]) * (2 + int(number() * 3))
        elif choice < 0.9:
            new = b""
        else:  # the part without its end
            new = bytes(data[start : start + int(number() * (end - start))])
        data[start:end] = new
        if lengths and number() < 0.85:
            added = len(new) - (end - start)
            for at, size in lengths:
                form = _LENGTHS[size]
                (length,) = form.unpack_from(data, at)
                form.pack_into(data, at, (length + added) & ((1 << 8 * size) - 1))

    def _change_bytes(
        self,
        data: bytearray,
        others: list[tuple[bytes, Sequence[Part]]],
        number: Callable[[], float],
    ) -> None:
        size = len(data)
        choice = number()
        at = int(number() * size)
        if choice < 0.25 and size:
            data[at] ^= 1 << int(number() * 8)
        elif choice < 0.4 and size:
            data[at] = int(number() * 256)
        elif choice < 0.6:
            new = _NUMBERS[int(number() * len(_NUMBERS))]
            data[at : at + len(new)] = new
        elif choice < 0.7:
            data[at:at] = self._hostile[int(number() * len(self._hostile))]
        elif choice < 0.78:
            del data[at : at + 1 + int(number() * 16)]
        elif choice < 0.86:
            data[at:at] = data[at : at + 1 + int(number() * 64)]
        elif choice < 0.93:
            del data[at:]
        else:
            other, _ = others[int(number() * len(others))]
            data[at:] = other[int(number() * len(other)) :]

    def _enlarge(self, data: bytearray, number: Callable[[], float]) -> None:
        """Repeat a part of the input up to the limit, or to a part of it."""
        at = int(number() * len(data))
        piece = bytes(data[at : at + 1 + int(number() * 64)])
        room = int((self._limit - len(data)) * number())
        if room > 0:
            data[at:at] = piece * (room // len(piece))
