"""Tests of the services that may remove a fence, as configuration files show them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.check.conflicting_services import findings

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.check import Finding

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
    return {finding.name: finding for finding in findings(root)}


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
    (found,) = findings(tmp_path)
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
