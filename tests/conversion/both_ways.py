"""Conversion of a log file with and without the library in C, whose results must be equal."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocsf_nft.conversion import log_file, native_library
from ocsf_nft.conversion.converter import Converter
from ocsf_nft.conversion.fast_path import FastPath
from ocsf_nft.conversion.log_file import GeneralConverter
from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.versions import STORED
from ocsf_nft.record import Reject
from ocsf_nft.sources.replay import LineTally, Reader
from tests.sources.replaying import BOOT_NS, UNSTAMPED_NS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.conversion.converter import Converted
    from ocsf_nft.conversion.native_library import Result

#: The only values in which both conversions may differ.
_TIMES: Final = re.compile(rb'("(?:logged|processed)_time"):[0-9]+')
_PREFIXES: Final = Prefixes([Configured(begins="fw:", verdict="drop", sandbox="s")])


@dataclass
class Output:
    """Result of a conversion."""

    events: bytes = b""
    rejects: list[Reject] = field(default_factory=list)
    tally: LineTally = field(default_factory=LineTally)


class CountingFastPath(FastPath):
    """Fast path that counts the records that the library converted."""

    records = 0

    def _count(self, result: Result) -> None:
        self.records += result.records
        super()._count(result)


class BothWays:
    """Two conversions of one file."""

    def __init__(
        self,
        *,
        context: Context | None = None,
        prefixes: Prefixes = _PREFIXES,
        version: str = STORED,
        selected: str = "",
    ) -> None:
        library = native_library.load_library()
        assert library is not None, "the library in C is not built: make .venv/ready"
        made = Converter(
            mapper=Mapper(context or Context()),
            prefixes=prefixes,
            version=version,
            selected=selected,
        )
        self.tallies = LineTally(), LineTally()
        make = [
            partial(Reader, boot_ns=BOOT_NS, unstamped_ns=UNSTAMPED_NS, tally=tally)
            for tally in self.tallies
        ]
        self.fast = CountingFastPath(library, made, make[0])
        other = replace(made, mapper=Mapper(context or Context()))
        self.general = GeneralConverter(other, make[1])

    def convert(self, chunks: Iterable[bytes]) -> Output:
        """Convert a whole file in both ways; return the result, which is the same."""
        every = list(chunks)
        return self._same(log_file.convert(every, self.fast), log_file.convert(every, self.general))

    def convert_lines(self, lines: bytes) -> Output:
        """Convert more lines of the file in both ways; return the result, which is the same."""
        return self._same(self.fast.convert(lines), self.general.convert(lines))

    def _same(self, found: Iterable[Converted], other: Iterable[Converted]) -> Output:
        fast, general = _output(found, self.tallies[0]), _output(other, self.tallies[1])
        if fast != general:
            pairs = zip(fast.events.splitlines(), general.events.splitlines(), strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), None)
            raise AssertionError(f"{first}\n{fast.tally}\n{general.tally}")
        return fast


def without_times(events: bytes) -> bytes:
    """Return events without the two times at which they are made."""
    return _TIMES.sub(rb"\1:0", events)


def _output(found: Iterable[Converted], tally: LineTally) -> Output:
    events, rejects = [], []
    for each in found:
        if isinstance(each, Reject):
            rejects.append(each)
        else:
            events.append(bytes(each))
    copy = replace(tally, rejected=Counter(tally.rejected))
    return Output(without_times(b"".join(events)), rejects, copy)
