"""What statements do to a packet, and which of them end its way through a chain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check.operand import is_number, value
from ocsf_nft.check.packet import ADDRESSES, ESTABLISHED, NEW, UNSEEN, UNTRACKED, Packet
from ocsf_nft.check.ternary import MARKS, Bits, Span, exactly

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Statements that neither stop a packet nor alter what a later rule sees of it.
HARMLESS: Final = frozenset(
    {"counter", "log", "continue", "ct helper", "ct timeout", "ct expectation", "flow", "dup"}
    | {"secmark", "last", "tunnel"}
)
#: Statements that hold for some packets and not for others: how many came before decides.
SOMETIMES: Final = frozenset({"limit", "quota", "ct count"})
#: Statements that take a packet away, and the verb for it.
STOPS: Final[Mapping[str, str]] = {
    "drop": "drops",
    "reject": "refuses",
    "dnat": "redirects",
    "redirect": "redirects",
    "fwd": "sends elsewhere",
    "synproxy": "answers itself",
}
#: Targets of iptables of which nft tells the name alone: what their name says is enough.
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
#: Fields that are set and are neither an address nor a port; without a name they are any bytes.
_OTHER_FIELDS: Final = frozenset({"dscp", "ecn", "ttl", "hoplimit", "flowlabel", "id", "checksum"})
#: What these do is in their arguments, which nft doesn't tell.
XT_MARKS: Final = frozenset({"MARK", "CONNMARK", "HMARK"})
XT_TRACKING: Final = frozenset({"CT", "NOTRACK"})


def mangled(body: Any, packet: Packet) -> Packet:
    """The packet after a field was set: a constant is known then, anything else is not."""
    key = body.get("key") if isinstance(body, dict) else None
    if key == {"meta": {"key": "mark"}}:
        return replace(packet, mark=_mark(body.get("value"), packet))
    return without_addresses(packet) if rewrites(key) else packet


def rewrites(key: Any) -> bool:
    """Whether setting a field may change where a packet is from, or goes to."""
    payload = key.get("payload") if isinstance(key, dict) else None
    return isinstance(payload, dict) and payload.get("field") not in _OTHER_FIELDS


def _mark(assigned: Any, packet: Packet) -> Span:
    if is_number(assigned):
        return exactly(assigned)
    found = value(assigned, packet)
    return found if isinstance(found, Span) and found.high <= MARKS.high else MARKS


def without_addresses(packet: Packet) -> Packet:
    """A packet whose addresses and ports may have become others."""
    everything = ADDRESSES[packet.version]
    ports = Span(0, 0xFFFF)
    return replace(
        packet,
        source=everything,
        destination=everything,
        source_port=ports,
        destination_port=ports,
    )


def with_other_source(packet: Packet) -> Packet:
    """A packet that got another source: NAT."""
    return replace(packet, source=ADDRESSES[packet.version], source_port=Span(0, 0xFFFF))


def with_any_mark(packet: Packet) -> Packet:
    """A packet that got a mark which isn't known."""
    return replace(packet, mark=MARKS)


def untracked(packet: Packet) -> Packet:
    """A packet that connection tracking leaves alone, unless it has seen it by then."""
    alternatives: set[frozenset[str]] = set()
    for alternative in packet.state.alternatives:
        is_unseen = Bits(frozenset({alternative})) == UNSEEN
        alternatives |= UNTRACKED.alternatives if is_unseen else {alternative}
    return replace(packet, state=Bits(frozenset(alternatives)))


def maybe_untracked(packet: Packet) -> Packet:
    """A packet that connection tracking may leave alone."""
    return packet.joined(untracked(packet))


def tracked(packet: Packet) -> Packet:
    """The packet once connection tracking has seen it, unless a rule spoke against it."""
    state = NEW if packet.is_first else ESTABLISHED
    alternatives: set[frozenset[str]] = set()
    for alternative in packet.state.alternatives:
        kept = Bits(frozenset({alternative}))
        alternatives |= (kept if kept == UNTRACKED else state).alternatives
    return replace(packet, state=Bits(frozenset(alternatives)))
