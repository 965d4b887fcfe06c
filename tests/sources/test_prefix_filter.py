"""What a source takes of a log that it shares with other firewalls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.record import Record, Reject
from ocsf_nft.sources.journal.kernel import KernelEntries, KernelEntry, worth_reading
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.kmsg import line as kmsg_line
from ocsf_nft.sources.prefix_filter import Wanted
from tests import strategies

PACKET = (
    "IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=29 TOS=0x00 PREC=0x00 TTL=64 ID=48411 DF "
    "PROTO=UDP SPT=54301 DPT=53 LEN=9 UID=0 GID=0 "
)
FOREIGN = Prefixes([Configured(begins="MYFW ", verdict="drop")])

#: A message and its facility, read by a source of the sandboxes, with or without the foreign ones.
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
    wanted = Wanted(sandboxes, foreign)
    found = KernelEntries(wanted).read(entry, 0)
    assert worth_reading(wanted)(entry.message) or found is None
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
def test_a_known_foreign_record_is_taken_where_it_is_asked_for(read: Read, prefix: str) -> None:
    found = read(prefix + PACKET, 0, frozenset({"sb"}), FOREIGN)
    assert isinstance(found, Record)
    # Which sandbox it tells is for later: here it is nobody's.
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
def test_what_nobody_knows_and_what_is_another_sandboxes_is_passed_over(
    read: Read, message: str
) -> None:
    assert read(message, 0, frozenset({"sb"}), FOREIGN) is None
    assert read(message, 1, frozenset({"sb"}), FOREIGN) is None


@pytest.mark.parametrize("prefix", ["[UFW BLOCK] ", "openshell:bypass:sb:", "MYFW "])
def test_a_foreign_record_that_a_program_wrote_is_a_forgery(read: Read, prefix: str) -> None:
    found = read(prefix + PACKET, 1, frozenset(), FOREIGN)
    assert isinstance(found, Reject)
    assert found.kind == "forged"


def test_a_foreign_record_that_can_not_be_read_is_a_reject(read: Read) -> None:
    found = read("[UFW BLOCK] IN= OUT=sb0 SRC=nowhere DST=203.0.113.7 ", 0, frozenset(), FOREIGN)
    assert isinstance(found, Reject)
    assert found.kind == "malformed"


def test_a_record_that_only_begins_like_a_known_one_is_passed_over(read: Read) -> None:
    message = f"calico-packet: IN= OUT= mine {PACKET}"
    assert Wanted(frozenset(), FOREIGN).claims(message)
    assert read(message, 0, frozenset(), FOREIGN) is None


def test_ours_are_read_as_ever_next_to_the_foreign_ones(read: Read) -> None:
    found = read(f"ocsf-nft:sb:egress:{PACKET}", 0, frozenset({"sb"}), FOREIGN)
    assert isinstance(found, Record)
    assert (found.sandbox, found.rule, found.verdict) == ("sb", "egress", None)
    forged = read(f"ocsf-nft:sb:egress:{PACKET}", 1, frozenset({"sb"}), FOREIGN)
    assert isinstance(forged, Reject)


@given(strategies.HOSTILE_TEXT.map(lambda text: text.replace("\n", "")), st.booleans())
@example("IN=" * 3_000, True)
@example("IN= OUT=" * 1_000, True)
@example("DROP IN=" + "x" * 8_000, True)
def test_a_hostile_message_is_judged_in_no_time_and_never_raises(text: str, is_first: bool) -> None:
    message = f"{text}{PACKET}" if is_first else f"{PACKET}{text}"
    begun = time.thread_time()
    wanted = Wanted(frozenset({"sb"}), FOREIGN)
    for _ in range(3):
        wanted.claims(message)
    assert time.thread_time() - begun < 0.1
