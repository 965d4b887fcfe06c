"""What an NFLOG message says, whether it came by netlink or was read back from a line of ours.

:class:`Datagram` is the message with its numbers decoded and its interfaces named;
:func:`record` reads it. ``nflog_message`` makes it of netlink bytes, ``nflog_line`` writes it as
one line of text and reads that back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.sources import facts as fact
from ocsf_nft.sources import packet

if TYPE_CHECKING:
    from ocsf_nft.record import Origin, Record
    from ocsf_nft.sources.facts import Facts

# Families that nf_tables logs (include/uapi/linux/netfilter.h).
NFPROTO_IPV4: Final = 2
NFPROTO_ARP: Final = 3
NFPROTO_NETDEV: Final = 5
NFPROTO_BRIDGE: Final = 7
NFPROTO_IPV6: Final = 10
NETDEV_EGRESS: Final = 1  # enum nf_dev_hooks

# Ethertypes (include/uapi/linux/if_ether.h).
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_RARP: Final = 0x8035
ETH_P_IPV6: Final = 0x86DD


class Interface(NamedTuple):
    """A device: its index, and its name unless it is gone."""

    ifindex: int
    name: str | None


class Datagram(NamedTuple):
    """The attributes of one NFULNL_MSG_PACKET; absent ones are ``None``.

    A tuple, as making one takes a third of the time of a frozen dataclass, and each packet does.

    ``hardware_protocol`` is the frame's ethertype; ``time_us`` the kernel's own stamp in
    microseconds since the epoch (not given on the output hook); ``vlan`` protocol and tag control
    field; ``captured`` the packet from where the hook saw it, as far as it was captured.
    """

    group: int
    family: int
    hardware_protocol: int
    hook: int
    received_ns: int
    prefix: str
    captured: bytes
    sequence: int | None = None
    global_sequence: int | None = None
    time_us: int | None = None
    input: Interface | None = None
    output: Interface | None = None
    physical_input: Interface | None = None
    physical_output: Interface | None = None
    hardware_type: int | None = None
    hardware_header: bytes | None = None
    hardware_address: bytes | None = None
    link_header: bytes | None = None
    vlan: tuple[int, int] | None = None
    mark: int | None = None
    uid: int | None = None
    gid: int | None = None


def record(datagram: Datagram, origin: Origin) -> Record:
    """The Record of a datagram: equal to that of the kernel's text for the same packet.

    Time is the kernel's when it gave one, else the time of receipt.
    """
    facts = _interface_facts(datagram)
    kind = _kind(datagram)
    data = datagram.captured
    if kind == ETH_P_IP:
        facts.update(packet.ip_facts(_network_part(datagram, data), 4))
    elif kind == ETH_P_IPV6:
        facts.update(packet.ip_facts(_network_part(datagram, data), 6))
    elif kind == ETH_P_ARP:
        facts.update(packet.arp_facts(_network_part(datagram, data)))
    # The kernel's text has the link header of an IP packet only when it came in by a device.
    if datagram.input is not None or kind not in {ETH_P_IP, ETH_P_IPV6}:
        facts.update(fact.link_facts(datagram.hardware_header or datagram.link_header or b""))
        if datagram.vlan is not None:
            facts.update(fact.vlan_facts(*datagram.vlan))
    if datagram.uid is not None:
        facts["uid"] = datagram.uid
    if datagram.gid is not None:
        facts["gid"] = datagram.gid
    if datagram.mark is not None:
        facts["mark"] = datagram.mark
    time_ns = datagram.received_ns if datagram.time_us is None else datagram.time_us * 1000
    return fact.record(
        datagram.prefix,
        facts,
        time_ns=time_ns,
        received_ns=datagram.received_ns,
        origin=origin,
    )


def _kind(datagram: Datagram) -> int:
    """How the kernel reads the packet: by family, or by ethertype where frames are seen."""
    if datagram.family == NFPROTO_IPV4:
        return ETH_P_IP
    if datagram.family == NFPROTO_IPV6:
        return ETH_P_IPV6
    if datagram.family == NFPROTO_ARP or datagram.hardware_protocol == ETH_P_RARP:
        return ETH_P_ARP
    return datagram.hardware_protocol


def _network_part(datagram: Datagram, data: bytes) -> bytes:
    """On netdev egress the packet still begins with its link header; elsewhere it does not."""
    if (datagram.family, datagram.hook) == (NFPROTO_NETDEV, NETDEV_EGRESS):
        return data[len(datagram.link_header or b"") :]
    return data


def _interface_facts(datagram: Datagram) -> Facts:
    facts: Facts = {}
    bridged = datagram.family == NFPROTO_BRIDGE
    for side, device, physical in (
        ("in", datagram.input, datagram.physical_input),
        ("out", datagram.output, datagram.physical_output),
    ):
        # In the bridge family the hook's device is the port, which netlink calls the physical
        # one; the text names the port alone.
        seen = physical if bridged and physical is not None else device
        if seen is not None:
            _name(facts, side, seen)
        if not bridged and physical is not None and physical != seen:
            _name(facts, f"physical_{side}", physical)
    return facts


def _name(facts: Facts, side: str, interface: Interface) -> None:
    if interface.name is None:
        facts[f"{side}_ifindex"] = interface.ifindex
    else:
        facts[f"{side}_interface"] = interface.name
