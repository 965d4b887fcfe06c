"""Host and product of records that other machines or firewalls logged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given

from ocsf_nft.attempt import Attempt
from ocsf_nft.log_prefixes import Prefixes
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.foreign_log import logging_host, product_of
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.templates import SIGHTINGS
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.sources.replay import Reader
from ocsf_nft.validation import EventValidator
from tests.conformance.corpus import CONTEXT, NOW_NS
from tests.published_versions import PUBLISHED
from tests.strategies import LOG_HOSTS

if TYPE_CHECKING:
    from ocsf_nft.record import LogHost

_PACKET: Final = (
    "IN=eth0 OUT= MAC=02:00:00:00:00:02:02:00:00:00:00:01:08:00 SRC=198.51.100.1 DST=192.0.2.10 "
    "LEN=44 TOS=0x00 PREC=0x00 TTL=241 ID=54321 PROTO=TCP SPT=44444 DPT=3389 WINDOW=1024 RES=0x00 "
    "SYN URGP=0 "
)
_BOOT: Final = "7d0d2a3f34f54f3e9c5b0a8f7b0f5e11"
_MACHINE: Final = "0123456789abcdef0123456789abcdef"
_LINUX: Final = {"name": "Linux", "type_id": 200, "type": "Linux"}
_MAPPER: Final = Mapper(Context())


def _attempts(lines: str) -> list[Attempt]:
    reader = Reader(boot_ns=0, now_ns=lambda: NOW_NS, unstamped_ns=NOW_NS)
    found = [each for batch in reader.batches([lines.encode()]) for each in batch.records]
    assert found
    return [Attempt.of(Prefixes().named(record)) for record in found]


def _event(line: str, mapper: Mapper = _MAPPER) -> dict[str, Any]:
    (attempt,) = _attempts(line)
    event: dict[str, Any] = json.loads(mapper.line(attempt, processed_ns=NOW_NS))
    return event


def _syslog(host: str, prefix: str = "[UFW BLOCK] ") -> str:
    return f"Nov 20 10:00:00 {host} kernel: [  100.000000] {prefix}{_PACKET}"


def test_host_of_a_journal_entry_is_the_device() -> None:
    entry = {
        "MESSAGE": f"[UFW BLOCK] {_PACKET}",
        "_TRANSPORT": "kernel",
        "SYSLOG_FACILITY": "0",
        "__CURSOR": "s=1",
        "_HOSTNAME": "web-1",
        "_BOOT_ID": _BOOT,
        "_MACHINE_ID": _MACHINE,
    }
    exported = "".join(f"{name}={value}\n" for name, value in ({"__CURSOR": ""} | entry).items())
    for text in (json.dumps(entry), f"{exported}\n"):
        event = _event(text)
        assert event["device"] == {
            "hostname": "web-1",
            "uid": _MACHINE,
            "type_id": 0,
            "type": "Unknown",
            "os": _LINUX,
            "boot_uid": "7d0d2a3f-34f5-4f3e-9c5b-0a8f7b0f5e11",
        }
        assert event["observables"][-1] == {
            "name": "device.hostname", "type_id": 1, "type": "Hostname", "value": "web-1",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("host", "attribute", "value"),
    [
        ("localhost", "hostname", "localhost"),
        ("gw-1.example.com", "hostname", "gw-1.example.com"),
        ("192.0.2.1", "ip", "192.0.2.1"),
        ("2001:DB8:0::1", "ip", "2001:db8::1"),
        ("my_host", "name", "my_host"),
        ("a/b@c", "name", "a/b@c"),
        ("x\u202ey", "name", "x\\u202ey"),
        ("-rf", "name", "-rf"),
        ("h" * 64, "name", "h" * 64),
        ("a.b" * 1000, "hostname", "a.b" * 85),
    ],
)
def test_host_of_a_syslog_line_is_a_host_name_an_address_or_safe_text(
    host: str, attribute: str, value: str
) -> None:
    event = _event(_syslog(host))
    assert event["device"] == {attribute: value, "type_id": 0, "type": "Unknown", "os": _LINUX}
    observed = [each for each in event["observables"] if each["name"].startswith("device.")]
    assert [each["value"] for each in observed] == ([value] if attribute != "name" else [])


@given(host=LOG_HOSTS)
def test_host_is_printable_and_only_a_host_name_is_a_hostname(host: LogHost) -> None:
    device, observables, *_ = logging_host(host)
    assert (device.hostname or device.ip or device.name or "").isprintable()
    assert device.hostname is None or re.fullmatch(r"[A-Za-z0-9.-]+", device.hostname)
    assert len(observables) == (device.name is None)


@pytest.mark.parametrize("line", [_PACKET, f"[  100.000000] DROP {_PACKET}"])
def test_line_without_a_host_has_no_device(line: str) -> None:
    assert "device" not in _event(line)


def test_known_host_is_the_device_whatever_the_log_says() -> None:
    assert _event(_syslog("other"), Mapper(CONTEXT))["device"]["hostname"] == "host-1"


def test_firewall_that_logged_is_the_product() -> None:
    event = _event(_syslog("web-1"))
    assert event["firewall_rule"] == {"name": "UFW BLOCK", "type": "ufw"}
    assert event["metadata"]["product"] == {"name": "ufw", "vendor_name": "Canonical"}
    (logger,) = event["metadata"]["loggers"]
    assert logger["logged_time"] == event["metadata"]["logged_time"]
    assert (logger["name"], logger["product"]["name"]) == ("ocsf-nft", "ocsf-nft")


def test_unknown_firewall_is_netfilter_without_a_type() -> None:
    event = _event(_syslog("web-1", "edge: "))
    assert event["firewall_rule"] == {"name": "edge:"}
    assert event["metadata"]["product"] == {"name": "netfilter", "vendor_name": "Linux"}


def test_fence_in_a_log_is_ours_and_says_what_it_matches() -> None:
    event = _event(_syslog("web-1", "ocsf-nft:sb1:egress:"))
    assert event["firewall_rule"] == {
        "name": "egress",
        "type": "nftables",
        "desc": "the sandbox may send only to its proxy",
        "condition": "no rule of the chain output accepts the packet",
    }
    assert event["metadata"]["product"]["name"] == "ocsf-nft"
    assert "loggers" not in event["metadata"]
    assert event["device"]["hostname"] == "web-1"


def test_each_product_has_a_vendor() -> None:
    assert product_of("Shorewall").vendor_name == "Shorewall"
    assert product_of("ufw").vendor_name == "Canonical"


def test_hosts_share_a_template() -> None:
    attempts = _attempts("".join(f"{_syslog(f'host-{number}')}\n" for number in range(64)))
    mapper = Mapper(Context())
    for attempt in attempts:
        mapper.line(attempt, processed_ns=NOW_NS)
    assert len(attempts) == 64 > SIGHTINGS
    assert len(mapper._templates._stored) == 1


def test_hosts_and_firewalls_of_different_kinds_do_not_share_a_template() -> None:
    hosts = ("web-1", "192.0.2.1", "my_host")
    prefixes = ("iptables ", "docker ", "none ")
    mapper = Mapper(Context())
    for attempt in _attempts(
        "".join(f"{_syslog(host, prefix)}\n" for host in hosts for prefix in prefixes)
    ):
        one = replace(attempt, record=replace(attempt.record, rule="x"))
        expected = mapper.network_activity(one, processed_ns=NOW_NS).to_json()
        for _ in range(SIGHTINGS + 1):
            assert mapper.line(one, processed_ns=NOW_NS) == expected
    assert len(mapper._templates._stored) == len(hosts) * len(prefixes)


@pytest.mark.parametrize("version", PUBLISHED)
@pytest.mark.parametrize("host", ["web-1", "192.0.2.1", "my_host"])
def test_event_of_a_foreign_log_is_valid(version: str, host: str) -> None:
    event = at_version(_event(_syslog(host)), version)
    assert not list(EventValidator(version).faults(event))
