"""Tests of the rejection of messages that a program wrote, on every transport."""

from __future__ import annotations

import json

from ocsf_nft.record import Reject
from ocsf_nft.sources.journal.kernel import KernelEntry, KernelEntryParser
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.prefix_filter import PrefixFilter
from tests.sources.replaying import MESSAGE, entry, rejected

RAW = f"9,1,2,-;{MESSAGE}"


def _read_live() -> list[object]:
    line = kmsg_line.parse(RAW.encode())
    assert line is not None
    in_journal = KernelEntry(
        cursor="c",
        boot="b",
        realtime_us=1,
        monotonic_us=1,
        message=MESSAGE.encode(),
        transport=b"kernel",
        facility=b"1",
        source_us=None,
    )
    return [
        Kmsg()._read_line(line, RAW.encode(), 0, 0),
        KernelEntryParser(PrefixFilter()).parse(in_journal, 0),
    ]


def test_forged_reason_is_the_same_on_every_transport() -> None:
    replayed = [
        rejected(line)
        for line in (
            RAW,
            json.dumps(entry(SYSLOG_FACILITY="1")),
            f"<9>[    1.000000] {MESSAGE}",
            f"<9>Nov 24 15:05:55 host kernel: {MESSAGE}",
        )
    ]
    for found in [*_read_live(), *replayed]:
        assert isinstance(found, Reject)
        assert found.kind == "forged"
        assert found.reason == "a program of facility 1 wrote it, not the kernel"
    for line in (
        f"user  :notice: [    1.0] {MESSAGE}",
        f"Nov 24 15:05:55 h user.info x: {MESSAGE}",
    ):
        assert rejected(line).reason == "a program of facility user wrote it, not the kernel"
