"""Configuration of events: sinks, severities, findings, and the container of a sandbox."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import config
from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.finding_settings import FindingSettings, TunnelThreshold
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.process import Container

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
[[sandbox]]
name = "agent-1"

[sandbox.container]
uid = "3f4e0c2c9d1a"
name = "agent"
runtime = "containerd"
image_uid = "sha256:77af"
image_name = "registry.example/agent:1"

[[sandbox]]
name = "agent-2"

[[sink]]
path = "/var/log/ocsf-nft/siem.jsonl"

[[sink]]
path = "/var/log/ocsf-nft/lake.jsonl"
ocsf_version = "1.1"
classes = ["network_activity", "detection_finding"]

[[severity]]
severity = "low"
protocol = "udp"
port = 123

[[severity]]
severity = "critical"
sandbox = "agent-1"
rule = "egress"
protocol = 132
destination = "203.0.113.0/24"
uid = 0

[finding]
min_severity = "critical"
threshold = 3

[dns_tunnel]
names = 20
length = 12
entropy = 3.5

[events]
dns_activity = true
"""
WATCHED: dict[str, Any] = {"sandbox": [{"name": "a"}]}


def read_from(folder: Path, text: str) -> config.Config:
    path = folder / "ocsf-nft.toml"
    path.write_text(text)
    return config.load(path)


def test_each_sink_has_its_version_and_classes(tmp_path: Path) -> None:
    siem, lake = read_from(tmp_path, FILE).sinks
    assert (siem.ocsf_version, siem.class_uids) == ("1.8.0", frozenset(CLASSES))
    assert (lake.ocsf_version, lake.class_uids) == ("1.1.0", frozenset({4001, 2004}))


def test_severities_keep_their_order(tmp_path: Path) -> None:
    assert read_from(tmp_path, FILE).severities == (
        SeverityRule(severity=Severity.LOW, protocol=17, port=123),
        SeverityRule(
            severity=Severity.CRITICAL,
            sandbox="agent-1",
            rule="egress",
            protocol=132,
            destination=ip_network("203.0.113.0/24"),
            uid=0,
        ),
    )


def test_threshold_of_findings_is_optional(tmp_path: Path) -> None:
    threshold = read_from(tmp_path, FILE).finding.as_settings()
    assert threshold == FindingSettings(min_severity=Severity.CRITICAL, packets=3)
    assert config.parse(WATCHED, where="test").finding.as_settings() == FindingSettings()


def test_alerts_and_links_of_findings_are_configurable() -> None:
    table = {
        "alert_severity": "medium",
        "auto_close": True,
        "runbook_url": "https://docs.example.com/runbook",
    }
    found = config.parse(WATCHED | {"finding": table}, where="test").finding
    assert found.as_settings() == FindingSettings(
        alert_severity=Severity.MEDIUM,
        auto_close=True,
        runbook_url="https://docs.example.com/runbook/",
    )


@pytest.mark.parametrize(
    "address", ["", "docs", "file:///etc/passwd", "https://", "http://[::1/", "https://a/\x1b"]
)
def test_runbook_url_must_be_a_web_address(address: str) -> None:
    table = {"runbook_url": address}
    with pytest.raises(UsageError, match="is no web address: write https://HOST/PATH/"):
        config.parse(WATCHED | {"finding": table}, where="test")


def test_condition_for_a_dns_tunnel_is_part_of_the_settings_of_findings(tmp_path: Path) -> None:
    found = read_from(tmp_path, FILE)
    assert found.finding_settings.tunnel == TunnelThreshold(names=20, length=12, entropy=3.5)
    assert found.finding_settings.packets == 3
    assert found.events.dns_activity
    without = config.parse(WATCHED, where="test")
    assert without.finding_settings == FindingSettings()
    assert not without.events.dns_activity


def test_a_sandbox_may_be_a_container(tmp_path: Path) -> None:
    first, second = read_from(tmp_path, FILE).sandbox
    assert first.event_container == Container(
        uid="3f4e0c2c9d1a",
        name="agent",
        runtime="containerd",
        image_uid="sha256:77af",
        image_name="registry.example/agent:1",
    )
    assert second.event_container is None


def test_one_sink_needs_no_table() -> None:
    (sink,) = config.parse(WATCHED | {"output": "x", "ocsf_version": "1.5"}, where="test").sinks
    assert (sink.called, sink.ocsf_version) == ("x", "1.5.0")
    sink = config.sink("-", "1.3.0")
    assert (sink.called, sink.ocsf_version) == ("-", "1.3.0")


@pytest.mark.parametrize("protocol", ["TCP", "icmp", "icmpv6", "ipv6-icmp", "sctp", 0, 255])
def test_a_protocol_has_a_name_or_a_number(protocol: str | int) -> None:
    found = WATCHED | {"severity": [{"severity": "low", "protocol": protocol}]}
    (rule,) = config.parse(found, where="test").severities
    numbers = {"TCP": 6, "icmp": 1, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132}
    assert rule.protocol == (protocol if isinstance(protocol, int) else numbers[protocol])


def _severity(**facts: Any) -> dict[str, Any]:
    return {"severity": [{"severity": "low"} | facts]}


def _sink(**facts: Any) -> dict[str, Any]:
    return {"sink": [{"path": "x"} | facts]}


def _lake(name: str, **keys: Any) -> dict[str, Any]:
    return {"type": "parquet", "name": name, "directory": "/lake", "region": "local"} | keys


def _container(**facts: Any) -> dict[str, Any]:
    return {"sandbox": [{"name": "a", "container": facts}]}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (_sink(ocsf_version="2.0"), '"2.0" is no version of OCSF: give one of 1.1.0, 1.3.0'),
        (_sink(ocsf_version=1.1), "sink.0.ocsf_version: must be text, not 1.1"),
        (_sink(classes=[]), "sink.0.classes"),
        (_sink(classes=["firewall"]), "network_activity, dns_activity"),
        (_sink(path=""), "sink.0.path: must not be empty"),
        (_sink(version="1.1"), "sink.0.version: did you mean ocsf_version?"),
        (_sink() | {"output": "y"}, "replace a single [[sink]]"),
        (_sink() | {"ocsf_version": "1.1"}, "replace a single [[sink]]"),
        ({"sink": [{"path": "x"}, {"path": "x"}]}, "two sinks are the same: give each a name"),
        ({"sink": [_lake("a"), _lake("b")]}, "two parquet sinks write events of one class"),
        (
            {"sink": [_lake("a"), _lake("b", directory="/lake/", detail="lean")]},
            "two parquet sinks write events of one class",
        ),
        ({"ocsf_version": "2.0"}, 'ocsf_version: "2.0" is no version of OCSF'),
        (_severity(severity="grave"), "informational, low, medium, high or critical"),
        (_severity(protocol="carrier pigeon"), '"carrier pigeon" is no IP protocol'),
        (_severity(protocol=256), "severity.0.protocol"),
        (_severity(destination="203.0.113.7/24"), "no address and no network"),
        (_severity(destination="example.com"), '"example.com" is no address and no network'),
        (_severity(destination="\x1b[2J"), "no address and no network"),
        (_severity(port=65536), "severity.0.port"),
        (_severity(uid=-1), "severity.0.uid"),
        (_severity(uid="1000"), "severity.0.uid"),
        (_severity(port=53.0), "severity.0.port"),
        (_severity(protocol=True), "severity.0.protocol"),
        (_severity(sandbox="a/b"), "no sandbox name"),
        (_severity(rul="egress"), "severity.0.rul: did you mean rule?"),
        ({"finding": {"min_severity": "now"}}, "finding.min_severity"),
        ({"finding": {"threshold": 0}}, "finding.threshold"),
        ({"dns_tunnel": {"names": 1}}, "dns_tunnel.names"),
        ({"dns_tunnel": {"names": 513}}, "dns_tunnel.names"),
        ({"dns_tunnel": {"length": 0}}, "dns_tunnel.length"),
        ({"dns_tunnel": {"entropy": float("nan")}}, "dns_tunnel.entropy"),
        ({"events": {"dns_activity": "maybe"}}, "events.dns_activity"),
        ({"finding": {"threshold": 10**30}}, "finding.threshold"),
        ({"finding": {"thresholds": 1}}, "finding.thresholds: did you mean threshold?"),
        (_container(), "must have a uid or a name"),
        (_container(uid="x", image_name="y"), "has an image_name without an image_uid"),
        (_container(uid=""), "sandbox.0.container.uid"),
        (_container(id="x"), "sandbox.0.container.id: did you mean uid?"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse(WATCHED | found, where="ocsf-nft.toml")
    message = str(refused.value)
    assert sentence in message
    assert message.startswith("ocsf-nft.toml: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "keys",
    [
        {"source": "other"},
        {"directory": "/other"},
        {"region": "other"},
        {"account": "other"},
        {"ocsf_version": "1.7"},
        {"classes": ["dns_activity"]},
    ],
)
def test_parquet_sinks_with_other_locations_are_accepted(keys: dict[str, Any]) -> None:
    sinks = [_lake("a", classes=["network_activity"]), _lake("b", **keys)]
    config.parse({"sandbox": [{"name": "a"}], "sink": sinks}, where="test")
