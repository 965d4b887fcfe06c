"""The sentry of a fence, and its sockets, where something fails that they depend on."""

from __future__ import annotations

import os
import select
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError, SourceError
from ocsf_nft.fence import installer, nft, restore_batch, ruleset_batch, table_query, tamper_guard
from ocsf_nft.nfnetlink import Nftables, Statement
from tests.fence.test_state import _is_waited_for, _until
from tests.kernel import conftest
from tests.kernel.test_nft_monitor import _owned
from tests.kernel.test_tamper_guard import NftMonitor, _tamper, _verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence import nft_monitor
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_DELETE_INET = Statement(2, 0, b"\1\0\0\0" + netlink.attribute(1, b"ocsf_nft\0"))


@pytest.fixture
def one(installed: InstalledFence, state: StateDirectory) -> Iterator[NftMonitor]:
    """A sentry that has not begun."""
    yield from _posted(installed, state)


@pytest.fixture
def holding(lab: Lab, spec: FenceSpec, state: StateDirectory) -> Iterator[NftMonitor]:
    """A sentry that has not begun, and holds the tables of its fence."""
    owned = replace(spec, is_owned=True)
    for made in _posted(installer.install(owned, lab.sandbox_namespace, state, "nflog"), state):
        made.sentry.own()
        yield made


def _posted(installed: InstalledFence, state: StateDirectory) -> Iterator[NftMonitor]:
    made = NftMonitor(installed, state, heals=True, prepared=True, begins=False)
    yield made
    if made.sentry._wake >= 0:
        made.sentry.end()


def test_sentry_has_nothing_to_do_when_it_begins(one: NftMonitor) -> None:
    assert select.select([one.sentry._wake], [], [], 0) == ([], [], [])


def _of(one: NftMonitor) -> nft_monitor.NftMonitor:
    return one.sentry._posts[0]


def _silence(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have an nft that does not show what it would send."""
    real = shutil.which("nft", path="/usr/sbin:/usr/bin")
    wrapper = directory / "nft"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *--debug=mnl*) exit;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(nft, "TRUSTED", (directory,))


def _shrink(one: NftMonitor) -> None:
    """Leave the socket that changes the tables no room for a fence."""
    _of(one)._nftables._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def test_renew_lets_nft_load_what_it_does_not_show(
    fenced: Lab,
    state: StateDirectory,
    one: NftMonitor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _silence(monkeypatch, tmp_path)
    _tamper(fenced, "delete table inet ocsf_nft")
    assert one.sentry.renew() is not None
    assert _verdict(state) == "as installed"


def test_renew_lets_nft_load_what_is_too_long_for_its_socket(
    fenced: Lab, state: StateDirectory, one: NftMonitor
) -> None:
    _tamper(fenced, "delete table inet ocsf_nft")
    _shrink(one)
    assert one.sentry.renew() is not None
    assert _verdict(state) == "as installed"


def test_renew_of_held_tables_never_leaves_them_to_nft(
    lab: Lab, holding: NftMonitor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _of(holding).commit([_DELETE_INET])
    _shrink(holding)
    with pytest.raises(FenceError, match="the kernel refused the fence: Message too long"):
        holding.sentry.renew()
    _silence(monkeypatch, tmp_path)
    with pytest.raises(FenceError, match="nft doesn't show what it sends"):
        holding.sentry.renew()
    assert table_query.table(lab.sandbox_namespace, "inet", "ocsf_nft") is None


def test_renew_names_tables_that_another_process_holds(
    fenced: Lab, installed: InstalledFence, one: NftMonitor
) -> None:
    _owned(installed)
    with fenced.sandbox_namespace.call(Nftables) as other:
        other.commit([ruleset_batch.ownership_statement("inet", "ocsf_nft")])
        with pytest.raises(FenceError, match="can't be changed: another process holds them"):
            one.sentry.renew()


def test_post_holds_its_tables_by_a_new_socket_after_a_timeout(lab: Lab, holding: NftMonitor) -> None:
    post = _of(holding)
    before = post._nftables
    before._socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        post.commit([])  # the kernel acknowledges nothing
    assert before._socket.fileno() == -1
    assert post.owns
    for place in post.places:
        found = table_query.table(lab.sandbox_namespace, *place)
        assert found is not None
        assert found.is_owned
    post.commit([_DELETE_INET])
    assert table_query.table(lab.sandbox_namespace, "inet", "ocsf_nft") is None


def test_post_holds_nothing_after_a_timeout_that_it_did_not_hold(
    fenced: Lab, installed: InstalledFence, one: NftMonitor
) -> None:
    _owned(installed)
    _of(one)._nftables._socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        _of(one).commit([])
    assert not _of(one).owns
    found = table_query.table(fenced.sandbox_namespace, "inet", "ocsf_nft")
    assert found is not None
    assert not found.is_owned


def test_sentry_ends_with_an_error_when_notices_cannot_be_read(one: NftMonitor) -> None:
    with Path(os.devnull).open("rb") as file:
        os.dup2(file.fileno(), _of(one).notices.fileno())
    one.sentry.begin()
    with pytest.raises(SourceError, match="can't be watched: Socket operation on non-socket"):
        one.alteration()


def test_sentry_ends_with_whatever_fails(
    fenced: Lab, one: NftMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tamper_guard, "culprit", fail)
    one.sentry.begin()
    _tamper(fenced, "delete table inet ocsf_nft")
    with pytest.raises(RuntimeError, match="a bug"):
        one.alteration()


def test_sentry_sends_nothing_when_another_thread_restored_the_fence_first(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, one: NftMonitor
) -> None:
    ((_, load),) = restore_batch.prepare(installed).loads
    one.sentry.begin()
    with state.locked():
        _tamper(fenced, "delete table inet ocsf_nft")
        _until(lambda: _is_waited_for(state.path))
        _of(one).mend(load.whole)
        with fenced.sandbox_namespace.call(Nftables) as nftables:
            before = nftables.generation()
    told = one.alteration()
    assert told.changes == "table inet ocsf_nft was deleted"
    assert told.restored_after_ns is not None
    with fenced.sandbox_namespace.call(Nftables) as nftables:
        assert nftables.generation() == before
    assert _verdict(state) == "as installed"
    assert one.rest() == []


def test_sentry_goes_on_after_a_fence_that_it_could_not_restore(
    fenced: Lab, state: StateDirectory, one: NftMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.sentry.adopt(None, state.version(conftest.SANDBOX))
    one.sentry.begin()
    with monkeypatch.context() as patched:
        patched.setattr(nft, "TRUSTED", ())
        _tamper(fenced, "delete table inet ocsf_nft")
        told = one.alteration()
    assert (told.restored_after_ns, told.given_up, told.is_regular) == (None, False, False)
    assert table_query.table(fenced.sandbox_namespace, "inet", "ocsf_nft") is None
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert one.alteration().restored_after_ns is not None
    assert _verdict(state) == "as installed"
