"""Tamper guard: it restores a fence by itself with prepared messages, and reports the changes."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import struct
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import netlink, nfnetlink, rtnetlink
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import (
    installer,
    links,
    listing,
    load_ruleset,
    nft,
    nft_monitor,
    restore_batch,
    ruleset,
    tamper_guard,
    verification,
)
from ocsf_nft.fence.fence_change import FenceChange
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.spec import FenceSpec, Tap
from ocsf_nft.fence.tamper_guard import TamperGuard
from ocsf_nft.fence.values import endpoint, exception, subnet
from ocsf_nft.lab import ip
from ocsf_nft.netns import HOST
from ocsf_nft.nfnetlink import SUBSYSTEM, Nftables, Statement
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.service import restore_preparation
from ocsf_nft.service.fences import Fence
from tests.kernel import command, conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import Surroundings
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_PROXY = endpoint("10.200.0.1:3128")
_RANGES = tuple(
    map(exception, ("tcp:10.77.0.0/16:1-99", "udp:[fd77::/32]:53", "tcp:10.77.1.0/24:5-443"))
)
_SPECS = {
    "sandbox": FenceSpec(sandbox="lab", proxies=(_PROXY,), exceptions=_RANGES),
    "permissive": FenceSpec(sandbox="lab", proxies=(_PROXY,), is_permissive=True),
    "exclusive": FenceSpec(sandbox="lab", proxies=(_PROXY,), is_owned=True),
    "sidecar": FenceSpec(sandbox="lab", proxy_uids=(1337, 1338), exceptions=_RANGES),
    "tap": FenceSpec(
        sandbox="lab",
        proxies=(_PROXY,),
        exceptions=_RANGES,
        tap=Tap(device="sb0", subnets=(subnet("10.200.0.1/24"), subnet("fd00:200::1/64"))),
    ),
}
_TAMPERINGS = {
    "nothing": "",
    "flush ruleset": "flush ruleset",
    "delete netdev": "delete table netdev {table}",
    "delete inet": "delete table inet {table}",
    "turned off": "add table inet {table} {{ flags {off}; }}; "
    "add table netdev {table} {{ flags {off}; }}",
    "flush tables": "flush table inet {table}; flush table netdev {table}",
}


class GuardProbe:
    """Tamper guard with its notifications, without checks of the fence."""

    def __init__(
        self,
        installed: InstalledFence,
        state: StateDirectory,
        *,
        self_heal: bool,
        prepared: bool,
        starts: bool,
    ) -> None:
        self.is_stopped = False
        self.notifications: queue.Queue[tamper_guard.News] = queue.Queue()
        self.thread = GuardThread()
        self.guard = TamperGuard(
            installed, state, self.notifications.put, self.thread, self_heal=self_heal
        )
        if prepared:
            self.use_restore_batch(installed, state)
        if starts:
            self.guard.start()

    def use_restore_batch(self, installed: InstalledFence, state: StateDirectory) -> None:
        sandbox = installed.spec.sandbox
        self.guard.use_restore_batch(restore_batch.prepare(installed), state.version(sandbox))

    def stop(self) -> None:
        """Stop the guard, if it was not stopped before."""
        if not self.is_stopped:
            self.is_stopped = True
            self.guard.stop()
            self.thread.close()

    def next_change(self) -> FenceChange:
        """Return the next change; notifications about links are skipped."""
        while True:
            news = self.notifications.get(timeout=60)
            if isinstance(news, Exception):
                raise news
            if isinstance(news, FenceChange):
                return news

    def remaining_changes(self) -> list[FenceChange]:
        """Stop the guard, and return the remaining changes."""
        self.stop()
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.notifications.get_nowait())
        assert not any(isinstance(each, Exception) for each in found), found
        return [each for each in found if isinstance(each, FenceChange)]


@pytest.fixture
def make_guard(
    installed: InstalledFence, state: StateDirectory
) -> Iterator[Callable[..., GuardProbe]]:
    made: list[GuardProbe] = []

    def make(*, self_heal: bool = True, prepared: bool = True, starts: bool = True) -> GuardProbe:
        made.append(
            GuardProbe(installed, state, self_heal=self_heal, prepared=prepared, starts=starts)
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()


def _tamper(lab: Lab, text: str) -> int:
    """Run nft inside the sandbox, and return its pid."""
    process = lab.sandbox_namespace.call(lambda: subprocess.Popen(["nft", text]))
    assert process.wait(60) == 0
    return process.pid


def _send(packets: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(packets):
            with contextlib.suppress(OSError):
                sock.sendto(b"attempt", ("203.0.113.7", 53))


def _verdict(state: StateDirectory) -> str:
    found = verification.verify(conftest.SANDBOX, state)
    return f"{found.verdict} {found.difference}".strip()


@pytest.mark.parametrize("profile", _SPECS)
def test_prepared_batch_restores_what_nft_loads(
    lab: Lab, state: StateDirectory, profile: str, subtests: pytest.Subtests
) -> None:
    ns = lab.sandbox_namespace
    installed = installer.install(_SPECS[profile], ns, state, "nflog")
    (batch,) = restore_batch.prepare(installed).batches
    (table,) = {table_id.name for table_id in batch.tables}
    off = "owner,persist,dormant" if installed.spec.is_owned else "dormant"
    for kind, tampering in itertools.product(("keeping counters", "full"), _TAMPERINGS):
        with subtests.test(kind=kind, tampering=tampering):
            restoring = batch.keeping_counters if kind == "keeping counters" else batch.full
            assert restoring is not None
            if text := _TAMPERINGS[tampering].format(table=table, off=off):
                conftest.nft(ns, text)
            with ns.call(Nftables) as nftables:
                nftables.commit(restoring)
            found = listing.of_fence(installed.spec, ns)
            assert listing.difference(installed.listings, found) == []


def test_prepared_batch_restores_the_guard_on_the_host(lab: Lab, state: StateDirectory) -> None:
    """The gateway's namespace is the host of this guard."""
    host = lab.gateway_namespace
    spec = replace(_SPECS["sandbox"], guard_device=lab.gateway_device)
    installed = host.call(lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog"))
    _, batch = host.call(lambda: restore_batch.prepare(installed)).batches
    assert {table_id.name for table_id in batch.tables} == {"ocsf_nft_gw0"}
    before = conftest.nft(host, "list", "ruleset")
    for restoring in (batch.keeping_counters, batch.full):
        assert restoring is not None
        conftest.nft(host, "flush ruleset")
        with host.call(Nftables) as nftables:
            nftables.commit(restoring)
        assert conftest.nft(host, "list", "ruleset") == before


def test_refused_transaction_changes_nothing_and_raises_the_cause(fenced: Lab) -> None:
    missing = struct.pack("!BBH", 1, 0, 0) + netlink.attribute(1, b"missing\0")
    flush = Statement(2, 0, struct.pack("!BBH", 0, 0, 0))
    with fenced.sandbox_namespace.call(Nftables) as nftables:
        before = nftables.generation()
        for statements in ([flush, Statement(2, 0, missing)], [Statement(2, 0, missing), flush]):
            with pytest.raises(FileNotFoundError):
                nftables.commit(statements)
        assert nftables.generation() == before
        nftables.commit([flush])
        assert nftables.generation() == before + 1
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        ("flush ruleset",
         "table inet ocsf_nft was deleted; table netdev ocsf_nft was deleted"),
        ("flush  ruleset", "the whole ruleset was flushed"),
        ("delete table netdev ocsf_nft", "table netdev ocsf_nft was deleted"),
        ("insert rule inet ocsf_nft output accept",
         "a rule was added to chain output of table inet ocsf_nft"),
        ("flush chain inet ocsf_nft output",
         " rules were removed from chain output of table inet ocsf_nft"),
        ("add chain inet ocsf_nft output { policy accept; }",
         "chain output was created or changed in table inet ocsf_nft"),
        ("add element inet ocsf_nft allowed4 { 203.0.113.7 . tcp . 443 }",
         "an element was added to set allowed4 of table inet ocsf_nft"),
        ("add table inet ocsf_nft { flags dormant; }",
         "table inet ocsf_nft was created or changed"),
        ('delete table inet ocsf_nft; add table inet ocsf_nft { comment "theirs"; }',
         "table inet ocsf_nft was deleted and created again"),
        ('delete chain netdev ocsf_nft egress { type filter hook egress device "sb0" priority 0; }',
         "chain egress was deleted, or detached from an interface in table netdev ocsf_nft"),
    ],
)  # fmt: skip
def test_tamper_guard_restores_a_fence_before_it_reports_the_change(
    fenced: Lab,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    tampering: str,
    words: str,
) -> None:
    if "whole ruleset" in words:
        _tamper(fenced, "add table ip nat")
    probe = make_guard()
    pid = _tamper(fenced, tampering)
    change = probe.next_change()
    assert _verdict(state) == "as installed"
    assert words in change.changes
    assert change.process is not None
    assert (change.process.pid, change.process.name, change.comm) == (pid, "nft", "nft")
    assert change.restored_after_ns is not None
    assert probe.remaining_changes() == []


def test_tamper_guard_restores_a_fence_without_prepared_messages(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard(prepared=False)
    probe.guard.use_restore_batch(None, state.version(conftest.SANDBOX))
    _tamper(fenced, "flush ruleset")
    assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) == "as installed"
    assert probe.remaining_changes() == []


def test_tamper_guard_recreates_a_fence_that_cannot_be_preserved(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    _tamper(fenced, "flush table inet ocsf_nft; delete set inet ocsf_nft flows4_egress; "
            "add set inet ocsf_nft flows4_egress { type ipv4_addr; }")  # fmt: skip
    assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_tamper_guard_preserves_the_counters(
    fenced: Lab, installed: InstalledFence, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    for tampering in ("insert rule inet ocsf_nft output accept", "delete table netdev ocsf_nft"):
        fenced.sandbox_namespace.call(lambda: _send(7))
        _tamper(fenced, tampering)
        probe.next_change()
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 14


def test_tamper_guard_without_self_heal_only_reports_a_change(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard(self_heal=False)
    _tamper(fenced, "delete table inet ocsf_nft")
    change = probe.next_change()
    assert (change.restored_after_ns, change.changes) == (None, "table inet ocsf_nft was deleted")
    assert _verdict(state) != "as installed"


@pytest.mark.parametrize("operation", ["remove", "install"])
def test_tamper_guard_does_not_revert_a_regular_installation_or_removal(
    fenced: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    operation: str,
) -> None:
    probe = make_guard()
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = (part for proxy in spec.proxies for part in ("--proxy", str(proxy)))
    options = (
        () if operation == "remove" else ("--netns", fenced.sandbox, "--group", "77", *proxies)
    )
    done = command.run(operation, *named, *options)
    assert done.code == 0, done.stderr
    assert probe.next_change().restored_after_ns is None
    assert all(each.restored_after_ns is None for each in probe.remaining_changes())
    assert _verdict(state) == ("absent" if operation == "remove" else "as installed")


@pytest.mark.parametrize(
    "definition",
    ["chain {}", "counter {}", "quota {} {{ over 1 mbytes; }}", "set {} {{ type mark; }}",
     "map {} {{ type mark : verdict; }}"],
)  # fmt: skip
def test_tamper_guard_does_not_report_a_repair_by_a_check(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe], definition: str
) -> None:
    """The prepared messages leave foreign objects without rules; a check removes them."""
    probe = make_guard()
    _tamper(fenced, f"add {definition.format('inet ocsf_nft foreign')}")
    assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) != "as installed"
    assert probe.guard.renew() is not None
    assert _verdict(state) == "as installed"
    assert probe.remaining_changes() == []


def test_tamper_guard_restores_a_fence_longer_than_the_default_send_buffer(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    exceptions = tuple(exception(f"tcp:10.9.{each >> 8}.{each & 255}:80") for each in range(4000))
    long = replace(spec, exceptions=exceptions)
    installed = installer.install(long, lab.sandbox_namespace, state, "nflog")
    probe = GuardProbe(installed, state, self_heal=True, prepared=True, starts=True)
    _tamper(lab, "delete table inet ocsf_nft")
    assert probe.next_change().restored_after_ns is not None
    assert probe.remaining_changes() == []
    assert _verdict(state) == "as installed"


def test_link_that_appears_during_a_renewal_is_attached(
    fenced: Lab, make_guard: Callable[..., GuardProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = make_guard()
    namespace = fenced.sandbox_namespace
    listed = ("list", "chain", "netdev", "ocsf_nft", "egress")
    surveyed = links.survey_pinned

    def survey_and_wait(*arguments: Any) -> Surroundings:
        found = surveyed(*arguments)
        if "late1" not in found.links:
            pair = ("type", "veth", "peer", "name", "peer1")
            ip("-n", fenced.sandbox, "link", "add", "late1", *pair)
            while "late1" not in conftest.nft(namespace, *listed):
                time.sleep(0.01)
        return found

    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "peer0")
    monkeypatch.setattr(links, "survey_pinned", survey_and_wait)
    renewed = probe.guard.renew()
    assert renewed is not None
    assert "late1" not in renewed.around.links
    assert "late1" in conftest.nft(namespace, *listed)
    assert probe.remaining_changes() == []


def test_change_that_a_check_has_reverted_is_reported(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard(starts=False)
    pid = _tamper(fenced, "delete table inet ocsf_nft")
    assert probe.guard.renew() is not None
    probe.guard.start()
    change = probe.next_change()
    assert (change.changes, change.restored_after_ns) == ("table inet ocsf_nft was deleted", 0)
    assert change.process is not None
    assert change.process.pid == pid
    assert probe.remaining_changes() == []
    assert _verdict(state) == "as installed"


def test_prepared_messages_do_not_replace_a_newer_installation(
    fenced: Lab, installed: InstalledFence, spec: FenceSpec, state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
) -> None:  # fmt: skip
    """A check reads the new record before the guard has read the notice of the installation."""
    probe = make_guard(starts=False)
    fenced.sandbox_namespace.call(lambda: _send(7))
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = (part for proxy in spec.proxies for part in ("--proxy", str(proxy)))
    done = command.run("install", *named, "--netns", fenced.sandbox, "--group", "77", *proxies)
    assert done.code == 0, done.stderr
    assert probe.guard.renew() is not None
    probe.guard.start()
    assert probe.next_change().restored_after_ns is None
    assert all(each.restored_after_ns is None for each in probe.remaining_changes())
    assert _verdict(state) == "as installed"
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 7


def _accept_like_a_check(probe: GuardProbe, state: StateDirectory) -> None:
    now = probe.guard.generations
    installed = state.read(conftest.SANDBOX)
    assert installed is not None
    fence = Fence(installed=installed, state=FenceState.ACTIVE, is_ours=False)
    prepared = restore_preparation.prepare_restore(fence, state, None, now, compiles=True)
    assert prepared is not None
    probe.guard.use_restore_batch(*prepared)


@pytest.mark.parametrize("is_same", [False, True])
def test_tamper_guard_ignores_an_installation_that_a_check_accepted_first(
    fenced: Lab, installed: InstalledFence, spec: FenceSpec, state: StateDirectory,
    make_guard: Callable[..., GuardProbe], is_same: bool,
) -> None:  # fmt: skip
    """On a busy machine a check is quicker than the guard's thread."""
    probe = make_guard(starts=False)
    fenced.sandbox_namespace.call(lambda: _send(7))
    if is_same:
        state.delete(conftest.SANDBOX)  # so that it is loaded once more
    other = spec if is_same else replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, fenced.sandbox_namespace, state, "nflog")
    _accept_like_a_check(probe, state)
    probe.guard.start()
    assert probe.remaining_changes() == []
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 7
    assert _verdict(state) == "as installed"


def test_tamper_guard_never_restores_from_the_record_of_an_unfinished_installation(
    fenced: Lab, installed: InstalledFence, spec: FenceSpec, state: StateDirectory,
    make_guard: Callable[..., GuardProbe], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    probe = make_guard(starts=False)
    fenced.sandbox_namespace.call(lambda: _send(7))
    load = load_ruleset.load

    def load_and_check(*arguments: Any) -> InstalledFence:
        _accept_like_a_check(probe, state)
        return load(*arguments)

    monkeypatch.setattr(load_ruleset, "load", load_and_check)
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, fenced.sandbox_namespace, state, "nflog")
    monkeypatch.setattr(load_ruleset, "load", load)
    assert probe.guard.renew() is not None
    probe.guard.start()
    assert all(each.restored_after_ns is None for each in probe.remaining_changes())
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 7
    assert _verdict(state) == "as installed"


def test_tamper_guard_restores_a_change_after_an_accepted_installation(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard(starts=False)
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, fenced.sandbox_namespace, state, "nflog")
    _accept_like_a_check(probe, state)
    pid = _tamper(fenced, "delete table inet ocsf_nft")
    probe.guard.start()
    (change,) = probe.remaining_changes()
    assert change.restored_after_ns is not None
    assert change.process is not None
    assert change.process.pid == pid
    assert _verdict(state) == "as installed"


@pytest.mark.parametrize("at", ["before", "during"])
def test_tamper_guard_restores_a_change_that_is_as_old_as_a_check(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, make_guard: Callable[..., GuardProbe],
    monkeypatch: pytest.MonkeyPatch, at: str,
) -> None:  # fmt: skip
    """A change that remains is not a part of the installation, however early it was."""
    probe = make_guard(starts=False)
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    installer.install(other, fenced.sandbox_namespace, state, "nflog")
    prepare = restore_batch.prepare

    def prepare_late(installed: InstalledFence) -> restore_batch.RestoreBatch:
        _tamper(fenced, "delete table inet ocsf_nft")
        return prepare(installed)

    if at == "before":
        _tamper(fenced, "delete table inet ocsf_nft")
    else:
        monkeypatch.setattr(restore_batch, "prepare", prepare_late)
    _accept_like_a_check(probe, state)
    probe.guard.start()
    assert probe.remaining_changes()[-1].restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_tamper_guard_restores_the_latest_installation(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    newer = installer.install(other, fenced.sandbox_namespace, state, "nflog")
    # With the new batch the guard would restore the fence after the installation too.
    assert probe.next_change().restored_after_ns is None
    probe.use_restore_batch(newer, state)
    _tamper(fenced, "flush ruleset")
    # Further notices of the installation may still arrive.
    while probe.next_change().restored_after_ns is None:
        pass
    assert _verdict(state) == "as installed"


def test_tamper_guard_gives_up_and_resumes_after_a_pause(
    fenced: Lab,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tamper_guard, "RESTORE_WINDOW_SECONDS", 600.0)
    monkeypatch.setattr(tamper_guard, "PAUSE_SECONDS", 1.0)
    probe = make_guard()
    for _ in range(tamper_guard.MAX_RESTORES):
        _tamper(fenced, "delete table inet ocsf_nft")
        change = probe.next_change()
        assert (change.restored_after_ns is not None, change.given_up) == (True, False)
    _tamper(fenced, "delete table inet ocsf_nft")
    change = probe.next_change()
    assert (change.restored_after_ns, change.given_up) == (None, True)
    assert "absent" not in _verdict(state)
    deadline = time.monotonic() + 60
    while probe.guard.is_paused:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_tamper_guard_reports_unread_changes_without_a_process(
    fenced: Lab,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nfnetlink, "_NOTICE_BYTES", 1)
    probe = make_guard(starts=False)
    _tamper(fenced, "flush ruleset")
    probe.guard.start()
    change = probe.next_change()
    assert (change.process, change.comm) == (None, None)
    assert change.restored_after_ns is not None
    assert _verdict(state) == "as installed"


@pytest.mark.parametrize("starts", [False, True], ids=["before a read", "during a wait"])
def test_tamper_guard_does_not_wait_for_a_dropped_end_of_a_change(
    fenced: Lab,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    monkeypatch: pytest.MonkeyPatch,
    starts: bool,
) -> None:
    """Otherwise a process could keep the fence changed by a change with very many parts."""
    monkeypatch.setattr(nft_monitor, "_END_SECONDS", 3600.0)
    monkeypatch.setattr(nfnetlink, "_NOTICE_BYTES", 1)
    probe = make_guard(starts=starts)
    rules = "".join(
        f"add rule inet ocsf_nft output tcp dport {port} accept; " for port in range(99)
    )
    _tamper(fenced, f"delete table netdev ocsf_nft; {rules}")
    if not starts:
        probe.guard.start()
    while probe.next_change().restored_after_ns is None:
        pass
    assert _verdict(state) == "as installed"


def test_many_changes_to_other_tables_cause_one_report_and_no_pause(
    fenced: Lab,
    state: StateDirectory,
    make_guard: Callable[..., GuardProbe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nfnetlink, "_NOTICE_BYTES", 1)
    monkeypatch.setattr(tamper_guard, "RESTORE_WINDOW_SECONDS", 600.0)
    probe = make_guard(starts=False)
    chains = "".join(f"add chain ip theirs c{number}; " for number in range(200))
    tampered = tamper_guard.MAX_RESTORES + 2
    for _ in range(tampered):
        # No thread reads meanwhile: a fast reader would miss no notice.
        _tamper(fenced, f"add table ip theirs; {chains} delete table ip theirs")
        probe.guard._handle_notices(probe.guard._monitors[0])
    assert probe.notifications.qsize() == tampered
    assert "maybe to other tables" in probe.next_change().changes
    assert not probe.guard.is_paused
    assert probe.remaining_changes() == []
    assert _verdict(state) == "as installed"


def test_tamper_guard_does_not_wait_for_a_change_of_another_fence(
    fenced: Lab, state: StateDirectory, make_guard: Callable[..., GuardProbe]
) -> None:
    """A process in another sandbox can delay that change without a limit."""
    probe = make_guard()
    with state.locked("another"):
        _tamper(fenced, "flush ruleset")
        assert probe.next_change().restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_new_link_is_attached_before_a_check(
    fenced: Lab, installed: InstalledFence, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    _add_links(fenced, installed, "late0", "late1")
    assert probe.guard.attachments
    # The links stay attached after a change to the fence, although they are not on record yet.
    _tamper(fenced, "flush ruleset")
    assert probe.next_change().restored_after_ns is not None
    assert {"late0", "late1", "sb0"} <= set(_attached_links(installed))


def _attached_links(installed: InstalledFence) -> list[str]:
    listed = nft.list_table(installed.namespace, "netdev", "ocsf_nft") or ""
    (hook,) = [line for line in listed.splitlines() if "hook egress" in line] or [""]
    return hook.replace('"', "").replace(",", "").split()


def test_tamper_guard_ignores_forged_notices(
    fenced: Lab, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    deleted = struct.pack("!BBH", 1, 0, 7) + netlink.attribute(1, b"ocsf_nft\0")
    ended = struct.pack("!BBH", 0, 0, 7) + netlink.attribute(1, struct.pack("!I", 7))
    forged = netlink.message(SUBSYSTEM | 2, 0, deleted) + netlink.message(SUBSYSTEM | 15, 0, ended)

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as sock:
            # To the kernel, and to all subscribers: a process with privileges over the namespace
            # may do this.
            with contextlib.suppress(OSError):
                sock.sendto(forged, (0, 1 << 6))
            for port in _listeners():
                with contextlib.suppress(OSError):
                    sock.sendto(forged, (port, 0))

    fenced.sandbox_namespace.call(forge)
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert probe.next_change().changes == "table netdev ocsf_nft was deleted"
    assert probe.remaining_changes() == []


def _listeners() -> list[int]:
    """Return the ports of netfilter's sockets in the thread's namespace."""
    with open("/proc/thread-self/net/netlink", encoding="ascii") as file:  # noqa: PTH123 - procfs
        rows = [line.split() for line in file][1:]
    return [int(row[2]) for row in rows if row[1] == "12" and int(row[2])]


def test_tamper_guard_ignores_changes_to_other_tables(
    fenced: Lab, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    for text in ("add table ip nat", "add chain ip nat c", "delete table ip nat"):
        _tamper(fenced, text)
    assert probe.remaining_changes() == []


def test_tamper_guard_without_the_privilege_is_an_error(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> socket.socket:
        raise PermissionError(1, os.strerror(1))

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs
    monkeypatch.setattr(nfnetlink, "subscribe", refuse)
    with pytest.raises(Exception, match="can't be watched: Operation not permitted"):
        TamperGuard(installed, state, lambda _: None, GuardThread(), self_heal=True)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - procfs


def test_batch_is_prepared_without_a_scratch_namespace(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise UnsupportedError("no CAP_SYS_ADMIN")

    with monkeypatch.context() as patched:
        patched.setattr("ocsf_nft.netns.in_scratch", refuse)
        # The existing fence differs from the recorded one.
        conftest.nft(fenced.sandbox_namespace, "add set inet ocsf_nft foreign { type ipv4_addr; }")
        (batch,) = restore_batch.prepare(installed).batches
    assert "differs" in _verdict(state)
    with fenced.sandbox_namespace.call(Nftables) as nftables:
        nftables.commit(batch.full)
    assert _verdict(state) == "as installed"


def test_tamper_guard_ignores_a_forged_notice_of_a_deleted_link(
    fenced: Lab, installed: InstalledFence, make_guard: Callable[..., GuardProbe]
) -> None:
    probe = make_guard()
    _add_links(fenced, installed, "late0", "late1")
    port = probe.guard._links.notices.getsockname()[0]
    body = struct.pack("=BxHiII", 0, 0, 77, 0, 0) + netlink.attribute(3, b"late0\0")

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
            sock.sendto(netlink.message(rtnetlink.RTM_DELLINK, 0, body), (port, 0))

    fenced.sandbox_namespace.call(forge)
    _add_links(fenced, installed, "late2", "late3")  # read after the forged message
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert probe.next_change().restored_after_ns is not None
    assert {"late0", "late1", "late2", "late3", "sb0"} <= set(_attached_links(installed))


def _add_links(lab: Lab, installed: InstalledFence, *pair: str) -> None:
    """Add two links, and wait until the guard has attached its chains to them."""
    ip("-n", lab.sandbox, "link", "add", pair[0], "type", "veth", "peer", "name", pair[1])
    deadline = time.monotonic() + 60
    while not set(pair) <= set(_attached_links(installed)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_tamper_guard_requests_a_check_after_dropped_link_notices(
    fenced: Lab, make_guard: Callable[..., GuardProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = make_guard(starts=False)
    with fenced.sandbox_namespace.call(rtnetlink.subscribe) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(20):
            ip("-n", fenced.sandbox, "link", "set", "dev", "sb0", "alias", f"a{number}")
        monkeypatch.setattr(probe.guard._links, "notices", sock)
        assert probe.guard.turn({sock.fileno()})
    assert probe.notifications.get_nowait() is None


@pytest.mark.parametrize("is_owned", [False, True])
def test_prepared_batch_deletes_the_tables_as_nft_does(
    lab: Lab, state: StateDirectory, *, is_owned: bool
) -> None:
    spec = replace(_SPECS["sandbox"], is_owned=is_owned)
    installed = installer.install(spec, lab.sandbox_namespace, state, "nflog")
    (batch,) = restore_batch.prepare(installed).batches
    text = ruleset.fence(spec, installed.around, installed.transport)
    assert batch.emptying is not None
    assert batch.deleting.unpack() == restore_batch.compile_ruleset(HOST, text)[:4]
