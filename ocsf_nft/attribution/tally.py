"""Which processes were seen to try one flow, for what is told of many packets together."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ocsf_nft.attribution.layout import Call, Image
    from ocsf_nft.record import Record

#: Flows that are kept, and processes of each: who tries more fills no memory.
_FLOWS: Final = 2048
_PROCESSES: Final = 32


class Where(NamedTuple):
    """What somebody tries, and as which user; nothing but the user, of frames."""

    uid: int
    protocol: int | None = None
    destination: bytes = b""
    port: int = 0


class _Latest(NamedTuple):
    call: Call
    times: int


class Tried(NamedTuple):
    """The latest call of each process, and how often it was told; and how many more there were."""

    calls: tuple[tuple[Call, int], ...]
    unnamed: int


class Tally:
    """The processes of the latest flows."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Where, OrderedDict[Image, _Latest]] = OrderedDict()
        self._unnamed: dict[Where, int] = {}

    def add(self, call: Call) -> None:
        """Take in a call."""
        if call.is_connect:
            return
        where = Where(call.fsuid, call.protocol, call.destination, call.destination_port)
        if call.is_frame:
            where = Where(call.fsuid)
        flow = self._flows.setdefault(where, OrderedDict())
        self._flows.move_to_end(where)
        before = flow.pop(call.image, None)
        if before is None and len(flow) >= _PROCESSES:
            flow.popitem(last=False)
            self._unnamed[where] = self._unnamed.get(where, 0) + 1
        flow[call.image] = _Latest(call, 1 if before is None else before.times + 1)
        while len(self._flows) > _FLOWS:
            oldest, _ = self._flows.popitem(last=False)
            self._unnamed.pop(oldest, None)

    def take(self, where: Where, since_ns: int) -> Tried:
        """Who has tried it since a moment (CLOCK_BOOTTIME), and was not taken out before."""
        flow = self._flows.pop(where, OrderedDict())
        unnamed = self._unnamed.pop(where, 0)
        return Tried(
            tuple(
                (each.call, each.times) for each in flow.values() if each.call.time_ns >= since_ns
            ),
            unnamed,
        )


def where_of(record: Record) -> Where | None:
    """What a record is of; None where no user's process has sent it."""
    if record.uid is None:
        return None
    if record.protocol is None or record.destination is None:
        return Where(record.uid)
    destination = ipaddress.ip_address(record.destination).packed
    return Where(record.uid, record.protocol, destination, record.destination_port or 0)
