"""Property tests: for any actions of a model kernel, the attributed sender is the right one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.attribution import refused_packets, send_calls
from ocsf_nft.attribution.bpf_capture import Call
from ocsf_nft.attribution.refused_packets import RefusedPackets
from ocsf_nft.attribution.send_calls import SendCalls
from tests.attribution.calling import (
    ICMP,
    PORTS,
    SECOND,
    TARGETS,
    TCP,
    UDP,
    Kernel,
    image,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attribution.calling import Socket

PROCESSES: Final = 3
#: Times without any action.
_GAPS: Final = (1_000, 1_000_000, 100_000_000, SECOND // 3, 2 * SECOND)
#: Numbers of repetitions: once, or so many that the kernel does not report all.
_TIMES: Final = (1, 1, 1, 12)


class Action(NamedTuple):
    """Action of a process: its kind, socket or port, target, and the wait before it."""

    kind: str
    by: int = 0
    which: int = 0
    target: int = 0
    gap: int = 0

    @property
    def port(self) -> int:
        return PORTS[self.which % len(PORTS)]

    @property
    def times(self) -> int:
        return _TIMES[self.which] if self.kind in _MANY else 1


_WITHOUT_SOCKET: Final[dict[str, Callable[[Kernel, Action], object]]] = {
    "open UDP": lambda kernel, action: kernel.open(action.by, UDP, action.port),
    "open UDP, shared": lambda kernel, action: kernel.open(
        action.by, UDP, action.port, shares=True
    ),
    "open TCP": lambda kernel, action: kernel.dial(action.by, action.port, action.target),
    "send raw": lambda kernel, action: kernel.send_raw(action.by, TCP, action.port, action.target),
    "ping": lambda kernel, action: kernel.send_raw(action.by, ICMP, 0, action.target),
    "send a frame": lambda kernel, action: kernel.send_frame(action.by),
    "go on": lambda kernel, action: kernel.go_on(action.which),
    "drop": lambda kernel, _action: kernel.drop_call(),
    "drop a log": lambda kernel, _action: kernel.skip_log(),
    "make unreadable": lambda kernel, _action: kernel.make_unreadable(),
    "read": lambda _kernel, _action: None,
}
_WITH_SOCKET: Final[dict[str, Callable[[Kernel, Action, Socket], object]]] = {
    "give": lambda _kernel, action, sock: sock.holders.add(action.target % PROCESSES),
    "connect": lambda kernel, action, sock: kernel.connect(sock, action.by, action.target),
    "disconnect": lambda kernel, _action, sock: kernel.disconnect(sock),
    "send": lambda kernel, action, sock: kernel.send(sock, action.by),
    "send to": lambda kernel, action, sock: kernel.send(sock, action.by, action.target),
    "send again": lambda kernel, action, sock: kernel.send_again(sock, action.by),
    "close": lambda kernel, _action, sock: kernel.close(sock),
}
#: Actions that are sometimes repeated.
_MANY: Final = frozenset({"send", "send to", "ping", "drop", "drop a log"})
_OFTEN: Final = ("send", "send to", "read", "read")
_KINDS: Final = (*_WITHOUT_SOCKET, *_WITH_SOCKET, *_OFTEN)
_GAP_NUMBERS: Final = (0, 0, 0, *range(len(_GAPS)))
ACTIONS: Final = st.builds(
    Action,
    kind=st.sampled_from(_KINDS),
    by=st.integers(0, PROCESSES - 1),
    which=st.integers(0, 3),
    target=st.integers(0, len(TARGETS) - 1),
    gap=st.sampled_from(_GAP_NUMBERS),
)


def perform(kernel: Kernel, action: Action) -> None:
    kernel.wait(_GAPS[action.gap])
    for _ in range(action.times):
        mine = [each for each in kernel.sockets if action.by in each.holders]
        if action.kind in _WITHOUT_SOCKET:
            _WITHOUT_SOCKET[action.kind](kernel, action)
        elif mine:
            _WITH_SOCKET[action.kind](kernel, action, mine[action.which % len(mine)])


class Reader:
    """Reader of a kernel's log that compares each attribution with the real sender."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.events: RefusedPackets | SendCalls = (
            RefusedPackets() if kernel.is_refused else SendCalls()
        )
        self.sure = self.packets = 0

    def read(self, most: int) -> None:
        sent = self.kernel.read(most)
        for event in self.kernel.events:
            if isinstance(event, Call):
                self.events.add(event)
            elif isinstance(self.events, SendCalls):
                self.events.mark_closed(event)
        self.kernel.events.clear()
        if self.kernel.has_dropped:
            self.events.note_dropped(self.kernel.now_ns)
            self.kernel.has_dropped = False
        logged = [each.logged for each in sent]
        for each, match in zip(sent, self.events.matches(logged), strict=True):
            self.packets += 1
            if match is not None and match.is_sender:
                images = [one.image for one in match.calls]
                assert image(each.by) in images
                self.sure += len(images) == 1

    def follow(self, actions: list[Action]) -> None:
        for action in actions:
            perform(self.kernel, action)
            while self.kernel.is_overdue:
                self.read(1)
            if action.kind == "read":
                self.read(1 + action.which)
        self.read(len(self.kernel.logged))


_MODES: Final[dict[str, dict[str, Any]]] = {
    "refusals": {},
    "refusals, by text": {"has_bytes": False},
    "calls": {"is_refused": False},
}


@settings(max_examples=200)
@given(actions=st.lists(ACTIONS, min_size=40, max_size=60), mode=st.sampled_from(list(_MODES)))
def test_attributed_sender_is_the_real_sender(actions: list[Action], mode: str) -> None:
    Reader(Kernel(**_MODES[mode])).follow(actions)


def _actions(chance: random.Random) -> list[Action]:
    return [
        Action(
            chance.choice(_KINDS),
            chance.randrange(PROCESSES),
            chance.randrange(4),
            chance.randrange(len(TARGETS)),
            chance.choice(_GAP_NUMBERS),
        )
        for _ in range(60)
    ]


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("stored", [4, 8192])
def test_attributed_sender_is_the_real_sender_for_any_table_size(
    mode: str, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random actions go further than Hypothesis, which searches for the smallest example."""
    monkeypatch.setattr(send_calls, "_MOST_STORED", stored)
    monkeypatch.setattr(refused_packets, "_MOST_STORED", stored)
    sure = 0
    for seed in range(500):
        reader = Reader(Kernel(**_MODES[mode]))
        reader.follow(_actions(random.Random(seed)))
        sure += reader.sure
    assert sure > 300


@pytest.mark.parametrize(
    ("protocol", "is_refused", "share"), [(TCP, True, 0.97), (TCP, False, 0.97), (UDP, True, 0.97)]
)
def test_most_senders_are_known_if_records_are_read_soon(
    protocol: int, share: float, *, is_refused: bool
) -> None:
    """A thousand processes; some have the same port soon after one another."""
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
