"""Names of services and protocols, by the numbers of the IANA registries and of the products."""

from __future__ import annotations

from typing import Final

import pytest

from ocsf_nft.ocsf import protocols
from tests.ocsf.mapped import event_of

#: As in the IANA registry of service names and ports, or in the product's manual.
_TCP: Final = """
ftp-data 20, ftp 21, ssh 22, telnet 23, smtp 25, domain 53, http 80, kerberos 88, pop3 110,
netbios-ns 137, netbios-ssn 139, imap 143, ldap 389, https 443, microsoft-ds 445, submissions 465,
submission 587, ldaps 636, domain-s 853, rsync 873, ftps-data 989, ftps 990, imaps 993, pop3s 995,
socks 1080, ms-sql-s 1433, oracle 1521, nfs 2049, ssh-alt 2222, docker 2375, docker-s 2376,
etcd-client 2379, ndl-aas 3128, devpi 3141, msft-gc 3268, mysql 3306, ms-wbt-server 3389,
otlp 4317, otlp-http 4318, verdaccio 4873, docker-registry 5000, mdns 5353, llmnr 5355,
postgresql 5432, amqp 5672, rfb 5900, wsman 5985, wsmans 5986, redis 6379, kubernetes 6443,
syslog-tls 6514, http-alt 8000, http-alt 8080, nexus 8081, artifactory 8082, https-alt 8443,
http-alt 8888, cassandra 9042, tor-socks 9050, kafka 9092, elasticsearch 9200, git 9418,
kubelet 10250, memcache 11211, mongodb 27017
"""
_UDP: Final = """
domain 53, bootps 67, bootpc 68, tftp 69, http3 80, kerberos 88, ntp 123, netbios-ns 137, snmp 161,
snmptrap 162, ldap 389, https 443, syslog 514, dhcpv6-client 546, dhcpv6-server 547, domain-s 853,
ssdp 1900, nfs 2049, ws-discovery 3702, mdns 5353, llmnr 5355
"""
#: As in the IANA registry of protocol numbers.
_PROTOCOLS: Final = """
hopopt 0, icmp 1, igmp 2, ggp 3, ipv4 4, st 5, tcp 6, egp 8, igp 9, pup 12, udp 17, hmp 20,
xns-idp 22, rdp 27, iso-tp4 29, dccp 33, xtp 36, ipv6 41, ipv6-route 43, ipv6-frag 44, rsvp 46,
gre 47, esp 50, ah 51, ipv6-icmp 58, ipv6-nonxt 59, ipv6-opts 60, eigrp 88, ospfigp 89, ipip 94,
etherip 97, encap 98, pim 103, ipcomp 108, vrrp 112, l2tp 115, sctp 132, fc 133, udplite 136,
mpls-in-ip 137, manet 138, hip 139, shim6 140, wesp 141, rohc 142, ethernet 143
"""


def _numbers(text: str) -> dict[int, str]:
    pairs = (each.split() for each in text.split(","))
    return {int(number): name for name, number in pairs}


def test_service_is_known_by_its_port() -> None:
    for protocol, text in ((6, _TCP), (17, _UDP), (132, "")):
        known = _numbers(text) if text else {}
        for port in range(65_536):
            found = protocols.service(protocol, port)
            assert (found and found.name) == known.get(port), (protocol, port)
    assert protocols.service(None, 443) is protocols.service(6, None) is None


def test_protocol_is_known_by_its_number() -> None:
    assert _numbers(_PROTOCOLS) == protocols.NAMES
    named = ("ICMP", "IGMP", "TCP", "UDP", "ICMPV6", "SCTP")
    assert [getattr(protocols, name) for name in named] == [1, 2, 6, 17, 58, 132]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("udp dns", "udp"),
        ("icmp echo", "icmp"),
        ("icmpv6 echo", "ipv6-icmp"),
        ("igmp", "igmp"),
        ("sctp", "sctp"),
        ("udplite", "udplite"),
        ("gre", "gre"),
        ("esp", "esp"),
        ("6in4", "ipv6"),
        ("no next header", "ipv6-nonxt"),
        ("protocol 253", None),
        ("link 88b5", None),
    ],
)
def test_protocols_have_ianas_name_in_lower_case(name: str, protocol: str | None) -> None:
    assert event_of(name)["connection_info"].get("protocol_name") == protocol
