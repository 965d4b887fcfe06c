from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.version import VERSION
from tests.conformance.corpus import CONTEXT, NOW_NS, OUT, RECORDS, TCP, V4, record
from tests.ocsf.mapped import MAPPER, event_of


def test_refused_connection_has_all_attributes() -> None:
    assert event_of("tcp4") == {
        "class_uid": 4001,
        "class_name": "Network Activity",
        "category_uid": 4,
        "category_name": "Network Activity",
        "activity_id": 5,
        "activity_name": "Refuse",
        "type_uid": 400105,
        "type_name": "Network Activity: Refuse",
        "time": 1767225600000,
        "start_time": 1767225600000,
        "end_time": 1767225600000,
        "timezone_offset": 0,
        "count": 1,
        "severity_id": 3,
        "severity": "Medium",
        "status_id": 2,
        "status": "Failure",
        "status_code": "tcp-reset",
        "status_detail": "The sandbox's fence blocked this traffic; the network did not fail. "
        "Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again.",
        "message": (
            "Blocked TCP connection from uid 1000 in sandbox sb1 to 203.0.113.7:443 (https); "
            "answered with a TCP reset"
        ),
        "action_id": 2,
        "action": "Denied",
        "disposition_id": 2,
        "disposition": "Blocked",
        "is_alert": False,
        "confidence_id": 3,
        "confidence": "High",
        "firewall_rule": {
            "name": "egress",
            "uid": "inet/ocsf_nft/refuse_egress/14",
            "type": "nftables",
            "desc": "the sandbox may send only to its proxy",
            "condition": "no rule of the chain output accepts the packet",
        },
        "is_src_dst_assignment_known": True,
        "observation_point_id": 1,
        "observation_point": "Source",
        "src_endpoint": {
            "name": "sb1",
            "ip": "10.200.0.2",
            "port": 41254,
            "interface_name": "sb0",
            "network_scope_id": 1,
            "network_scope": "Internal",
        },
        "dst_endpoint": {
            "ip": "203.0.113.7",
            "port": 443,
            "svc_name": "https",
            "network_scope_id": 2,
            "network_scope": "External",
        },
        "proxy_endpoint": {"ip": "10.200.0.1", "port": 3128},
        "connection_info": {
            "direction_id": 2,
            "direction": "Outbound",
            "protocol_num": 6,
            "protocol_name": "tcp",
            "protocol_ver_id": 4,
            "protocol_ver": "Internet Protocol version 4 (IPv4)",
            "tcp_flags": 2,
            "boundary_id": 3,
            "boundary": "External",
            "community_uid": "1:nXTTpkREGtBgFMhsF+qPzP/fheI=",
        },
        "traffic": {"packets": 1, "bytes": 60},
        "actor": {"user": {"uid": "1000", "groups": [{"uid": "1000"}]}},
        "device": {
            "hostname": "host-1",
            "type_id": 0,
            "type": "Unknown",
            "os": {
                "name": "Linux",
                "type_id": 200,
                "type": "Linux",
                "kernel_release": "6.18.44",
            },
            "boot_uid": "7d0d2a3f-34f5-4f3e-9c5b-0a8f7b0f5e11",
            "boot_time": 1767000000000,
        },
        "observables": [
            {
                "name": "dst_endpoint.ip",
                "type_id": 2,
                "type": "IP Address",
                "value": "203.0.113.7",
            },
            {"name": "dst_endpoint.port", "type_id": 11, "type": "Port", "value": "443"},
            {
                "name": "src_endpoint.ip",
                "type_id": 2,
                "type": "IP Address",
                "value": "10.200.0.2",
            },
            {
                "name": "actor.user.uid",
                "type_id": 31,
                "type": "User Object: uid",
                "value": "1000",
            },
            {"name": "device.hostname", "type_id": 1, "type": "Hostname", "value": "host-1"},
        ],
        "raw_data": "ocsf-nft:sb1:egress:IN= OUT=sb0",
        "raw_data_size": 31,
        "unmapped": {
            "packet": {"ttl": 64, "ip_id": 1429},
            "prefix": "ocsf-nft:sb1:egress:",
            "sandbox": "sb1",
        },
        "metadata": {
            "version": "1.8.0",
            "uid": "59027dc4-d65a-5c45-9cb1-ded745140cf6",
            "event_code": "egress-blocked",
            "product": {
                "name": "ocsf-nft",
                "vendor_name": "ocsf-nft",
                "version": VERSION,
            },
            "profiles": ["host", "network_proxy", "security_control"],
            "log_name": "netfilter",
            "log_provider": "netfilter",
            "log_source": "/dev/kmsg",
            "log_format": "nf_log_syslog",
            "original_time": "[12345.678901]",
            "original_event_uid": "kmsg:boot:5678",
            "sequence": 5678,
            "correlation_uid": "621aa0d8-9abb-5b74-800a-c055b5395d44",
            "logged_time": 1767225600100,
            "processed_time": 1767225600150,
            "tags": [{"name": "sandbox", "value": "sb1"}],
        },
    }


def test_the_keys_come_in_one_order() -> None:
    line = MAPPER.network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS).to_json()
    assert line.startswith(b'{"class_uid":4001,"class_name":"Network Activity","category_uid":4,')
    assert (
        line
        == Mapper(CONTEXT)
        .network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS)
        .to_json()
    )


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("tcp4", (("sb1", "sb0"), (None, None))),
        ("forward", (("sb1", "nested0"), (None, "sb0"))),
        ("ingress", ((None, None), ("sb1", "sb0"))),
        ("guard", (("sb1", "gw0"), (None, None))),
        ("foreign", ((None, None), (None, "eth0"))),
        ("foreign, passing", ((None, "eth0"), (None, "eth1"))),
    ],
)
def test_names_and_interfaces_are_at_their_endpoint(name: str, ends: object) -> None:
    event = event_of(name)
    assert ends == tuple(
        (event[end].get("name"), event[end].get("interface_name"))
        for end in ("src_endpoint", "dst_endpoint")
    )


def test_the_only_proxy_serves_the_other_family_too() -> None:
    only4 = Mapper(replace(CONTEXT, proxies=CONTEXT.proxies[:1]))
    event = event_of("tcp6", only4)
    assert event["proxy_endpoint"] == {"ip": "10.200.0.1", "port": 3128}
    assert "HTTPS_PROXY=http://10.200.0.1:3128" in event["status_detail"]


def test_the_proxy_is_the_first_of_the_same_family() -> None:
    assert event_of("tcp4")["proxy_endpoint"] == {"ip": "10.200.0.1", "port": 3128}
    assert event_of("tcp6")["proxy_endpoint"] == {"ip": "fd00:200::1", "port": 3128}


@pytest.mark.parametrize("name", ["ingress", "forward from outside", "link 88b5", "foreign"])
def test_proxy_is_not_named_for_other_protocols(name: str) -> None:
    event = event_of(name)
    assert "proxy_endpoint" not in event
    assert "network_proxy" not in event["metadata"]["profiles"]


def test_unknown_data_is_left_out() -> None:
    event = event_of("nothing but a prefix", Mapper(Context()))
    assert event["src_endpoint"] == {"name": "unknown"}
    assert event["connection_info"] == {"direction_id": 0, "direction": "Unknown"}
    assert event["traffic"] == {"packets": 1}
    assert event["metadata"]["profiles"] == ["security_control"]
    assert event["firewall_rule"] == {"name": "x"}
    absent = {"actor", "device", "dst_endpoint", "observables", "status_code", "proxy_endpoint"}
    assert absent.isdisjoint(event)


def test_frame_has_its_hardware_addresses() -> None:
    event = event_of("nothing but macs")
    assert event["dst_endpoint"] == {"uid": "02:00:00:00:00:02", "mac": "02:00:00:00:00:02"}
    assert event_of("link arp")["unmapped"] == {
        "packet": {"arp": {"operation": 1, "target_ip": "10.200.0.77"}},
        "prefix": "ocsf-nft:sb1:link:",
        "sandbox": "sb1",
        "ethertype": 0x0806,
    }


def test_data_without_ocsf_attribute_is_in_unmapped() -> None:
    assert event_of("no address")["unmapped"] | {"prefix": ""} == {
        "prefix": "",
        "sandbox": "sb1",
        "source": "not an address",
        "destination": "fe80::1%eth0",
        "destination_port": 443,
    }
    assert event_of("infiniband")["unmapped"]["mac_source"] == ":".join(["80"] * 20)
    assert event_of("group without a user")["unmapped"]["gid"] == 100


def test_hostile_interface_name_changes_no_other_attribute() -> None:
    event = event_of("hostile interface")
    assert event["src_endpoint"]["interface_name"] == "DST=9.9.9.9"
    assert event["dst_endpoint"]["ip"] == "203.0.113.7"
    shown = event_of("unprintable interface")["src_endpoint"]["interface_name"]
    assert shown == "\\x1b[2J\\xff\\u202e"


def test_record_of_netlink_has_its_log_format() -> None:
    logged = RECORDS["tcp4"]
    logged = replace(logged, origin=replace(logged.origin, log_format="nfnetlink_log"))
    event = MAPPER.network_activity(Attempt.of(logged), processed_ns=NOW_NS)
    assert event.metadata.log_format == "nfnetlink_log"


def test_a_scan_of_many_destinations_takes_little_memory() -> None:
    draw = random.Random(1)
    tracemalloc.start()
    try:
        for _ in range(4000):
            destination = ".".join(str(draw.randrange(1, 224)) for _ in range(4))
            tried = {"destination": destination, "destination_port": draw.randrange(1 << 16)}
            MAPPER.network_activity(
                Attempt.of(record(**(V4 | TCP | OUT | tried))), processed_ns=NOW_NS
            )
        assert tracemalloc.get_traced_memory()[0] < 6_000_000
    finally:
        tracemalloc.stop()
