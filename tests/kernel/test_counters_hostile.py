"""Whoever has CAP_NET_ADMIN in the sandbox's namespace puts something in the fence's place."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import installer, ruleset
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.nft import load
from ocsf_nft.flow import Count
from ocsf_nft.nfnetlink import Nftables
from tests.kernel.conftest import nft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def installed(lab: Lab, spec: FenceSpec, state: StateDirectory) -> Installed:
    return installer.install(spec, lab.sandbox_namespace, state, "nflog")


@pytest.fixture
def reader(installed: Installed) -> Iterator[Counters]:
    with Counters(installed) as opened:
        yield opened


def test_nobody_but_the_kernel_can_send_to_the_socket(lab: Lab) -> None:
    def send(port: int) -> None:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER
        ) as stranger:
            stranger.sendto(netlink.message(2, 0, bytes(20), 1), (port, 0))

    with lab.sandbox_namespace.call(Nftables) as nftables:
        port = nftables._socket.getsockname()[0]
        with pytest.raises(ConnectionRefusedError):
            lab.sandbox_namespace.call(lambda: send(port))


def test_other_sets_by_the_same_names_are_read_as_far_as_they_are_ours(
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
    assert not any(reading.rules["egress"].elements.values())


def test_a_set_that_is_too_large_is_a_fault_and_the_next_reading_is_right(
    lab: Lab, spec: FenceSpec, state: StateDirectory, reader: Counters
) -> None:
    _swap(lab, 35_000)
    with pytest.raises(FenceError, match="flows4_egress has more than 32768 elements"):
        reader.read()
    assert reader._places[0].nftables is None, "the rest of the list is still on its way"
    nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert reader.read().rules.keys() == {"egress", "forward", "ingress", "link"}


def test_a_set_that_goes_away_while_it_is_read_ends_the_list(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        named = netlink.attribute(1, b"ocsf_nft\0") + netlink.attribute(2, b"flows4_egress\0")
        told = nftables.dump(13, nfnetlink.NFPROTO_INET, named)
        next(told)
        nft(lab.sandbox_namespace, "delete table inet ocsf_nft")
        with pytest.raises(FileNotFoundError):
            list(told)
        # and what comes after is an answer to what is asked after
        with pytest.raises(FileNotFoundError):
            nftables.ask(1, nfnetlink.NFPROTO_INET, netlink.attribute(1, b"ocsf_nft\0"))


def test_the_rest_of_a_list_is_no_answer_to_the_next_question(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        table = netlink.attribute(1, b"ocsf_nft\0")
        named = table + netlink.attribute(2, b"flows4_egress\0")
        next(nftables.dump(13, nfnetlink.NFPROTO_INET, named))
        answer = nftables.ask(1, nfnetlink.NFPROTO_INET, table)
        assert answer[1] == b"ocsf_nft\0"
        assert len(answer[4]) == 8, "a table has a handle"


def test_a_list_without_an_end_ends_with_the_deadline(lab: Lab) -> None:
    _swap(lab, 5_000)
    with lab.sandbox_namespace.call(Nftables) as nftables:
        named = netlink.attribute(1, b"ocsf_nft\0") + netlink.attribute(2, b"flows4_egress\0")
        told = nftables.dump(13, nfnetlink.NFPROTO_INET, named)
        next(told)
        nftables.deadline = 0
        with pytest.raises(TimeoutError):
            next(told)


def test_tables_that_are_replaced_all_the_time_are_read_or_a_fault(
    lab: Lab, installed: Installed, reader: Counters
) -> None:
    stop = threading.Event()
    fence = ruleset.fence(installed.spec, installed.around, installed.transport)

    def replace() -> None:
        while not stop.is_set():
            load(lab.sandbox_namespace, fence)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        epochs = set()
        for _ in range(200):
            with contextlib.suppress(FenceError):
                epochs.add(reader.read().epochs["egress"])
    finally:
        stop.set()
        thread.join()
    assert len(epochs) > 1
    assert reader.read().rules.keys() == {"egress", "forward", "ingress", "link"}


def _swap(lab: Lab, elements: int) -> None:
    """Put a table with one large set in the place of the fence's."""
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
