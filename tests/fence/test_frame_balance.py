"""Comparison of sent frames with those that passed the fence: a model drives it at random."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ocsf_nft.fence.frame_balance import FrameBalance, FrameReading
from ocsf_nft.flow import Count

_BYTES = 60


def _count(frames: int) -> Count:
    return Count(frames, frames * _BYTES)


@dataclass
class _Kernel:
    """Counters of a fence and of its uplink: ``passed`` frames are sent, dropped or in flight."""

    passed: int = 0
    sent: int = 0
    in_flight: int = 0
    #: Those of ``in_flight`` that were in flight at the reading before: sent before the next one.
    waiting: int = 0
    epoch: int = 1
    #: Frames that pass and are sent while a reading is made.
    meanwhile: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def read(self) -> FrameReading:
        self.send(self.waiting)
        before = self.passed
        self._go_on(0)
        sent = self.sent
        self._go_on(2)
        self.waiting = self.in_flight
        return FrameReading((self.epoch,), _count(before), _count(sent), _count(self.passed))

    def _go_on(self, at: int) -> None:
        self.let_pass(self.meanwhile[at])
        self.send(self.meanwhile[at + 1])

    def let_pass(self, frames: int) -> None:
        frames = min(frames, 256 - self.in_flight)
        self.passed += frames
        self.in_flight += frames

    def send(self, frames: int) -> None:
        frames = min(frames, self.in_flight)
        self.drop(frames)
        self.sent += frames

    def drop(self, frames: int) -> None:
        self.in_flight = max(0, self.in_flight - frames)
        self.waiting = max(0, self.waiting - frames)


class _Machine(RuleBasedStateMachine):
    """Ordinary traffic, with frames that bypass the fence among it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = _Kernel()
        self.balance = FrameBalance()
        self.reported = 0
        #: Frames that bypassed the fence while the balance was exact.
        self.bypassed = 0
        self.hidden = 0

    @initialize(frames=st.integers(0, 300))
    def begin_in_traffic(self, frames: int) -> None:
        self.kernel.let_pass(frames)
        self._observe()

    @rule(frames=st.integers(1, 300))
    def pass_frames(self, frames: int) -> None:
        self.kernel.let_pass(frames)

    @rule(frames=st.integers(1, 300))
    def send(self, frames: int) -> None:
        self.kernel.send(frames)

    @rule(frames=st.integers(1, 300))
    def drop(self, frames: int) -> None:
        self.kernel.drop(frames)

    @rule(frames=st.integers(1, 1000))
    def bypass(self, frames: int) -> None:
        self.kernel.sent += frames
        if self.balance.is_exact:
            self.bypassed += frames
        else:
            self.hidden += frames

    @rule(meanwhile=st.lists(st.integers(0, 50), min_size=4, max_size=4))
    def read(self, meanwhile: list[int]) -> None:
        self.kernel.meanwhile = meanwhile
        self._observe()

    def _observe(self) -> None:
        found = self.balance.observe(self.kernel.read())
        if found is not None:
            assert found.packets > 0
            assert found.bytes >= 0
            self.reported += found.packets

    @precondition(lambda self: not self.kernel.in_flight)
    @rule()
    def rest(self) -> None:
        self.kernel.meanwhile = [0, 0, 0, 0]
        self._observe()
        self._observe()
        assert self.balance.is_exact

    @invariant()
    def reports_no_ordinary_frame(self) -> None:
        assert self.reported <= self.bypassed + self.hidden


TestFrameBalance = _Machine.TestCase


@given(st.integers(0, 256), st.integers(1, 5), st.integers(0, 1000))
def test_balance_reports_each_frame_once_it_is_exact(
    in_flight: int, bypassed: int, passed: int
) -> None:
    kernel, balance = _Kernel(), FrameBalance()
    kernel.let_pass(in_flight)
    balance.observe(kernel.read())
    kernel.send(in_flight)
    balance.observe(kernel.read())
    balance.observe(kernel.read())
    assert balance.is_exact
    for _ in range(passed // 100):
        kernel.let_pass(100)
        kernel.send(100)
        assert balance.observe(kernel.read()) is None
    kernel.sent += bypassed
    assert balance.observe(kernel.read()) == (bypassed, bypassed * _BYTES)
    assert balance.observe(kernel.read()) is None


def test_balance_falls_with_dropped_frames_and_shows_the_next_bypass() -> None:
    kernel, balance = _Kernel(), FrameBalance()
    kernel.let_pass(10)
    kernel.in_flight = 0
    for _ in range(3):
        assert balance.observe(kernel.read()) is None
    kernel.sent += 1
    found = balance.observe(kernel.read())
    assert found is not None
    assert found.packets == 1


def test_balance_begins_again_with_new_counters() -> None:
    kernel, balance = _Kernel(), FrameBalance()
    for _ in range(2):
        balance.observe(kernel.read())
    kernel.sent += 1000
    kernel.epoch = 2
    assert balance.observe(kernel.read()) is None
    assert not balance.is_exact
    kernel.sent -= 500  # a lower number without a new epoch
    assert balance.observe(kernel.read()) is None
