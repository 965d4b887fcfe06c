"""Fake BPF programs, whose events a test provides."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ocsf_nft.attribution.bpf_capture import Dropped
from ocsf_nft.errors import UnsupportedError
from tests.attribution.calling import NETNS, call, record

if TYPE_CHECKING:
    from ocsf_nft.attribution.bpf_capture import Call, CaptureEvent
    from ocsf_nft.record import Record

#: Another watched namespace.
OTHER = NETNS + 1


@dataclass
class Programs:
    """Replacement of a Capture: each read returns one of ``readings``."""

    readings: list[list[CaptureEvent]] = field(default_factory=list)
    drops: Dropped = field(default_factory=lambda: Dropped(0, 0))
    fault: str | None = None
    is_endless: bool = False
    #: Whether refused packets are reported, and not calls.
    reports_refused: bool = True
    watched: set[int] = field(default_factory=set)
    described_again: list[int] = field(default_factory=list)
    is_closed: bool = False
    descriptor: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK))

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)

    def watch(self, netns: int, *, is_permissive: bool = False) -> bool:
        self.watched.add(netns)
        return self.reports_refused and not is_permissive

    def unwatch(self, netns: int) -> None:
        self.watched.discard(netns)

    def describe_again(self, pid: int) -> None:
        self.described_again.append(pid)

    def read(self) -> tuple[list[CaptureEvent], bool]:
        self.check()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        if self.is_endless:
            return [call_now(9, socket=9, source_port=9)], True
        return self.readings.pop(0) if self.readings else [], bool(self.readings)

    def dropped(self) -> Dropped:
        return self.drops

    def check(self) -> None:
        if self.fault is not None:
            raise UnsupportedError(self.fault)

    def close(self) -> None:
        self.is_closed = True


def call_now(by: int, **facts: Any) -> Call:
    """Return a call made now."""
    return call(by, time.clock_gettime_ns(time.CLOCK_BOOTTIME), **facts)


def record_now(**facts: Any) -> Record:
    """Return a record read now."""
    now_ns = time.time_ns()
    return record(0, **({"time_ns": now_ns, "received_ns": now_ns} | facts))
