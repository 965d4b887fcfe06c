"""How much it matters: what we think, unless who runs it says otherwise."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome, protocols
from ocsf_nft.ocsf.enums import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.enums import Direction
    from ocsf_nft.record import Record


#: What a kernel speaks by itself, where no user stands behind it.
_OF_KERNELS: Final = frozenset({protocols.ICMP, protocols.IGMP, protocols.ICMPV6})


@dataclass(frozen=True, slots=True, kw_only=True)
class SeverityRule:
    """What matters how much: all that is given has to be so, None is anything."""

    severity: Severity
    sandbox: str | None = None
    rule: str | None = None
    protocol: int | None = None
    destination: IPv4Network | IPv6Network | None = None
    port: int | None = None
    uid: int | None = None

    def matches(self, record: Record) -> bool:
        """Whether it is about such a record."""
        return (
            (self.sandbox is None or self.sandbox == record.sandbox)
            and (self.rule is None or self.rule == record.rule)
            and (self.protocol is None or self.protocol == record.protocol)
            and (self.port is None or self.port == record.destination_port)
            and (self.uid is None or self.uid == record.uid)
            and (self.destination is None or _is_in(record.destination, self.destination))
        )


def _is_in(address: str | None, network: IPv4Network | IPv6Network) -> bool:
    if address is None:
        return False
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:  # a foreign line may hold anything
        return False


def configured(record: Record, rules: Iterable[SeverityRule]) -> Severity | None:
    """The severity that the first rule that is about it gives; None when none is."""
    for rule in rules:
        if rule.matches(record):
            return rule.severity
    return None


def of_flow(
    record: Record, way: Direction, destination: Place | None, rules: Iterable[SeverityRule]
) -> Severity:
    """How much it matters if it goes on: what kernels say by themselves, they say again."""
    matters = configured(record, rules)
    if matters is not None:
        return matters
    of_kernel = record.protocol in _OF_KERNELS or record.destination is None
    if record.uid is None and of_kernel and record.rule != packet_outcome.FORWARD:
        return Severity.INFORMATIONAL
    return packet_outcome.severity(record, way, destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Condition for an attempt to be a finding.

    The severity is ``min_severity`` or more, or it is Medium or more and the attempt has at least
    ``packets`` packets.
    """

    min_severity: Severity = Severity.HIGH
    packets: int = 10

    def is_reached(self, severity: Severity, packets: int) -> bool:
        """Return true if an attempt of that severity and number of packets is a finding."""
        if severity >= self.min_severity:
            return True
        return severity >= Severity.MEDIUM and packets >= self.packets
