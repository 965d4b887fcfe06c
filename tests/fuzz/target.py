"""Target of the fuzz campaign: a parser, its seeds, and the errors that it documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from tests.fuzz.mutator import BLOCK, Mutator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fuzz.parts import Part

#: Values that parsers of text, JSON and numbers have failed on, in any program.
HOSTILE_TEXT: Final = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"18446744073709551616",
    b"4294967296",
    b"65536",
    b"\x1b[2J",
    b"\xe2\x80\xae",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92\xa9",
    b"\r\n",
    b"\n",
    b'"',
    b"\\",
    b"'",
    b" ",
    b"\t",
    b"\0",
    b"%s%n",
    b"../../../etc/passwd",
    b"$(id)",
    b";",
    b"\xd9\xa3\xd9\xa4",  # digits that are no ASCII
)
HOSTILE_JSON: Final = (
    b"null",
    b"true",
    b"false",
    b"[]",
    b"{}",
    b'""',
    b"0",
    b"-1",
    b"0.5",
    b"1e999",
    b"-0",
    b"1e-9",
    b"NaN",
    b"Infinity",
    b"9223372036854775808",
    b"18446744073709551616",
    b"9" * 400,
    b"1" + b"0" * 5000,
    b"[" * 200 + b"]" * 200,
    b"[" * 60_000,
    b'{"a":' * 12_000,
    b'{"a":' * 50 + b"1" + b"}" * 50,
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\x1b[2J"',
    b'"\\u202e"',
    b'"' + b"A" * 2000 + b'"',
    b'["a"]',
    b'{"a":1}',
    b"[null]",
    b"[[]]",
    b'"0"',
    b'"\xff"',
    b'"\xc3\xa9"',
    b'"1e999"',
    b'"::1%eth0"',
    b'"../.."',
)


class BrokenError(AssertionError):
    """Error: the result of a parser is not what its description promises."""


def require(condition: object, sentence: str) -> None:
    """Raise BrokenError if a property of a result does not hold."""
    if not condition:
        raise BrokenError(sentence)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Parser of hostile bytes.

    ``parse`` gets one input. It may raise the ``documented`` errors only. It must end within a
    second of processor time. ``share`` is the relative number of inputs in a campaign.
    """

    name: str
    parse: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    parts: Callable[[bytes], Sequence[Part]]
    documented: tuple[type[Exception], ...] = ()
    hostile: tuple[bytes, ...] = ()
    #: Maximum size of an input: about that of the real source.
    limit: int = 8192
    share: float = 1.0

    def block(self, campaign: int, block: int) -> Iterator[bytes]:
        """Yield the inputs of a block of the campaign with this seed."""
        yield from self._mutator.inputs(f"{campaign}/{self.name}/{block}")

    def input(self, campaign: int, number: int) -> bytes:
        """Return the input with a number."""
        block, position = divmod(number, BLOCK)
        for at, data in enumerate(self.block(campaign, block)):
            if at == position:
                return data
        raise IndexError(number)

    @cached_property
    def _mutator(self) -> Mutator:
        return Mutator(self.seeds(), self.parts, self.hostile, self.limit)
