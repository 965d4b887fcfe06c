"""Fence with exclusive ownership: during a run, no other process can change its tables."""

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
from ocsf_nft.fence import installer, nft, table_changes, table_query, verification
from ocsf_nft.fence.spec import FenceSpec, TableId, Tap
from ocsf_nft.fence.values import endpoint, exception, subnet
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
_RANGES = tuple(map(exception, ("tcp:10.77.0.0/16:1-99", "udp:[fd77::/32]:53")))
_SPECS = {
    "sandbox": FenceSpec(sandbox="lab", proxies=(_PROXY,), exceptions=_RANGES),
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
    """Return a specification with exclusive ownership."""
    return replace(spec, is_owned=True)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def named(state: StateDirectory, output: Path) -> list[str]:
    """Return the options of a run on an installed fence."""
    return [
        *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path)),
        *("--output", str(output)),
    ]


@pytest.fixture
def installing(lab: Lab) -> list[str]:
    """Return the options to install a fence like ``spec``."""
    return [
        *("--netns", lab.sandbox, "--exclusive", "--proxy", f"{GATEWAY4}:{PROXY_PORT}"),
        *("--proxy", f"[{GATEWAY6}]:{PROXY_PORT}"),
    ]


def _details(output: Path) -> list[str]:
    """Return the details of the fence's state changes."""
    events = written.so_far(output)
    return [event.get("status_detail", "") for event in events if event["class_uid"] == 5019]


def _are_exclusive(namespace: Namespace) -> list[bool]:
    found = (table_query.table(namespace, *table_id) for table_id in (_INET, _NETDEV))
    return [table is not None and table.is_exclusive for table in found]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _wait_until_exclusive(namespace: Namespace) -> None:
    _until(lambda: all(_are_exclusive(namespace)))


def _verdict(state: StateDirectory) -> str:
    found = verification.verify(conftest.SANDBOX, state)
    return f"{found.verdict} {found.difference}".strip()


def _by_another(namespace: Namespace, text: str) -> str:
    """Return the error of nft when another process runs it."""
    done = namespace.call(
        lambda: subprocess.run(["nft", text], capture_output=True, text=True, check=False)
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.fixture
def foreign_owner(fenced: Lab) -> Iterator[Lab]:
    """Install the fence, and let another process own its tables."""
    process = fenced.sandbox_namespace.call(
        lambda: subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    )
    assert process.stdin is not None
    for table_id in (_INET, _NETDEV):
        text = f"add table {table_id.family} {table_id.name} {{ flags owner,persist; }}\n"
        process.stdin.write(text.encode())
    process.stdin.flush()
    _wait_until_exclusive(fenced.sandbox_namespace)
    yield fenced
    process.stdin.close()
    assert process.wait(20) == 0


@pytest.mark.parametrize("profile", _SPECS)
def test_exclusive_fence_is_installed_replaced_and_removed(
    lab: Lab, state: StateDirectory, profile: str
) -> None:
    ns = lab.sandbox_namespace
    exclusive = replace(_SPECS[profile], is_owned=True)
    for each in (exclusive, exclusive, _SPECS[profile], exclusive, replace(exclusive, group=77)):
        installed = installer.install(each, ns, state, "nflog")
        assert installed.spec.is_owned == each.is_owned
        assert _verdict(state) == "as installed"
        listed = conftest.nft(ns, "list", "ruleset")
        assert listed.count("\tflags persist\n") == (2 if each.is_owned else 0)
    installer.remove(conftest.SANDBOX, state)
    assert conftest.nft(ns, "list", "ruleset") == ""


def test_replacing_an_exclusive_fence_preserves_its_counters(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ns = fenced.sandbox_namespace
    script = "import socket as s; s.socket(2, 2).sendto(b'x', ('203.0.113.7', 53))"
    ns.call(lambda: subprocess.run([sys.executable, "-c", script], stderr=-3, check=False))
    installer.install(replace(spec, group=77), ns, state, "nflog")
    assert conftest.counted(ns)["203.0.113.7"] == 1


def test_exclusive_fence_without_a_record_is_removed(
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


def test_no_other_process_changes_an_exclusive_fence_during_a_run(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        assert _are_exclusive(ns) == [True, True]
        for tampering in _TAMPERINGS:
            assert "Operation not permitted" in _by_another(ns, tampering), tampering
        assert _by_another(ns, "add table ip theirs") == ""
        assert _by_another(ns, "flush ruleset") == ""
        assert "theirs" not in conftest.nft(ns, "list", "ruleset")
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _details(output) == []
    assert _are_exclusive(ns) == [False, False]
    assert _verdict(state) == "as installed"


def test_flush_of_the_ruleset_lets_no_packet_out(
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
    assert _details(output) == []
    assert _verdict(state) == "as installed"


def test_killed_run_leaves_the_fence_active_and_the_next_run_owns_it(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        running.process.kill()
        running.process.wait()
    assert _are_exclusive(ns) == [False, False]
    assert _verdict(state) == "as installed"
    conftest.nft(ns, "delete", "table", "inet", "ocsf_nft")
    with command.running(*named) as running:
        _wait_until_exclusive(ns)
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    (detail,) = _details(output)
    assert "it was altered or removed, and was restored" in detail


def test_run_without_self_heal_owns_the_fence_too(
    fenced: Lab, state: StateDirectory, named: list[str]
) -> None:
    with command.running(*named, "--no-self-heal") as running:
        assert _are_exclusive(fenced.sandbox_namespace) == [True, True]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _verdict(state) == "as installed"


def test_new_links_of_an_exclusive_fence_are_attached(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    with command.running(*named) as running:
        for link in ("late0", "late1"):
            pair = ("type", "veth", "peer", "name", f"peer-{link}")
            ip("-n", fenced.sandbox, "link", "add", link, *pair)
            _until(lambda link=link: any(link in each for each in _details(output)))  # type: ignore[misc]
            _wait_until_exclusive(ns)
            if link == "late0":  # the next link is reported after this one is deleted
                ip("-n", fenced.sandbox, "link", "delete", link)
        assert _verdict(state) == "as installed"
        assert _are_exclusive(ns) == [True, True]
        assert "late1" in conftest.nft(ns, "list", "table", "netdev", "ocsf_nft")
        assert "Operation not permitted" in _by_another(ns, _TAMPERINGS[0])
        assert running.stop(signal.SIGTERM)[0] == 0
    assert all("its interfaces changed" in detail for detail in _details(output)), _details(output)


def test_other_processes_can_never_change_an_exclusive_fence(
    fenced: Lab, state: StateDirectory, output: Path, named: list[str]
) -> None:
    """Another process tries all the time, while links appear and the fence has to be renewed."""
    ns = fenced.sandbox_namespace
    delete = Statement(2, 0, struct.pack("!BBH", 5, 0, 0) + netlink.attribute(1, b"ocsf_nft\0"))
    refused = 0
    with command.running(*named) as running, ns.call(Nftables) as other:
        for link in ("late0", "late1", "late2"):
            pair = ("type", "veth", "peer", "name", f"peer-{link}")
            ip("-n", fenced.sandbox, "link", "add", link, *pair)
            deadline = time.monotonic() + 60
            while not any(link in detail for detail in _details(output)):
                assert time.monotonic() < deadline
                for _ in range(5):
                    with pytest.raises(PermissionError):
                        other.commit([delete])
                    refused += 1
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert refused > 20
    assert all("its interfaces changed" in detail for detail in _details(output)), _details(output)


def test_change_of_an_exclusive_fence_requires_a_stop_of_its_run(
    fenced: Lab, state: StateDirectory, named: list[str], installing: list[str]
) -> None:
    with command.running(*named) as running:
        same = command.run("install", *named[:4], *installing, "--host-guard", "off")
        assert same.code == 0, same.stderr
        for done in (
            command.run("remove", *named[:4]),
            command.run("install", *named[:4], *installing, "--allow", "tcp:10.200.0.9:80"),
            command.run(
                "install", *named[:4], *(each for each in installing if each != "--exclusive")
            ),
        ):
            assert done.code == 3
            assert "stop the run of sandbox lab first (its fence stays)" in done.sentence
        assert _verdict(state) == "as installed"
        assert running.stop(signal.SIGTERM)[0] == 0
    assert command.run("remove", *named[:4]).code == 0
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""


def test_fence_that_another_process_owns_is_an_error(
    foreign_owner: Lab, spec: FenceSpec, state: StateDirectory, named: list[str]
) -> None:
    done = command.run("run", *named)
    assert done.code == 3
    assert "another process owns them exclusively" in done.sentence
    other = replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    with pytest.raises(
        FenceError, match="that process is not a run that uses this state directory"
    ):
        installer.install(other, foreign_owner.sandbox_namespace, state, "nflog")
    with pytest.raises(
        FenceError, match="that process is not a run that uses this state directory"
    ):
        installer.remove(conftest.SANDBOX, state)
    assert _verdict(state) == "as installed"


def test_run_that_installed_an_exclusive_fence_removes_it(
    lab: Lab, named: list[str], installing: list[str]
) -> None:
    with command.running(*named, *installing, "--install") as running:
        assert _are_exclusive(lab.sandbox_namespace) == [True, True]
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


def test_fence_that_becomes_exclusive_during_a_run_is_owned(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, output: Path, named: list[str]
) -> None:
    ns = fenced.sandbox_namespace
    installer.install(replace(spec, is_owned=False), ns, state, "nflog")
    with command.running(*named) as running:
        assert _are_exclusive(ns) == [False, False]
        installer.install(spec, ns, state, "nflog")
        _wait_until_exclusive(ns)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert len(_details(output)) == 1
    assert "it was installed again" in _details(output)[0]


def test_guard_on_the_host_is_owned_too(lab: Lab, named: list[str], installing: list[str]) -> None:
    """The gateway's namespace is the host of this run."""
    options = [*named, *installing, "--install", "--host-guard", "gw0"]
    with command.running(*options, inside=lab.gateway_namespace) as running:
        ruleset = conftest.nft(lab.gateway_namespace, "list", "ruleset")
        assert "flags owner,persist" in ruleset
        assert _by_another(lab.gateway_namespace, "flush ruleset") == ""
        assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ruleset
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ""


def test_fence_and_guard_in_one_namespace_are_owned_by_one_socket(
    lab: Lab, output: Path, named: list[str]
) -> None:
    options = [
        *(*named, "--netns", "/proc/self/ns/net", "--exclusive", "--install"),
        *("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--host-guard", "gw0"),
    ]
    with command.running(*options, inside=lab.gateway_namespace) as running:
        ip("-n", lab.gateway, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        _until(lambda: any("late0" in each for each in _details(output)))
        listed = conftest.nft(lab.gateway_namespace, "list", "ruleset")
        assert listed.count("flags owner,persist") == 3
        assert command.run("verify", *named[:4], inside=lab.gateway_namespace).code == 0
        assert running.stop(signal.SIGTERM)[0] == 0
    assert conftest.nft(lab.gateway_namespace, "list", "ruleset") == ""
    assert not [detail for detail in _details(output) if "restored" in detail]


@pytest.mark.parametrize("only_guard", [False, True])
def test_nothing_changes_if_another_process_owns_the_guard(
    lab: Lab, spec: FenceSpec, state: StateDirectory, only_guard: bool
) -> None:
    """The gateway's namespace is the host here."""
    named = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    proxies = [part for proxy in spec.proxies for part in ("--proxy", str(proxy))]
    options = [*named, "--netns", lab.sandbox, "--exclusive", "--host-guard", "gw0", *proxies]
    assert command.run("install", *options, inside=lab.gateway_namespace).code == 0
    tables = [(lab.gateway_namespace, "netdev", "ocsf_nft_gw0")]
    if not only_guard:
        tables.append((lab.sandbox_namespace, "inet", "ocsf_nft"))
    listing = ("-s", "-t", "list", "ruleset")
    before = conftest.nft(lab.sandbox_namespace, *listing)
    with contextlib.ExitStack() as stack:
        for namespace, family, table in tables:
            other = stack.enter_context(namespace.call(Nftables))
            other.commit([table_changes.ownership_statement(TableId(family, table))])
        for done in (
            command.run("remove", *named, inside=lab.gateway_namespace),
            command.run(
                "install", *options, "--allow", "tcp:10.200.0.9:80", inside=lab.gateway_namespace
            ),
        ):
            assert done.code == 3
            assert "that process is not a run that uses this state directory" in done.sentence
    assert conftest.nft(lab.sandbox_namespace, *listing) == before
    assert command.run("remove", *named, inside=lab.gateway_namespace).code == 0


def test_listing_does_not_depend_on_the_owner(fenced: Lab) -> None:
    ns = fenced.sandbox_namespace
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    with ns.call(Nftables) as socket_owner:
        socket_owner.commit([table_changes.ownership_statement(TableId("inet", "ocsf_nft"))])
        try:
            for name in (b"nft", b"# handle 7", b"a\nb", b"\n", b"a\rb", b"\xff\x1b[2J"):
                comm.write_bytes(name)
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
            comm.write_bytes(before)
