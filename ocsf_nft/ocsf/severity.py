"""Severity of blocked packets, and the threshold from which they are reported as a finding."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome, protocols
from ocsf_nft.ocsf.dns_tunnel import TunnelThreshold
from ocsf_nft.ocsf.enums import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.enums import Direction
    from ocsf_nft.record import Record


#: Protocols of packets that a kernel sends by itself, if the packet has no user.
_OF_KERNELS: Final = frozenset({protocols.ICMP, protocols.IGMP, protocols.ICMPV6})


@dataclass(frozen=True, slots=True, kw_only=True)
class SeverityRule:
    """Configured severity of the packets that match all conditions of this rule.

    Each field except ``severity`` is a condition. A field that is None matches any packet.
    """

    severity: Severity
    sandbox: str | None = None
    rule: str | None = None
    protocol: int | None = None
    destination: IPv4Network | IPv6Network | None = None
    port: int | None = None
    uid: int | None = None

    def matches(self, record: Record) -> bool:
        """Return true if the packet of a log record matches all conditions of this rule."""
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
    except ValueError:  # the text of a foreign line may be arbitrary
        return False


def configured(record: Record, rules: Iterable[SeverityRule]) -> Severity | None:
    """Return the severity of the first rule in ``rules`` that matches; None if no rule matches."""
    for rule in rules:
        if rule.matches(record):
            return rule.severity
    return None


def of_flow(
    record: Record,
    direction: Direction,
    destination: AddressKind | None,
    rules: Iterable[SeverityRule],
) -> Severity:
    """Return the severity of a flow's packets, from the log record of one of them.

    The first matching rule decides. If no rule matches, the default depends on the packet.
    """
    level = configured(record, rules)
    if level is not None:
        return level
    # A kernel sends these packets by itself, and normally repeats them.
    of_kernel = record.protocol in _OF_KERNELS or record.destination is None
    if record.uid is None and of_kernel and record.rule != packet_outcome.FORWARD:
        return Severity.INFORMATIONAL
    return packet_outcome.severity(record, direction, destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Condition for blocked packets of a flow to cause a Detection Finding event.

    With severity ``min_severity`` or above, one packet is enough. With severity Medium or above,
    ``packets`` packets are enough. The DNS queries of a flow cause one if they are a tunnel by
    ``tunnel``.
    """

    min_severity: Severity = Severity.HIGH
    packets: int = 10
    tunnel: TunnelThreshold = field(default_factory=TunnelThreshold)

    def is_reached(self, severity: Severity, packets: int) -> bool:
        """Return true if this number of a flow's packets, with this severity, causes a finding."""
        if severity >= self.min_severity:
            return True
        return severity >= Severity.MEDIUM and packets >= self.packets
