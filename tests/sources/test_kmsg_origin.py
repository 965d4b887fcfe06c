"""What a program wrote is told in the same words, whichever way it was read."""

from __future__ import annotations

import json

from ocsf_nft.record import Reject
from ocsf_nft.sources.journal.kernel import KernelEntries, KernelEntry
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.prefix_filter import Wanted
from tests.sources.replaying import MESSAGE, entry, rejected

RAW = f"9,1,2,-;{MESSAGE}"


def _live() -> list[object]:
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
        KernelEntries(Wanted()).read(in_journal, 0),
    ]


def test_a_program_is_named_in_the_same_words_whichever_way_it_was_read() -> None:
    replayed = [
        rejected(line)
        for line in (
            RAW,
            json.dumps(entry(SYSLOG_FACILITY="1")),
            f"<9>[    1.000000] {MESSAGE}",
            f"<9>Nov 24 15:05:55 host kernel: {MESSAGE}",
        )
    ]
    for found in [*_live(), *replayed]:
        assert isinstance(found, Reject)
        assert found.kind == "forged"
        assert found.reason == "a program of facility 1 wrote it, not the kernel"
    for line in (
        f"user  :notice: [    1.0] {MESSAGE}",
        f"Nov 24 15:05:55 h user.info x: {MESSAGE}",
    ):
        assert rejected(line).reason == "a program of facility user wrote it, not the kernel"
