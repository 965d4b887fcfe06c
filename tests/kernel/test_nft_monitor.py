"""Notices about a fence's tables, and the socket that changes them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink
from ocsf_nft.fence import restore_batch, ruleset, table_changes
from ocsf_nft.fence.nft_monitor import NftMonitor
from ocsf_nft.fence.spec import TableId
from ocsf_nft.nfnetlink import Nftables, Statement
from tests.kernel import conftest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def monitor(fenced: Lab, spec: FenceSpec) -> Iterator[NftMonitor]:
    made = NftMonitor(fenced.sandbox_namespace, tuple(spec.tables))
    yield made
    made.close()


@pytest.fixture
def statements(installed: InstalledFence) -> tuple[Statement, ...]:
    """Return the statements of the fence, without exclusive ownership."""
    text = ruleset.fence(installed.spec, installed.around, installed.transport)
    return restore_batch.compile_ruleset(installed.namespace, text)


def _make_exclusive(installed: InstalledFence) -> None:
    """Replace the tables with ones that can be owned exclusively."""
    text = "".join(
        f"delete table {family} ocsf_nft\ntable {family} ocsf_nft {{ {ruleset.EXCLUSIVE_FLAGS} }}\n"
        for family in ("inet", "netdev")
    )
    conftest.load(installed.namespace, text)


def test_changes_before_a_restore_are_reverted(
    fenced: Lab, monitor: NftMonitor, statements: tuple[Statement, ...]
) -> None:
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    (before,) = monitor.read()
    assert not monitor.is_reverted(before)
    monitor.restore(statements)
    conftest.nft(ns, "delete", "table", "netdev", "ocsf_nft")
    (after,) = monitor.read()  # without our own change
    assert monitor.is_reverted(before)
    assert not monitor.is_reverted(after)


def test_changes_before_another_transaction_are_not_reverted(
    fenced: Lab, monitor: NftMonitor, statements: tuple[Statement, ...]
) -> None:
    """The transaction only attaches the chains to another link."""
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    monitor.commit(restore_batch.attach_statements(statements, ["late0"]))
    (before,) = monitor.read()
    assert not monitor.is_reverted(before)


def test_monitor_knows_whether_it_has_read_all_changes(fenced: Lab, monitor: NftMonitor) -> None:
    ns = fenced.sandbox_namespace
    conftest.nft(ns, "add", "table", "ip", "other")
    monitor.read()
    assert monitor.has_read_all()
    conftest.nft(ns, "delete", "table", "ip", "other")
    assert not monitor.has_read_all()
    monitor.notices.recvfrom(1 << 16)  # the notices, of which the kernel may send the next one late
    assert not monitor.has_read_all()


class _Late:
    """Notices of a monitor, whose second datagram arrives later."""

    def __init__(self, notices: socket.socket) -> None:
        self._notices = notices
        self.reads = 0

    def fileno(self) -> int:
        return self._notices.fileno()

    def recvfrom(self, size: int) -> object:
        self.reads += 1
        if self.reads == 2:
            raise BlockingIOError
        return self._notices.recvfrom(size)


def test_nft_monitor_waits_for_the_rest_of_a_transaction(
    fenced: Lab, monitor: NftMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "\n".join(f"tcp dport {port} accept" for port in range(1, 500))
    conftest.load(
        fenced.sandbox_namespace, f"table inet ocsf_nft {{ chain more {{ {rules}\n }}\n }}"
    )
    assert isinstance(monitor.notices, socket.socket)
    late = _Late(monitor.notices)
    monkeypatch.setattr(monitor, "notices", late)
    assert len(monitor.read()) == 1
    assert late.reads > 3
    assert monitor.read() == []


def test_commit_with_an_outdated_generation_changes_nothing(
    fenced: Lab, monitor: NftMonitor
) -> None:
    ns = fenced.sandbox_namespace
    with ns.call(Nftables) as nftables:
        generation = nftables.generation()
        conftest.nft(ns, "add", "table", "ip", "theirs")
        with pytest.raises(OSError, match="restarted"):
            monitor.commit([table_changes.ownership_statement(TableId("inet", "ours"))], generation)
        monitor.commit([table_changes.ownership_statement(TableId("inet", "ours"))], generation + 1)
        assert nftables.generation() == generation + 2


@pytest.mark.parametrize("missing", ["inet", "netdev"])
def test_nft_monitor_owns_all_tables_or_none(
    fenced: Lab, installed: InstalledFence, monitor: NftMonitor, missing: str
) -> None:
    ns = fenced.sandbox_namespace
    _make_exclusive(installed)
    conftest.nft(ns, "delete", "table", missing, "ocsf_nft")
    monitor.take_ownership()
    assert [monitor.is_owner] == [False]
    assert "owner" not in conftest.nft(ns, "list", "tables")
    assert f"table {missing} ocsf_nft" not in conftest.nft(ns, "list", "tables")
    conftest.load(ns, f"table {missing} ocsf_nft {{ {ruleset.EXCLUSIVE_FLAGS} }}\n")
    monitor.take_ownership()
    assert monitor.is_owner
    assert conftest.nft(ns, "list", "ruleset").count("flags owner,persist") == 2


def test_nft_monitor_does_not_own_tables_of_another_socket(
    fenced: Lab, installed: InstalledFence, monitor: NftMonitor
) -> None:
    _make_exclusive(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        other.commit([table_changes.ownership_statement(TableId("netdev", "ocsf_nft"))])
        with pytest.raises(PermissionError):
            monitor.take_ownership()
        assert [monitor.is_owner] == [False]
    monitor.take_ownership()
    assert monitor.is_owner


def test_constant_changes_do_not_prevent_ownership_or_a_restore(
    fenced: Lab, installed: InstalledFence, monitor: NftMonitor
) -> None:
    """Each requested ruleset number is outdated when it is used."""
    _make_exclusive(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        generation = monitor._nftables.generation

        def outdated_generation() -> int:
            found = generation()
            other.commit([table_changes.ownership_statement(TableId("inet", "theirs"))])
            other.commit([Statement(2, 0, b"\1\0\0\0" + netlink.attribute(1, b"theirs\0"))])
            return found

        monitor._nftables.generation = outdated_generation  # type: ignore[method-assign]
        monitor.take_ownership()
        assert monitor.is_owner
        assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset").count("owner,persist") == 2
        monitor.restore([table_changes.ownership_statement(TableId("inet", "ocsf_nft"))])
