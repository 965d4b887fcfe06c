"""Tests of the selection of records in a log of several firewalls, and of messages of programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.record import Record, Reject
from ocsf_nft.sources import kmsg_line
from ocsf_nft.sources.journal.kernel import KernelEntry, KernelEntryParser, message_filter
from ocsf_nft.sources.kernel_message import PrefixFilter
from ocsf_nft.sources.kmsg import Kmsg
from tests import strategies
from tests.sources.replaying import MESSAGE, entry, rejected

PACKET = (
    "IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=29 TOS=0x00 PREC=0x00 TTL=64 ID=48411 DF "
    "PROTO=UDP SPT=54301 DPT=53 LEN=9 UID=0 GID=0 "
)
FOREIGN = Prefixes([Configured(begins="MYFW ", verdict="drop")])

#: Function that reads a message with a facility, as a source of the sandboxes and foreign prefixes.
Read: TypeAlias = Callable[
    [str, int, frozenset[str] | None, Prefixes | None], Record | Reject | None
]


def _in_kernel_log(
    message: str, facility: int, sandboxes: frozenset[str] | None, foreign: Prefixes | None
) -> Record | Reject | None:
    raw = f"{facility << 3 | 4},7,1000,-;{message}\n".encode()
    line = kmsg_line.parse(raw)
    assert line is not None
    return Kmsg(sandboxes, foreign=foreign)._read_line(line, raw, 0, 0)


def _in_journal(
    message: str, facility: int, sandboxes: frozenset[str] | None, foreign: Prefixes | None
) -> Record | Reject | None:
    entry = KernelEntry(
        cursor="c",
        boot="b",
        realtime_us=1,
        monotonic_us=1,
        message=message.encode(),
        transport=b"kernel",
        facility=str(facility).encode(),
        source_us=None,
    )
    chosen = PrefixFilter(sandboxes, foreign)
    found = KernelEntryParser(chosen).parse(entry, 0)
    assert message_filter(chosen)(entry.message) or found is None
    assert isinstance(found, Record | Reject | None)
    return found


@pytest.fixture(params=[_in_kernel_log, _in_journal])
def read(request: pytest.FixtureRequest) -> Read:
    chosen: Read = request.param
    return chosen


@pytest.mark.parametrize(
    "prefix",
    ["[UFW BLOCK] ", "filter_IN_public_REJECT: ", "DROP: ", "openshell:bypass:sb:", "MYFW "],
)
def test_prefix_filter_selects_foreign_records_only_if_configured(read: Read, prefix: str) -> None:
    found = read(prefix + PACKET, 0, frozenset({"sb"}), FOREIGN)
    assert isinstance(found, Record)
    # A later stage finds its sandbox; here it has none.
    assert (found.prefix, found.sandbox, found.destination_port) == (prefix, None, 53)
    assert read(prefix + PACKET, 0, frozenset({"sb"}), None) is None
    assert read(prefix + PACKET, 0, None, None) is None


@pytest.mark.parametrize(
    "message",
    [
        f"something else: {PACKET}",
        PACKET,
        "[UFW BLOCK] and no record",
        "usb 1-1: DROP: new device",
        f"ocsf-nft:other:egress:{PACKET}",
        f"ocsf-nft:DROP:egress:{PACKET}",
        f"ocsf-nft:[UFW BLOCK] {PACKET}",
        f"ocsf-nft:other:egress:IN= OUT= [UFW BLOCK] {PACKET}",
        f"{'x' * 200}[UFW BLOCK] {PACKET}",
    ],
)
def test_prefix_filter_skips_unknown_prefixes_and_other_sandboxes(read: Read, message: str) -> None:
    assert read(message, 0, frozenset({"sb"}), FOREIGN) is None
    assert read(message, 1, frozenset({"sb"}), FOREIGN) is None


@pytest.mark.parametrize("prefix", ["[UFW BLOCK] ", "openshell:bypass:sb:", "MYFW "])
def test_foreign_record_that_a_program_wrote_is_forged(read: Read, prefix: str) -> None:
    found = read(prefix + PACKET, 1, frozenset(), FOREIGN)
    assert isinstance(found, Reject)
    assert found.kind == "forged"


def test_foreign_record_that_can_not_be_parsed_is_malformed(read: Read) -> None:
    found = read("[UFW BLOCK] IN= OUT=sb0 SRC=nowhere DST=203.0.113.7 ", 0, frozenset(), FOREIGN)
    assert isinstance(found, Reject)
    assert found.kind == "malformed"


def test_prefix_filter_skips_a_record_that_only_begins_like_a_known_one(read: Read) -> None:
    message = f"calico-packet: IN= OUT= mine {PACKET}"
    assert PrefixFilter(frozenset(), FOREIGN).matches(message)
    assert read(message, 0, frozenset(), FOREIGN) is None


def test_prefix_filter_with_foreign_prefixes_still_selects_our_records(read: Read) -> None:
    found = read(f"ocsf-nft:sb:egress:{PACKET}", 0, frozenset({"sb"}), FOREIGN)
    assert isinstance(found, Record)
    assert (found.sandbox, found.rule, found.verdict) == ("sb", "egress", None)
    forged = read(f"ocsf-nft:sb:egress:{PACKET}", 1, frozenset({"sb"}), FOREIGN)
    assert isinstance(forged, Reject)


@given(strategies.HOSTILE_TEXT.map(lambda text: text.replace("\n", "")), st.booleans())
@example("IN=" * 3_000, True)
@example("IN= OUT=" * 1_000, True)
@example("DROP IN=" + "x" * 8_000, True)
def test_prefix_filter_is_fast_and_never_raises_on_hostile_messages(
    text: str, is_first: bool
) -> None:
    message = f"{text}{PACKET}" if is_first else f"{PACKET}{text}"
    started = time.thread_time()
    chosen = PrefixFilter(frozenset({"sb"}), FOREIGN)
    for _ in range(3):
        chosen.matches(message)
    assert time.thread_time() - started < 0.1


def test_forged_reason_is_the_same_on_every_transport() -> None:
    replayed = [
        rejected(line)
        for line in (
            f"9,1,2,-;{MESSAGE}",
            json.dumps(entry(SYSLOG_FACILITY="1")),
            f"<9>[    1.000000] {MESSAGE}",
            f"<9>Nov 24 15:05:55 host kernel: {MESSAGE}",
        )
    ]
    live = [read(MESSAGE, 1, None, None) for read in (_in_kernel_log, _in_journal)]
    for found in [*live, *replayed]:
        assert isinstance(found, Reject)
        assert found.kind == "forged"
        assert found.reason == "a program of facility 1 wrote it, not the kernel"
    for line in (
        f"user  :notice: [    1.0] {MESSAGE}",
        f"Nov 24 15:05:55 h user.info x: {MESSAGE}",
    ):
        assert rejected(line).reason == "a program of facility user wrote it, not the kernel"
