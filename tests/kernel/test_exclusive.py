"""A fence whose run holds its tables: no other process can change them while it watches."""

from __future__ import annotations

import contextlib
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import installer, nft, ruleset_batch, table_query
from ocsf_nft.fence.replace_keeping_counters import TableId
from ocsf_nft.fence.spec import FenceSpec, Tap
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, PROXY_PORT, ip
from ocsf_nft.nfnetlink import Nftables, Statement
from tests.kernel import command, conftest, flooding, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_FLOOD = Path(__file__).with_name("flood.py")
_INET, _NETDEV = TableId("inet", "ocsf_nft"), TableId("netdev", "ocsf_nft")
_PROXY = endpoint("10.200.0.1:3128")
_SPECS = {
    "sandbox": FenceSpec(sandbox="lab", proxies=(_PROXY,)),
    "permissive": FenceSpec(sandbox="lab", proxies=(_PROXY,), is_permissive=True),
    "sidecar": FenceSpec(sandbox="lab", proxy_uids=(1337,)),
    "tap": FenceSpec(
        sandbox="lab",
        proxies=(_PROXY,),
        tap=Tap(device="sb0", subnets=(subnet("10.200.0.1/24"), subnet("fd00:200::1/64"))),
    ),
}
_TAMPERINGS = (
    "delete table inet ocsf_nft",
    "delete table netdev ocsf_nft",
    "flush table inet ocsf_nft",
    "insert rule inet ocsf_nft output accept",
    "add element inet ocsf_nft allowed4 { 203.0.113.7 . udp . 9 }",
    "add table inet ocsf_nft { flags dormant; }",
    "add chain inet ocsf_nft foreign { type filter hook output priority -500; }",
    'delete chain netdev ocsf_nft egress { type filter hook egress device "sb0" priority 0; }',
)


@pytest.fixture
def spec(spec: FenceSpec) -> FenceSpec:
    """In this file a fence is one that a run holds."""
    return replace(spec, is_owned=True)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def named(state: StateDirectory, output: Path) -> list[str]:
    """The options of a run on a fence that stands."""
    return [
        *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path)),
        *("--output", str(output)),
    ]


@pytest.fixture
def installing(lab: Lab) -> list[str]:
    """Those of one that puts up a fence as ``spec`` says."""
    return [
        *("--netns", lab.sandbox, "--own", "--proxy", f"{GATEWAY4}:{PROXY_PORT}"),
        *("--proxy", f"[{GATEWAY6}]:{PROXY_PORT}"),
    ]


def _told(output: Path) -> list[str]:
    """What became of the fence."""
    events = written.so_far(output)
    return [event.get("status_detail", "") for event in events if event["class_uid"] == 5019]


def _is_held(namespace: Namespace) -> list[bool]:
    found = (table_query.table(namespace, *place) for place in (_INET, _NETDEV))
    return [table is not None and table.is_owned for table in found]


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _wait_until_held(namespace: Namespace) -> None:
    _until(lambda: all(_is_held(namespace)))


def _verdict(state: StateDirectory) -> str:
    found = installer.verify(conftest.SANDBOX, state)
    return f"{found.verdict} {found.difference}".strip()


def _by_another(namespace: Namespace, text: str) -> str:
    """What nft says, when another process tries that."""
    done = namespace.call(
        lambda: subprocess.run(["nft", text], capture_output=True, text=True, check=False)
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.fixture
def held(fenced: Lab) -> Iterator[Lab]:
    """The fence, held by a process that is no run of ours."""
    process = fenced.sandbox_namespace.call(
        lambda: subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    )
    assert process.stdin is not None
    for place in (_INET, _NETDEV):
        text = f"add table {place.family} {place.table} {{ flags owner,persist; }}\n"
        process.stdin.write(text.encode())
    process.stdin.flush()
    _wait_until_held(fenced.sandbox_namespace)
    yield fenced
    process.stdin.close()
    assert process.wait(20) == 0


@pytest.mark.parametrize("profile", _SPECS)
def test_such_a_fence_is_installed_replaced_and_removed_like_any_other(
    lab: Lab, state: StateDirectory, profile: str
) -> None:
    ns = lab.sandbox_namespace
    owned = replace(_SPECS[profile], is_owned=True)
    for each in (owned, owned, _SPECS[profile], owned, replace(owned, group=77)):
        installed = installer.install(each, ns, state, "nflog")
        assert installed.spec.is_owned == each.is_owned
        assert _verdict(state) == "as installed"
        listed = conftest.nft(ns, "list", "ruleset")
        assert listed.count("\tflags persist\n") == (2 if each.is_owned else 0)
    installer.remove(conftest.SANDBOX, state)
    assert conftest.nft(ns, "list", "ruleset") == ""


def test_what_was_counted_is_kept_when_it_is_replaced(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ns = fenced.sandbox_namespace
    script = "import socket as s; s.socket(2, 2).sendto(b'x', ('203.0.113.7', 53))"
    ns.call(lambda: subprocess.run([sys.executable, "-c", script], stderr=-3, check=False))
    installer.install(replace(spec, group=77), ns, state, "nflog")
    assert conftest.counted(ns)["203.0.113.7"] == 1


def test_one_that_is_on_no_record_is_removed_as_well(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    state.delete(conftest.SANDBOX)
    installer.remove(conftest.SANDBOX, state, fenced.sandbox_namespace)
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""
    installer.install(spec, fenced.sandbox_namespace, state, "nflog")
    state.delete(conftest.SANDBOX)
    plain = replace(spec, is_owned=False)
    installer.install(plain, fenced.sandbox_namespace, state, "nflog")
    assert _verdict(state) == "as installed"


def test_while_a_run_watches_nobody_else_changes_it(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        assert _is_held(ns) == [True, True]
        for tampering in _TAMPERINGS:
            assert "Operation not permitted" in _by_another(ns, tampering), tampering
        assert _by_another(ns, "add table ip theirs") == ""
        assert _by_another(ns, "flush ruleset") == ""
        assert "theirs" not in conftest.nft(ns, "list", "ruleset")
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _told(output) == []
    assert _is_held(ns) == [False, False]
    assert _verdict(state) == "as installed"


def test_a_flush_lets_nothing_out(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    seconds = "60"
    with command.running(*named) as running:
        flood = ns.call(
            lambda: subprocess.Popen(
                [sys.executable, str(_FLOOD), INTERNET4, seconds], stdout=subprocess.PIPE, text=True
            )
        )
        try:
            flooding.wait_for_sigterm_handler(flood.pid)
            for _ in range(20):
                assert _by_another(ns, "flush ruleset") == ""
        finally:
            flood.terminate()
            sent, _ = flood.communicate(timeout=30)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert int(sent) > 0
    assert conftest.counted(ns)[INTERNET4] == int(sent)
    assert _told(output) == []
    assert _verdict(state) == "as installed"


def test_a_run_that_is_killed_leaves_it_standing_and_the_next_one_holds_it(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        running.process.kill()
        running.process.wait()
    assert _is_held(ns) == [False, False]
    assert _verdict(state) == "as installed"
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    with command.running(*named) as running:
        assert _is_held(ns) == [True, True]
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    (told,) = _told(output)
    assert "it was altered or gone, and has been put back" in told


def test_a_run_that_only_tells_holds_it_too(
    fenced: Lab, state: StateDirectory, named: list[str]
) -> None:
    with command.running(*named, "--no-self-heal") as running:
        assert _is_held(fenced.sandbox_namespace) == [True, True]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _verdict(state) == "as installed"


def test_links_that_come_and_go_are_fenced_while_it_is_held(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        for link in ("late0", "late1"):
            pair = ("type", "veth", "peer", "name", f"peer-{link}")
            ip("-n", fenced.sandbox, "link", "add", link, *pair)
            _until(lambda link=link: any(link in each for each in _told(output)))  # type: ignore[misc]
            _wait_until_held(ns)
            if link == "late0":  # the report of the next link comes after this one is gone
                ip("-n", fenced.sandbox, "link", "delete", link)
        assert _verdict(state) == "as installed"
        assert _is_held(ns) == [True, True]
        assert "late1" in conftest.nft(ns, "list", "table", "netdev", "ocsf_nft")
        assert "Operation not permitted" in _by_another(ns, _TAMPERINGS[0])
        assert running.stop(signal.SIGTERM)[0] == 0
    assert all("its links changed" in told for told in _told(output)), _told(output)


def test_there_is_no_moment_at_which_others_can_change_it(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    """Somebody tries all the time, while links come and the fence has to be renewed."""
    ns = fenced.sandbox_namespace
    delete = Statement(2, 0, struct.pack("!BBH", 5, 0, 0) + netlink.attribute(1, b"ocsf_nft\0"))
    refused = 0
    with command.running(*named) as running, ns.call(Nftables) as other:
        for link in ("late0", "late1", "late2"):
            pair = ("type", "veth", "peer", "name", f"peer-{link}")
            ip("-n", fenced.sandbox, "link", "add", link, *pair)
            deadline = time.monotonic() + 20
            while not any(link in told for told in _told(output)):
                assert time.monotonic() < deadline
                for _ in range(5):
                    with pytest.raises(PermissionError):
                        other.commit([delete])
                    refused += 1
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert refused > 20
    assert all("its links changed" in told for told in _told(output)), _told(output)


def test_who_wants_to_change_it_is_told_to_stop_the_run(
    fenced: Lab, state: StateDirectory, named: list[str], installing: list[str]
) -> None:
    with command.running(*named) as running:
        same = command.run("install", *named[:4], *installing)
        assert same.code == 0, same.stderr
        for done in (
            command.run("remove", *named[:4]),
            command.run("install", *named[:4], *installing, "--allow", "tcp:10.200.0.9:80"),
            command.run("install", *named[:4], *(each for each in installing if each != "--own")),
        ):
            assert done.code == 3
            assert "stop the run of sandbox lab first (its fence stays)" in done.sentence
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert command.run("remove", *named[:4]).code == 0
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""


def test_a_fence_that_another_process_holds_is_not_taken_for_ours(
    held: Lab, spec: FenceSpec, state: StateDirectory, named: list[str]
) -> None:
    done = command.run("run", *named)
    assert done.code == 3
    assert "another process holds them as its own" in done.sentence
    other = replace(spec, exceptions=(endpoint("10.200.0.9:80"),))
    with pytest.raises(FenceError, match="that is no run on a fence of this state directory"):
        installer.install(other, held.sandbox_namespace, state, "nflog")
    with pytest.raises(FenceError, match="that is no run on a fence of this state directory"):
        installer.remove(conftest.SANDBOX, state)
    assert _verdict(state) == "as installed"


def test_a_run_that_put_it_up_takes_it_away_again(
    lab: Lab, named: list[str], installing: list[str]
) -> None:
    with command.running(*named, *installing, "--install") as running:
        assert _is_held(lab.sandbox_namespace) == [True, True]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


def test_a_fence_that_is_installed_so_while_it_is_watched_is_held_from_then_on(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    installer.install(replace(spec, is_owned=False), ns, state, "nflog")
    with command.running(*named) as running:
        assert _is_held(ns) == [False, False]
        installer.install(spec, ns, state, "nflog")
        _wait_until_held(ns)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert len(_told(output)) == 1
    assert "it was installed anew" in _told(output)[0]


def test_the_guard_on_the_host_is_held_too(
    lab: Lab, named: list[str], installing: list[str]
) -> None:
    """The gateway's namespace is the host of this run."""
    options = [*named, *installing, "--install", "--host-guard", "gw0"]
    with command.running(*options, inside=lab.gateway_namespace) as running:
        ruleset = conftest.nft(lab.gateway_namespace, "list", "ruleset")
        assert "flags owner,persist" in ruleset
        assert _by_another(lab.gateway_namespace, "flush ruleset") == ""
        assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ruleset
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ""


def test_a_fence_and_a_guard_in_one_namespace_are_held_by_one(
    lab: Lab, output: Path, named: list[str]
) -> None:
    options = [
        *(*named, "--netns", "/proc/self/ns/net", "--own", "--install"),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--host-guard", "gw0"),
    ]
    with command.running(*options, inside=lab.gateway_namespace) as running:
        ip("-n", lab.gateway, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        _until(lambda: any("late0" in each for each in _told(output)))
        listed = conftest.nft(lab.gateway_namespace, "list", "ruleset")
        assert listed.count("flags owner,persist") == 3
        assert command.run("verify", *named[:4], inside=lab.gateway_namespace).code == 0
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ""
    assert not [told for told in _told(output) if "put back" in told]


@pytest.mark.parametrize("only_guard", [False, True])
def test_nothing_is_done_by_halves_where_another_process_holds_the_guard(
    lab: Lab, spec: FenceSpec, state: StateDirectory, only_guard: bool
) -> None:
    """The gateway's namespace is the host here."""
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = [part for proxy in spec.proxies for part in ("--proxy", str(proxy))]
    options = [*named, "--netns", lab.sandbox, "--own", "--host-guard", "gw0", *proxies]
    assert command.run("install", *options, inside=lab.gateway_namespace).code == 0
    tables = [(lab.gateway_namespace, "netdev", "ocsf_nft_gw0")]
    if not only_guard:
        tables.append((lab.sandbox_namespace, "inet", "ocsf_nft"))
    listing = ("-s", "-t", "list", "ruleset")
    before = conftest.nft(lab.sandbox_namespace, *listing)
    with contextlib.ExitStack() as stack:
        for namespace, family, table in tables:
            other = stack.enter_context(namespace.call(Nftables))
            other.commit([ruleset_batch.ownership_statement(family, table)])
        for done in (
            command.run("remove", *named, inside=lab.gateway_namespace),
            command.run(
                "install", *options, "--allow", "tcp:10.200.0.9:80", inside=lab.gateway_namespace
            ),
        ):
            assert done.code == 3
            assert "that is no run on a fence of this state directory" in done.sentence
    assert conftest.nft(lab.sandbox_namespace, *listing) == before
    assert command.run("remove", *named, inside=lab.gateway_namespace).code == 0


def test_how_it_is_listed_doesnt_depend_on_who_holds_it(fenced: Lab) -> None:
    ns = fenced.sandbox_namespace
    own = Path("/proc/self/comm")
    before = own.read_bytes()
    with ns.call(Nftables) as holder:
        holder.commit([ruleset_batch.ownership_statement("inet", "ocsf_nft")])
        try:
            for name in (b"nft", b"# handle 7", b"a\nb", b"\n", b"a\rb", b"\xff\x1b[2J"):
                own.write_bytes(name)
                listed = ns.call(
                    lambda: subprocess.run(
                        ["nft", "-a", "list", "table", "inet", "ocsf_nft"],
                        stdout=subprocess.PIPE, check=True,
                    )
                )  # fmt: skip
                assert b" progname " + name in listed.stdout
                listing = nft.list_table(ns, *_INET)
                assert listing is not None
                first, second, *_ = listing.splitlines()
                assert re.fullmatch(r"table inet ocsf_nft \{ # handle \d+", first), name
                assert second == "\tflags persist", name
        finally:
            own.write_bytes(before)
