"""Advice to a program in the sandbox, by protocol and port."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.protocols import Kind, service
from tests.conformance.corpus import CONTEXT, OUT, RECORDS, V4, V6, record
from tests.ocsf.mapped import MAPPER
from tests.ocsf.test_attempts import rendered

URL = "http://10.200.0.1:3128"


def advice(mapper: Mapper = MAPPER, **facts: Any) -> str:
    sent = record(**(V4 | OUT | {"source_port": 40000} | facts))
    detail = rendered(Attempt.of(sent), mapper)["status_detail"]
    assert isinstance(detail, str)
    return detail


@pytest.mark.parametrize(
    ("protocol", "port", "hint"),
    [
        (6, 80, f"set http_proxy={URL}"),
        (6, 443, f"set HTTPS_PROXY={URL}"),
        (6, 8080, f"set HTTPS_PROXY={URL}"),
        (17, 443, "turn HTTP/3 off"),
        (17, 53, "Don't resolve names here"),
        (6, 53, "let the proxy resolve them"),
        (6, 853, "let the proxy resolve them"),
        (6, 22, "ssh -o ProxyCommand='nc -X connect -x 10.200.0.1:3128 %h %p'"),
        (6, 9418, "use https:// remotes"),
        (6, 5000, "for pip, npm, cargo and apt"),
        (6, 21, "fetch over https://"),
        (6, 25, "The sandbox can't send or read mail"),
        (6, 5432, "--allow tcp:203.0.113.7:5432"),
        (6, 6379, "This is a database's port."),
        (6, 389, "Otherwise use a client that connects through the proxy"),
        (17, 389, "The sandbox's operator can allow it: --allow udp:203.0.113.7:389"),
        (6, 389, "directory service"),
        (17, 123, "turn the NTP client off"),
        (6, 3389, "Remote logins"),
        (17, 1900, "turn DHCP and discovery off"),
        (6, 1080, f"The only proxy of this sandbox is {URL}"),
        (17, 514, "--allow udp:203.0.113.7:514"),
        (6, 4444, f"Connect through the proxy at {URL} (HTTP CONNECT)."),
        (17, 4444, f"The sandbox may send only TCP to the proxy at {URL}."),
        (1, None, f"curl -sI --proxy '{URL}' https://HOST/"),
        (47, None, f"The sandbox may send only TCP to the proxy at {URL}."),
        (132, 80, f"The sandbox may send only TCP to the proxy at {URL}."),
    ],
)
def test_the_advice_is_of_the_protocol_and_port(protocol: int, port: int | None, hint: str) -> None:
    assert hint in advice(protocol=protocol, destination_port=port)


def test_an_exception_of_the_other_family_is_in_brackets() -> None:
    facts = V6 | {"protocol": 6, "destination_port": 5432}
    assert "--allow tcp:[2001:db8::7]:5432" in advice(**facts)


@pytest.mark.parametrize("name", ["tcp4", "udp dns", "icmp echo", "gre"])
def test_without_a_proxy_none_is_named(name: str) -> None:
    detail = rendered(Attempt.of(RECORDS[name]), Mapper(Context()))["status_detail"]
    assert detail.endswith("The sandbox may connect only to its proxy: use the proxy.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("router solicitation", "A kernel sends such packets by itself"),
        ("igmp", "A kernel sends such packets by itself"),
        ("mdns", "Multicast and broadcast don't leave the sandbox"),
        ("broadcast", "Multicast and broadcast don't leave the sandbox"),
        ("metadata4", "its operator has to provide credentials in another way"),
        ("late fragment", "send whole packets"),
        ("ingress", "The sandbox may receive only replies of its proxy"),
        ("forward", "run the program in the sandbox itself"),
        ("link 88b5", "The sandbox may send only frames of the IP stack"),
        ("vm forward", "Its host forwards only connections that the VM opens"),
        ("vm metadata", "its operator has to provide credentials in another way"),
        ("vm input", "On its host, the VM may connect only to the gateway's port"),
        ("vm ingress", "The VM may receive only replies on connections that it opened"),
        ("vm link", "The VM may send only IP and ARP without VLAN tags, from its own MAC address"),
        (
            "vm link fragment",
            "The VM may send only IP and ARP without VLAN tags, from its own MAC address",
        ),
        ("vm link solicitation", "A kernel sends such packets by itself"),
    ],
)
def test_advice_for_protocols_without_a_proxy(name: str, hint: str) -> None:
    assert hint in rendered(Attempt.of(RECORDS[name]))["status_detail"]


def test_every_kind_of_service_has_its_advice() -> None:
    ports = {
        found.kind: (protocol, port)
        for protocol in (6, 17)
        for port in range(1 << 16)
        if (found := service(protocol, port)) is not None
    }
    assert ports.keys() == set(Kind)
    advices = {advice(protocol=one, destination_port=port) for one, port in ports.values()}
    assert len(advices) == len(Kind)


def test_the_advice_names_the_proxy_of_the_packets_family() -> None:
    only6 = Mapper(replace(CONTEXT, proxies=CONTEXT.proxies[2:]))
    assert "http://[fd00:200::1]:3128" in advice(only6, protocol=6, destination_port=443)


def test_a_well_known_port_has_a_name() -> None:
    assert rendered(Attempt.of(RECORDS["tcp4"]))["dst_endpoint"]["svc_name"] == "https"
    assert "svc_name" not in rendered(Attempt.of(RECORDS["gre"]))["dst_endpoint"]
    assert "svc_name" not in rendered(Attempt.of(RECORDS["tcp4"]))["src_endpoint"]
