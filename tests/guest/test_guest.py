"""A machine that fences itself early in its boot, and the errors of guest-init if it can't.

All tests use one boot, because Python starts slowly in an emulated machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.guest import machine, network
from tests.guest.conftest import IN_LAB, captured, counter_mismatches, refusals
from tests.guest.machine import TIMEOUT_SECONDS
from tests.guest.stripped import GUEST_INIT, NO_FENCE, Stripped
from tests.kernel import far_side
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network
    from tests.kernel.far_side import FarSide

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("guest")]

#: The command line has this name. It overrides the name in the settings file.
_SANDBOX = "vm-8"
_SETTINGS = "/etc/ocsf-nft/guest.conf"
_CANT = "guest-init: the kernel can't do"
_OPTIONS = "(CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)"
#: A temporary replacement of ocsf-nft, with an exit code for each command.
_BROKEN = """#!/bin/sh
case $1 in
{cases}
esac
"""


@pytest.fixture(scope="module")
def far(around: Network) -> Iterator[FarSide]:
    """Capture frames from the machine, starting before its boot."""
    with far_side.watch(around.lab) as watching:
        yield watching


@pytest.fixture(scope="module")
def guest(
    guest_kernel: Kernel, initramfs: Path, around: Network, far: FarSide
) -> Iterator[Machine]:
    assert far.strays() == []
    with machine.running(
        guest_kernel,
        initramfs,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"{IN_LAB} guest_test.fence "
        f"ocsf_nft.sandbox={_SANDBOX} ocsf_nft.state_dir=/run/state",
    ) as running:
        running.wait_for_agent(TIMEOUT_SECONDS)
        yield running


@pytest.fixture(scope="module")
def stripped(guest: Machine, guest_kernel: Kernel) -> Stripped:
    """Return the same machine without a fence, and without the modules that a fence needs."""
    return Stripped(guest, f"/lib/modules/{guest_kernel.version}")


def test_guest_init_fences_the_machine_and_reports(guest: Machine) -> None:
    assert guest.first_result == "0"
    assert f"ready: watching {_SANDBOX}" in guest.console_text()


def test_conntrack_is_not_needed(guest: Machine) -> None:
    loaded = guest.ask("shell", "lsmod")["stdout"]
    assert "nf_tables" in loaded
    assert "nf_conntrack" not in loaded
    assert guest.ask("shell", "modprobe", "nf_conntrack")["code"] != 0


@pytest.mark.parametrize(("proxy", "seen_as"), [(GATEWAY4, SANDBOX4), (GATEWAY6, SANDBOX6)])
def test_proxy_is_reached(guest: Machine, proxy: str, seen_as: str) -> None:
    assert guest.ask("talk", proxy, PROXY_PORT).removeprefix("::ffff:") == seen_as


@pytest.mark.parametrize("address", [INTERNET4, INTERNET6])
def test_connection_is_refused_with_a_reset(guest: Machine, address: str) -> None:
    assert guest.ask("talk", address, 443) == "ConnectionRefusedError"


def test_event_names_the_process_of_the_attempt(guest: Machine) -> None:
    assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (process := captured(guest.ask("events"), INTERNET4)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert process["path"] == str(Path(sys.executable).resolve())
    assert "tests.guest.inside.agent" in process["cmd_line"]
    assert process["ancestry"], "the init that started it"


def test_each_escape_is_refused_and_reported(
    guest: Machine, far: FarSide, judge: Callable[[Any], list[str]]
) -> None:
    held = {
        escape.name: guest.ask("escape", escape.name)["refused"][escape.rule] for escape in ESCAPES
    }
    assert {name for name, packets in held.items() if packets == 0} == set()
    # The card keeps the order, so all earlier frames have arrived when this is answered.
    assert guest.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    assert far.strays() == [], "only frames for the proxy since the boot"
    expected = {(escape.rule, escape.protocol) for escape in ESCAPES}
    events = guest.ask("events")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not expected <= refusals(events):
        assert time.monotonic() < deadline, expected - refusals(events)
        time.sleep(0.5)
        events = guest.ask("events")
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    assert {event["metadata"]["product"]["name"] for event in events} == {"ocsf-nft"}


def test_events_count_each_refused_packet(guest: Machine) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while mismatches := counter_mismatches(guest):
        assert time.monotonic() < deadline, mismatches
        time.sleep(0.5)


def test_run_is_restarted_and_the_fence_remains_active(guest: Machine) -> None:
    assert guest.ask("terminate", "ocsf-nft run") == 1
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while guest.console_text().count(f"ready: watching {_SANDBOX}") < 2:
        assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "the fence is active" in guest.console_text()


# The tests below use the same stripped machine in this order. Each one adds something to it.


def test_guest_init_names_the_module_and_options_of_a_kernel_without_nf_tables(
    stripped: Stripped,
) -> None:
    outcome = stripped.guest_init()
    assert outcome == (
        3,
        [
            f"{_CANT} nftables for IPv4 and IPv6: it needs the module nf_tables {_OPTIONS}",
            "guest-init: the kernel can't hold a fence",
            NO_FENCE,
        ],
    )


def test_guest_init_names_all_missing_modules_at_once(stripped: Stripped) -> None:
    stripped.give("nf_tables")
    outcome = stripped.guest_init()
    assert outcome.code == 3
    assert [line.partition(" it needs the module ")[2] for line in outcome.lines[:3]] == [
        "nft_reject_inet (CONFIG_NFT_REJECT_INET)",
        "nft_fib_inet (CONFIG_NFT_FIB_INET)",
        "nft_limit (CONFIG_NFT_LIMIT)",
    ]
    assert outcome.lines[-1] == NO_FENCE


def test_guest_init_names_only_missing_modules(stripped: Stripped) -> None:
    stripped.give("nft_reject_inet", "nft_fib_inet")
    outcome = stripped.guest_init("fence")
    assert (outcome.code, len(outcome.lines)) == (3, 3)
    assert "nft_limit (CONFIG_NFT_LIMIT)" in outcome.lines[0]


@pytest.mark.parametrize("program", ["/usr/sbin/nft", "/usr/bin/ocsf-nft"])
def test_guest_init_names_a_missing_program(stripped: Stripped, program: str) -> None:
    with stripped.without(program):
        outcome = stripped.guest_init()
    name = program.rpartition("/")[2]
    assert outcome.code == 3
    assert outcome.lines[0].startswith(f"guest-init: {name} was not found: put ")
    assert outcome.lines[1:] == [NO_FENCE]


def test_guest_init_names_an_unknown_setting(stripped: Stripped) -> None:
    with stripped.written(_SETTINGS, "proxy=10.200.0.1:3128\ncolour=red\n"):
        outcome = stripped.guest_init("fence")
    assert outcome == (
        2,
        [
            "guest-init: there is no setting colour: the README.md of guest-init names them",
            NO_FENCE,
        ],
    )


def test_guest_init_passes_a_value_unchanged_and_never_as_a_command(stripped: Stripped) -> None:
    stripped.give("nft_limit")
    proxy, allow = "$(touch /tmp/run):1", "`touch /tmp/run` *"
    refuse = (
        "printf '%s\\n' \"$@\" >/tmp/arguments; exit 2 ;;"  # `install` exits with 2 on bad values
    )
    with (
        stripped.written(_SETTINGS, f"proxy={proxy}\nallow={allow}\n"),
        stripped.written("/usr/bin/ocsf-nft", _BROKEN.format(cases=f"install) {refuse}")),
    ):
        outcome = stripped.guest_init("fence")
    assert outcome.code == 2
    assert "ocsf-nft rejects a setting" in outcome.lines[-2]
    assert outcome.lines[-1] == NO_FENCE
    arguments = stripped.machine.ask("shell", "cat", "/tmp/arguments")["stdout"].splitlines()  # noqa: S108
    assert {f"--proxy={proxy}", f"--allow={allow}", "--whole-machine"} <= set(arguments)
    assert stripped.machine.ask("shell", "ls", "/tmp/run")["code"] != 0  # noqa: S108


def test_fence_of_the_whole_guest_must_be_confirmed(stripped: Stripped) -> None:
    done = stripped.machine.ask(
        "shell", "ocsf-nft", "install", "--sandbox", "guest", "--proxy", f"{GATEWAY4}:{PROXY_PORT}",
        "--transport", "none", "--state-dir", "/run/unconfirmed",
    )  # fmt: skip
    assert done["code"] == 2
    assert "would enclose this whole machine" in done["stderr"]
    assert stripped.machine.ask("shell", "nft", "list", "ruleset")["stdout"] == ""
    assert stripped.machine.ask("shell", "ls", "/run/unconfirmed")["code"] != 0


@pytest.mark.parametrize(
    ("cases", "code", "last"),
    [
        ("install) exit 1 ;; verify) exit 2 ;;", 3, NO_FENCE),
        ("install) exit 3 ;;", 3, NO_FENCE),
        ("install) kill -9 $$ ;;", 3, NO_FENCE),
        (
            "install) ;; run) exit 3 ;;",
            1,
            "guest-init: the fence is active, but nothing reports what it refuses",
        ),
    ],
    ids=["fails", "not supported", "is killed", "does not report"],
)
def test_guest_init_reports_each_failure_of_ocsf_nft(
    stripped: Stripped, cases: str, code: int, last: str
) -> None:
    with stripped.written("/usr/bin/ocsf-nft", _BROKEN.format(cases=cases)):
        outcome = stripped.guest_init()
        stripped.machine.ask("terminate", GUEST_INIT)
    assert (outcome.code, outcome.lines[-1]) == (code, last)


# tests/kernel/test_log_transport.py tests the same with a shim in front of the kernel.
def test_guest_init_reports_a_fence_without_a_log_on_a_kernel_without_nft_log(
    stripped: Stripped, judge: Callable[[Any], list[str]]
) -> None:
    stripped.give(*stripped.missing - {"nft_log"})
    outcome = stripped.guest_init()
    assert outcome.code == 1
    assert outcome.lines[0] == (
        f"{_CANT} a log of what is refused: it needs the module nft_log "
        "(CONFIG_NFT_LOG) with nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG), or the module nft_log "
        "(CONFIG_NFT_LOG) with nf_log_syslog (CONFIG_NF_LOG_SYSLOG)"
    )
    assert any(line.startswith("ocsf-nft: the fence is active, but") for line in outcome.lines)
    assert f"ready: watching {_SANDBOX}" in outcome.lines
    assert stripped.machine.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
    assert stripped.machine.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    events = _events_until(
        stripped.machine, lambda event: event.get("dst_endpoint", {}).get("port") == 443
    )
    (degraded,) = [event for event in events if event["class_uid"] == 5019]
    assert degraded["state"] == "Degraded"
    assert "nft_log" in degraded["status_detail"]
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults


def _events_until(
    running: Machine, is_expected: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        events: list[dict[str, Any]] = running.ask("events")
        if any(map(is_expected, events)):
            return events
        assert time.monotonic() < deadline, events
        time.sleep(0.5)
