"""Tests of the findings about sysctls and other firewall services, with files like the host's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest

from ocsf_nft.check import host_settings
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.host_settings import service_findings
from ocsf_nft.fence.values import subnet
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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
        self._monkeypatch.setattr(host_settings, "_SYS", root)
        for path, value in values.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(f"{value}\n")
        fields: dict[str, Any] = {"namespace": Namespace(), "device": "vmtap-1", "port": 3128}
        return list(host_settings.sysctl_findings(CheckScope(**fields | scope)))

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


def test_disabled_ipv6_of_a_vm_with_ipv6_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = _System(tmp_path, monkeypatch)
    exists = {"net/ipv4/conf/vmtap-1/rp_filter": "0", "net/ipv4/conf/vmtap.1/rp_filter": "0"}
    off = {f"net/ipv6/conf/{name}/disable_ipv6": "1" for name in ("default", "vmtap-1", "vmtap.1")}
    for device, values, subnets, name in (
        ("vmtap-1", exists | off, _IPV4 + _IPV6, "vmtap-1"),
        ("vmtap.1", exists | off, _IPV6, "vmtap/1"),
        ("vmtap-1", off, _IPV6, "default"),
        ("vmtap-*", exists | off, _IPV6, "default"),
        ("vmtap-1", exists | off, _IPV4, None),
        ("vmtap-1", exists | off, (), None),
        ("vmtap-1", exists | off | {"net/ipv6/conf/vmtap-1/disable_ipv6": "0"}, _IPV6, None),
    ):
        found = system.findings(values, device=device, subnets=subnets)
        assert [(each.name, each.severity, each.commands) for each in found] == (
            [("ipv6-disabled", "blocked", (f"sysctl -w net.ipv6.conf.{name}.disable_ipv6=0",))]
            if name
            else []
        ), (device, subnets)


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


_FLUSHING = "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n}\n"


def _enable(root: Path, unit: str, target: str = "multi-user.target") -> None:
    directory = root / "etc/systemd/system" / f"{target}.wants"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")  # it doesn't exist


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _by_name(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in service_findings(root)}


def test_empty_host_has_no_conflicting_services(tmp_path: Path) -> None:
    assert _by_name(tmp_path) == {}


@pytest.mark.parametrize("is_enabled", [False, True])
def test_flush_ruleset_is_degraded_only_if_nftables_is_enabled(
    tmp_path: Path, is_enabled: bool
) -> None:
    _write(tmp_path, "etc/nftables.conf", _FLUSHING)
    if is_enabled:
        _enable(tmp_path, "nftables.service", "sysinit.target")
    found = _by_name(tmp_path)["flush-ruleset"]
    assert found.severity == ("degraded" if is_enabled else "info")
    assert "/etc/nftables.conf has `flush ruleset`" in found.meaning
    assert ("nftables.service is enabled" in found.meaning) == is_enabled
    assert ("is not enabled" in found.meaning) != is_enabled


def test_unit_that_flushes_at_its_stop_is_reported_without_a_flush_in_the_configuration(
    tmp_path: Path,
) -> None:
    unit = tmp_path / "usr/lib/systemd/system/nftables.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/sbin/nft -f /etc/nftables.conf\n"
                    "ExecStop=/usr/sbin/nft flush ruleset\n")  # fmt: skip
    assert list(service_findings(tmp_path)) == []
    _enable(tmp_path, "nftables.service")
    (found,) = service_findings(tmp_path)
    assert (found.name, found.severity) == ("flush-ruleset", "info")
    assert "each stop or restart" in found.meaning
    replaced = tmp_path / "etc/systemd/system/nftables.service"
    replaced.write_text("[Service]\nExecStop=/bin/true\n")
    assert list(service_findings(tmp_path)) == []


def test_flush_ruleset_is_found_in_an_include_and_not_in_a_comment(tmp_path: Path) -> None:
    _enable(tmp_path, "nftables.service")
    _write(tmp_path, "etc/nftables.conf", '# flush ruleset\ninclude "/etc/nftables.d/*.nft"\n')
    assert _by_name(tmp_path) == {}
    _write(tmp_path, "etc/nftables.d/10-site.nft", _FLUSHING)
    found = _by_name(tmp_path)["flush-ruleset"]
    assert "/etc/nftables.d/10-site.nft has" in found.meaning


@pytest.mark.parametrize("pattern", ["/", "../../**", "**/*", "/etc/../../*", "[", "\0"])
def test_unusual_include_pattern_is_ignored(tmp_path: Path, pattern: str) -> None:
    _write(tmp_path, "etc/nftables.conf", f'include "{pattern}"\n')
    _write(tmp_path, "secret", _FLUSHING)
    assert _by_name(tmp_path / "etc" / "..") == {}


def test_each_enabled_firewall_has_a_finding(tmp_path: Path) -> None:
    for unit in ("firewalld", "ufw", "docker", "netfilter-persistent", "ssh"):
        _enable(tmp_path, f"{unit}.service")
    found = _by_name(tmp_path)
    assert set(found) == {"firewalld", "ufw", "docker", "netfilter-persistent"}
    assert {finding.severity for finding in found.values()} == {"info"}
    assert "MANAGE_BUILTINS" not in found["ufw"].meaning
    _write(tmp_path, "etc/default/ufw", 'IPV6=yes\nMANAGE_BUILTINS="yes"\n')
    assert "MANAGE_BUILTINS=yes" in _by_name(tmp_path)["ufw"].meaning


def test_check_of_services_ignores_a_target_that_is_no_directory(tmp_path: Path) -> None:
    _enable(tmp_path, "ufw.service")
    _write(tmp_path, "etc/systemd/system/a.target.wants", "")
    assert set(_by_name(tmp_path)) == {"ufw"}


def test_flush_ruleset_is_found_in_a_file_with_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "nftables.d"
    directory.mkdir(parents=True)
    (tmp_path / "etc" / "nftables.conf").write_text('include "/etc/nftables.d/*.nft"\n')
    (directory / os.fsdecode(b"\xff\x1b[2J\n.nft")).write_text("flush ruleset\n")
    (found,) = service_findings(tmp_path)
    assert found.meaning.isprintable()
    assert orjson.dumps(found.meaning)


def test_check_of_services_finds_a_flush_in_the_second_configuration(tmp_path: Path) -> None:
    _write(tmp_path, "etc/nftables.conf", "table inet t {\n}\n")
    _write(tmp_path, "etc/sysconfig/nftables.conf", _FLUSHING)
    assert "/etc/sysconfig/nftables.conf has" in _by_name(tmp_path)["flush-ruleset"].meaning


def test_check_of_services_reads_at_most_64_files_of_a_configuration(tmp_path: Path) -> None:
    names = [f"{number:03}.nft" for number in range(80)]
    for last, is_found in ((62, True), (63, False)):
        root = tmp_path / str(last)
        for name in names:
            _write(root, f"etc/nftables.d/{name}", _FLUSHING if name == names[last] else "")
        _write(root, "etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\n')
        assert ("flush-ruleset" in _by_name(root)) == is_found, last


def test_first_mebibyte_of_a_file_of_rules_is_read(tmp_path: Path) -> None:
    command = "\nflush ruleset"
    room = (1 << 20) - len(command)
    for before, is_found in ((room, True), (room + 1, False)):
        _write(tmp_path, "etc/nftables.conf", "#" * before + command)
        assert ("flush-ruleset" in _by_name(tmp_path)) == is_found, before


def test_64_files_of_rules_and_64_targets_are_read(tmp_path: Path) -> None:
    _write(tmp_path, "etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\n')
    for number in range(1, 63):
        _write(tmp_path, f"etc/nftables.d/{number:02}.nft", "# nothing\n")
    for name, is_found in (("63.nft", True), ("64.nft", False)):
        _write(tmp_path, f"etc/nftables.d/{name}", _FLUSHING)
        assert ("flush-ruleset" in _by_name(tmp_path)) == is_found, name
        _write(tmp_path, f"etc/nftables.d/{name}", "# nothing\n")
    for number in range(1, 64):
        _enable(tmp_path, "some.service", f"target-{number:02}")
    _enable(tmp_path, "ufw.service", "target-64")
    _enable(tmp_path, "docker.service", "target-65")
    found = _by_name(tmp_path)
    assert ("ufw" in found, "docker" in found) == (True, False)
