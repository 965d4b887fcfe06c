"""What `check` sees around a fence: devices and what is bound to them, settings, limits."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import check
from ocsf_nft.attribution import bpf_capture
from ocsf_nft.check import (
    attribution_methods,
    bounded_command,
    bypass_paths,
    devices,
    read_ruleset,
    sysctls,
    xtables,
)
from ocsf_nft.check.bounded_command import CommandError
from ocsf_nft.check.diagnosis import CheckScope
from ocsf_nft.check.ruleset import Ruleset, from_json
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.lab import ip
from ocsf_nft.netns import Namespace, in_scratch, named
from tests.kernel.vm_host import DEVICE, PORT, SUBNETS, UPLINK, VmHost, vm_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocsf_nft.check import Finding

pytestmark = pytest.mark.kernel


@pytest.fixture
def host() -> Iterator[VmHost]:
    with vm_host() as made:
        yield made


def _scope(host: VmHost) -> CheckScope:
    return check.check_scope(host.namespace, device=DEVICE, subnets=SUBNETS, port=PORT)


def _ways_past(host: VmHost, ruleset: Ruleset | None = None) -> dict[str, Finding]:
    around = devices.list_devices(host.namespace)
    found = bypass_paths.findings(ruleset or Ruleset(), around, _scope(host))
    return {finding.name: finding for finding in found}


def _in(host: VmHost, *words: str) -> None:
    host.namespace.call(lambda: subprocess.run(words, check=True, capture_output=True))


def test_the_uplinks_are_those_that_lead_to_the_internet(host: VmHost) -> None:
    assert _scope(host).uplinks == {4: UPLINK, 6: UPLINK}


def test_a_bare_device_has_nothing_bound_to_it(host: VmHost) -> None:
    assert _ways_past(host) == {}


def test_a_device_whose_name_another_one_begins_with_is_not_it(host: VmHost) -> None:
    host.namespace.call(lambda: ip("link", "add", "vmtap", "type", "bridge"))
    _in(host, "tc", "qdisc", "add", "dev", "vmtap", "clsact")
    assert _ways_past(host) == {}


def test_what_shares_or_precedes_a_device_is_told(host: VmHost) -> None:
    _in(host, "tc", "qdisc", "add", "dev", DEVICE, "clsact")
    assert "clsact" in _ways_past(host)["tc"].meaning
    host.namespace.call(
        lambda: ip("link", "add", "above", "link", DEVICE, "type", "macvlan", "mode", "bridge")
    )
    assert "above: stacked on vmtap-1" in _ways_past(host)["shared-link"].meaning
    host.namespace.call(lambda: ip("link", "del", "above"))
    host.namespace.call(lambda: ip("link", "add", "br0", "type", "bridge"))
    host.namespace.call(lambda: ip("link", "set", DEVICE, "master", "br0"))
    assert "vmtap-1 is a port of br0" in _ways_past(host)["bridge-port"].meaning


def test_check_tells_a_device_that_is_stacked_on_a_link_of_another_namespace(
    host: VmHost,
) -> None:
    assert host.namespace.path is not None
    pid = host.namespace.path.parts[2]

    def around() -> Mapping[str, devices.NetDevice]:
        ip("link", "add", "lower", "type", "veth", "peer", "name", "other")
        ip("link", "add", "vmtap-2", "link", "lower", "netns", pid, "type", "macvlan")
        return devices.list_devices(host.namespace)

    asked = CheckScope(namespace=host.namespace, device="vmtap-2", port=PORT)
    (found,) = bypass_paths.findings(Ruleset(), in_scratch(around), asked)
    assert (found.name, found.severity) == ("shared-link", "info")
    assert found.meaning.startswith("vmtap-2 is stacked on a link of another namespace")


def test_flowtables_and_rules_that_take_packets_are_told(host: VmHost) -> None:
    def entry(chain: str, expression: Any) -> list[Any]:
        place = {"family": "netdev", "table": "t"}
        return [
            {"chain": {**place, "name": chain}},
            {"rule": {**place, "chain": chain, "handle": 3, "expr": [expression]}},
        ]

    flowtable = {"family": "inet", "table": "t", "name": "fast", "dev": ["up0", "vmtap-1"]}
    found = _ways_past(
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
    place = found["takes-packets"].place
    assert place is not None
    assert (place.chain, place.handle) == ("a", 3)


def _settings(host: VmHost) -> dict[str, Finding]:
    return {finding.name: finding for finding in sysctls.settings(_scope(host))}


def _set(host: VmHost, path: str, value: str) -> None:
    host.namespace.call(lambda: Path(f"/proc/sys/{path}").write_text(value))


def test_settings_that_matter_are_told_and_others_are_not(host: VmHost) -> None:
    names = {"forwarding", "accept-ra", "rp-filter", "conntrack-table", "max-net-namespaces"}
    _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", "0")
    _set(host, "net/ipv4/conf/all/rp_filter", "0")
    assert not names & set(_settings(host))
    _set(host, "net/ipv6/conf/all/forwarding", "0")
    _set(host, f"net/ipv6/conf/{UPLINK}/accept_ra", "1")
    _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", "1")
    found = _settings(host)
    assert "ipv6.conf.all.forwarding is 0" in found["forwarding"].meaning
    assert found["accept-ra"].commands == (f"sysctl -w net.ipv6.conf.{UPLINK}.accept_ra=2",)
    assert "strict" in found["rp-filter"].meaning
    # The kernel takes the greater value. 2 is the loose filter.
    for general, of_device, is_strict in (("1", "0", True), ("2", "1", False), ("1", "2", False)):
        _set(host, "net/ipv4/conf/all/rp_filter", general)
        _set(host, f"net/ipv4/conf/{DEVICE}/rp_filter", of_device)
        assert ("rp-filter" in _settings(host)) == is_strict, (general, of_device)


@pytest.mark.parametrize(("count", "is_told"), [("79", False), ("81", True)])
def test_a_table_of_connections_that_is_nearly_full_is_told(
    host: VmHost, monkeypatch: pytest.MonkeyPatch, count: str, is_told: bool
) -> None:
    values = {"net/netfilter/nf_conntrack_count": count, "net/nf_conntrack_max": "100"}
    monkeypatch.setattr(sysctls, "_value", values.get)
    assert ("conntrack-table" in _settings(host)) == is_told


def _with_room_for(count: int) -> Callable[[Namespace, Sequence[str]], bytes]:
    return lambda namespace, command: bounded_command.answer(namespace, command, count)


def test_a_listing_that_is_too_long_is_read_without_what_sets_hold(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = ", ".join(f"10.0.{n >> 8}.{n & 255}" for n in range(5000))
    nft.load(
        host.namespace,
        f"table ip t {{\n\tset s {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n"
        "\tchain c {\n\t\ttype filter hook forward priority 0\n\t\tip saddr @s drop\n\t}\n}\n",
    )
    assert not check.blocking(_scope(host))
    monkeypatch.setattr(read_ruleset, "answer", _with_room_for(20_000))
    names = [finding.name for finding in check.blocking(_scope(host))]
    assert names == ["unread-rules", "may-drop"]
    monkeypatch.setattr(read_ruleset, "answer", _with_room_for(20))
    (unread,) = check.blocking(_scope(host))
    assert unread.name == "ruleset"
    assert "can't be read" in unread.meaning


def test_a_program_that_does_not_end_is_ended(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_command, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(UnsupportedError, match="gave no answer"):
        bounded_command.answer(host.namespace, ["/usr/bin/sleep", "60"])
    with pytest.raises(UnsupportedError, match="more than 0 MiB"):
        bounded_command.answer(host.namespace, ["/usr/bin/yes"], 1000)


def test_check_gives_up_on_a_program_that_closes_its_output_and_goes_on(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_command, "_TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(CommandError, match="/bin/sh doesn't end"):
        bounded_command.answer(host.namespace, ["/bin/sh", "-c", "exec >&- 2>&-; exec sleep 60"])
    assert time.monotonic() - started < 8


def test_check_says_why_a_program_gives_no_answer(host: VmHost) -> None:
    for command, reason in (
        (["/no/program"], "/no/program can't be run: No such file or directory"),
        (["/bin/sh", "-c", "echo a; echo no  luck >&2; exit 3"], "/bin/sh failed: no luck"),
        (["/bin/sh", "-c", "exit 3"], "/bin/sh failed: exit 3"),
    ):
        with pytest.raises(CommandError) as refused:
            bounded_command.answer(host.namespace, command)
        assert str(refused.value) == reason
    assert bounded_command.answer(host.namespace, ["/bin/sh", "-c", "echo a; echo b >&2"]) == b"a\n"


def test_check_says_that_interfaces_can_not_be_listed(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _scope(host)

    def fail(_: Namespace) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(devices, "list_devices", fail)
    (found,) = (each for each in check.findings(asked) if each.name == "ruleset")
    assert found.severity == "blocked"
    assert "(the interfaces can't be listed)" in found.meaning
    assert found.remedy == "No buffer space available"


def test_check_tells_how_processes_are_named_here(
    host: VmHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (found,) = attribution_methods.naming(host.namespace)
    assert (found.severity, found.remedy) == ("ok", None)
    assert found.meaning == "a process is named as it sends, also if it is gone"
    (found,) = attribution_methods.naming(named("no-such-namespace"))
    assert found.severity == "info"
    assert found.meaning.startswith("a process is named by its user alone: ")
    assert found.meaning.count("no-such-namespace") == 2
    assert "CAP_BPF" in str(found.remedy)
    monkeypatch.setattr(bpf_capture, "_TYPES", tmp_path / "vmlinux")
    (found,) = attribution_methods.naming(host.namespace)
    assert found.severity == "info"
    assert found.meaning.startswith("a process is named as it calls, by its number, name and user")
    assert found.remedy == "use a kernel with CONFIG_DEBUG_INFO_BTF"


def test_a_ruleset_that_changes_while_it_is_read_is_read_again(
    host: VmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = bounded_command.answer
    read: list[Any] = []

    def meanwhile(namespace: Namespace, command: Sequence[str]) -> bytes:
        read.append(command)
        if len(read) <= changes:
            nft.load(host.namespace, f"add table ip t{len(read)}")
        return answer(namespace, command)

    monkeypatch.setattr(read_ruleset, "answer", meanwhile)
    changes = 1
    assert read_ruleset.read(host.namespace).unread == ()
    assert len(read) == 2
    changes = 100
    assert "changes faster" in read_ruleset.read(host.namespace).unread[0]


def test_an_xdp_program_is_told(host: VmHost) -> None:
    link = host.namespace.call(_pass_everything)
    try:
        assert "XDP program is attached to vmtap-1" in _ways_past(host)["xdp"].meaning
    finally:
        os.close(link)
    assert _ways_past(host) == {}


def _pass_everything() -> int:
    """An XDP program that lets everything through, attached until the link is closed."""
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
    """Compare with the chains of iptables-nft: they differ in the table security alone."""

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
