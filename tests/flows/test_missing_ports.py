"""Records of packets whose transport header is cut short, so that the record has no port.

The kernel counts such a packet by the two bytes in place of the port, if there are so many.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.kernel_model import Packet
from tests.flows.reading import NOW, SECOND, attempts, key, observe, reading, record

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt


@pytest.fixture
def account() -> SandboxAccount:
    begun = SandboxAccount("sb", begun_ns=NOW - SECOND)
    observe(begun, reading({}))
    return begun


def due(account: SandboxAccount, seconds: float, *, closing: bool = False) -> list[Attempt]:
    """Return the reports of attempts that are due; the clock differs from that of the records."""
    return attempts(account.due(int((1000 + seconds) * SECOND), closing=closing))


def take(
    account: SandboxAccount, packet: Packet, number: int = 1, at_ns: int = NOW
) -> Attempt | None:
    """Process the record of a packet."""
    return account.record(record(packet, number, at_ns), 1000 * SECOND)


def test_record_without_port_is_not_reported_besides_its_counted_packet(
    account: SandboxAccount,
) -> None:
    """The kernel counts by a port if there are four bytes, and logs only a whole header's port."""
    counted = Packet(uid=0, protocol=132, destination="192.0.2.1", port=28769)
    observe(account, reading({key(counted): 1}, NOW + SECOND))
    assert [each.packets for each in due(account, 3)] == [1]
    assert take(account, dataclasses.replace(counted, port=None), at_ns=NOW) is None
    for second in (2, 3):
        observe(account, reading({key(counted): 1}, NOW + second * SECOND))
    assert due(account, 4, closing=True) == []
    (balance,) = account.balances()
    assert (balance.reported, balance.counter_mismatch) == (1, 0)


def test_record_without_port_before_its_counter_is_reported_once(account: SandboxAccount) -> None:
    counted = Packet(uid=0, protocol=132, destination="192.0.2.1", port=28769)
    assert take(account, dataclasses.replace(counted, port=None)) is not None
    for second in (1, 2, 3):
        observe(account, reading({key(counted): 1}, NOW + second * SECOND))
    assert due(account, 4, closing=True) == []


@pytest.mark.parametrize("protocols", [(132, 33), (33, 132)])
def test_account_matches_a_record_without_its_port_by_protocol(
    account: SandboxAccount, protocols: tuple[int, int]
) -> None:
    """A long reading shows the packet of a record that is read during it.

    If the first record took the second one's counter, the first counter would be reported as well.
    """
    first, second = (
        Packet(uid=0, protocol=protocol, destination="192.0.2.1", port=28769)
        for protocol in protocols
    )
    assert take(account, dataclasses.replace(first, port=None)) is not None
    emitted = []
    for number in range(16):
        at_ns = NOW + number * SECOND
        counts = {key(first): 1} if number < 2 else {key(first): 1, key(second): 1}
        if number == 2:
            cut = dataclasses.replace(second, port=None)
            assert take(account, cut, 2, at_ns + 1) is not None
        observe(account, reading(counts, at_ns))
        emitted += due(account, number)
    assert emitted == []
    (balance,) = account.balances()
    assert (balance.reported, balance.counter_mismatch) == (2, 0)
