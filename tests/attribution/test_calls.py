"""Who sent a packet is said where nobody else can have; and with short delays mostly."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ocsf_nft.attribution import calls
from ocsf_nft.attribution.calls import Calls, Moment
from tests.attribution.calling import (
    BOOTED_NS,
    ICMP,
    PLACES,
    PORTS,
    SECOND,
    TCP,
    UDP,
    Kernel,
    call,
    image,
    record,
)

if TYPE_CHECKING:
    from ocsf_nft.attribution.calls import Match
    from ocsf_nft.record import Verdict

PROCESSES: Final = 3
#: So long, at most, nobody does anything.
_GAPS: Final = (1_000, 1_000_000, 100_000_000, SECOND // 3, 2 * SECOND)


#: The same once, or so often that it is silent for a while.
_TIMES: Final = (1, 1, 1, 12)


class Deed(NamedTuple):
    """What somebody does, by which socket or port, where to, and how long he waits before it."""

    what: str
    by: int = 0
    which: int = 0
    place: int = 0
    gap: int = 0


_WHATS: Final = (
    "open UDP", "open TCP", "give", "connect", "send", "send", "send to", "send to", "send again",
    "send raw", "ping", "send a frame", "go on", "close", "lose", "read", "read", "wait",
)  # fmt: skip
DEEDS: Final = st.builds(
    Deed,
    what=st.sampled_from(_WHATS),
    by=st.integers(0, PROCESSES - 1),
    which=st.integers(0, 3),
    place=st.integers(0, len(PLACES) - 1),
    gap=st.sampled_from([0, 0, 0, *range(len(_GAPS))]),
)


def do(kernel: Kernel, deed: Deed) -> None:
    kernel.wait(_GAPS[deed.gap])
    mine = [each for each in kernel.sockets if deed.by in each.holders]
    sock = mine[deed.which % len(mine)] if mine else None
    match deed.what:
        case "open UDP":
            kernel.open(deed.by, UDP, PORTS[deed.which % len(PORTS)])
        case "open TCP":
            opened = kernel.open(deed.by, TCP, PORTS[deed.which % len(PORTS)])
            if opened is not None:
                kernel.connect(opened, deed.by, deed.place)
        case "give" if sock is not None:
            sock.holders.add(deed.place % PROCESSES)
        case "connect" if sock is not None and sock.protocol == UDP:
            kernel.connect(sock, deed.by, deed.place)
        case "send" | "send to" if sock is not None and sock.protocol == UDP:
            for _ in range(_TIMES[deed.which]):
                kernel.send(sock, deed.by, deed.place if deed.what == "send to" else None)
        case "send again" if sock is not None and sock.protocol == TCP:
            kernel.send_again(sock, deed.by)
        case "send raw" if kernel.is_seen:
            kernel.send_raw(deed.by, TCP, PORTS[deed.which % len(PORTS)], deed.place)
        case "ping":
            for _ in range(_TIMES[deed.which]):
                kernel.send_raw(deed.by, ICMP, 0, deed.place)
        case "send a frame":
            kernel.send_frame(deed.by)
        case "go on":
            kernel.go_on(deed.which)
        case "close" if sock is not None:
            kernel.close(sock)
        case "lose":
            kernel.loses += _TIMES[deed.which]


class Reader:
    """Reads what a kernel has logged, and holds what is said of it to what it was."""

    def __init__(self, kernel: Kernel, *, knows_types: bool = True) -> None:
        self.kernel = kernel
        self.calls = Calls(sees_refusals=knows_types)
        self.sure = self.packets = 0

    def read(self, most: int) -> None:
        sent = self.kernel.read(most)
        for event in self.kernel.told:
            self.calls.add(event)
        self.kernel.told.clear()
        if self.kernel.has_lost:
            self.calls.lose(self.kernel.now_ns)
            self.kernel.has_lost = False
        records = [each.record for each in sent]
        moments = self.calls.moments(records, BOOTED_NS, self.kernel.now_ns)
        for each, moment in zip(sent, moments, strict=True):
            assert moment.since_ns <= each.time_ns <= moment.until_ns
            match = self.calls.match(each.record, moment)
            self.packets += 1
            if match is not None and match.is_sender:
                images = [one.image for one in match.calls]
                assert image(each.by) in images
                self.sure += len(images) == 1

    def follow(self, deeds: list[Deed]) -> None:
        for deed in deeds:
            do(self.kernel, deed)
            while self.kernel.is_late:
                self.read(1)
            if deed.what == "read":
                self.read(1 + deed.which)
        self.read(len(self.kernel.logged))


@settings(max_examples=2000)
@given(deeds=st.lists(DEEDS, max_size=60))
def test_who_is_said_to_have_sent_it_has_sent_it(deeds: list[Deed]) -> None:
    Reader(Kernel()).follow(deeds)


@settings(max_examples=1000)
@given(deeds=st.lists(DEEDS, max_size=60))
def test_so_it_is_where_calls_were_forgotten(deeds: list[Deed]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "_KEPT", 4)
        Reader(Kernel()).follow(deeds)


@settings(max_examples=1000)
@given(
    deeds=st.lists(DEEDS, max_size=60),
    way=st.sampled_from([(False, None), (True, "permit"), (False, "permit")]),
)
def test_so_it_is_where_what_is_refused_is_not_told_of(
    deeds: list[Deed], way: tuple[bool, Verdict | None]
) -> None:
    knows_types, verdict = way
    Reader(Kernel(is_seen=False, verdict=verdict), knows_types=knows_types).follow(deeds)
