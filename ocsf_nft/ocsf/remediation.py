"""Advice after a refused packet, for the program in the sandbox and its developer.

The program may be an agent that follows the advice. So the advice names a setting or a command that
works inside the sandbox, if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import packet_outcome, protocols
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.protocols import Kind, service
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.record import Record

_INBOUND: Final = "The sandbox may receive only replies of its proxy."
_NO_PROXY: Final = "The sandbox may connect only to its proxy: use the proxy."
_ONLY_TCP: Final = "The sandbox may send only TCP to the proxy at {url}."
#: Allowed traffic of a VM on its host, by rule.
_OF_VM: Final = {
    packet_outcome.VM_INGRESS: "The VM may receive only replies on connections that it opened.",
    packet_outcome.VM_FORWARD: (
        "Its host forwards only connections that the VM opens to external addresses. It forwards "
        "nothing to the VM's own subnet or to the host's link, and nothing that a rule of the host "
        "redirects."
    ),
    packet_outcome.VM_INPUT: "On its host, the VM may connect only to the gateway's port.",
    packet_outcome.VM_LINK: (
        "The VM may send only IP and ARP without VLAN tags, from its own MAC address and from the "
        "addresses of its subnet that are not the gateway's."
    ),
}

_METADATA: Final = (
    "This sandbox may not use the cloud's metadata service: its operator has to provide "
    "credentials in another way."
)
_BEHIND: Final = (
    "Programs behind the sandbox may not connect to anything, not even to the proxy: run the "
    "program in the sandbox itself."
)
_FRAME: Final = "The sandbox may send only frames of the IP stack: use a TCP socket to the proxy."
_FRAGMENT: Final = "The fence blocks every fragment, also to the proxy: send whole packets."
_BY_ITSELF: Final = "A kernel sends such packets by itself: no action is needed."
_MULTICAST: Final = "Multicast and broadcast don't leave the sandbox: turn discovery off."
_PING: Final = (
    "Ping and traceroute don't work in this sandbox: to check if a web server answers, use "
    "curl -sI --proxy '{url}' https://HOST/"
)
_CONNECT: Final = "Connect through the proxy at {url} (HTTP CONNECT)."
_ASK_FOR_UDP: Final = "The sandbox's operator can allow it: --allow {end}"
_ASK: Final = (
    "The sandbox's operator can allow it (--allow {end}). Otherwise use a client that connects "
    "through the proxy at {url} with HTTP CONNECT."
)
_BY_KIND: Final = {
    Kind.WEB: "Use the proxy: set {variable}={url} and try again.",
    Kind.QUIC: (
        "If this is HTTP/3 (QUIC), the proxy can't forward it: set HTTPS_PROXY={url} and turn "
        "HTTP/3 off."
    ),
    Kind.NAMES: "Don't resolve names here: set HTTPS_PROXY={url} and let the proxy resolve them.",
    Kind.SSH: (
        "For Git, set HTTPS_PROXY={url} and use https:// remotes. If the proxy allows CONNECT to "
        "the port, SSH works with: ssh -o ProxyCommand='nc -X connect -x {proxy} %h %p'"
    ),
    Kind.GIT: ("The proxy can't forward git://: set HTTPS_PROXY={url} and use https:// remotes."),
    Kind.REGISTRY: (
        "Get packages and images through the proxy: set HTTPS_PROXY={url} and http_proxy={url} "
        "for pip, npm, cargo and apt."
    ),
    Kind.FILES: (
        "The sandbox can't reach file servers: set HTTPS_PROXY={url} and fetch over https://."
    ),
    Kind.MAIL: (
        "The sandbox can't send or read mail: set HTTPS_PROXY={url} and use a service with an "
        "HTTPS API."
    ),
    Kind.DATABASE: f"This is a database's port. {_ASK}",
    Kind.DIRECTORY: f"This is a directory service's port. {_ASK}",
    Kind.TIME: "The sandbox has the clock of its host: turn the NTP client off.",
    Kind.REMOTE: f"Remote logins may not leave this sandbox. {_ASK}",
    Kind.DISCOVERY: (
        "The sandbox gets its addresses from its host and can't discover others: turn DHCP and "
        "discovery off."
    ),
    Kind.PROXY: "The only proxy of this sandbox is {url}: use it.",
    Kind.MANAGEMENT: f"Telemetry and control may not leave this sandbox. {_ASK}",
}
_HTTP: Final = 80


def advice(
    record: Record, direction: Direction, proxy: Proxy | None, destination: AddressKind | None
) -> str:
    """Return the advice for the sender of a refused packet: what to do instead."""
    if direction is Direction.INBOUND:
        return general_advice(record.rule, direction, proxy)
    if packet_outcome.is_metadata_access(record, direction, destination):
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
    """Return the advice that applies to all packets that the fence's rule ``rule`` refuses."""
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
    """Return a packet's destination for the option ``--allow``, such as ``tcp:203.0.113.7:22``."""
    name = protocols.NAMES.get(record.protocol or 0, "")
    address = visible(record.destination or "")
    host = f"[{address}]" if ":" in address else address
    return f"{name}:{host}:{record.destination_port}"
