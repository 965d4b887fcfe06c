"""Of whatever is done, who is said to have sent a packet has sent it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.attribution import refused_packets, send_calls
from ocsf_nft.attribution.bpf_layout import Call
from ocsf_nft.attribution.refused_packets import Refusals
from ocsf_nft.attribution.send_calls import Calls
from tests.attribution.calling import (
    ICMP,
    PLACES,
    PORTS,
    SECOND,
    TCP,
    UDP,
    Kernel,
    image,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attribution.calling import Socket

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

    @property
    def port(self) -> int:
        return PORTS[self.which % len(PORTS)]

    @property
    def times(self) -> int:
        return _TIMES[self.which] if self.what in _MANY else 1


_BY_ITSELF: Final[dict[str, Callable[[Kernel, Deed], object]]] = {
    "open UDP": lambda kernel, deed: kernel.open(deed.by, UDP, deed.port),
    "open UDP, shared": lambda kernel, deed: kernel.open(deed.by, UDP, deed.port, shares=True),
    "open TCP": lambda kernel, deed: kernel.dial(deed.by, deed.port, deed.place),
    "send raw": lambda kernel, deed: kernel.send_raw(deed.by, TCP, deed.port, deed.place),
    "ping": lambda kernel, deed: kernel.send_raw(deed.by, ICMP, 0, deed.place),
    "send a frame": lambda kernel, deed: kernel.send_frame(deed.by),
    "go on": lambda kernel, deed: kernel.go_on(deed.which),
    "lose": lambda kernel, _deed: kernel.lose(),
    "lose a log": lambda kernel, _deed: kernel.lose_log(),
    "disguise": lambda kernel, _deed: kernel.disguise(),
    "read": lambda _kernel, _deed: None,
}
_BY_A_SOCKET: Final[dict[str, Callable[[Kernel, Deed, Socket], object]]] = {
    "give": lambda _kernel, deed, sock: sock.holders.add(deed.place % PROCESSES),
    "connect": lambda kernel, deed, sock: kernel.connect(sock, deed.by, deed.place),
    "disconnect": lambda kernel, _deed, sock: kernel.disconnect(sock),
    "send": lambda kernel, deed, sock: kernel.send(sock, deed.by),
    "send to": lambda kernel, deed, sock: kernel.send(sock, deed.by, deed.place),
    "send again": lambda kernel, deed, sock: kernel.send_again(sock, deed.by),
    "close": lambda kernel, _deed, sock: kernel.close(sock),
}
#: What is done several times now and then.
_MANY: Final = frozenset({"send", "send to", "ping", "lose", "lose a log"})
_OFTEN: Final = ("send", "send to", "read", "read")
_WHATS: Final = (*_BY_ITSELF, *_BY_A_SOCKET, *_OFTEN)
_GAP_NUMBERS: Final = (0, 0, 0, *range(len(_GAPS)))
DEEDS: Final = st.builds(
    Deed,
    what=st.sampled_from(_WHATS),
    by=st.integers(0, PROCESSES - 1),
    which=st.integers(0, 3),
    place=st.integers(0, len(PLACES) - 1),
    gap=st.sampled_from(_GAP_NUMBERS),
)


def do(kernel: Kernel, deed: Deed) -> None:
    kernel.wait(_GAPS[deed.gap])
    for _ in range(deed.times):
        mine = [each for each in kernel.sockets if deed.by in each.holders]
        if deed.what in _BY_ITSELF:
            _BY_ITSELF[deed.what](kernel, deed)
        elif mine:
            _BY_A_SOCKET[deed.what](kernel, deed, mine[deed.which % len(mine)])


class Reader:
    """Reads what a kernel has logged, and holds what is said of it to what it was."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.told: Refusals | Calls = Refusals() if kernel.is_refused else Calls()
        self.sure = self.packets = 0

    def read(self, most: int) -> None:
        sent = self.kernel.read(most)
        for event in self.kernel.told:
            if isinstance(event, Call):
                self.told.add(event)
            elif isinstance(self.told, Calls):
                self.told.close(event)
        self.kernel.told.clear()
        if self.kernel.has_lost:
            self.told.lose(self.kernel.now_ns)
            self.kernel.has_lost = False
        logged = [each.logged for each in sent]
        for each, match in zip(sent, self.told.matches(logged), strict=True):
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


_WAYS: Final[dict[str, dict[str, Any]]] = {
    "refusals": {},
    "refusals, by text": {"has_bytes": False},
    "calls": {"is_refused": False},
}


@settings(max_examples=200)
@given(deeds=st.lists(DEEDS, min_size=40, max_size=60), way=st.sampled_from(list(_WAYS)))
def test_who_is_said_to_have_sent_it_has_sent_it(deeds: list[Deed], way: str) -> None:
    Reader(Kernel(**_WAYS[way])).follow(deeds)


def _deeds(chance: random.Random) -> list[Deed]:
    return [
        Deed(
            chance.choice(_WHATS),
            chance.randrange(PROCESSES),
            chance.randrange(4),
            chance.randrange(len(PLACES)),
            chance.choice(_GAP_NUMBERS),
        )
        for _ in range(60)
    ]


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("kept", [4, 8192])
def test_so_it_is_whatever_is_done_and_however_much_is_forgotten(
    way: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same by chance alone, which goes further than what looks for the smallest example."""
    monkeypatch.setattr(send_calls, "_KEPT", kept)
    monkeypatch.setattr(refused_packets, "_KEPT", kept)
    sure = 0
    for seed in range(500):
        reader = Reader(Kernel(**_WAYS[way]))
        reader.follow(_deeds(random.Random(seed)))
        sure += reader.sure
    assert sure > 300


@pytest.mark.parametrize(
    ("protocol", "is_refused", "share"), [(TCP, True, 0.97), (TCP, False, 0.97), (UDP, True, 0.97)]
)
def test_of_those_that_are_read_soon_most_are_known(
    protocol: int, share: float, *, is_refused: bool
) -> None:
    """A thousand processes, some of which have the same port soon after one another."""
    reader, chance = Reader(Kernel(is_refused=is_refused)), random.Random(protocol)
    for number in range(1000):
        port, is_connected = chance.randrange(1, 200), chance.random() < 0.5
        if protocol == TCP:
            sock = reader.kernel.dial(number, port, 0)
        else:
            sock = reader.kernel.open(number, UDP, port)
        if sock is None:
            continue
        if is_connected:
            reader.kernel.connect(sock, number, 0)
        reader.kernel.send(sock, number, None if is_connected else 0)
        while reader.kernel.pending:
            reader.kernel.go_on(0)
        reader.kernel.close(sock)
        reader.kernel.wait(chance.randrange(2_000_000))
        if len(reader.kernel.logged) > chance.randrange(8):
            reader.read(8)
    reader.read(8)
    assert reader.sure >= share * reader.packets > 900 * share
