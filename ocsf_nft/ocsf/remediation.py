"""Advice after a refused packet, for the program in the sandbox and its author.

The program may be an agent that reads the advice and continues. So the advice names a setting or a
command that works inside the sandbox. It asks for a change by the sandbox's operator only if there
is no other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome, protocols
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.services import Kind, service
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.record import Record

_INBOUND: Final = "Only replies of the sandbox's proxy may come in."
_NO_PROXY: Final = "Only the sandbox's proxy may be reached: use it."
_ONLY_TCP: Final = "Only TCP to the proxy at {url} may leave."
#: Allowed traffic of a VM on its host, by rule.
_OF_VM: Final = {
    packet_outcome.VM_INGRESS: "Only replies to what the VM began itself may come in.",
    packet_outcome.VM_FORWARD: (
        "Its host passes on what the VM began itself, to addresses out there: nothing back into "
        "its own subnet or to the host's own link, and nothing that a rule of the host would turn."
    ),
    packet_outcome.VM_INPUT: "On its host the VM may reach the gateway's port alone.",
    packet_outcome.VM_LINK: (
        "The VM may send IP and ARP in its own name alone: without tags, from its one link address "
        "and the addresses of its subnet that are not the gateway's."
    ),
}

_METADATA: Final = (
    "The cloud's metadata service is not for this sandbox: whoever runs it has to give it "
    "credentials in another way."
)
_BEHIND: Final = (
    "Nothing behind the sandbox may go out, not even to the proxy: run the program in the sandbox "
    "itself."
)
_FRAME: Final = "Only frames of the IP stack may leave: use a socket of TCP to the proxy."
_FRAGMENT: Final = "Fragments never pass, not even to the proxy: send whole packets."
_BY_ITSELF: Final = "A kernel sends such packets by itself: there is nothing to do."
_MULTICAST: Final = "Nobody is found by multicast or broadcast from here: turn discovery off."
_PING: Final = (
    "Ping and traceroute don't work in this sandbox: to see whether a web server answers, use "
    "curl -sI --proxy '{url}' https://HOST/"
)
_CONNECT: Final = "Go through the proxy at {url} (HTTP CONNECT)."
_ASK_FOR_UDP: Final = "Whoever runs the sandbox can allow it: --allow {end}"
_ASK: Final = (
    "Whoever runs the sandbox can allow it (--allow {end}); else it takes a client that goes "
    "through the proxy at {url} by HTTP CONNECT."
)
_BY_KIND: Final = {
    Kind.WEB: "Use the proxy: set {variable}={url} and try again.",
    Kind.QUIC: (
        "If this is HTTP/3 (QUIC), it does not go through the proxy: set HTTPS_PROXY={url} and "
        "turn HTTP/3 off."
    ),
    Kind.NAMES: ("Don't resolve names here: set HTTPS_PROXY={url} and let the proxy resolve them."),
    Kind.SSH: (
        "For Git, set HTTPS_PROXY={url} and use https:// remotes. SSH itself goes through a proxy "
        "that allows CONNECT to its port: ssh -o ProxyCommand='nc -X connect -x {proxy} %h %p'"
    ),
    Kind.GIT: (
        "git:// does not go through the proxy: set HTTPS_PROXY={url} and use https:// remotes."
    ),
    Kind.REGISTRY: (
        "Packages and images come through the proxy: set HTTPS_PROXY={url} and http_proxy={url} "
        "for pip, npm, cargo and apt."
    ),
    Kind.FILES: (
        "File servers are not reached from here: set HTTPS_PROXY={url} and fetch over https://."
    ),
    Kind.MAIL: (
        "Mail is neither sent nor read from here: set HTTPS_PROXY={url} and use a service that has "
        "an HTTPS API."
    ),
    Kind.DATABASE: f"This is a database's port. {_ASK}",
    Kind.DIRECTORY: f"This is a directory service's port. {_ASK}",
    Kind.TIME: "The sandbox has the clock of its host: turn the NTP client off.",
    Kind.REMOTE: f"Remote logins don't leave this sandbox by themselves. {_ASK}",
    Kind.DISCOVERY: (
        "The sandbox is given its addresses and finds nobody by itself: turn DHCP and discovery "
        "off."
    ),
    Kind.PROXY: "The only proxy of this sandbox is {url}: use that one.",
    Kind.MANAGEMENT: f"Telemetry and control don't leave this sandbox by themselves. {_ASK}",
}
_HTTP: Final = 80


def advice(
    record: Record, direction: Direction, proxy: Proxy | None, destination: AddressKind | None
) -> str:
    """Return the alternative to sending a packet that a fence refused."""
    if direction is Direction.INBOUND:
        return general_advice(record.rule, direction, proxy)
    if destination is not None and destination.is_cloud_metadata:
        return _METADATA
    if record.rule not in VM_RULES and record.details.keys() & packet_outcome.FRAGMENTED:
        return _FRAGMENT
    if packet_outcome.is_housekeeping(record, destination):
        return _BY_ITSELF
    if destination is not None and (destination.is_multicast or destination.is_broadcast):
        return _MULTICAST
    if record.rule in VM_RULES:
        return general_advice(record.rule, direction, proxy)
    if record.rule == packet_outcome.FORWARD:
        return _BEHIND
    if record.destination is None:
        return _FRAME
    if proxy is None:
        return _NO_PROXY
    return _with_a_proxy(record, proxy)


def general_advice(rule: str, direction: Direction, proxy: Proxy | None) -> str:
    """Return the advice that applies to all packets of a fence's rule."""
    if rule in _OF_VM:
        return _OF_VM[rule]
    if direction is Direction.INBOUND:
        return _INBOUND
    return _NO_PROXY if proxy is None else _ONLY_TCP.format(url=proxy.url)


def _with_a_proxy(record: Record, proxy: Proxy) -> str:
    known = service(record.protocol, record.destination_port)
    if known is not None:
        advised = _BY_KIND[known.kind]
        if record.protocol != protocols.TCP:  # only TCP can go through a proxy
            advised = advised.replace(_ASK, _ASK_FOR_UDP)
        return advised.format(
            variable="http_proxy" if record.destination_port == _HTTP else "HTTPS_PROXY",
            url=proxy.url,
            proxy=proxy.end,
            end=_end(record),
        )
    if record.protocol == protocols.TCP:
        return _CONNECT.format(url=proxy.url)
    if record.protocol in {protocols.ICMP, protocols.ICMPV6}:
        return _PING.format(url=proxy.url)
    return _ONLY_TCP.format(url=proxy.url)


def _end(record: Record) -> str:
    """Return the destination in the form of ``--allow``."""
    name = protocols.NAMES.get(record.protocol or 0, "")
    address = visible(record.destination or "")
    host = f"[{address}]" if ":" in address else address
    return f"{name}:{host}:{record.destination_port}"
