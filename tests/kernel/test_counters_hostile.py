"""Counters after a process with CAP_NET_ADMIN in the sandbox's namespace has replaced the fence."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import counters, installer, rule_counters, ruleset
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.namespace_reader import NamespaceReader
from ocsf_nft.fence.nft import load
from ocsf_nft.flow import Count
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import Nftables
from tests.descriptors import no_more_descriptors
from tests.kernel import accounts
from tests.kernel.conftest import SANDBOX, nft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.errors import OcsfNftError
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.flow import Kind
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def installed(lab: Lab, spec: FenceSpec, state: StateDirectory) -> InstalledFence:
    return installer.install(spec, lab.sandbox_namespace, state, "nflog")


@pytest.fixture
def reader(installed: InstalledFence) -> Iterator[Counters]:
    with Counters(installed) as opened:
        yield opened


def test_no_other_process_can_send_to_the_socket(lab: Lab) -> None:
    def send(port: int) -> None:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER
        ) as stranger:
            stranger.sendto(netlink.message(2, 0, bytes(20), 1), (port, 0))

    with lab.sandbox_namespace.call(Nftables) as nftables:
        port = nftables._socket.getsockname()[0]
        with pytest.raises(ConnectionRefusedError):
            lab.sandbox_namespace.call(lambda: send(port))


def test_foreign_sets_with_the_same_names_are_read_as_far_as_they_are_like_ours(
    lab: Lab, reader: Counters
) -> None:
    nft(lab.sandbox_namespace, "delete table inet ocsf_nft; add table inet ocsf_nft")
    nft(
        lab.sandbox_namespace,
        "add set inet ocsf_nft flows4_egress { type ipv4_addr; counter; elements = "
        "{ 192.0.2.1, 192.0.2.2 } }; "
        "add set inet ocsf_nft flows6_egress { type ipv4_addr; flags interval; "
        "elements = { 192.0.2.0/24 } }; "
        "add set inet ocsf_nft others_egress { "
        "typeof meta skuid . meta protocol . meta l4proto; elements = { 1 . ip . 1 } }; "
        "add counter inet ocsf_nft refused_egress { packets 5 bytes 6 }; "
        "add counter inet ocsf_nft overflow_egress; "
        "add counter inet ocsf_nft logged_egress; "
        "add quota inet ocsf_nft refused_forward { 5 bytes }",
    )
    reading = reader.read()
    assert reading.rules.keys() == {"egress", "link"}
    assert reading.rules["egress"].refused == Count(5, 6)
    assert not any(accounts.elements_of(reading.rules["egress"]).values())


def test_too_large_set_is_an_error_and_the_next_reading_is_correct(
    lab: Lab, spec: FenceSpec, state: StateDirectory, reader: Counters
) -> None:
    _swap(lab, 70_000)
    with pytest.raises(FenceError, match="flows4_egress has more than 65536 elements"):
        reader.read()
    assert not reader._inside.is_open, "the rest of the list may still arrive"
    nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert reader.read().rules.keys() == {"egress", "forward", "ingress", "link"}


def test_set_that_is_deleted_during_a_reading_ends_the_list(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        named = netlink.attribute(1, b"ocsf_nft\0") + netlink.attribute(2, b"flows4_egress\0")
        dump = nftables.dump(13, nfnetlink.NFPROTO_INET, named)
        next(dump)
        nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
        with pytest.raises(FileNotFoundError):
            list(dump)
        # The following answer belongs to the following request.
        with pytest.raises(FileNotFoundError):
            nftables.query(1, nfnetlink.NFPROTO_INET, netlink.attribute(1, b"ocsf_nft\0"))


def test_rest_of_a_list_is_no_answer_to_the_next_request(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        table = netlink.attribute(1, b"ocsf_nft\0")
        named = table + netlink.attribute(2, b"flows4_egress\0")
        next(nftables.dump(13, nfnetlink.NFPROTO_INET, named))
        answer = nftables.query(1, nfnetlink.NFPROTO_INET, table)
        assert answer[1] == b"ocsf_nft\0"
        assert len(answer[4]) == 8, "a table has a handle"


def test_list_without_an_end_ends_at_the_deadline(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        named = netlink.attribute(1, b"ocsf_nft\0") + netlink.attribute(2, b"flows4_egress\0")
        dump = nftables.dump(13, nfnetlink.NFPROTO_INET, named)
        next(dump)
        nftables.deadline = 0
        with pytest.raises(TimeoutError):
            next(dump)


def test_tables_that_are_replaced_all_the_time_are_read_or_an_error(
    lab: Lab, installed: InstalledFence, reader: Counters
) -> None:
    stop = threading.Event()
    fence = ruleset.fence(installed.spec, installed.around, installed.transport)

    def replace() -> None:
        while not stop.is_set():
            load(lab.sandbox_namespace, fence)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        epochs: set[str] = set()
        readings = 0
        end = time.monotonic() + 60
        while readings < 200 or (len(epochs) < 2 and time.monotonic() < end):
            readings += 1
            with contextlib.suppress(FenceError):
                epochs.add(reader.read().epochs["egress"])
    finally:
        stop.set()
        thread.join()
    assert len(epochs) > 1
    assert reader.read().rules.keys() == {"egress", "forward", "ingress", "link"}


def _before_each_set(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call ``act`` before each reading of the elements of the set flows4_egress."""
    collect = rule_counters.RuleReader._collect

    def collected(rule: Any, kind: Kind, *more: Any) -> None:
        if (kind, rule._rule) == ("flows4", "egress"):
            act()
        collect(rule, kind, *more)

    monkeypatch.setattr(rule_counters.RuleReader, "_collect", collected)


def test_counters_replaced_in_each_of_three_readings_are_an_error(
    lab: Lab, installed: InstalledFence, reader: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = ruleset.fence(installed.spec, installed.around, installed.transport)
    most = 2
    times: list[None] = []

    def replace() -> None:
        if len(times) < most:
            times.append(None)
            load(lab.sandbox_namespace, fence)

    _before_each_set(monkeypatch, replace)
    assert "egress" in reader.read().rules
    assert len(times) == most
    most, times = 3, []
    with pytest.raises(FenceError, match=r"of rule egress in .* are replaced again and again"):
        reader.read()


def test_counters_deleted_while_they_are_read_are_absent(
    lab: Lab, reader: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    _before_each_set(monkeypatch, lambda: load(lab.sandbox_namespace, "delete table inet ocsf_nft"))
    assert reader.read().rules.keys() == {"link"}


def test_counters_that_cannot_be_read_are_an_error_with_its_cause(
    installed: InstalledFence, reader: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        no_more_descriptors(),
        pytest.raises(UnsupportedError, match="boot_id can't be read: Too many"),
    ):
        Counters(installed).open()
    cases: tuple[tuple[int, type[OcsfNftError], str], ...] = (
        (errno.EPERM, UnsupportedError, "run as root, or with CAP_NET_ADMIN over it"),
        (errno.EINVAL, UnsupportedError, "(Invalid argument): it needs nf_tables and Linux 5.14"),
        (errno.ENOPROTOOPT, UnsupportedError, "it needs nf_tables and Linux 5.14"),
        (errno.EPROTONOSUPPORT, UnsupportedError, "it needs nf_tables and Linux 5.14"),
        (errno.EOPNOTSUPP, UnsupportedError, "it needs nf_tables and Linux 5.14"),
        (errno.EMFILE, FenceError, "can't be read: Too many open files"),
        (errno.EIO, FenceError, "can't be read: Input/output error"),
    )
    inside = NamespaceReader(Namespace(), {}, sandbox=SANDBOX)
    for code, kind, sentence in cases:
        found = inside._unreadable(OSError(code, os.strerror(code)))
        assert type(found) is kind
        assert sentence in str(found)
    with monkeypatch.context() as patched:
        patched.setattr(counters, "_READ_SECONDS", -1.0)
        with pytest.raises(FenceError, match="can't be read: the kernel is too slow"):
            reader.read()
    assert not reader._inside.is_open, "the rest of an answer may still arrive"
    assert "egress" in reader.read().rules


def _swap(lab: Lab, elements: int) -> None:
    """Replace the fence's table with one that has a large set."""
    rows = ", ".join(
        f"{number} . 17 . 192.0.2.1 . 1 counter packets 1 bytes 1" for number in range(elements)
    )
    text = f"""
        table inet ocsf_nft
        delete table inet ocsf_nft
        table inet ocsf_nft {{
            set flows4_egress {{
                typeof meta skuid . meta l4proto . ip daddr . th dport
                counter
                elements = {{ {rows} }}
            }}
            set flows6_egress {{ typeof meta skuid . meta l4proto . ip6 daddr . th dport; }}
            set others_egress {{ typeof meta skuid . meta protocol . meta l4proto; }}
            counter refused_egress {{ }}
            counter overflow_egress {{ }}
            counter logged_egress {{ }}
        }}
    """
    load(lab.sandbox_namespace, text)
