"""Decoded NFLOG message (the kernel's log of one packet), and its conversion to a Record."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.sources import packet
from ocsf_nft.sources import packet_fields as fact

if TYPE_CHECKING:
    from ocsf_nft.record import Origin, Record
    from ocsf_nft.sources.packet_fields import Facts

# Families that nf_tables logs (include/uapi/linux/netfilter.h).
NFPROTO_IPV4: Final = 2
NFPROTO_ARP: Final = 3
NFPROTO_NETDEV: Final = 5
NFPROTO_BRIDGE: Final = 7
NFPROTO_IPV6: Final = 10
NF_NETDEV_EGRESS: Final = 1  # enum nf_dev_hooks

# Ethertypes (include/uapi/linux/if_ether.h).
#: Smaller values are lengths of IEEE 802.3 frames (ETH_P_802_3_MIN).
_FIRST_ETHERTYPE: Final = 0x0600
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_RARP: Final = 0x8035
ETH_P_IPV6: Final = 0x86DD


class Interface(NamedTuple):
    """Network interface; ``name`` is ``None`` if it is unknown, for example after a deletion."""

    ifindex: int
    name: str | None


# One object for each packet: creating a tuple takes a third of the time of a frozen dataclass.
class Datagram(NamedTuple):
    """One packet that the kernel logged by NFLOG (NFULNL_MSG_PACKET).

    Absent attributes are ``None``.
    """

    group: int
    family: int
    #: Ethertype of the frame.
    hardware_protocol: int
    hook: int
    received_ns: int
    prefix: str
    #: First bytes of the packet, as the hook received it.
    captured: bytes
    sequence: int | None = None
    global_sequence: int | None = None
    #: Kernel's timestamp, in microseconds since the epoch; absent on the output hook.
    time_us: int | None = None
    input: Interface | None = None
    output: Interface | None = None
    physical_input: Interface | None = None
    physical_output: Interface | None = None
    hardware_type: int | None = None
    hardware_header: bytes | None = None
    hardware_address: bytes | None = None
    link_header: bytes | None = None
    #: Protocol and tag control field.
    vlan: tuple[int, int] | None = None
    mark: int | None = None
    uid: int | None = None
    gid: int | None = None


def record(datagram: Datagram, origin: Origin) -> Record:
    """Convert an NFLOG message to a Record.

    The record's time is the kernel's timestamp, or the time of receipt if the message has no
    timestamp.
    """
    facts = _interface_facts(datagram)
    if (datagram.family, datagram.hook) == (NFPROTO_NETDEV, NF_NETDEV_EGRESS):
        ethertype, header, data = _egress_frame(datagram)
        if ethertype != datagram.hardware_protocol and ethertype >= _FIRST_ETHERTYPE:
            facts["claimed_protocol"] = datagram.hardware_protocol
    else:
        ethertype, header, data = (
            _ethertype(datagram),
            datagram.hardware_header or b"",
            datagram.captured,
        )
    facts.update(_network_facts(ethertype, data))
    # The kernel's text has the link header of an IP packet only if the packet has an input device.
    if datagram.input is not None or ethertype not in {ETH_P_IP, ETH_P_IPV6}:
        facts.update(fact.link_facts(header))
        if datagram.vlan is not None:
            facts.update(fact.vlan_facts(*datagram.vlan))
    if datagram.uid is not None:
        facts["uid"] = datagram.uid
    if datagram.gid is not None:
        facts["gid"] = datagram.gid
    if datagram.mark is not None:
        facts["mark"] = datagram.mark
    # At a low rate, the time of receipt is about 0.1 ms after the packet.
    time_ns = datagram.received_ns if datagram.time_us is None else datagram.time_us * 1000
    return fact.record(
        datagram.prefix,
        facts,
        time_ns=time_ns,
        received_ns=datagram.received_ns,
        origin=origin,
        captured_sum=zlib.adler32(datagram.captured) if datagram.captured else None,
    )


def _network_facts(ethertype: int, data: bytes) -> Facts:
    if ethertype == ETH_P_ARP:
        return packet.arp_facts(data)
    if ethertype in {ETH_P_IP, ETH_P_IPV6}:
        return packet.ip_facts(data, 4 if ethertype == ETH_P_IP else 6)
    return {}


def _ethertype(datagram: Datagram) -> int:
    """Return a packet's ethertype.

    For RARP, return the ethertype of ARP, because the kernel parses both in the same way.
    """
    if datagram.family == NFPROTO_IPV4:
        return ETH_P_IP
    if datagram.family == NFPROTO_IPV6:
        return ETH_P_IPV6
    if datagram.family == NFPROTO_ARP or datagram.hardware_protocol == ETH_P_RARP:
        return ETH_P_ARP
    return datagram.hardware_protocol


def _egress_frame(datagram: Datagram) -> tuple[int, bytes, bytes]:
    """Split a packet of the netdev egress hook into ethertype, Ethernet header, network packet.

    On this hook, the captured bytes begin with the link-layer header. Only Ethernet is supported.
    """
    captured = datagram.captured
    header = captured[: fact.ETHERNET_BYTES]
    if len(header) < fact.ETHERNET_BYTES:
        return datagram.hardware_protocol, header, b""
    # A frame that bypassed the qdisc (PACKET_QDISC_BYPASS) has no ``link_header``.
    end = len(datagram.link_header or header)
    # Not ``hardware_protocol``: a sender with an AF_PACKET socket chooses its value.
    return int.from_bytes(header[12:14], "big"), header, captured[end:]


def _interface_facts(datagram: Datagram) -> Facts:
    facts: Facts = {}
    bridged = datagram.family == NFPROTO_BRIDGE
    for side, device, physical in (
        ("in", datagram.input, datagram.physical_input),
        ("out", datagram.output, datagram.physical_output),
    ):
        # In the bridge family the hook's device is the port, which netlink calls the physical
        # device; the kernel's text names the port only.
        shown = physical if bridged and physical is not None else device
        if shown is not None:
            _add_interface(facts, side, shown)
        if not bridged and physical is not None and physical != shown:
            _add_interface(facts, f"physical_{side}", physical)
    return facts


def _add_interface(facts: Facts, side: str, interface: Interface) -> None:
    if interface.name is None:
        facts[f"{side}_ifindex"] = interface.ifindex
    else:
        facts[f"{side}_interface"] = interface.name
