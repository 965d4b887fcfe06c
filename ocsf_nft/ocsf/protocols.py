"""IP protocols and services: numbers and names, as IANA assigned them.

A port shows only a probable service: another service may use the port.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Final, NamedTuple

ICMP: Final = 1
IGMP: Final = 2
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132

#: IANA's keyword in lower case, as OCSF requires, by number. Numbers without a keyword are missing.
NAMES: Final = {
    0: "hopopt", 1: "icmp", 2: "igmp", 3: "ggp", 4: "ipv4", 5: "st", 6: "tcp", 8: "egp", 9: "igp",
    12: "pup", 17: "udp", 20: "hmp", 22: "xns-idp", 27: "rdp", 29: "iso-tp4", 33: "dccp", 36: "xtp",
    41: "ipv6", 43: "ipv6-route", 44: "ipv6-frag", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah",
    58: "ipv6-icmp", 59: "ipv6-nonxt", 60: "ipv6-opts", 88: "eigrp", 89: "ospfigp", 94: "ipip",
    97: "etherip", 98: "encap", 103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp", 132: "sctp",
    133: "fc", 136: "udplite", 137: "mpls-in-ip", 138: "manet", 139: "hip", 140: "shim6",
    141: "wesp", 142: "rohc", 143: "ethernet",
}  # fmt: skip

#: Usual names of protocols for people, where they differ from IANA's names.
_USUAL_NAMES: Final = {4: "IP in IP", ICMPV6: "ICMPv6", 41: "IPv6 in IP"}
ETHERTYPE_ARP: Final = 0x0806


def usual_name(protocol: int) -> str:
    """Return the name of an IP protocol for people, such as "TCP" or "IP protocol 253"."""
    name = _USUAL_NAMES.get(protocol) or NAMES.get(protocol, "").upper()
    return name or f"IP protocol {protocol}"


@unique
class Kind(Enum):
    """Kind of a network service, for example ``DATABASE`` for MySQL and Redis."""

    WEB = "web"
    QUIC = "quic"
    NAMES = "names"
    SSH = "ssh"
    GIT = "git"
    REGISTRY = "registry"
    FILES = "files"
    MAIL = "mail"
    DATABASE = "database"
    TIME = "time"
    DIRECTORY = "directory"
    REMOTE = "remote"
    DISCOVERY = "discovery"
    PROXY = "proxy"
    MANAGEMENT = "management"


class Service(NamedTuple):
    """Name and kind of the network service at a well-known port, such as ``https`` at 443/tcp."""

    name: str
    kind: Kind


_BOTH: Final = (TCP, UDP)


def _at(
    kind: Kind, protocol: int | tuple[int, ...], names: dict[int, str]
) -> dict[tuple[int, int], Service]:
    both = (protocol,) if isinstance(protocol, int) else protocol
    return {(each, port): Service(name, kind) for each in both for port, name in names.items()}


#: Names from IANA's registry of service names and port numbers. A service that is not registered
#: has the name of its product.
_SERVICES: Final = (
    _at(Kind.WEB, TCP, {80: "http", 443: "https", 8000: "http-alt", 8080: "http-alt",
                         8443: "https-alt", 8888: "http-alt"})
    | _at(Kind.QUIC, UDP, {80: "http3", 443: "https"})
    | _at(Kind.NAMES, _BOTH, {53: "domain", 853: "domain-s", 137: "netbios-ns", 5353: "mdns",
                              5355: "llmnr"})
    | _at(Kind.SSH, TCP, {22: "ssh", 2222: "ssh-alt"})
    | _at(Kind.GIT, TCP, {9418: "git"})
    | _at(Kind.REGISTRY, TCP, {3141: "devpi", 4873: "verdaccio", 5000: "docker-registry",
                                8081: "nexus", 8082: "artifactory"})
    | _at(Kind.FILES, TCP, {20: "ftp-data", 21: "ftp", 139: "netbios-ssn", 445: "microsoft-ds",
                             873: "rsync", 989: "ftps-data", 990: "ftps", 2049: "nfs"})
    | _at(Kind.FILES, UDP, {69: "tftp", 2049: "nfs"})
    | _at(Kind.MAIL, TCP, {25: "smtp", 110: "pop3", 143: "imap", 465: "submissions",
                            587: "submission", 993: "imaps", 995: "pop3s"})
    | _at(Kind.DATABASE, TCP, {1433: "ms-sql-s", 1521: "oracle", 2379: "etcd-client",
                                3306: "mysql", 5432: "postgresql", 5672: "amqp", 6379: "redis",
                                9042: "cassandra", 9092: "kafka", 9200: "elasticsearch",
                                11211: "memcache", 27017: "mongodb"})
    | _at(Kind.TIME, UDP, {123: "ntp"})
    | _at(Kind.DIRECTORY, _BOTH, {88: "kerberos", 389: "ldap"})
    | _at(Kind.DIRECTORY, TCP, {636: "ldaps", 3268: "msft-gc"})
    | _at(Kind.REMOTE, TCP, {23: "telnet", 3389: "ms-wbt-server", 5900: "rfb", 5985: "wsman",
                              5986: "wsmans"})
    | _at(Kind.DISCOVERY, UDP, {67: "bootps", 68: "bootpc", 546: "dhcpv6-client",
                                 547: "dhcpv6-server", 1900: "ssdp", 3702: "ws-discovery"})
    | _at(Kind.PROXY, TCP, {1080: "socks", 3128: "ndl-aas", 9050: "tor-socks"})
    | _at(Kind.MANAGEMENT, UDP, {161: "snmp", 162: "snmptrap", 514: "syslog"})
    | _at(Kind.MANAGEMENT, TCP, {2375: "docker", 2376: "docker-s", 4317: "otlp", 4318: "otlp-http",
                                  6443: "kubernetes", 6514: "syslog-tls", 10250: "kubelet"})
)  # fmt: skip
#: All ports with a known service, for any protocol.
SERVICE_PORTS: Final = frozenset(port for _, port in _SERVICES)


def service(protocol: int | None, port: int | None) -> Service | None:
    """Return the usual network service at a port of an IP protocol; None if there is none."""
    if protocol is None or port is None:
        return None
    return _SERVICES.get((protocol, port))
