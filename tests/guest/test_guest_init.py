"""What guest-init says of a kernel, of settings and of an image that lack something."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ocsf_nft.lab import GATEWAY4, INTERNET4, PROXY_PORT, SANDBOX4
from tests.guest import cache, image, machine, network
from tests.guest.conftest import IN_LAB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("guest")]

_BOOT_SECONDS = 300
_SCRIPT = cache.PROJECT / "deploy/guest-init/guest-init"
_GUEST_INIT = f"/{image.GUEST_INIT}"
_ASIDE = "/tmp/aside"  # noqa: S108 - the guest's
_SETTINGS = "/etc/ocsf-nft/guest.conf"
_CANT = "guest-init: the kernel can't do"
_OPTIONS = "(CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)"
_NO_FENCE = "guest-init: there is no fence: the workload must not start"
#: What takes the place of ocsf-nft for a moment: its exit codes by its command.
_BROKEN = """#!/bin/sh
case $1 in
{cases}
esac
"""


class Told(NamedTuple):
    code: int
    lines: list[str]


class Guest:
    """A machine that has nothing in its kernel yet, and not all of a kernel's modules."""

    def __init__(self, running: Machine, modules: str) -> None:
        self._modules = modules
        self.machine = running
        self.put_away("nf_tables", "nft_reject_inet", "nft_fib_inet", "nft_limit", "nft_log")

    def put_away(self, *names: str) -> None:
        """Take modules from where modprobe looks."""
        for name in names:
            self.machine.ask("move", self._place(name), f"/tmp/{name}.ko")  # noqa: S108 - the guest's

    def give(self, *names: str) -> None:
        """Put modules back."""
        for name in names:
            self.machine.ask("move", f"/tmp/{name}.ko", self._place(name))  # noqa: S108 - the guest's

    def guest_init(self, *arguments: str) -> Told:
        done = self.machine.ask("shell", _GUEST_INIT, *arguments)
        return Told(done["code"], done["stderr"].splitlines())

    @contextlib.contextmanager
    def without(self, path: str) -> Iterator[None]:
        """Take a file away for a while."""
        self.machine.ask("move", path, _ASIDE)
        try:
            yield
        finally:
            self.machine.ask("move", _ASIDE, path)

    @contextlib.contextmanager
    def written(self, path: str, text: str) -> Iterator[None]:
        """Put another file in a file's place for a while."""
        with self.without(path):
            self.machine.ask("write", path, text)
            yield

    def _place(self, name: str) -> str:
        return f"{self._modules}/kernel/net/netfilter/{name}.ko"


@pytest.fixture(scope="module")
def guest(guest_kernel: Kernel, initramfs: Path, around: Network) -> Iterator[Guest]:
    with machine.running(
        guest_kernel,
        initramfs,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"{IN_LAB} ocsf_nft.sandbox=vm-8 ocsf_nft.state_dir=/run/state",
    ) as running:
        running.greet(_BOOT_SECONDS)
        yield Guest(running, f"/lib/modules/{guest_kernel.version}")


def test_shellcheck_has_nothing_to_say() -> None:
    inside = cache.PROJECT / "tests/guest/inside"
    subprocess.run(["shellcheck", _SCRIPT, inside / "init", inside / "systemd-init"], check=True)


def test_no_workload_starts_without_a_fence(
    guest_kernel: Kernel, initramfs: Path, around: Network
) -> None:
    with machine.running(
        guest_kernel,
        initramfs,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"{IN_LAB} guest_test.fence ocsf_nft.colour=red",
    ) as running:
        running.wait_for_end(_BOOT_SECONDS)
        assert _NO_FENCE in running.said()
        assert "guest-init ended with exit 2" in running.said()
        assert running.port.recv(1) == b"", "its agent, which is the workload, said nothing"


# The tests that follow are one story, of one machine: each gives it something more.


def test_a_kernel_without_nf_tables_is_told_which_module_and_options_it_wants(guest: Guest) -> None:
    told = guest.guest_init()
    assert told == (
        3,
        [
            f"{_CANT} nftables for IPv4 and IPv6: it wants the module nf_tables {_OPTIONS}",
            "guest-init: the kernel can't hold a fence",
            _NO_FENCE,
        ],
    )


def test_all_that_a_kernel_lacks_is_told_at_once(guest: Guest) -> None:
    guest.give("nf_tables")
    told = guest.guest_init()
    assert told.code == 3
    assert [line.partition(" it wants the module ")[2] for line in told.lines[:3]] == [
        "nft_reject_inet (CONFIG_NFT_REJECT_INET)",
        "nft_fib_inet (CONFIG_NFT_FIB_INET)",
        "nft_limit (CONFIG_NFT_LIMIT)",
    ]
    assert told.lines[-1] == _NO_FENCE


def test_no_more_is_told_than_is_missing(guest: Guest) -> None:
    guest.give("nft_reject_inet", "nft_fib_inet")
    told = guest.guest_init("fence")
    assert (told.code, len(told.lines)) == (3, 3)
    assert "nft_limit (CONFIG_NFT_LIMIT)" in told.lines[0]


@pytest.mark.parametrize("program", ["/usr/sbin/nft", "/usr/bin/ocsf-nft"])
def test_an_image_without_a_program_is_told(guest: Guest, program: str) -> None:
    with guest.without(program):
        told = guest.guest_init()
    name = program.rpartition("/")[2]
    assert told.code == 3
    assert told.lines[0].startswith(f"guest-init: {name} was not found: put ")
    assert told.lines[1:] == [_NO_FENCE]


def test_an_unknown_setting_is_told(guest: Guest) -> None:
    with guest.written(_SETTINGS, "proxy=10.200.0.1:3128\ncolour=red\n"):
        told = guest.guest_init("fence")
    assert told == (
        2,
        [
            "guest-init: there is no setting colour: the README.md of guest-init names them",
            _NO_FENCE,
        ],
    )


def test_a_bad_value_is_told_and_is_never_a_command(guest: Guest) -> None:
    guest.give("nft_limit")
    with guest.written(_SETTINGS, "proxy=$(touch /tmp/run):1\nallow=`touch /tmp/run` *\n"):
        told = guest.guest_init("fence")
    assert told.code == 2
    assert "ocsf-nft takes a setting for wrong" in told.lines[-2]
    assert told.lines[-1] == _NO_FENCE
    assert guest.machine.ask("shell", "ls", "/tmp/run")["code"] != 0  # noqa: S108


@pytest.mark.parametrize(
    ("cases", "code", "last"),
    [
        ("install) exit 1 ;; verify) exit 2 ;;", 3, _NO_FENCE),
        ("install) exit 3 ;;", 3, _NO_FENCE),
        ("install) kill -9 $$ ;;", 3, _NO_FENCE),
        (
            "install) ;; run) exit 3 ;;",
            1,
            "guest-init: the fence stands, but nothing reports what it refuses",
        ),
    ],
    ids=["breaks down", "can't", "is killed", "does not report"],
)
def test_never_takes_a_failure_for_a_fence(guest: Guest, cases: str, code: int, last: str) -> None:
    with guest.written("/usr/bin/ocsf-nft", _BROKEN.format(cases=cases)):
        told = guest.guest_init()
        guest.machine.ask("terminate", _GUEST_INIT)
    assert (told.code, told.lines[-1]) == (code, last)


def test_a_kernel_without_nft_log_gets_a_fence_that_says_it_does_not_log(
    guest: Guest, judge: Callable[[Any], list[str]]
) -> None:
    told = guest.guest_init()
    assert told.code == 1
    assert told.lines[0] == (
        f"{_CANT} a log of what is refused: it wants the module nft_log "
        "(CONFIG_NFT_LOG) with nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG), or the module nft_log "
        "(CONFIG_NFT_LOG) with nf_log_syslog (CONFIG_NF_LOG_SYSLOG)"
    )
    assert any(line.startswith("ocsf-nft: the fence stands, but") for line in told.lines)
    assert "ready: watching vm-8" in told.lines, "the command line has the first word"
    assert guest.machine.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
    assert guest.machine.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    events = _events_until(guest, lambda event: event.get("dst_endpoint", {}).get("port") == 443)
    (degraded,) = [event for event in events if event["class_uid"] == 5019]
    assert degraded["state"] == "Degraded"
    assert "nft_log" in degraded["status_detail"]
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults


def _events_until(guest: Guest, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 300
    while True:
        events: list[dict[str, Any]] = guest.machine.ask("events")
        if any(map(wanted, events)):
            return events
        assert time.monotonic() < deadline, events
        time.sleep(0.5)
