"""Which services would undo a fence, by the files that say so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.check.conflicting_services import services

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.check import Finding

_FLUSHING = "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet filter {\n}\n"


def _enable(root: Path, unit: str, target: str = "multi-user.target") -> None:
    wants = root / "etc/systemd/system" / f"{target}.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")  # which isn't there


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _named(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in services(root)}


def test_an_empty_machine_has_none(tmp_path: Path) -> None:
    assert _named(tmp_path) == {}


@pytest.mark.parametrize("is_enabled", [False, True])
def test_a_flush_ruleset_that_is_loaded_at_each_start_is_worse_than_one_that_is_not(
    tmp_path: Path, is_enabled: bool
) -> None:
    _write(tmp_path, "etc/nftables.conf", _FLUSHING)
    if is_enabled:
        _enable(tmp_path, "nftables.service", "sysinit.target")
    found = _named(tmp_path)["flush-ruleset"]
    assert found.severity == ("degraded" if is_enabled else "info")
    assert "/etc/nftables.conf says `flush ruleset`" in found.meaning
    assert ("nftables.service is enabled" in found.meaning) == is_enabled
    assert ("is not enabled" in found.meaning) != is_enabled


def test_one_that_is_included_counts_and_one_in_a_comment_does_not(tmp_path: Path) -> None:
    _enable(tmp_path, "nftables.service")
    _write(tmp_path, "etc/nftables.conf", '# flush ruleset\ninclude "/etc/nftables.d/*.nft"\n')
    assert _named(tmp_path) == {}
    _write(tmp_path, "etc/nftables.d/10-site.nft", _FLUSHING)
    found = _named(tmp_path)["flush-ruleset"]
    assert "/etc/nftables.d/10-site.nft says" in found.meaning


@pytest.mark.parametrize("pattern", ["/", "../../**", "**/*", "/etc/../../*", "[", "\0"])
def test_an_odd_include_is_not_followed(tmp_path: Path, pattern: str) -> None:
    _write(tmp_path, "etc/nftables.conf", f'include "{pattern}"\n')
    _write(tmp_path, "secret", _FLUSHING)
    assert _named(tmp_path / "etc" / "..") == {}


def test_what_each_firewall_does_is_told_where_it_is_enabled(tmp_path: Path) -> None:
    for unit in ("firewalld", "ufw", "docker", "netfilter-persistent", "ssh"):
        _enable(tmp_path, f"{unit}.service")
    found = _named(tmp_path)
    assert set(found) == {"firewalld", "ufw", "docker", "netfilter-persistent"}
    assert {finding.severity for finding in found.values()} == {"info"}
    assert "MANAGE_BUILTINS" not in found["ufw"].meaning
    _write(tmp_path, "etc/default/ufw", 'IPV6=yes\nMANAGE_BUILTINS="yes"\n')
    assert "MANAGE_BUILTINS=yes" in _named(tmp_path)["ufw"].meaning


def test_check_of_services_ignores_a_target_that_is_no_directory(tmp_path: Path) -> None:
    _enable(tmp_path, "ufw.service")
    _write(tmp_path, "etc/systemd/system/a.wants", "")
    assert set(_named(tmp_path)) == {"ufw"}


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "nftables.d"
    directory.mkdir(parents=True)
    (tmp_path / "etc" / "nftables.conf").write_text('include "/etc/nftables.d/*.nft"\n')
    (directory / os.fsdecode(b"\xff\x1b[2J\n.nft")).write_text("flush ruleset\n")
    (found,) = services(tmp_path)
    assert found.meaning.isprintable()
    assert orjson.dumps(found.meaning)


def test_check_of_services_finds_a_flush_in_the_second_configuration(tmp_path: Path) -> None:
    _write(tmp_path, "etc/nftables.conf", "table inet t {\n}\n")
    _write(tmp_path, "etc/sysconfig/nftables.conf", _FLUSHING)
    assert "/etc/sysconfig/nftables.conf says" in _named(tmp_path)["flush-ruleset"].meaning


def test_check_of_services_reads_at_most_64_files_of_a_configuration(tmp_path: Path) -> None:
    names = [f"{number:03}.nft" for number in range(80)]
    for last, is_found in ((62, True), (63, False)):
        root = tmp_path / str(last)
        for name in names:
            _write(root, f"etc/nftables.d/{name}", _FLUSHING if name == names[last] else "")
        _write(root, "etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\n')
        assert ("flush-ruleset" in _named(root)) == is_found, last


def test_first_mebibyte_of_a_file_of_rules_is_read(tmp_path: Path) -> None:
    command = "\nflush ruleset"
    room = (1 << 20) - len(command)
    for before, is_found in ((room, True), (room + 1, False)):
        _write(tmp_path, "etc/nftables.conf", "#" * before + command)
        assert ("flush-ruleset" in _named(tmp_path)) == is_found, before


def test_64_files_of_rules_and_64_targets_are_read(tmp_path: Path) -> None:
    _write(tmp_path, "etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\n')
    for number in range(1, 63):
        _write(tmp_path, f"etc/nftables.d/{number:02}.nft", "# nothing\n")
    for name, is_found in (("63.nft", True), ("64.nft", False)):
        _write(tmp_path, f"etc/nftables.d/{name}", _FLUSHING)
        assert ("flush-ruleset" in _named(tmp_path)) == is_found, name
        _write(tmp_path, f"etc/nftables.d/{name}", "# nothing\n")
    for number in range(1, 64):
        _enable(tmp_path, "some.service", f"target-{number:02}")
    _enable(tmp_path, "ufw.service", "target-64")
    _enable(tmp_path, "docker.service", "target-65")
    found = _named(tmp_path)
    assert ("ufw" in found, "docker" in found) == (True, False)
