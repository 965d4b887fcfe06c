"""The sentry of a fence puts it back by itself, with what was prepared, and tells of it."""

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
    load_ruleset,
    nft,
    restore_batch,
    ruleset_diff,
    tamper_guard,
)
from ocsf_nft.fence.spec import FenceSpec, Tap
from ocsf_nft.fence.tamper_guard import FenceChange, TamperGuard
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.lab import ip
from ocsf_nft.nfnetlink import SUBSYSTEM, Nftables, Statement
from tests.kernel import command, conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import Surroundings
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_PROXY = endpoint("10.200.0.1:3128")
_SPECS = {
    "sandbox": FenceSpec(sandbox="lab", proxies=(_PROXY,)),
    "permissive": FenceSpec(sandbox="lab", proxies=(_PROXY,), is_permissive=True),
    "owned": FenceSpec(sandbox="lab", proxies=(_PROXY,), is_owned=True),
    "sidecar": FenceSpec(sandbox="lab", proxy_uids=(1337, 1338)),
    "tap": FenceSpec(
        sandbox="lab",
        proxies=(_PROXY,),
        tap=Tap(device="sb0", subnets=(subnet("10.200.0.1/24"), subnet("fd00:200::1/64"))),
    ),
}
_TAMPERINGS = {
    "nothing": "",
    "flush ruleset": "flush ruleset",
    "delete netdev": "delete table netdev {table}",
    "delete inet": "delete table inet {table}",
    "flush tables": "flush table inet {table}; flush table netdev {table}",
}


class Post:
    """A sentry with what it tells; nobody looks at the fence besides."""

    def __init__(
        self,
        installed: InstalledFence,
        state: StateDirectory,
        *,
        heals: bool,
        prepared: bool,
        begins: bool,
    ) -> None:
        self.told: queue.Queue[FenceChange | Exception | None] = queue.Queue()
        self.sentry = TamperGuard(installed, state, self.told.put, heals=heals)
        if prepared:
            self.adopt(installed, state)
        if begins:
            self.sentry.begin()

    def adopt(self, installed: InstalledFence, state: StateDirectory) -> None:
        sandbox = installed.spec.sandbox
        self.sentry.adopt(restore_batch.prepare(installed), state.version(sandbox))

    def alteration(self) -> FenceChange:
        """The next one; what is said of links between is left out."""
        while True:
            news = self.told.get(timeout=20)
            if isinstance(news, Exception):
                raise news
            if news is not None:
                return news

    def rest(self) -> list[FenceChange]:
        """What else is told until it has ended."""
        self.sentry.end()
        left = []
        with contextlib.suppress(queue.Empty):
            while True:
                left.append(self.told.get_nowait())
        assert not any(isinstance(each, Exception) for each in left), left
        return [each for each in left if isinstance(each, FenceChange)]


@pytest.fixture
def post(installed: InstalledFence, state: StateDirectory) -> Iterator[Callable[..., Post]]:
    made: list[Post] = []

    def posted(*, heals: bool = True, prepared: bool = True, begins: bool = True) -> Post:
        made.append(Post(installed, state, heals=heals, prepared=prepared, begins=begins))
        return made[-1]

    yield posted
    for each in made:
        if each.sentry._wake >= 0:
            each.sentry.end()


def _tamper(lab: Lab, text: str) -> int:
    """Run nft inside; its pid."""
    process = lab.sandbox_namespace.call(lambda: subprocess.Popen(["nft", text]))
    assert process.wait(20) == 0
    return process.pid


def _send(packets: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(packets):
            with contextlib.suppress(OSError):
                sock.sendto(b"attempt", ("203.0.113.7", 53))


def _verdict(state: StateDirectory) -> str:
    found = installer.verify(conftest.SANDBOX, state)
    return f"{found.verdict} {found.difference}".strip()


@pytest.mark.parametrize("profile", _SPECS)
def test_prepared_batch_restores_what_nft_loads(
    lab: Lab, state: StateDirectory, profile: str, subtests: pytest.Subtests
) -> None:
    ns = lab.sandbox_namespace
    installed = installer.install(_SPECS[profile], ns, state, "nflog")
    ((_, load),) = restore_batch.prepare(installed).loads
    (table,) = {place.table for place in load.places}
    for way, tampering in itertools.product(("kept", "whole"), _TAMPERINGS):
        with subtests.test(way=way, tampering=tampering):
            statements = load.kept if way == "kept" else load.whole
            assert statements is not None
            if text := _TAMPERINGS[tampering].format(table=table):
                conftest.nft(ns, text)
            with ns.call(Nftables) as nftables:
                nftables.commit(statements)
            found = load_ruleset.listings(installed.spec, ns)
            assert ruleset_diff.difference(installed.listings, found) == []


def test_prepared_batch_restores_the_guard_on_the_host(lab: Lab, state: StateDirectory) -> None:
    """The gateway's namespace is the host of this guard."""
    host = lab.gateway_namespace
    spec = replace(_SPECS["sandbox"], guard_device=lab.gateway_device)
    installed = host.call(lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog"))
    _, (_, load) = host.call(lambda: restore_batch.prepare(installed)).loads
    assert {place.table for place in load.places} == {"ocsf_nft_gw0"}
    before = conftest.nft(host, "list", "ruleset")
    for statements in (load.kept, load.whole):
        assert statements is not None
        conftest.nft(host, "flush ruleset")
        with host.call(Nftables) as nftables:
            nftables.commit(statements)
        assert conftest.nft(host, "list", "ruleset") == before


def test_a_transaction_that_is_refused_changes_nothing_and_says_why(fenced: Lab) -> None:
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
         "a rule was put into chain output of table inet ocsf_nft"),
        ("flush chain inet ocsf_nft output",
         " rules were taken out of chain output of table inet ocsf_nft"),
        ("add chain inet ocsf_nft output { policy accept; }",
         "chain output was made or changed in table inet ocsf_nft"),
        ("add element inet ocsf_nft allowed4 { 203.0.113.7 . tcp . 443 }",
         "an element was put into set allowed4 of table inet ocsf_nft"),
        ("add table inet ocsf_nft { flags dormant; }", "table inet ocsf_nft was made or changed"),
        ('delete table inet ocsf_nft; add table inet ocsf_nft { comment "theirs"; }',
         "table inet ocsf_nft was deleted and made anew"),
        ('delete chain netdev ocsf_nft egress { type filter hook egress device "sb0" priority 0; }',
         "chain egress was deleted, or taken off an interface in table netdev ocsf_nft"),
    ],
)  # fmt: skip
def test_a_tampered_fence_stands_again_before_it_is_told(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post], tampering: str, words: str
) -> None:
    if "whole ruleset" in words:
        _tamper(fenced, "add table ip nat")
    one = post()
    pid = _tamper(fenced, tampering)
    told = one.alteration()
    assert _verdict(state) == "as installed"
    assert words in told.changes
    assert told.process is not None
    assert (told.process.pid, told.process.name, told.comm) == (pid, "nft", "nft")
    assert told.restored_after_ns is not None
    assert one.rest() == []


def test_a_fence_is_put_back_where_nothing_is_prepared(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post]
) -> None:
    one = post(prepared=False)
    one.sentry.adopt(None, state.version(conftest.SANDBOX))
    _tamper(fenced, "flush ruleset")
    assert one.alteration().restored_after_ns is not None
    assert _verdict(state) == "as installed"
    assert one.rest() == []


def test_a_fence_that_can_not_be_kept_is_made_whole(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post]
) -> None:
    one = post()
    _tamper(fenced, "flush table inet ocsf_nft; delete set inet ocsf_nft flows4_egress; "
            "add set inet ocsf_nft flows4_egress { type ipv4_addr; }")  # fmt: skip
    assert one.alteration().restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_what_was_counted_is_kept(
    fenced: Lab, installed: InstalledFence, post: Callable[..., Post]
) -> None:
    one = post()
    for tampering in ("insert rule inet ocsf_nft output accept", "delete table netdev ocsf_nft"):
        fenced.sandbox_namespace.call(lambda: _send(7))
        _tamper(fenced, tampering)
        one.alteration()
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 14


def test_where_nothing_is_to_be_put_back_it_is_told(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post]
) -> None:
    one = post(heals=False)
    _tamper(fenced, "delete table inet ocsf_nft")
    told = one.alteration()
    assert (told.restored_after_ns, told.changes) == (None, "table inet ocsf_nft was deleted")
    assert _verdict(state) != "as installed"


@pytest.mark.parametrize("what", ["remove", "install"])
def test_what_is_done_in_the_regular_way_is_not_fought(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, post: Callable[..., Post], what: str
) -> None:
    one = post()
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = (part for proxy in spec.proxies for part in ("--proxy", str(proxy)))
    options = () if what == "remove" else ("--netns", fenced.sandbox, "--group", "77", *proxies)
    done = command.run(what, *named, *options)
    assert done.code == 0, done.stderr
    assert one.alteration().restored_after_ns is None
    assert all(each.restored_after_ns is None for each in one.rest())
    assert _verdict(state) == ("absent" if what == "remove" else "as installed")


@pytest.mark.parametrize(
    "what",
    ["chain {}", "counter {}", "quota {} {{ over 1 mbytes; }}", "set {} {{ type mark; }}",
     "map {} {{ type mark : verdict; }}"],
)  # fmt: skip
def test_what_a_look_puts_right_is_nobodys_change(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post], what: str
) -> None:
    """What was prepared leaves what is not ours and holds no rule, for a look to take away."""
    one = post()
    _tamper(fenced, f"add {what.format('inet ocsf_nft foreign')}")
    assert one.alteration().restored_after_ns is not None
    assert _verdict(state) != "as installed"
    assert one.sentry.renew() is not None
    assert _verdict(state) == "as installed"
    assert one.rest() == []


def test_a_fence_that_is_longer_than_a_socket_sends_by_default_is_put_back(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    exceptions = tuple(endpoint(f"10.9.{each >> 8}.{each & 255}:80") for each in range(4000))
    long = replace(spec, exceptions=exceptions)
    installed = installer.install(long, lab.sandbox_namespace, state, "nflog")
    one = Post(installed, state, heals=True, prepared=True, begins=True)
    _tamper(lab, "delete table inet ocsf_nft")
    assert one.alteration().restored_after_ns is not None
    assert one.rest() == []
    assert _verdict(state) == "as installed"


def test_a_link_that_comes_while_the_fence_is_renewed_is_fenced_all_the_same(
    fenced: Lab, post: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = post()
    namespace = fenced.sandbox_namespace
    listed = ("list", "chain", "netdev", "ocsf_nft", "egress")
    surveyed = links.survey

    def survey_and_wait(*arguments: Any) -> Surroundings:
        found = surveyed(*arguments)
        if "late1" not in found.links:
            pair = ("type", "veth", "peer", "name", "peer1")
            ip("-n", fenced.sandbox, "link", "add", "late1", *pair)
            while "late1" not in conftest.nft(namespace, *listed):
                time.sleep(0.01)
        return found

    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "peer0")
    monkeypatch.setattr(links, "survey", survey_and_wait)
    renewed = one.sentry.renew()
    assert renewed is not None
    assert "late1" not in renewed.around.links
    assert "late1" in conftest.nft(namespace, *listed)
    assert one.rest() == []


def test_what_a_look_has_overtaken_is_told_all_the_same(
    fenced: Lab, state: StateDirectory, post: Callable[..., Post]
) -> None:
    one = post(begins=False)
    pid = _tamper(fenced, "delete table inet ocsf_nft")
    assert one.sentry.renew() is not None
    one.sentry.begin()
    told = one.alteration()
    assert (told.changes, told.restored_after_ns) == ("table inet ocsf_nft was deleted", 0)
    assert told.process is not None
    assert told.process.pid == pid
    assert one.rest() == []
    assert _verdict(state) == "as installed"


def test_what_was_prepared_is_not_put_in_the_place_of_what_was_installed_since(
    fenced: Lab, installed: InstalledFence, spec: FenceSpec, state: StateDirectory,
    post: Callable[..., Post],
) -> None:  # fmt: skip
    """A look knows of the new fence before the sentry has read that it was installed."""
    one = post(begins=False)
    fenced.sandbox_namespace.call(lambda: _send(7))
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = (part for proxy in spec.proxies for part in ("--proxy", str(proxy)))
    done = command.run("install", *named, "--netns", fenced.sandbox, "--group", "77", *proxies)
    assert done.code == 0, done.stderr
    assert one.sentry.renew() is not None
    one.sentry.begin()
    assert one.alteration().restored_after_ns is None
    assert all(each.restored_after_ns is None for each in one.rest())
    assert _verdict(state) == "as installed"
    assert conftest.counted(installed.namespace)["203.0.113.7"] == 7


def test_a_fence_that_was_installed_anew_is_guarded_as_such(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, post: Callable[..., Post]
) -> None:
    one = post()
    other = replace(spec, exceptions=(endpoint("10.200.0.9:80"),))
    newer = installer.install(other, fenced.sandbox_namespace, state, "nflog")
    one.adopt(newer, state)
    _tamper(fenced, "flush ruleset")
    while one.alteration().restored_after_ns is None:  # that of the installing, if it was still to come
        pass
    assert _verdict(state) == "as installed"


def test_fights_are_given_up_and_taken_up_again(
    fenced: Lab,
    state: StateDirectory,
    post: Callable[..., Post],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tamper_guard, "RESTORE_WINDOW_SECONDS", 600.0)
    monkeypatch.setattr(tamper_guard, "PAUSE_SECONDS", 1.0)
    one = post()
    for _ in range(tamper_guard.MAX_RESTORES):
        _tamper(fenced, "delete table inet ocsf_nft")
        told = one.alteration()
        assert (told.restored_after_ns is not None, told.given_up) == (True, False)
    _tamper(fenced, "delete table inet ocsf_nft")
    told = one.alteration()
    assert (told.restored_after_ns, told.given_up) == (None, True)
    assert "absent" not in _verdict(state)
    deadline = time.monotonic() + 20
    while one.sentry.is_resting:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert one.alteration().restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_changes_that_could_not_be_read_are_somebodys(
    fenced: Lab,
    state: StateDirectory,
    post: Callable[..., Post],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nfnetlink, "_NOTICE_BYTES", 1)
    one = post(begins=False)
    _tamper(fenced, "flush ruleset")
    one.sentry.begin()
    told = one.alteration()
    assert (told.process, told.comm) == (None, None)
    assert told.restored_after_ns is not None
    assert _verdict(state) == "as installed"


def test_whoever_changes_very_much_of_his_own_makes_one_alarm_and_no_fight(
    fenced: Lab,
    state: StateDirectory,
    post: Callable[..., Post],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nfnetlink, "_NOTICE_BYTES", 1)
    one = post(begins=False)
    chains = "".join(f"add chain ip theirs c{number}; " for number in range(200))
    tampered = tamper_guard.MAX_RESTORES + 2
    for _ in range(tampered):
        # Nothing reads meanwhile: a reader that is quick enough would lose no notice.
        _tamper(fenced, f"add table ip theirs; {chains} delete table ip theirs")
        one.sentry._see(one.sentry._posts[0])
    assert one.told.qsize() == tampered
    assert "maybe to other tables" in one.alteration().changes
    assert not one.sentry.is_resting
    assert one.rest() == []
    assert _verdict(state) == "as installed"


def test_a_new_link_is_fenced_before_anybody_looks(
    fenced: Lab, installed: InstalledFence, post: Callable[..., Post]
) -> None:
    one = post()
    _add_links(fenced, installed, "late0", "late1")
    assert one.sentry.has_hooked
    # So it stays, whoever alters the fence before it is on record.
    _tamper(fenced, "flush ruleset")
    assert one.alteration().restored_after_ns is not None
    assert {"late0", "late1", "sb0"} <= set(_hooked(installed))


def _hooked(installed: InstalledFence) -> list[str]:
    listed = nft.list_table(installed.namespace, "netdev", "ocsf_nft") or ""
    (hook,) = [line for line in listed.splitlines() if "hook egress" in line] or [""]
    return hook.replace('"', "").replace(",", "").split()


def test_what_a_program_sends_in_the_kernels_name_is_not_believed(
    fenced: Lab, post: Callable[..., Post]
) -> None:
    one = post()
    deleted = struct.pack("!BBH", 1, 0, 7) + netlink.attribute(1, b"ocsf_nft\0")
    ended = struct.pack("!BBH", 0, 0, 7) + netlink.attribute(1, struct.pack("!I", 7))
    forged = netlink.message(SUBSYSTEM | 2, 0, deleted) + netlink.message(SUBSYSTEM | 15, 0, ended)

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as sock:
            # To the kernel, and to all who listen: whoever has the namespace may.
            with contextlib.suppress(OSError):
                sock.sendto(forged, (0, 1 << 6))
            for port in _listeners():
                with contextlib.suppress(OSError):
                    sock.sendto(forged, (port, 0))

    fenced.sandbox_namespace.call(forge)
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert one.alteration().changes == "table netdev ocsf_nft was deleted"
    assert one.rest() == []


def _listeners() -> list[int]:
    """The ports of netfilter's sockets in the thread's namespace."""
    with open("/proc/thread-self/net/netlink", encoding="ascii") as file:  # noqa: PTH123 - procfs
        rows = [line.split() for line in file][1:]
    return [int(row[2]) for row in rows if row[1] == "12" and int(row[2])]


def test_what_others_do_to_other_tables_wakes_nobody(
    fenced: Lab, post: Callable[..., Post]
) -> None:
    one = post()
    for text in ("add table ip nat", "add chain ip nat c", "delete table ip nat"):
        _tamper(fenced, text)
    assert one.rest() == []


def test_a_sentry_that_may_not_listen_says_so(
    installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> socket.socket:
        raise PermissionError(1, os.strerror(1))

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs
    monkeypatch.setattr(nfnetlink, "subscribe", refuse)
    with pytest.raises(Exception, match="can't be watched: Operation not permitted"):
        TamperGuard(installed, state, lambda _: None, heals=True)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - procfs


def test_a_ruleset_is_prepared_without_a_namespace_to_try_it_in(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise UnsupportedError("no CAP_SYS_ADMIN")

    with monkeypatch.context() as patched:
        patched.setattr("ocsf_nft.netns.in_scratch", refuse)
        # What stands there is not what it is to be.
        conftest.nft(fenced.sandbox_namespace, "add set inet ocsf_nft foreign { type ipv4_addr; }")
        ((_, load),) = restore_batch.prepare(installed).loads
    assert "differs" in _verdict(state)
    with fenced.sandbox_namespace.call(Nftables) as nftables:
        nftables.commit(load.whole)
    assert _verdict(state) == "as installed"


def test_sentry_ignores_a_deleted_link_that_another_process_announces(
    fenced: Lab, installed: InstalledFence, post: Callable[..., Post]
) -> None:
    one = post()
    _add_links(fenced, installed, "late0", "late1")
    assert one.sentry._links is not None
    port = one.sentry._links.getsockname()[0]
    body = struct.pack("=BxHiII", 0, 0, 77, 0, 0) + netlink.attribute(3, b"late0\0")

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
            sock.sendto(netlink.message(rtnetlink.RTM_DELLINK, 0, body), (port, 0))

    fenced.sandbox_namespace.call(forge)
    _add_links(fenced, installed, "late2", "late3")  # read after the forged message
    _tamper(fenced, "delete table netdev ocsf_nft")
    assert one.alteration().restored_after_ns is not None
    assert {"late0", "late1", "late2", "late3", "sb0"} <= set(_hooked(installed))


def _add_links(lab: Lab, installed: InstalledFence, *pair: str) -> None:
    """Add two links, and wait until the sentry has attached its chains to them."""
    ip("-n", lab.sandbox, "link", "add", pair[0], "type", "veth", "peer", "name", pair[1])
    deadline = time.monotonic() + 20
    while not set(pair) <= set(_hooked(installed)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sentry_asks_for_a_check_after_lost_link_notices(
    fenced: Lab, post: Callable[..., Post]
) -> None:
    one = post(begins=False)
    with fenced.sandbox_namespace.call(rtnetlink.subscribe) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(20):
            ip("-n", fenced.sandbox, "link", "set", "dev", "sb0", "alias", f"a{number}")
        one.sentry._see_links(sock)
    assert one.told.get_nowait() is None
