"""Tests of `check` for interfaces, programs on them, kernel settings and limits."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import check
from ocsf_nft.attribution import bpf_capture
from ocsf_nft.check import (
    bounded_command,
    bypass_paths,
    devices,
    host_features,
    host_settings,
    read_ruleset,
    xtables,
)
from ocsf_nft.check.accepted_flows import CheckScope
from ocsf_nft.check.bounded_command import CommandError
from ocsf_nft.check.ruleset import Ruleset, from_json
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import ip
from ocsf_nft.netns import Namespace, in_scratch, named
from tests.kernel.vm_host import DEVICE, PORT, SUBNETS, UPLINK, VmHost, vm_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocsf_nft.check import Finding

pytestmark = pytest.mark.kernel


@pytest.fixture
def host() -> Iterator[VmHost]:
    with vm_host() as vm:
        yield vm


def _scope(host: VmHost) -> CheckScope:
    return check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS, port=PORT)


def _bypass_findings(host: VmHost, ruleset: Ruleset | None = None) -> dict[str, Finding]:
    present = devices.list_devices(host.namespace)
    found = bypass_paths.findings(ruleset or Ruleset(), present, _scope(host))
    return {finding.name: finding for finding in found}


def _in(host: VmHost, *words: str) -> None:
    host.namespace.call(lambda: subprocess.run(words, check=True, capture_output=True))


def test_uplinks_are_the_interfaces_that_lead_to_the_internet(host: VmHost) -> None:
    assert _scope(host).uplinks == {4: UPLINK, 6: UPLINK}


def test_plain_device_has_no_bypass_findings(host: VmHost) -> None:
    assert _bypass_findings(host) == {}


def test_device_with_a_prefix_of_the_name_is_not_checked(host: VmHost) -> None:
    host.namespace.call(lambda: ip("link", "add", "vmtap", "type", "bridge"))
    _in(host, "tc", "qdisc", "add", "dev", "vmtap", "clsact")
    assert _bypass_findings(host) == {}


def test_programs_and_links_on_a_device_are_reported(host: VmHost) -> None:
    _in(host, "tc", "qdisc", "add", "dev", DEVICE, "clsact")
    assert "clsact" in _bypass_findings(host)["tc"].meaning
    host.namespace.call(
        lambda: ip("link", "add", "above", "link", DEVICE, "type", "macvlan", "mode", "bridge")
    )
    assert "above: stacked on vmtap-1" in _bypass_findings(host)["shared-link"].meaning
    host.namespace.call(lambda: ip("link", "del", "above"))
    host.namespace.call(lambda: ip("link", "add", "br0", "type", "bridge"))
    host.namespace.call(lambda: ip("link", "set", DEVICE, "master", "br0"))
    assert "vmtap-1 is a port of br0" in _bypass_findings(host)["bridge-port"].meaning


def test_device_on_a_link_of_another_namespace_is_reported(
    host: VmHost,
) -> None:
    assert host.namespace.path is not None
    pid = host.namespace.path.parts[2]

    def present() -> Mapping[str, devices.NetDevice]:
        ip("link", "add", "lower", "type", "veth", "peer", "name", "other")
        ip("link", "add", "vmtap-2", "link", "lower", "netns", pid, "type", "macvlan")
        return devices.list_devices(host.namespace)

    scope = CheckScope(namespace=host.namespace, device="vmtap-2", port=PORT)
    (found,) = bypass_paths.findings(Ruleset(), in_scratch(present), scope)
    assert (found.name, found.severity) == ("shared-link", "info")
    assert found.meaning.startswith("vmtap-2 is stacked on an interface of another namespace")


def test_flowtables_and_rules_that_take_packets_are_reported(host: VmHost) -> None:
    def entry(chain: str, expression: Any) -> list[Any]:
        table_key = {"family": "netdev", "table": "t"}
        return [
            {"chain": {**table_key, "name": chain}},
            {"rule": {**table_key, "chain": chain, "handle": 3, "expr": [expression]}},
        ]

    flowtable = {"family": "inet", "table": "t", "name": "fast", "dev": ["up0", "vmtap-1"]}
    found = _bypass_findings(
        host,
        from_json(
            {
                "nftables": [
                    {"flowtable": flowtable},
                    *entry("a", {"fwd": {"dev": "lo"}}),
                    *entry("b", {"notrack": None}),
                ]
            }
        ),
    )
    assert set(found) == {"flowtable", "takes-packets", "notrack"}
    assert "(up0, vmtap-1)" in found["flowtable"].meaning
    location = found["takes-packets"].location
    assert location is not None
    assert (location.chain, location.handle) == ("a", 3)


def _sysctl_findings(host: VmHost) -> dict[str, Finding]:
    return {finding.name: finding for finding in host_settings.sysctl_findings(_scope(host))}


def _set(host: VmHost, path: str, value: str) -> None:
    host.namespace.call(lambda: Path(f"/proc/sys/{path}").write_text(value))


def test_only_settings_that_affect_a_fence_are_reported(host: VmHost) -> None:
    names = {"forwarding", "accept-ra", "rp-filter", "conntrack-table", "max-net-namespaces"}
    _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", "0")
    _set(host, "net/ipv4/conf/all/rp_filter", "0")
    assert not names & set(_sysctl_findings(host))
    _set(host, "net/ipv6/conf/all/forwarding", "0")
    _set(host, f"net/ipv6/conf/{UPLINK}/accept_ra", "1")
    _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", "1")
    found = _sysctl_findings(host)
    assert "ipv6.conf.all.forwarding is 0" in found["forwarding"].meaning
    assert found["accept-ra"].commands == (f"sysctl -w net.ipv6.conf.{UPLINK}.accept_ra=2",)
    assert "strict" in found["rp-filter"].meaning
    # The kernel takes the greater value. 2 is the loose filter.
    for general, of_device, is_strict in (("1", "0", True), ("2", "1", False), ("1", "2", False)):
        _set(host, "net/ipv4/conf/all/rp_filter", general)
        _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", of_device)
        assert ("rp-filter" in _sysctl_findings(host)) == is_strict, (general, of_device)


@pytest.mark.parametrize(("count", "is_reported"), [("79", False), ("81", True)])
def test_nearly_full_connection_tracking_table_is_reported(
    host: VmHost, monkeypatch: pytest.MonkeyPatch, count: str, is_reported: bool
) -> None:
    values = {"net/netfilter/nf_conntrack_count": count, "net/nf_conntrack_max": "100"}
    monkeypatch.setattr(host_settings, "_value", lambda path: values.get(path, ""))
    assert ("conntrack-table" in _sysctl_findings(host)) == is_reported


def test_too_long_listing_is_read_without_the_elements_of_sets(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(5000))
    nft.load(
        host.namespace,
        f"table ip t {{\n\tset s {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n"
        "\tchain c {\n\t\ttype filter hook forward priority 0\n\t\tip saddr @s drop\n\t}\n}\n",
    )
    assert not check.blocking(_scope(host))
    monkeypatch.setattr(bounded_command, "_OUTPUT_BYTES", 20_000)
    names = [finding.name for finding in check.blocking(_scope(host))]
    assert names == ["unread-rules", "may-drop"]
    monkeypatch.setattr(bounded_command, "_OUTPUT_BYTES", 20)
    (unread,) = check.blocking(_scope(host))
    assert unread.name == "ruleset"
    assert "can't be read" in unread.meaning


def test_program_that_does_not_exit_is_killed(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(bounded_command, "_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(UnsupportedError, match="gave no answer"):
            bounded_command.command_output(host.namespace, ["/usr/bin/sleep", "60"])
    monkeypatch.setattr(bounded_command, "_OUTPUT_BYTES", 1000)
    with pytest.raises(UnsupportedError, match="printed more than 0 MiB"):
        bounded_command.command_output(host.namespace, ["/usr/bin/yes"])


def test_program_that_closes_its_output_and_does_not_exit_is_killed(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_both = bounded_command._read_both

    def read_without_time_left(*arguments: Any) -> tuple[bytes, bytes]:
        found = read_both(*arguments)  # until the program has closed both
        monkeypatch.setattr(bounded_command, "time", SimpleNamespace(monotonic=lambda: math.inf))
        return found

    monkeypatch.setattr(bounded_command, "_read_both", read_without_time_left)
    started = time.monotonic()
    with pytest.raises(CommandError, match="/bin/sh doesn't exit"):
        bounded_command.command_output(
            host.namespace, ["/bin/sh", "-c", "exec >&- 2>&-; exec sleep 60"]
        )
    assert time.monotonic() - started < 50


def test_error_has_the_reason_of_a_failed_program(host: VmHost) -> None:
    for command, reason in (
        (["/no/program"], "/no/program can't be run: No such file or directory"),
        (["/bin/sh", "-c", "echo a; echo no  luck >&2; exit 3"], "/bin/sh failed: no luck"),
        (["/bin/sh", "-c", "exit 3"], "/bin/sh failed: exit 3"),
    ):
        with pytest.raises(CommandError) as refused:
            bounded_command.command_output(host.namespace, command)
        assert str(refused.value) == reason
    assert (
        bounded_command.command_output(host.namespace, ["/bin/sh", "-c", "echo a; echo b >&2"])
        == b"a\n"
    )


def test_check_reports_that_interfaces_can_not_be_listed(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = _scope(host)

    def fail() -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(devices, "_list_devices", fail)
    (found,) = (each for each in check.findings(scope) if each.name == "ruleset")
    assert found.severity == "blocked"
    assert "(the interfaces can't be listed)" in found.meaning
    assert found.remedy == "No buffer space available"


def test_check_reports_the_attribution_method(
    host: VmHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = host_features.attribution(host.namespace)
    assert (found.severity, found.remedy) == ("ok", None)
    assert found.meaning == "a process is identified as it sends, even if it exits"
    found = host_features.attribution(named("no-such-namespace"))
    assert found.severity == "info"
    assert found.meaning.startswith("a process is identified only by its user: ")
    assert found.meaning.count("no-such-namespace") == 2
    assert "CAP_BPF" in str(found.remedy)
    monkeypatch.setattr(bpf_capture, "_TYPES", tmp_path / "vmlinux")
    found = host_features.attribution(host.namespace)
    assert found.severity == "info"
    assert found.meaning.startswith("a process is identified at its system call, only by PID")
    assert found.remedy == "use a kernel with CONFIG_DEBUG_INFO_BTF"


def test_ruleset_that_changes_during_reading_is_read_again(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_output = bounded_command.command_output
    read: list[Any] = []

    def meanwhile(namespace: Namespace, command: Sequence[str]) -> bytes:
        read.append(command)
        if len(read) <= changes:
            nft.load(host.namespace, f"add table ip t{len(read)}")
        return command_output(namespace, command)

    monkeypatch.setattr(read_ruleset, "command_output", meanwhile)
    changes = 1
    assert read_ruleset.read(host.namespace).unread == ()
    assert len(read) == 2
    changes = 100
    assert "changes faster" in read_ruleset.read(host.namespace).unread[0]


def test_xdp_program_is_reported(host: VmHost) -> None:
    link = host.namespace.call(_pass_everything)
    try:
        assert "XDP program is attached to vmtap-1" in _bypass_findings(host)["xdp"].meaning
    finally:
        os.close(link)
    assert _bypass_findings(host) == {}


def _pass_everything() -> int:
    """Attach an XDP program that passes all packets; closing the returned link detaches it."""
    # include/uapi/linux/bpf.h: r0 = XDP_PASS; exit
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
    license_ = ctypes.create_string_buffer(b"GPL")
    program = _bpf(5, struct.pack("=IIQQ", 6, 2, _at(code), _at(license_)).ljust(72, b"\0"))
    try:
        # BPF_LINK_CREATE, BPF_XDP, XDP_FLAGS_SKB_MODE
        target = socket.if_nametoindex(DEVICE)
        return _bpf(28, struct.pack("=IIII", program, target, 37, 2).ljust(48, b"\0"))
    finally:
        os.close(program)


def _at(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    found: int = libc.syscall(number, command, attributes, len(attributes))
    if found < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return found


def test_chains_of_iptables_have_the_priorities_of_the_kernel() -> None:
    """Compare with the chains of iptables-nft: they differ only in the table security."""

    def made() -> list[dict[str, Any]]:
        for table, chain in (
            ("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "OUTPUT"), ("nat", "OUTPUT"),
            ("nat", "PREROUTING"),
        ):  # fmt: skip
            command = ["iptables-nft", "-t", table, "-A", chain, "-j", "ACCEPT"]
            subprocess.run(command, check=True, capture_output=True)
        listed = subprocess.run(["nft", "-j", "list", "chains"], check=True, capture_output=True)
        return [each["chain"] for each in json.loads(listed.stdout)["nftables"] if "chain" in each]

    chains = in_scratch(made)
    assert {chain["table"] for chain in chains} == {"raw", "mangle", "filter", "nat"}
    for chain in chains:
        base = xtables._base(chain["table"], chain["name"], "ACCEPT")
        assert base is not None
        assert (base.kind == "nat") == (chain["table"] == "nat")
        assert (base.hook, base.priority) == (chain["hook"], chain["prio"]), chain


def test_check_finds_what_drops_traffic_to_a_proxy_in_the_namespace() -> None:
    in_scratch(_compare_loopback)


def _compare_loopback() -> None:
    ip("link", "set", "lo", "up")
    ip("address", "add", "10.7.7.7/32", "dev", "lo")
    base = "type filter hook {} priority filter; policy drop"
    lo = 'oifname "lo" accept', 'iifname "lo" accept'
    for hook, rules, is_accepted in (
        ("input", ("ct state established accept",), False),
        ("input", lo, True),
        ("output", lo, True),
    ):
        lines = "\n".join((base.format(hook), *rules))
        nft.load(Namespace(), f"table inet t {{\nchain c {{\n{lines}\n}}\n}}\n")
        for address in ("127.0.0.1", "10.7.7.7"):
            proxies = (endpoint(f"{address}:3128"),)
            scope = check.check_scope(Namespace(), device=None, port=3128, proxies=proxies)
            assert (check.blocking(scope) == ()) is is_accepted, (address, hook, rules)
            assert _connects(address) is is_accepted
        nft.load(Namespace(), "delete table inet t\n")


def _connects(address: str) -> bool:
    with socket.create_server((address, 3128)), contextlib.suppress(TimeoutError):
        socket.create_connection((address, 3128), timeout=0.3).close()
        return True
    return False
