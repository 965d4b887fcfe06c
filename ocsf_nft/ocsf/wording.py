"""The sentences of an event: what happened, for a person, and what to do, for the program.

They say what the record says and no more. Names come from outside and are made visible first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import protocols, verdict
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.text import visible
from ocsf_nft.ocsf.verdict import Answer

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.record import Record

_ANSWERED: Final = {
    Answer.RESET: "refused with a reset",
    Answer.PROHIBITED: "refused with an ICMP error",
    Answer.NOTHING: "dropped without an answer",
    None: "refused",
}
_TELLS: Final = {
    Answer.RESET: "The connection was reset by the sandbox's fence, not by the network.",
    Answer.PROHIBITED: "The packet was refused by the sandbox's fence, not lost in the network.",
    Answer.NOTHING: "The packet was dropped by the sandbox's fence, not lost in the network.",
}
_ARP: Final = 0x0806
_ETHERTYPES: Final = {_ARP: "an ARP frame"}
#: Protocols that people call by another name than IANA's.
_CALLED: Final = {4: "IP in IP", protocols.ICMPV6: "ICMPv6", 41: "IPv6 in IP"}
_FRAGMENTED: Final = frozenset({"fragment_offset", "more_fragments"})
_WEB_PORTS: Final = {80: "HTTP_PROXY", 443: "HTTPS_PROXY"}


def message(record: Record, way: Direction, answered: Answer | None) -> str:
    """What happened, in one sentence."""
    outcome = _ANSWERED[answered]
    if record.sandbox is None:
        rule = f'rule "{visible(record.rule)}"' if record.rule else "a rule without a name"
        return f"{_packet(record)} from {_source(record)} met {rule}; {outcome}"
    sandbox = f"sandbox {visible(record.sandbox)}"
    if way is Direction.INBOUND:
        return f"{_source(record)} sent {sandbox} {_packet(record)}; {outcome}"
    who = sandbox if record.uid is None else f"uid {record.uid} in {sandbox}"
    if record.rule == verdict.FORWARD:
        who = f"{_source(record)}, behind {sandbox},"
    if record.destination is None:
        return f"{who} sent {_packet(record)}; {outcome}"
    return f"{who} tried {_packet(record)} directly; {outcome}"


def detail(
    record: Record,
    way: Direction,
    answered: Answer | None,
    proxy: Proxy | None,
    destination: Place | None,
) -> str | None:
    """What the sender is to make of it, and what to do instead; None for a foreign rule."""
    if answered is None:
        return None
    tells = _TELLS[answered]
    if way is Direction.INBOUND:
        return f"{tells} Nothing may come in but what a proxy answers."
    if destination is not None and destination.is_cloud_metadata:
        return f"{tells} The cloud's metadata service is not for this sandbox."
    if record.details.keys() & _FRAGMENTED:
        return f"{tells} Fragments never pass, not even to the proxy: send whole packets."
    if proxy is None:
        return f"{tells} Only the sandbox's proxy may be reached: use it."
    if record.protocol == protocols.TCP and record.destination_port in _WEB_PORTS:
        variable = _WEB_PORTS[record.destination_port]
        return f"{tells} Use the proxy: set {variable}={proxy.url} and try again."
    if verdict.is_name_resolution(record, way):
        return (
            f"{tells} Don't resolve names here: set HTTPS_PROXY={proxy.url} "
            "and let the proxy resolve them."
        )
    if record.protocol == protocols.TCP:
        return f"{tells} Go through the proxy at {proxy.url} (HTTP CONNECT)."
    return f"{tells} Only TCP to the proxy at {proxy.url} may leave."


def _packet(record: Record) -> str:
    if record.destination is None:
        return _ETHERTYPES.get(record.ethertype or 0) or (
            "a frame" if record.ethertype is None else f"a frame of type {record.ethertype:#06x}"
        )
    return f"{_protocol(record.protocol)} to {_end(record.destination, record.destination_port)}"


def _protocol(number: int | None) -> str:
    if number is None:
        return "IP"
    name = protocols.NAMES.get(number)
    return _CALLED.get(number) or (f"IP protocol {number}" if name is None else name.upper())


def _source(record: Record) -> str:
    if record.source is not None:
        return _end(record.source, record.source_port)
    return "an unknown sender" if record.mac_source is None else visible(record.mac_source)


def _end(address: str, port: int | None) -> str:
    if port is None:
        return visible(address)
    return f"[{visible(address)}]:{port}" if ":" in address else f"{visible(address)}:{port}"
