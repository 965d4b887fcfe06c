"""Tests of the findings about kernel settings, with files like those of /proc/sys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.check import sysctls
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    from ocsf_nft.check import Finding

_IPV4: Final = (subnet("172.16.0.1/30"),)
_IPV6: Final = (subnet("fd00:16::1/64"),)
_FORWARD4: Final = "net/ipv4/ip_forward"
_FORWARD6: Final = "net/ipv6/conf/all/forwarding"
_COUNT: Final = "net/netfilter/nf_conntrack_count"
_LIMIT: Final = "net/nf_conntrack_max"


class _System:
    """Folder with settings in place of /proc/sys."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._made = 0
        self._monkeypatch = monkeypatch

    def findings(self, values: Mapping[str, str], **scope: Any) -> list[Finding]:
        """Return the findings where exactly these settings exist."""
        self._made += 1
        root = self._folder / str(self._made)
        self._monkeypatch.setattr(sysctls, "_SYS", root)
        for path, value in values.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(f"{value}\n")
        fields: dict[str, Any] = {"namespace": Namespace(), "device": "vmtap-1", "port": 3128}
        return list(sysctls.findings(CheckScope(**fields | scope)))

    def names(self, values: Mapping[str, str], **scope: Any) -> list[str]:
        return [finding.name for finding in self.findings(values, **scope)]


def test_forwarding_that_is_off_is_reported_for_the_versions_of_a_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    off = {_FORWARD4: "0", _FORWARD6: "0"}
    for values, subnets, versions in (
        (off, _IPV4, [4]),
        (off, _IPV6, [6]),
        (off, _IPV4 + _IPV6, [4, 6]),
        ({_FORWARD4: "1", _FORWARD6: "1"}, _IPV4 + _IPV6, []),
        ({}, _IPV4 + _IPV6, []),
    ):
        found = system.findings(values, subnets=subnets)
        paths = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
        assert [each.meaning for each in found] == [
            f"{paths[version]} is 0: IPv{version} of a VM is not forwarded" for version in versions
        ]
    assert system.names(off, device=None) == []


def test_uplink_that_would_ignore_router_advertisements_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    for uplink, forwarding, accept, commands in (
        ("up0", "0", "1", ["sysctl -w net.ipv6.conf.up0.accept_ra=2"]),
        ("up0.5", "0", "1", ["sysctl -w net.ipv6.conf.up0/5.accept_ra=2"]),
        ("up;0", "0", "1", []),
        ("up0", "1", "1", None),
        ("up0", "0", "2", None),
        ("up0", "0", "0", None),
    ):
        values = {
            _FORWARD6: forwarding,
            f"net/ipv6/conf/{uplink}/accept_ra": accept,
            f"net/ipv4/conf/{uplink}/rp_filter": "0",
        }
        found = system.findings(values, subnets=_IPV4, uplinks={4: "up1", 6: uplink})
        expected = [] if commands is None else [("accept-ra", "degraded", tuple(commands))]
        assert [(each.name, each.severity, each.commands) for each in found] == expected, uplink
    values |= {
        _FORWARD6: "0",
        "net/ipv6/conf/up0/accept_ra": "1",
        "net/ipv6/conf/removed/accept_ra": "1",
    }
    for uplinks in ({}, {6: "removed"}, {4: "up0"}):
        assert system.names(values, subnets=_IPV4, uplinks=uplinks) == []


def test_strict_reverse_path_filter_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    # The kernel takes the larger one (ip-sysctl): 1 is strict, 2 is loose.
    for everywhere, here, is_strict in (
        ("0", "0", False), ("0", "1", True), ("1", "0", True), ("1", "1", True),
        ("2", "1", False), ("1", "2", False), (None, "1", True), (None, "0", False),
    ):  # fmt: skip
        values = {"net/ipv4/conf/vmtap-1/rp_filter": here}
        if everywhere is not None:
            values["net/ipv4/conf/all/rp_filter"] = everywhere
        expected = ["rp-filter"] * is_strict
        assert system.names(values, subnets=_IPV4) == expected, (everywhere, here)
    assert system.names({
        "net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/vmtap-1/forwarding": "1",
    }, subnets=_IPV4) == ["rp-filter"]  # fmt: skip
    strict = {f"net/ipv4/conf/{name}/rp_filter": "1" for name in ("all", "default", "vmtap-1")}
    for device in ("all", "default", ".", "..", "vmtap-1/../vmtap-1", "", "vmtap-2", None):
        assert system.names(strict, device=device, subnets=_IPV4) == [], device


def test_nearly_full_connection_tracking_table_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    for count, limit, is_full in (
        ("800", "1000", False), ("801", "1000", True), ("9", "0", False),
        ("-1", "1000", False), ("801", "-1", False), (None, "1000", False), ("801", None, False),
    ):  # fmt: skip
        values = {_COUNT: count, _LIMIT: limit}
        found = system.findings(
            {path: value for path, value in values.items() if value is not None}, subnets=_IPV4
        )
        commands = [("sysctl -w net.nf_conntrack_max=2000",)] * is_full
        assert [each.commands for each in found] == commands, (count, limit)


def test_settings_of_bridges_namespaces_and_the_kernel_log_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    bridge = "net/bridge/bridge-nf-call-"
    found = system.findings(
        {f"{bridge}iptables": "0", f"{bridge}ip6tables": "1", f"{bridge}arptables": "1",
         "user/max_net_namespaces": "0", "kernel/dmesg_restrict": "1"},
        device=None,
    )  # fmt: skip
    assert [(each.name, each.severity) for each in found] == [
        ("bridge-netfilter", "info"), ("max-net-namespaces", "degraded"),
        ("dmesg-restrict", "info"),
    ]  # fmt: skip
    assert found[0].meaning.startswith("net.bridge.bridge-nf-call-ip6tables is 1: ")
    assert found[1].commands == ("sysctl -w user.max_net_namespaces=1024",)
    calm = {f"{bridge}iptables": "0", "user/max_net_namespaces": "1", "kernel/dmesg_restrict": "0"}
    assert system.names(calm, device=None) == []
