"""Changes of a fence's surroundings: each is reported, and undone where that is promised."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence.surroundings import watcher
from ocsf_nft.lab import GATEWAY4, INTERNET4, PROXY_PORT, SANDBOX4
from tests.kernel import command, conftest, far_side, namespaces, net_programs, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_LINK = "sb0"
_MARKER = b"bytes that the sandbox chose"
#: A chain that runs after the fence, and sends the proxy's packets elsewhere.
_REWRITING = f"""
table netdev rival {{
    chain late {{
        type filter hook egress device {_LINK} priority 10;
        ip daddr {GATEWAY4} ip daddr set {INTERNET4}
    }}
}}
"""
_MIRRED = (
    f"filter add dev lo egress protocol ip u32 match u32 0 0 "
    f"action mirred egress redirect dev {_LINK}"
)

#: Runs a command with a read-only /proc/sys, and the writable directory $1 in it.
_READ_ONLY = """
mount --bind /proc/sys /proc/sys
[ -z "$1" ] || mount --bind "$1" "$1"
mount -o remount,bind,ro /proc/sys
shift
exec "$@"
"""


class Run:
    """Run that watches the lab, and the events that it has written."""

    def __init__(self, running: command.Running, path: Path, state: StateDirectory) -> None:
        self.running = running
        self._path = path
        self._options = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))

    def of_code(self, code: str) -> list[dict[str, Any]]:
        return [
            event for event in written.so_far(self._path) if event["metadata"]["event_code"] == code
        ]

    @property
    def changes(self) -> list[dict[str, Any]]:
        return self.of_code("surroundings-changed")

    def wait(self, number: int) -> dict[str, Any]:
        """Wait for the event with this number, and return it."""
        deadline = time.monotonic() + 60
        while len(self.changes) < number:
            assert time.monotonic() < deadline, written.so_far(self._path)
            time.sleep(0.02)
        return self.changes[number - 1]

    def verify(self) -> command.Outcome:
        return command.run("verify", *self._options)

    def stop(self) -> None:
        assert self.running.stop(signal.SIGTERM)[0] == 0


@pytest.fixture
def start(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> Callable[..., contextlib.AbstractContextManager[Run]]:
    assert fenced

    @contextlib.contextmanager
    def started(*options: str, under: tuple[str, ...] = ()) -> Iterator[Run]:
        path = tmp_path / "events.jsonl"
        with command.running(
            *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path)),
            *("--output", str(path), *options),
            under=under,
        ) as running:
            yield Run(running, path, state)

    return started


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check often the facts without notices; runs are forks of this process."""
    assert watcher.POLL_SECONDS < 5
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(watcher, "_SETTLE_SECONDS", 0.3)


def _do(namespace: Namespace, *arguments: str) -> None:
    namespace.call(lambda: subprocess.run(arguments, check=True, capture_output=True))


def _message(event: dict[str, Any]) -> str:
    text = event["message"]
    assert isinstance(text, str)
    return text


def test_changes_with_a_notice_are_reported_and_undone(
    fenced: Lab, start: Callable[..., Any], judge: Callable[[Any], list[str]]
) -> None:
    inside = fenced.sandbox_namespace
    nat = (
        "add table ip rival; add chain ip rival c { type nat hook output priority -100; }; "
        "add rule ip rival c dnat to 192.0.2.1"
    )
    cases: list[tuple[tuple[str, ...], str, str, bool]] = [
        (("tc", "qdisc", "add", "dev", "lo", "clsact"), "a tc qdisc clsact was added on lo",
         "High", True),
        (("tc", "qdisc", "add", "dev", _LINK, "root", "handle", "1:", "htb"),
         f"a tc qdisc htb was added on {_LINK}", "High", True),
        (("nft", _REWRITING), f"hooks egress of {_LINK} with priority 10, after the fence",
         "High", True),
        (("xdp",), f"was attached to {_LINK}", "High", True),
        (("nft", nat), "a rule with the statement nat was added to chain c of table ip rival",
         "Medium", False),
        (("ip", "rule", "add", "fwmark", "5", "table", "7"),
         "a policy routing rule of IPv4 was added", "Medium", False),
        (("ip", "route", "add", f"{GATEWAY4}/32", "via", "10.200.0.7", "dev", _LINK, "onlink"),
         f"the route to {GATEWAY4} has another next hop", "Medium", False),
        (("ip", "link", "set", _LINK, "address", "02:00:00:00:00:77"),
         "has the MAC address 02:00:00:00:00:77", "Medium", False),
        (("ip", "link", "set", _LINK, "name", "other"), f"the uplink {_LINK} was renamed to other",
         "Medium", False),
    ]  # fmt: skip
    with start() as run:
        for number, (arguments, words, severity, is_undone) in enumerate(cases, 1):
            if arguments == ("xdp",):
                inside.call(lambda: net_programs.attach_xdp(_LINK))
            else:
                _do(inside, *arguments)
            event = run.wait(number)
            assert not judge(event)
            assert words in _message(event)
            assert event["severity"] == severity
            assert ("; undone " in _message(event)) is is_undone
            assert bool(event["unmapped"]["present"]) is (number > 4)
            if arguments[0] == "nft":
                assert event["actor"]["process"]["name"] == "nft"
        verified = run.verify()
        run.stop()
    assert verified.code == 1
    for _, words, _, is_undone in cases:
        if words.startswith(("a rule", "a policy", "the route", "the uplink")):
            assert words in verified.stderr
        assert not (is_undone and words in verified.stderr)
    finding, *updates = run.of_code("surroundings-changed-finding")
    assert finding["finding_info"]["types"] == ["Surroundings Changed"]
    assert not judge(finding)
    assert {each["finding_info"]["uid"] for each in updates} <= {finding["finding_info"]["uid"]}
    technique = finding["finding_info"]["attacks"][0]
    assert "T1562.004" in str(technique)


def test_changes_without_a_notice_are_reported_and_undone(
    fenced: Lab, start: Callable[..., Any]
) -> None:
    inside = fenced.sandbox_namespace
    with start() as run:
        inside.call(lambda: net_programs.attach_tcx(_LINK))
        _do(inside, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        _do(
            inside,
            *("ip", "neigh", "replace", GATEWAY4, "lladdr", "02:00:00:00:00:99"),
            *("dev", _LINK, "nud", "permanent"),
        )
        texts: set[str] = set()
        deadline = time.monotonic() + 60
        while len(texts) < 3:
            assert time.monotonic() < deadline
            texts = {each for event in run.changes for each in event["unmapped"]["changes"]}
            time.sleep(0.02)
        (left,) = {each for event in run.changes for each in event["unmapped"]["present"]}
        run.stop()
    assert "a BPF program of tcx egress" in left
    assert any(f"sends {GATEWAY4} on {_LINK} to 02:00:00:00:00:99" in each for each in texts)
    assert any("route_localnet was set from 0 to 1" in each for each in texts)
    shown = inside.call(
        lambda: subprocess.run(
            ["sh", "-c", "sysctl -n net.ipv4.conf.all.route_localnet; ip neigh show nud permanent"],
            check=True, capture_output=True, text=True,
        )
    ).stdout  # fmt: skip
    assert shown.split() == ["0"]


@pytest.mark.parametrize("is_net_writable", [True, False])
def test_sysctl_is_undone_where_proc_sys_net_is_writable(
    fenced: Lab, start: Callable[..., Any], *, is_net_writable: bool
) -> None:
    """The units of systemd have such mounts, and these capabilities."""
    inside, key = fenced.sandbox_namespace, "net.ipv4.conf.all.route_localnet"
    command_line = ("sh", "-c", _READ_ONLY, "sh", "/proc/sys/net" if is_net_writable else "")
    capabilities = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+net_admin,+sys_admin")
    with start(under=("unshare", "-m", *command_line, *capabilities)) as run:
        _do(inside, "sysctl", "-qw", f"{key}=1")
        event = run.wait(1)
        run.stop()
    assert "route_localnet was set from 0 to 1" in _message(event)
    shown = inside.call(lambda: subprocess.check_output(["sysctl", "-n", key], text=True))
    if is_net_writable:
        assert shown == "0\n"
        assert event["status_detail"].startswith("undone ")
    else:
        assert shown == "1\n"
        assert event["status_detail"] == "not undone: Read-only file system"


@pytest.mark.parametrize("self_heal", [True, False])
@pytest.mark.parametrize("way", ["mirred", pytest.param("chain", marks=pytest.mark.slow)])
def test_ways_past_the_fence_are_closed_at_once(
    fenced: Lab, start: Callable[..., Any], way: str, self_heal: bool
) -> None:
    inside = fenced.sandbox_namespace

    def send() -> None:
        if way == "mirred":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(_MARKER, ("127.0.0.1", 9))
        else:
            with socket.socket() as sock:
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.connect((GATEWAY4, PROXY_PORT))

    def escaped(far: far_side.FarSide) -> int:
        mark = (
            _MARKER if way == "mirred" else socket.inet_aton(SANDBOX4) + socket.inet_aton(INTERNET4)
        )
        return sum(mark in frame for frame in far.frames())

    with start(*([] if self_heal else ["--no-self-heal"])) as run, far_side.watch(fenced) as far:
        if way == "mirred":
            batch = f"qdisc add dev lo clsact\n{_MIRRED}\n"
            inside.call(
                lambda: subprocess.run(
                    ["tc", "-batch", "-"], input=batch, text=True, check=False, capture_output=True
                )
            )
        else:
            conftest.nft(inside, _REWRITING)
        assert run.wait(1)["severity"] == "High"
        escaped(far)
        for _ in range(20):
            inside.call(send)
        found = escaped(far)
        run.stop()
    # Without self-heal too: the last chain and the last gate judge the frames. tests/kernel/ways
    # shows that the ways are open without a fence.
    assert found == 0


def test_accepted_and_ordinary_changes_raise_nothing(
    fenced: Lab, state: StateDirectory, start: Callable[..., Any]
) -> None:
    """A container engine's NAT before the installation, and ordinary life after it."""
    inside = fenced.sandbox_namespace
    assert command.run("remove", "--sandbox", "lab", "--state-dir", str(state.path)).code == 0
    conftest.nft(
        inside,
        "add table ip nat; add chain ip nat OUTPUT { type nat hook output priority -100; }; "
        "add chain ip nat DOCKER_OUTPUT; add rule ip nat OUTPUT jump DOCKER_OUTPUT; "
        "add rule ip nat DOCKER_OUTPUT ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:4000",
    )
    installed = command.run(
        *("install", "--sandbox", "lab", "--state-dir", str(state.path), "--netns"),
        *(str(inside.path), "--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--transport", "nflog"),
    )
    assert installed.code == 0, installed.stderr
    with start() as run, namespaces.names(1) as (child,):
        namespaces.make(child)
        address = f"{SANDBOX4}/24"
        for arguments in (
            f"ip address del {address} dev {_LINK}",
            f"ip address add {address} dev {_LINK} valid_lft 3600 preferred_lft 3600",
            f"ip address change {address} dev {_LINK} valid_lft forever preferred_lft forever",
            f"ip route add default via {GATEWAY4}",
            "ip route del default",
            f"ip route add default via {GATEWAY4}",
            f"ip link set {_LINK} down",
            f"ip link set {_LINK} up",
            f"ip -6 address add fd00:200::5/64 dev {_LINK}",
            "ip link add nested type veth peer name eth0",
            "ip link add bridge0 type bridge",
            "ip link set nested master bridge0 up",
            f"ip link set eth0 netns {child}",
            "ip address add 10.9.0.1/24 dev bridge0",
            "ip link set bridge0 up",
            "sysctl -qw net.ipv4.ip_forward=1",
            f"ip neigh replace 10.200.0.77 lladdr 02:00:00:00:00:99 dev {_LINK} nud permanent",
        ):
            _do(inside, *arguments.split())
        conftest.nft(
            inside,
            "add table ip own; add chain ip own in { type filter hook input priority 10; }; "
            "add rule ip own in tcp dport 22 drop",
        )
        # A weakening change after all that shows that it was checked.
        _do(inside, "tc", "qdisc", "add", "dev", "lo", "clsact")
        assert "clsact" in _message(run.wait(1))
        time.sleep(3 * watcher.POLL_SECONDS)
        verified = run.verify()
        run.stop()
    assert len(run.changes) == 1, [_message(each) for each in run.changes]
    assert verified.code == 0, verified.stderr
    assert "accepted at the installation: a rule with the statement nat" in verified.stderr


@pytest.mark.parametrize("is_forged", [False, True])
def test_process_is_named_only_if_it_holds_the_socket(
    fenced: Lab, start: Callable[..., Any], is_forged: bool
) -> None:
    innocent = subprocess.Popen(["sleep", "60"])
    code = textwrap.dedent(f"""
        import socket, struct, time
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        sock.bind(({innocent.pid if is_forged else 0}, 0))
        body = struct.pack("=BxxxiIII", 0, 1, 0xFFFF0000, 0xFFFFFFF1, 0)
        body += struct.pack("=HH", 11, 1) + b"clsact\\0\\0"
        sock.send(struct.pack("=IHHII", 16 + len(body), 36, 0x605, 1, 0) + body)
        time.sleep(60)
    """)
    with start() as run:
        sender = fenced.sandbox_namespace.call(
            lambda: subprocess.Popen([sys.executable, "-c", code])
        )
        try:
            event = run.wait(1)
        finally:
            for process in (sender, innocent):
                process.kill()
                process.wait()
        run.stop()
    assert event["actor"]["process"]["pid"] == sender.pid


def test_uplink_that_moves_into_a_child_is_reported(fenced: Lab, start: Callable[..., Any]) -> None:
    with start() as run, namespaces.names(1) as (child,):
        namespaces.make(child)
        _do(fenced.sandbox_namespace, "ip", "link", "set", _LINK, "netns", child)
        event = run.wait(1)
        run.stop()
    assert f"the uplink {_LINK} left the namespace" in _message(event)
    assert event["severity"] == "High"


@pytest.mark.parametrize("is_taken_back", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_uplink_that_the_host_takes_or_deletes_raises_nothing(
    fenced: Lab, start: Callable[..., Any], is_taken_back: bool
) -> None:
    """An engine does so before it deletes the network namespace of a container."""
    name = f"h{os.getpid()}"
    with start() as run:
        if is_taken_back:
            host = str(os.getpid())
            _do(fenced.sandbox_namespace, "ip", "link", "set", _LINK, "netns", host, "name", name)
        else:
            _do(fenced.gateway_namespace, "ip", "link", "del", fenced.gateway_device)
        try:
            _do(fenced.sandbox_namespace, "tc", "qdisc", "add", "dev", "lo", "clsact")
            run.wait(1)
            time.sleep(3 * watcher.POLL_SECONDS)
        finally:
            if is_taken_back:
                subprocess.run(["ip", "link", "del", name], check=True)
        run.stop()
    (event,) = run.changes
    assert event["unmapped"]["changes"] == ["a tc qdisc clsact was added on lo"]


@pytest.mark.slow
def test_too_many_changes_are_not_undone_any_more(
    fenced: Lab, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_CONFLICT_PAUSE_SECONDS", 0.1)
    with start() as run:
        for number in range(1, watcher.MOST_UNDOS + 2):
            _do(fenced.sandbox_namespace, "tc", "qdisc", "add", "dev", "lo", "clsact")
            event = run.wait(number)
        run.stop()
    assert "not undone: more than 10 changes" in event["status_detail"]


def test_change_while_no_service_runs_is_reported_at_the_start(
    fenced: Lab, start: Callable[..., Any]
) -> None:
    _do(fenced.sandbox_namespace, "tc", "qdisc", "add", "dev", "lo", "clsact")
    with start() as run:
        assert "a tc qdisc clsact was added on lo" in _message(run.wait(1))
        run.stop()
