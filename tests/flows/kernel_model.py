"""Model of the kernel's counters and log as in accounting.nft, with very small sets."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocsf_nft.flow import (
    KINDS,
    Count,
    Element,
    Key,
    Kind,
    Reading,
    RuleReading,
    fallback_keys,
    key_of,
)
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

RULE: Final = "egress"
START_NS: Final = 1_767_225_600_000_000_000
ELEMENT_TIMEOUT_MS: Final = 600_000
SIZES: Final[Mapping[Kind, int]] = {"flows4": 4, "flows6": 2, "others": 2}
#: New flows of a user: so many at once, and one more after each of these times.
QUOTA: Final = 3
_REFILL_MS: Final = 60_000


def keys(record: Record) -> tuple[Key, ...]:
    """Return the keys under which the kernel may count a packet, in the order of its trials."""
    exact = key_of(record)
    return exact, *fallback_keys(exact)


@dataclass(frozen=True, slots=True)
class Packet:
    """A refused packet; ``port`` is None for a fragment, ``destination`` for a frame."""

    uid: int | None
    protocol: int | None
    destination: str | None
    port: int | None
    ethertype: int | None = None
    bytes: int = 60

    def record(self, number: int, time_ns: int) -> Record:
        """Return the kernel's record of the packet."""
        is_ip = self.destination is not None
        return Record(
            prefix=f"ocsf-nft:sb:{RULE}:",
            sandbox="sb",
            rule=RULE,
            destination=self.destination,
            ip_version=(6 if ":" in str(self.destination) else 4) if is_ip else None,
            ethertype=self.ethertype,
            protocol=self.protocol,
            destination_port=self.port,
            length=self.bytes if is_ip else None,
            uid=self.uid,
            time_ns=time_ns,
            received_ns=time_ns,
            origin=Origin(
                transport="nflog",
                identity=f"record/{number}",
                log_source="nflog",
                log_format="nfnetlink_log",
                raw="",
            ),
        )


@dataclass(slots=True)
class _Counter:
    packets: int = 0
    bytes: int = 0
    last_ms: int = 0


@dataclass
class Kernel:
    """Model of the kernel that counts, evicts and logs; its time only advances on request."""

    now_ms: int = 0
    #: The total change of the wall clock. The kernel's own time does not follow it.
    clock_offset_ns: int = 0
    epoch: int = 1
    refused: Count = field(default_factory=Count)
    overflow: Count = field(default_factory=Count)
    sets: dict[Kind, dict[bytes, _Counter]] = field(default_factory=lambda: {k: {} for k in KINDS})
    log: deque[Record] = field(default_factory=deque)
    packets: list[Packet] = field(default_factory=list)
    _logged: int = 0
    #: The time at which all granted flows of a user will have been earned.
    _earned_ms: dict[int | None, int] = field(default_factory=dict)

    @property
    def now_ns(self) -> int:
        """Return the time by the clock of the records."""
        return START_NS + self.now_ms * 1_000_000 + self.clock_offset_ns

    def refuse(self, packet: Packet, *, is_logged: bool) -> None:
        """Count a packet in the first set with a free slot; a new flow also needs a quota."""
        self.now_ms += 1
        self.packets.append(packet)
        self.refused = _plus(self.refused, packet)
        if is_logged:
            self._logged += 1
            self.log.append(packet.record(self._logged, self.now_ns))
        for key in self._places(packet):
            if (counter := self._element(key)) is not None:
                counter.packets += 1
                counter.bytes += packet.bytes
                counter.last_ms = self.now_ms
                return
        self.overflow = _plus(self.overflow, packet)

    def _places(self, packet: Packet) -> tuple[Key, ...]:
        exact, *rest = keys(packet.record(0, 0))
        self._evict(exact.kind)
        if exact.kind == "others" or exact.data in self.sets[exact.kind]:
            return exact, *rest
        full = self.now_ms - QUOTA * _REFILL_MS
        earned_ms = max(self._earned_ms.get(packet.uid, full), full) + _REFILL_MS
        if earned_ms > self.now_ms:
            return tuple(each for each in rest if each.kind == "others")
        self._earned_ms[packet.uid] = earned_ms
        return exact, *rest

    def read(
        self,
        between: Callable[[], None] = lambda: None,
        left_out: Collection[Key] = (),
        *,
        has_duplicates: bool = False,
    ) -> Reading:
        """Read as fence.counters does.

        ``between`` runs between each two steps, and may send packets.
        """
        self.now_ms += 1
        began_ns, began_ms = self.now_ns, self.now_ms
        refused_before = self.refused
        elements: dict[Kind, tuple[Element, ...]] = {}
        for kind in KINDS:
            between()
            found = [*self._elements(kind)]
            if has_duplicates:
                between()
                found += self._elements(kind)
            elements[kind] = tuple(each for each in found if Key(kind, each.data) not in left_out)
        between()
        overflow = self.overflow
        between()
        refused = self.refused
        self.now_ms += 1
        return Reading(
            epochs={RULE: f"boot:{self.epoch}"},
            began_ns=began_ns,
            ended_ns=self.now_ns,
            began_ms=began_ms,
            ended_ms=self.now_ms,
            rules={
                RULE: RuleReading(
                    refused_before=refused_before,
                    refused=refused,
                    overflow=overflow,
                    elements=elements,
                )
            },
        )

    def present_keys(self) -> list[Key]:
        """Return the keys of the elements that have not expired."""
        return [Key(kind, each.data) for kind in KINDS for each in self._elements(kind)]

    def renew_counters(self) -> None:
        """Replace all counters."""
        self.epoch += 1
        self.refused = self.overflow = Count()
        self.sets = {kind: {} for kind in KINDS}

    def _elements(self, kind: Kind) -> list[Element]:
        self._evict(kind)
        return [
            Element(data, each.packets, each.bytes, self.now_ms - each.last_ms)
            for data, each in self.sets[kind].items()
        ]

    def _element(self, key: Key) -> _Counter | None:
        self._evict(key.kind)
        present_keys = self.sets[key.kind]
        if key.data not in present_keys and len(present_keys) < SIZES[key.kind]:
            present_keys[key.data] = _Counter()
        return present_keys.get(key.data)

    def _evict(self, kind: Kind) -> None:
        self.sets[kind] = {
            data: each
            for data, each in self.sets[kind].items()
            if self.now_ms - each.last_ms < ELEMENT_TIMEOUT_MS
        }


def stamped(record: Record, time_ns: int) -> Record:
    """Return a record with the reading time as its only time, as some sources return it."""
    return replace(record, time_ns=time_ns, received_ns=time_ns)


def _plus(count: Count, packet: Packet) -> Count:
    return Count(count.packets + 1, count.bytes + packet.bytes)
