"""Replacement of a fence, which preserves its counters, and checks of fences with large sets."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import (
    installer,
    listing,
    nft,
    replace_keeping_counters,
    restore_batch,
    table_changes,
    table_query,
    verification,
)
from ocsf_nft.fence.spec import FenceSpec, Tap
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint, exception, subnet
from ocsf_nft.lab import INTERNET4, ip
from ocsf_nft.netns import HOST, in_scratch, named
from tests.kernel import conftest, namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel


def _attempt(lab: Lab) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(7):
                with contextlib.suppress(OSError):
                    sock.sendto(b"attempt", (INTERNET4, 53))

    lab.sandbox_namespace.call(send)


def _flow(lab: Lab) -> int:
    """Return the number of the attempts' packets in their element."""
    return conftest.counted(lab.sandbox_namespace)[INTERNET4]


@pytest.mark.parametrize(
    "tampering",
    [
        "",
        "flush table inet ocsf_nft",
        "insert rule inet ocsf_nft output accept",
        "add chain inet ocsf_nft foreign { type filter hook output priority -500; policy drop; }",
        "add chain inet ocsf_nft output { policy accept; }",
        "add element inet ocsf_nft allowed4 { 203.0.113.7 . tcp . 443 }",
        """add map inet ocsf_nft m { type ipv4_addr : verdict; }; add chain inet ocsf_nft foreign;
        add element inet ocsf_nft m { 1.2.3.4 : jump foreign }""",
        "delete table netdev ocsf_nft",
        "add table inet ocsf_nft { flags dormant; }; add table netdev ocsf_nft { flags dormant; }",
    ],
)
def test_replacement_preserves_counters_and_removes_foreign_parts(
    fenced: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
    tampering: str,
) -> None:
    _attempt(fenced)
    before = counters(fenced.sandbox_namespace)["refused_egress"]
    if tampering:
        conftest.nft(fenced.sandbox_namespace, tampering)
    other = dataclasses.replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, fenced.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert counters(fenced.sandbox_namespace)["refused_egress"] >= before >= 7
    assert _flow(fenced) == 7
    assert "foreign" not in conftest.nft(fenced.sandbox_namespace, "-t", "list", "ruleset")


def test_table_with_another_comment_is_replaced_completely(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    _attempt(fenced)
    conftest.nft(
        fenced.sandbox_namespace,
        'delete table inet ocsf_nft; add table inet ocsf_nft { comment "fence of sandbox x"; }',
    )
    installer.install(spec, fenced.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert _flow(fenced) == 0


def test_set_with_other_properties_is_replaced(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "flush table inet ocsf_nft; delete set inet ocsf_nft flows4_egress; "
                 "add set inet ocsf_nft flows4_egress { typeof meta skuid . meta l4proto . ip daddr"
                 " . th dport; size 4; flags dynamic; }")  # fmt: skip
    installer.install(spec, ns, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_fence_is_loaded_without_counters_if_the_kernel_refuses_to_preserve_them(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _attempt(fenced)
    list_tables = nft.list_tables

    def shown(namespace: Namespace, tables: Collection[TableId]) -> dict[TableId, str]:
        """Return listings with a chain that does not exist when the ruleset is loaded."""
        found = list_tables(namespace, tables)
        missing = "\n\tchain missing { # handle 999\n\t}\n}\n"
        if namespace != fenced.sandbox_namespace:
            return found
        return {table: text[:-2] + missing for table, text in found.items()}

    monkeypatch.setattr(nft, "list_tables", shown)
    other = dataclasses.replace(spec, group=77)
    with contextlib.suppress(FenceError):  # the fence differs from the expected one
        installer.install(other, fenced.sandbox_namespace, state, "nflog")
    monkeypatch.undo()
    assert "group 77" in conftest.nft(fenced.sandbox_namespace, "-t", "list", "ruleset")
    assert _flow(fenced) == 0


def test_chain_that_a_listing_hides_is_removed_with_the_counters(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _attempt(fenced)
    conftest.nft(fenced.sandbox_namespace, "add chain inet ocsf_nft foreign { "
                 "type filter hook output priority -500; policy drop; }")  # fmt: skip
    replacement_text = replace_keeping_counters.replacement_text

    def incomplete(definition: str, listings: Mapping[TableId, str]) -> str | None:
        text = replacement_text(definition, listings)
        return text and text.replace("delete chain inet ocsf_nft foreign\n", "")

    monkeypatch.setattr(replace_keeping_counters, "replacement_text", incomplete)
    installer.install(spec, fenced.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert "foreign" not in conftest.nft(fenced.sandbox_namespace, "-t", "list", "ruleset")
    assert _flow(fenced) == 0


@pytest.mark.parametrize(("change", "listings"), [("", 1), ("link", 2), ("chain", 3)])
def test_fence_as_recorded_is_replaced_without_listing_it_first(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch,
    change: str, listings: int,
) -> None:  # fmt: skip
    ns, list_tables = fenced.sandbox_namespace, nft.list_tables
    listed: list[object] = []

    def counted(namespace: Namespace, tables: Collection[TableId]) -> dict[TableId, str]:
        listed.extend([tables] if tables else [])
        return list_tables(namespace, tables)

    with state.run_lock(spec.sandbox):  # the service knows the generation of its installation
        conftest.nft(ns, "flush ruleset")
        installer.install(spec, ns, state, "nflog")
        _attempt(fenced)
        if change == "chain":
            conftest.nft(ns, "add chain inet ocsf_nft foreign")
        elif change == "link":
            ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "late1")
        monkeypatch.setattr(nft, "list_tables", counted)
        other = dataclasses.replace(spec, group=77)
        installer.install_locked(other, ns, state, "nflog", nft.load)
        monkeypatch.undo()
    assert len(listed) == listings
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert "foreign" not in conftest.nft(ns, "-t", "list", "ruleset")
    assert _flow(fenced) == 7


@pytest.mark.parametrize(("is_altered", "listings"), [(False, 2), (True, 6)])
def test_fence_with_a_guard_as_recorded_is_replaced_without_listing_it_first(
    lab: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch,
    *, is_altered: bool, listings: int,
) -> None:  # fmt: skip
    """The gateway's namespace is the host of this guard."""
    host, list_tables = lab.gateway_namespace, nft.list_tables
    listed: list[object] = []

    def counted(namespace: Namespace, tables: Collection[TableId]) -> dict[TableId, str]:
        listed.extend([tables] if tables else [])
        return list_tables(namespace, tables)

    def install(group: int) -> None:
        guarded = dataclasses.replace(spec, guard_device=lab.gateway_device, group=group)
        host.call(lambda: installer.install(guarded, lab.sandbox_namespace, state, "nflog"))

    with state.run_lock(spec.sandbox):
        install(76)
        if is_altered:
            conftest.nft(host, f"add chain netdev ocsf_nft_{lab.gateway_device} foreign")
        monkeypatch.setattr(nft, "list_tables", counted)
        # Another group, so the fence is not as installed, and is loaded without a comparison first.
        install(77)
        monkeypatch.undo()
    assert len(listed) == listings
    assert host.call(lambda: verification.verify(spec.sandbox, state)).verdict == "as installed"
    assert "foreign" not in conftest.nft(host, "-t", "list", "ruleset")


def test_record_is_not_that_of_another_namespace_with_the_same_generation(
    made: tuple[str, ...], spec: FenceSpec, state: StateDirectory
) -> None:
    name, ns = made[0], named(made[0])
    with state.run_lock(spec.sandbox):
        before = installer.install(spec, ns, state, "nflog")
        ip("netns", "del", name)
        namespaces.make(name)
        conftest.nft(ns, "table inet ocsf_nft { chain foreign { }; }")
        assert before.generations is not None
        assert [table_query.generation(ns).number] == [each.number for each in before.generations]
        installer.install(dataclasses.replace(spec, group=77), ns, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert "foreign" not in conftest.nft(ns, "-t", "list", "ruleset")


def test_record_is_not_that_of_other_tables(tmp_path: Path) -> None:
    proxies, state = (endpoint("10.9.0.1:3128"),), StateDirectory(tmp_path)
    tap = Tap(device="t0", subnets=(subnet("172.16.0.0/30"),))

    def check() -> None:
        ip("tuntap", "add", "t0", "mode", "tap")
        ip("link", "set", "t0", "up")
        conftest.nft(HOST, "table inet ocsf_nft_t0 { chain foreign { }; }")
        with state.run_lock("lab"):
            installer.install(FenceSpec(sandbox="lab", proxies=proxies), HOST, state, "nflog")
            vm = FenceSpec(sandbox="lab", proxies=proxies, tap=tap)
            installer.install(vm, HOST, state, "nflog")
        assert verification.verify("lab", state).verdict == "as installed"
        listed = conftest.nft(HOST, "list", "ruleset")
        assert "foreign" not in listed
        assert "table inet ocsf_nft {" not in listed

    in_scratch(check)


def test_new_and_deleted_links_do_not_change_the_counters(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    _attempt(fenced)
    hook = "type filter hook egress"
    for add in (True, False):
        if add:
            ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "late1")
        else:
            ip("-n", fenced.sandbox, "link", "del", "late0")
        installer.install(spec, fenced.sandbox_namespace, state, "nflog")
        assert verification.verify(spec.sandbox, state).verdict == "as installed"
        listed = conftest.nft(fenced.sandbox_namespace, "-t", "list", "table netdev ocsf_nft")
        (egress,) = [line for line in listed.splitlines() if hook in line]
        assert ("late0" in egress, "late1" in egress) == (add, add)
    assert _flow(fenced) == 7


def test_change_during_a_replacement_is_undone_without_loss_of_the_counters(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _attempt(fenced)
    ns, find = fenced.sandbox_namespace, listing.of_fence
    changes = ["insert rule inet ocsf_nft output accept"]

    def changed(spec: FenceSpec, namespace: Namespace) -> dict[str, str]:
        if namespace == ns and changes:
            conftest.nft(ns, changes.pop())
        return find(spec, namespace)

    monkeypatch.setattr(listing, "of_fence", changed)
    other = dataclasses.replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, ns, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert _flow(fenced) == 7


def test_interface_that_is_attached_during_a_replacement_is_no_difference(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tamper guard attaches new interfaces at once; they may be removed again."""
    _attempt(fenced)
    ns, find = fenced.sandbox_namespace, listing.of_fence

    def attached(spec: FenceSpec, namespace: Namespace) -> dict[str, str]:
        if namespace == ns:
            conftest.nft(ns, "add chain netdev ocsf_nft egress { type filter hook egress "
                         'devices = { "late0" } priority 2147483647; }')  # fmt: skip
        return find(spec, namespace)

    with monkeypatch.context() as patch:
        patch.setattr(listing, "of_fence", attached)
        other = dataclasses.replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
        installed = installer.install(other, ns, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    assert _flow(fenced) == 7
    # It may be attached to nothing when the fence is restored.
    conftest.nft(ns, "delete chain netdev ocsf_nft egress { type filter hook egress "
                 'devices = { "late0" } priority 2147483647; }')  # fmt: skip
    (batch,) = restore_batch.prepare(installed).batches
    assert batch.keeping_counters is not None
    table_changes.commit(ns, batch.keeping_counters)
    assert _flow(fenced) == 7


def test_elements_of_counting_sets_are_no_difference(fenced: Lab, state: StateDirectory) -> None:
    _attempt(fenced)
    assert _flow(fenced) == 7
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


@pytest.mark.parametrize("name", ["allowed4", "foreign"])
def test_set_with_very_many_elements_is_read_up_to_a_limit(
    fenced: Lab, state: StateDirectory, spec: FenceSpec, tmp_path: Path, name: str
) -> None:
    ns = fenced.sandbox_namespace
    path = tmp_path / "many.nft"
    made = f"add set inet ocsf_nft {name} {{ typeof ip daddr . ip protocol . th dport; }}\n"
    for one in range(80):
        endpoints = ", ".join(f"10.9.{one}.{two} . tcp . 1" for two in range(250))
        made += f"add element inet ocsf_nft {name} {{ {endpoints} }}\n"
    path.write_text(made)
    conftest.nft(ns, "-f", str(path))
    found = verification.verify(conftest.SANDBOX, state)
    assert found.verdict == "differs"
    assert found.installed is not None
    shown = listing.of_fence(found.installed.spec, ns)["inet ocsf_nft"]
    assert "10.9.7.7" not in shown
    assert ("more than 1002 elements" in shown) == (name == "allowed4")
    installer.install(spec, ns, state, "nflog")
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


def test_elements_are_readable_for_people(lab: Lab) -> None:
    ns = lab.sandbox_namespace
    conftest.nft(
        ns,
        "add table inet t; "
        "add set inet t four { typeof ip daddr . ip protocol . th dport; }; "
        "add element inet t four { 10.0.0.2 . udp . 53, 10.0.0.1 . 136 . 80 }; "
        "add set inet t any { typeof ip daddr; flags interval; }; add element inet t any { * }; "
        "add set inet t six { typeof ip6 daddr; }; add element inet t six { fd00::1 }; "
        "add set inet t marks { typeof meta mark . meta mark; }; "
        "add element inet t marks { 1 . 2 }",
    )
    names = ("four", "any", "six", "marks", "none")
    assert table_query.elements(ns, "inet", "t", names, 10) == (
        "four: 10.0.0.1 . 136 . 80",
        "four: 10.0.0.2 . udp . 53",
        "any: *",
        "six: fd00::1",
        "marks: " + struct.pack("=II", 1, 2).hex(),
    )


_NAMES = [
    b"x { # handle 9\n\t}\n\n\tchain y",
    b"output { # handle 9\n\t\taccept # handle 10\n\t}\n\n\tset z",
    b'\xff\xfe"; flush ruleset',
    b"\n}\ntable inet ocsf_nft {",
    b"*" * 200,
]


@pytest.mark.parametrize("name", _NAMES)
def test_chain_with_an_unusual_name_is_reported_and_removed(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, name: bytes
) -> None:
    fenced.sandbox_namespace.call(lambda: _make_chain(name))
    assert verification.verify(spec.sandbox, state).verdict == "differs"
    installer.install(spec, fenced.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def _make_chain(name: bytes) -> None:
    """Create a chain by netlink: the kernel accepts names that nft's grammar forbids."""
    ours, batch = struct.pack("!BBH", 1, 0, 0), struct.pack("!BBH", 0, 0, 10)
    chain = netlink.attribute(1, b"ocsf_nft\0") + netlink.attribute(3, name + b"\0")
    create = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | 0x400  # NLM_F_CREATE
    transaction = (
        netlink.message(16, netlink.NLM_F_REQUEST, batch)
        + netlink.message(10 << 8 | 3, create, ours + chain)
        + netlink.message(17, netlink.NLM_F_REQUEST, batch)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as sock:
        sock.settimeout(5)
        sock.sendto(transaction, (0, 0))
        for kind, body in netlink.messages(memoryview(sock.recv(65536))):
            assert kind == netlink.NLMSG_ERROR
            netlink.raise_for_error(body)
