"""Failures of a tamper guard, its sockets, and the programs that it needs."""

from __future__ import annotations

import os
import select
import shutil
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError, SourceError
from ocsf_nft.fence import fence_change, installer, nft, restore_batch, table_changes, table_query
from ocsf_nft.fence.spec import TableId
from ocsf_nft.nfnetlink import Nftables, Statement
from tests.fence.test_state import _is_waited_for, _until
from tests.kernel import conftest
from tests.kernel.test_nft_monitor import _make_exclusive
from tests.kernel.test_tamper_guard import GuardProbe, _tamper, _verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence import nft_monitor
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_DELETE_INET = Statement(2, 0, b"\1\0\0\0" + netlink.attribute(1, b"ocsf_nft\0"))


@pytest.fixture
def probe(installed: InstalledFence, state: StateDirectory) -> Iterator[GuardProbe]:
    """Return a tamper guard that has not been started."""
    yield from _make_guard(installed, state)


@pytest.fixture
def owning_probe(lab: Lab, spec: FenceSpec, state: StateDirectory) -> Iterator[GuardProbe]:
    """Return a tamper guard that has not been started, and owns the tables of its fence."""
    exclusive = replace(spec, is_owned=True)
    for made in _make_guard(
        installer.install(exclusive, lab.sandbox_namespace, state, "nflog"), state
    ):
        made.guard.take_ownership()
        yield made


def _make_guard(installed: InstalledFence, state: StateDirectory) -> Iterator[GuardProbe]:
    made = GuardProbe(installed, state, self_heal=True, prepared=True, starts=False)
    yield made
    made.stop()


def test_tamper_guard_has_no_event_at_its_start(probe: GuardProbe) -> None:
    # The kernel may still report the new links of the lab.
    notices = [each.notices for each in probe.guard._monitors]
    assert notices
    assert select.select(notices, [], [], 0) == ([], [], [])


def _monitor(probe: GuardProbe) -> nft_monitor.NftMonitor:
    return probe.guard._monitors[0]


def _silence(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Replace nft with a version that does not show its messages."""
    real = shutil.which("nft", path="/usr/sbin:/usr/bin")
    wrapper = directory / "nft"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *--debug=mnl*) exit;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(nft, "TRUSTED", (directory,))


def _shrink(probe: GuardProbe) -> None:
    """Make the send buffer of the guard's socket too small for a fence."""
    _monitor(probe)._nftables._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def test_renew_uses_nft_if_nft_does_not_show_its_messages(
    fenced: Lab,
    state: StateDirectory,
    probe: GuardProbe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _silence(monkeypatch, tmp_path)
    _tamper(fenced, "delete table inet ocsf_nft")
    assert probe.guard.renew() is not None
    assert _verdict(state) == "as installed"


def test_renew_uses_nft_if_a_ruleset_is_too_long_for_its_socket(
    fenced: Lab, state: StateDirectory, probe: GuardProbe
) -> None:
    _tamper(fenced, "delete table inet ocsf_nft")
    _shrink(probe)
    assert probe.guard.renew() is not None
    assert _verdict(state) == "as installed"


def test_renew_of_exclusive_tables_never_uses_nft(
    lab: Lab, owning_probe: GuardProbe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _monitor(owning_probe).commit([_DELETE_INET])
    _shrink(owning_probe)
    with pytest.raises(FenceError, match="the kernel refused the fence: Message too long"):
        owning_probe.guard.renew()
    _silence(monkeypatch, tmp_path)
    with pytest.raises(FenceError, match="nft doesn't show what it sends"):
        owning_probe.guard.renew()
    assert table_query.table(lab.sandbox_namespace, "inet", "ocsf_nft") is None


def test_renew_names_tables_that_another_process_owns(
    fenced: Lab, installed: InstalledFence, probe: GuardProbe
) -> None:
    _make_exclusive(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        other.commit([table_changes.ownership_statement(TableId("inet", "ocsf_nft"))])
        with pytest.raises(FenceError, match="can't be changed: another process owns them"):
            probe.guard.renew()


def test_nft_monitor_owns_its_tables_with_a_new_socket_after_a_timeout(
    lab: Lab, owning_probe: GuardProbe
) -> None:
    monitor = _monitor(owning_probe)
    before = monitor._nftables
    before._socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        monitor.commit([])  # the kernel acknowledges nothing
    assert before._socket.fileno() == -1
    assert monitor.is_owner
    for table_id in monitor.tables:
        found = table_query.table(lab.sandbox_namespace, *table_id)
        assert found is not None
        assert found.is_exclusive
    monitor.commit([_DELETE_INET])
    assert table_query.table(lab.sandbox_namespace, "inet", "ocsf_nft") is None


def test_nft_monitor_owns_no_tables_after_a_timeout_if_it_owned_none(
    fenced: Lab, installed: InstalledFence, probe: GuardProbe
) -> None:
    _make_exclusive(installed)
    _monitor(probe)._nftables._socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        _monitor(probe).commit([])
    assert not _monitor(probe).is_owner
    found = table_query.table(fenced.sandbox_namespace, "inet", "ocsf_nft")
    assert found is not None
    assert not found.is_exclusive


def test_tamper_guard_ends_with_an_error_if_notices_cannot_be_read(probe: GuardProbe) -> None:
    read, write = os.pipe()
    os.write(write, b"no notice")
    os.dup2(read, _monitor(probe).notices.fileno())
    os.close(read)
    os.close(write)
    probe.guard.start()
    with pytest.raises(SourceError, match="can't be watched: Socket operation on non-socket"):
        probe.next_change()


def test_tamper_guard_ends_with_any_exception(
    fenced: Lab, probe: GuardProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fence_change, "attribute_change", fail)
    probe.guard.start()
    _tamper(fenced, "delete table inet ocsf_nft")
    with pytest.raises(RuntimeError, match="a bug"):
        probe.next_change()


def test_tamper_guard_sends_nothing_if_another_thread_restored_the_fence_first(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, probe: GuardProbe
) -> None:
    (batch,) = restore_batch.prepare(installed).batches
    probe.guard.start()
    with state.locked(conftest.SANDBOX):
        _tamper(fenced, "delete table inet ocsf_nft")
        _until(lambda: _is_waited_for(state.path))
        _monitor(probe).restore(batch.full)
        with fenced.sandbox_namespace.call(Nftables) as nftables:
            before = nftables.generation()
    change = probe.next_change()
    assert change.changes == "table inet ocsf_nft was deleted"
    assert change.restored_after_ns is not None
    with fenced.sandbox_namespace.call(Nftables) as nftables:
        assert nftables.generation() == before
    assert _verdict(state) == "as installed"
    assert probe.remaining_changes() == []


def test_tamper_guard_continues_after_a_failed_restore(
    fenced: Lab, state: StateDirectory, probe: GuardProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.guard.use_restore_batch(None, state.version(conftest.SANDBOX))
    probe.guard.start()
    with monkeypatch.context() as patched:
        patched.setattr(nft, "TRUSTED", ())
        _tamper(fenced, "delete table inet ocsf_nft")
        change = probe.next_change()
    assert (change.restored_after_ns, change.given_up, change.is_regular) == (None, False, False)
    assert table_query.table(fenced.sandbox_namespace, "inet", "ocsf_nft") is None
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) == "as installed"
