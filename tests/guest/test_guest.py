"""A machine that fences itself early in its boot, before its network is up."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.guest import machine, network
from tests.guest.conftest import IN_LAB, captured, refusals
from tests.kernel import far_side
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network
    from tests.kernel.far_side import FarSide

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("guest")]

_BOOT_SECONDS = 300


@pytest.fixture(scope="module")
def far(around: Network) -> Iterator[FarSide]:
    """What comes out of the machine, from before it is switched on."""
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
        command_line=f"{IN_LAB} guest_test.fence",
    ) as running:
        running.greet(_BOOT_SECONDS)
        yield running


def test_guest_init_fences_the_machine_and_reports(guest: Machine) -> None:
    assert guest.greeting == "0"
    assert "ready: watching vm-7" in guest.said()


def test_conntrack_is_not_needed(guest: Machine) -> None:
    loaded = guest.ask("shell", "lsmod")["stdout"]
    assert "nf_tables" in loaded
    assert "nf_conntrack" not in loaded
    assert guest.ask("shell", "modprobe", "nf_conntrack")["code"] != 0


@pytest.mark.parametrize(("proxy", "seen_as"), [(GATEWAY4, SANDBOX4), (GATEWAY6, SANDBOX6)])
def test_the_proxy_is_reached(guest: Machine, proxy: str, seen_as: str) -> None:
    assert guest.ask("talk", proxy, PROXY_PORT).removeprefix("::ffff:") == seen_as


@pytest.mark.parametrize("address", [INTERNET4, INTERNET6])
def test_a_connection_is_refused_by_a_reset(guest: Machine, address: str) -> None:
    assert guest.ask("talk", address, 443) == "ConnectionRefusedError"


def test_an_attempt_names_the_process_that_made_it(guest: Machine) -> None:
    assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
    deadline = time.monotonic() + 60
    while not (process := captured(guest.ask("events"), INTERNET4)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert process["path"] == str(Path(sys.executable).resolve())
    assert "tests.guest.inside.agent" in process["cmd_line"]
    assert process["ancestry"], "the init that started it"


def test_every_way_round_the_usual_ruleset_is_refused_and_told(
    guest: Machine, far: FarSide, judge: Callable[[Any], list[str]]
) -> None:
    held = {
        escape.name: guest.ask("escape", escape.name)["refused"][escape.rule] for escape in ESCAPES
    }
    assert {name for name, packets in held.items() if packets == 0} == set()
    # What the card sent before this has arrived when this is answered: it keeps the order.
    assert guest.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    assert far.strays() == [], "nothing but what the proxy needs, since the machine is on"
    wanted = {(escape.rule, escape.protocol) for escape in ESCAPES}
    events = guest.ask("events")
    deadline = time.monotonic() + 300
    while not wanted <= refusals(events):
        assert time.monotonic() < deadline, wanted - refusals(events)
        time.sleep(0.5)
        events = guest.ask("events")
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    assert {event["metadata"]["product"]["name"] for event in events} == {"ocsf-nft"}


def test_the_account_of_what_was_refused_closes(guest: Machine) -> None:
    # It may have told a packet of what goes on while it looks, that it has not counted yet.
    for _ in range(5):
        told = guest.ask("shell", "ocsf-nft", "status", "--sandbox", "vm-7")
        if told["code"] == 0:
            return
    raise AssertionError(told["stderr"])


def test_what_reports_is_started_again_and_the_fence_stays(guest: Machine) -> None:
    assert guest.ask("terminate", "ocsf-nft run") == 1
    deadline = time.monotonic() + 300
    while guest.said().count("ready: watching vm-7") < 2:
        assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "the fence stands" in guest.said()
