"""Interfaces that lead from a sandbox into another namespace, past its fence."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import rtnetlink
from tests.kernel import accounts, command, conftest
from tests.kernel.test_surroundings import _do, _message, _quick_polls, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

__all__ = ["_quick_polls", "start"]
pytestmark = pytest.mark.kernel

_LAN, _BRIDGE = "lan0", "bridge0"
_REPOSITORY = Path(__file__).parents[2]
#: Waits until the interface is gone, and prints how long it was there, in milliseconds.
_WATCHED = """
import os, socket, sys, time
from tests.kernel.ways import netlinks
{}
begun = time.monotonic()
print("made", flush=True)
try:
    while time.monotonic() < begun + 60:
        socket.if_nametoindex("own0")
        time.sleep(0.001)
except OSError:
    print(1e3 * (time.monotonic() - begun), flush=True)
time.sleep(60)
"""


@pytest.fixture
def lan(fenced: Lab) -> tuple[int, int]:
    """Give the gateway, which is the sandbox's host, an interface and a bridge; return both."""
    host = fenced.gateway_namespace
    _do(host, "ip", "link", "add", _LAN, "type", "veth", "peer", "name", "lan1")
    _do(host, "ip", "link", "add", _BRIDGE, "type", "bridge")
    for name in (_LAN, "lan1", _BRIDGE):
        _do(host, "ip", "link", "set", name, "up")
    found = host.call(lambda: {each.name: each.ifindex for each in rtnetlink.links()})
    return found[_LAN], found[_BRIDGE]


def _names(namespace: Namespace) -> set[str]:
    return namespace.call(lambda: {each.name for each in rtnetlink.links()})


def _number_of_host(lab: Lab) -> int:
    links = lab.sandbox_namespace.call(lambda: list(rtnetlink.links()))
    (number,) = {each.peer_nsid for each in links if each.name == lab.sandbox_device}
    assert number is not None
    return number


@contextlib.contextmanager
def _process(namespace: Namespace, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python in a namespace; yield the process after it has made the interface."""
    made = namespace.call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", _WATCHED.format(textwrap.dedent(code))],
            stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY,
        )
    )  # fmt: skip
    assert made.stdout is not None
    try:
        assert made.stdout.readline() == "made\n"
        yield made
    finally:
        made.kill()
        made.wait()
        made.stdout.close()


@pytest.mark.parametrize("self_heal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_macvlan_of_a_process_inside_is_reported_and_deleted(
    fenced: Lab, lan: tuple[int, int], start: Callable[..., Any], self_heal: bool
) -> None:
    code = f"netlinks.macvlan('own0', {lan[0]}, {_number_of_host(fenced)})"
    with start(*([] if self_heal else ["--no-self-heal"])) as run:
        with _process(fenced.sandbox_namespace, code) as process:
            event = run.wait(1)
            if self_heal:
                assert process.stdout is not None
                took = float(process.stdout.readline())
                assert took < 5_000
        assert ("own0" in _names(fenced.sandbox_namespace)) is not self_heal
        verified = run.verify()
        run.stop()
    assert event["severity"] == "High"
    assert "an interface own0 (macvlan) was added that leads to the interface" in _message(event)
    assert ("; undone " in _message(event)) is self_heal
    assert bool(event["unmapped"]["present"]) is not self_heal
    assert ("an interface own0" in verified.stderr) is not self_heal


@pytest.mark.parametrize("is_certain", [True, False])
def test_macvlan_of_an_engine_is_reported_and_stays(
    fenced: Lab,
    lan: tuple[int, int],
    start: Callable[..., Any],
    state: StateDirectory,
    is_certain: bool,
) -> None:
    """A user without capabilities is inside, who could gain them by a program with setuid."""
    assert lan
    options = ("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    command_line = ["setpriv", "--reuid=1000", "--clear-groups", "sleep", "60"]
    if is_certain:
        command_line[2:2] = ["--bounding-set=-all"]
    with start() as run, _running(fenced.sandbox_namespace, command_line):
        _attach_macvlan(fenced)
        event = run.wait(1)
        # A weakening change after it shows that the interface is not deleted by a later check.
        _do(fenced.sandbox_namespace, "tc", "qdisc", "add", "dev", "lo", "clsact")
        run.wait(2)
        run.stop()
    assert "net2" in _names(fenced.sandbox_namespace)
    assert event["severity"] == ("Medium" if is_certain else "High")
    assert "an interface net2 (macvlan) was added" in _message(event)
    assert "remove the fence and install it again to accept this" in _message(event)
    assert command.run("verify", *options).code == 1
    assert command.run("remove", *options).code == 0
    proxies = ("--proxy", "10.200.0.1:3128", "--transport", "nflog")
    netns = ("--netns", str(fenced.sandbox_namespace.path))
    assert command.run("install", *options, *netns, *proxies).code == 0
    assert command.run("verify", *options).code == 0


@contextlib.contextmanager
def _running(namespace: Namespace, command_line: list[str]) -> Iterator[None]:
    process = namespace.call(lambda: subprocess.Popen(command_line))
    status = Path(f"/proc/{process.pid}/status")
    # It drops its capabilities.
    accounts.until(lambda: "CapPrm:\t0000000000000000" in status.read_text())
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("self_heal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pair_whose_end_is_moved_to_the_host_is_reported_and_deleted(
    fenced: Lab, lan: tuple[int, int], start: Callable[..., Any], self_heal: bool
) -> None:
    code = f"""
        netlinks.veth("own0", "away0")
        netlinks.move("away0", {_number_of_host(fenced)}, {lan[1]})
    """
    with start(*([] if self_heal else ["--no-self-heal"])) as run:
        with _process(fenced.sandbox_namespace, code) as process:
            event = run.wait(1)
            if self_heal:
                assert process.stdout is not None
                assert float(process.stdout.readline()) < 5_000
        assert ("away0" in _names(fenced.gateway_namespace)) is not self_heal
        run.stop()
    assert event["severity"] == "High"
    assert "an interface own0 (veth) was added that leads to the interface" in _message(event)
    assert ("; undone " in _message(event)) is self_heal


def test_pair_that_moves_on_to_a_third_namespace_is_reported(
    fenced: Lab, lan: tuple[int, int], start: Callable[..., Any]
) -> None:
    code = f"""
        import subprocess
        child = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "unshare", "-n", "sleep", "60"])
        path, end = f"/proc/{{child.pid}}/ns/net", time.monotonic() + 60
        while os.path.samefile(path, "/proc/self/ns/net"):
            assert time.monotonic() < end
            time.sleep(0.001)
        netlinks.veth("own0", "away0")
        netlinks.move("away0", {_number_of_host(fenced)}, {lan[1]})
        subprocess.run(["ip", "link", "set", "own0", "netns", str(child.pid)], check=True)
    """
    with start("--no-self-heal") as run:
        with _process(fenced.sandbox_namespace, code):
            run.wait(1)
            found = {each for event in run.changes for each in event["unmapped"]["changes"]}
            while not any("was moved to the namespace with number" in each for each in found):
                run.wait(2)
                found = {each for event in run.changes for each in event["unmapped"]["changes"]}
        severities = {event["severity"] for event in run.changes}
        run.stop()
    assert severities == {"High"}


@pytest.mark.parametrize("has_capability", [False, True])
def test_pair_of_an_engine_is_reported_only_if_a_process_inside_can_have_made_it(
    fenced: Lab, start: Callable[..., Any], has_capability: bool
) -> None:
    host, inside = fenced.gateway_namespace, fenced.sandbox_namespace
    words = f"link add second type veth peer name net2 netns {fenced.sandbox}"
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(start())
        if has_capability:
            stack.enter_context(_process(inside, ""))
        _do(host, "ip", *words.split())
        if has_capability:
            event = run.wait(1)
            assert "an interface net2 (veth) was added that leads" in _message(event)
            assert event["severity"] == "High"
        # Two later changes, by this process, which is not inside. The second check is after the
        # time in which a pair is not reported yet.
        number = len(run.changes)
        for each in ("accept_local", "route_localnet"):
            setting = Path(f"/proc/sys/net/ipv4/conf/{fenced.sandbox_device}/{each}")
            inside.call(partial(setting.write_text, "1"))
            number += 1
            assert each in _message(run.wait(number))
        verified = run.verify()
        run.stop()
    assert "net2" in _names(inside)
    assert len(run.changes) == number, [_message(each) for each in run.changes]
    assert ("an interface net2" in verified.stderr) is has_capability


def _attach_macvlan(lab: Lab) -> None:
    words = f"link add link {_LAN} name net2 netns {lab.sandbox} type macvlan mode bridge"
    _do(lab.gateway_namespace, "ip", *words.split())
