"""Effects of nftables statements on a modelled packet: some stop the packet, some change it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.field_values import is_number, value
from ocsf_nft.check.packet import ADDRESSES, ESTABLISHED, NEW, UNSEEN, UNTRACKED, Packet
from ocsf_nft.check.ternary import MARKS, Bits, Span, exactly

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Statements that neither stop a packet nor alter what a later rule sees of it.
HARMLESS: Final = frozenset(
    {"counter", "log", "continue", "ct helper", "ct timeout", "ct expectation", "flow", "dup"}
    | {"secmark", "last", "tunnel"}
)
#: Statements that match some packets and not others: the number of earlier packets decides.
CONDITIONAL: Final = frozenset({"limit", "quota", "ct count"})
#: Statements that stop a packet, and the verb for messages.
STOPS: Final[Mapping[str, str]] = {
    "drop": "drops",
    "reject": "refuses",
    "dnat": "redirects",
    "redirect": "redirects",
    "fwd": "sends elsewhere",
    "synproxy": "answers itself",
}
#: Targets of iptables of which nft lists only the name: the name is sufficient.
XT_STOPS: Final[Mapping[str, str]] = {
    "REJECT": "refuses",
    "DNAT": "redirects",
    "REDIRECT": "redirects",
    "SYNPROXY": "answers itself",
}
XT_ACCEPTS: Final = frozenset({"MASQUERADE", "SNAT"})
XT_HARMLESS: Final = frozenset(
    {"LOG", "NFLOG", "TCPMSS", "CHECKSUM", "TEE", "AUDIT", "CLASSIFY", "DSCP", "TOS", "TTL", "HL"}
    | {"SECMARK", "CONNSECMARK", "TRACE", "SET", "RATEEST", "IDLETIMER", "LED", "TCPOPTSTRIP"}
)
#: Fields that are neither an address nor a port. An assignment without a field name sets any bytes.
_OTHER_FIELDS: Final = frozenset({"dscp", "ecn", "ttl", "hoplimit", "flowlabel", "id", "checksum"})
#: Targets whose effect depends on their arguments, which nft doesn't list.
XT_MARKS: Final = frozenset({"MARK", "CONNMARK", "HMARK"})
XT_TRACKING: Final = frozenset({"CT", "NOTRACK"})


def mangled(body: Any, packet: Packet) -> Packet:
    """Return the packet after a ``mangle`` statement, which sets one field of the packet.

    ``body`` is the statement in nft's JSON. If the field may be an address or a port, all addresses
    and ports become unknown.
    """
    key = body.get("key") if isinstance(body, dict) else None
    if key == {"meta": {"key": "mark"}}:
        return replace(packet, mark=_mark(body.get("value"), packet))
    # No other assignment changes the model.
    return with_any_addresses(packet) if rewrites_addresses(key) else packet


def rewrites_addresses(key: Any) -> bool:
    """Return true if setting the packet field ``key`` may change addresses or ports.

    ``key`` is a field in nft's JSON. A field given by offset and length, not by name, may contain
    an address. So the result for such a field is true.
    """
    payload = key.get("payload") if isinstance(key, dict) else None
    return isinstance(payload, dict) and payload.get("field") not in _OTHER_FIELDS


def _mark(assigned: Any, packet: Packet) -> Span:
    if is_number(assigned):
        return exactly(assigned)
    found = value(assigned, packet)
    return found if isinstance(found, Span) and found.high <= MARKS.high else MARKS


def with_any_addresses(packet: Packet) -> Packet:
    """Return a copy of the packet with unknown addresses and ports: they may have any value."""
    everything = ADDRESSES[packet.version]
    ports = Span(0, 0xFFFF)
    return replace(
        packet,
        source=everything,
        destination=everything,
        source_port=ports,
        destination_port=ports,
    )


def with_any_source(packet: Packet) -> Packet:
    """Return a copy of the packet with unknown source address and port, as after source NAT."""
    return replace(packet, source=ADDRESSES[packet.version], source_port=Span(0, 0xFFFF))


def with_any_mark(packet: Packet) -> Packet:
    """Return a copy of the packet with an unknown mark: the mark may have any value."""
    return replace(packet, mark=MARKS)


def untracked(packet: Packet) -> Packet:
    """Return a copy of the packet after the statement ``notrack``.

    If connection tracking has not processed the packet yet, the packet's state becomes
    ``untracked``. Otherwise the statement has no effect.
    """
    alternatives: set[frozenset[str]] = set()
    for alternative in packet.state.alternatives:
        is_unseen = Bits(frozenset({alternative})) == UNSEEN
        alternatives |= UNTRACKED.alternatives if is_unseen else {alternative}
    return replace(packet, state=Bits(frozenset(alternatives)))


def maybe_untracked(packet: Packet) -> Packet:
    """Return a copy of the packet that models both cases: with and without a ``notrack``.

    Use it after an iptables target such as ``CT``. The target's arguments decide between the two
    cases, but nft doesn't list the arguments.
    """
    return packet.joined(untracked(packet))


def tracked(packet: Packet) -> Packet:
    """Return a copy of the packet after connection tracking has processed it.

    The packet's state becomes ``new`` for the first packet of a flow, and ``established`` for a
    later packet. The state ``untracked`` (after ``notrack``) does not change.
    """
    state = NEW if packet.is_first else ESTABLISHED
    alternatives: set[frozenset[str]] = set()
    for alternative in packet.state.alternatives:
        known = Bits(frozenset({alternative}))
        alternatives |= (known if known == UNTRACKED else state).alternatives
    return replace(packet, state=Bits(frozenset(alternatives)))
