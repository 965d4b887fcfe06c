"""A complete system that fences itself with our unit."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from ocsf_nft.state.state_db import FILE
from tests.guest import system
from tests.guest.conftest import captured, counter_mismatches, refusals
from tests.guest.system import SANDBOX, shell, show, until
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guest.conftest import CompleteSystem
    from tests.guest.machine import Machine
    from tests.kernel.far_side import FarSide

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]

_MACHINE, _HOST = "ocsf-nft.service", "ocsf-nft-host.service"
_LIFECYCLE = 6002
_NET_ADMIN = 12
_STORE = f"/var/lib/ocsf-nft/{SANDBOX}/{FILE}"
_PYTHON = str(Path(sys.executable).resolve())


@pytest.fixture
def far(complete_system: CompleteSystem) -> FarSide:
    return complete_system.far


@pytest.fixture
def guest(complete_system: CompleteSystem) -> Machine:
    return complete_system.guest


def _microseconds(guest: Machine, unit: str, name: str) -> int:
    """Return a monotonic timestamp of a unit, in microseconds."""
    return int(show(guest, unit, f"{name}Monotonic"))


def test_unit_is_ready_before_the_network(guest: Machine) -> None:
    assert show(guest, _MACHINE, "ActiveState") == "active"
    # The process itself sets this text.
    assert show(guest, _MACHINE, "StatusText") == f"watching {SANDBOX}"
    names = (_MACHINE, "network-pre.target", "network.service")
    times = [_microseconds(guest, unit, "ActiveEnterTimestamp") for unit in names]
    assert 0 < times[0] <= times[1] <= times[2]


def test_workload_starts_after_the_run_reads_records(guest: Machine) -> None:
    # A busy machine may add others, for example that the attribution is degraded.
    started, *_ = until(
        lambda: [event for event in guest.ask("events") if event["class_uid"] == _LIFECYCLE]
    )
    text = show(guest, "workload.service", "ExecMainStartTimestamp")
    at = dt.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f %Z").replace(tzinfo=dt.UTC)
    assert started["activity_name"] == "Start"
    assert started["time"] <= at.timestamp() * 1000


def test_run_is_not_root_and_has_only_the_needed_capabilities(guest: Machine) -> None:
    status = system.process(guest, _MACHINE)
    assert shell(guest, "id", "-u", "ocsf-nft") == status["Uid"].split()[1] != "0"
    # It has dropped those that only the start needs: the programs are loaded.
    assert system.capabilities(guest, _MACHINE) == {_NET_ADMIN}


def test_run_may_write_the_sysctls_of_its_network(guest: Machine) -> None:
    assert system.writable_sysctls(guest, _MACHINE) == {"/proc/sys/net"}
    # The surroundings at the time when the uplink appears are accepted.
    until(lambda: [each for each in guest.ask("events") if "sb0" in each.get("status_detail", "")])
    path = "/proc/sys/net/ipv4/conf/all/route_localnet"
    shell(guest, "busybox", "sh", "-c", f"echo 1 >{path}")
    until(lambda: shell(guest, "cat", path) == "0")


def test_only_the_group_reads_events_and_only_the_user_reads_the_state(guest: Machine) -> None:
    paths = ("/var/lib/ocsf-nft", "/var/log/ocsf-nft", system.EVENTS)
    modes = shell(guest, "stat", "-c", "%U:%G %a", *paths).splitlines()
    assert modes == [f"ocsf-nft:ocsf-nft {mode}" for mode in ("700", "750", "640")]


@pytest.mark.parametrize(("proxy", "seen_as"), [(GATEWAY4, SANDBOX4), (GATEWAY6, SANDBOX6)])
def test_proxy_is_reached(guest: Machine, proxy: str, seen_as: str) -> None:
    assert guest.ask("talk", proxy, PROXY_PORT).removeprefix("::ffff:") == seen_as


@pytest.mark.parametrize("address", [INTERNET4, INTERNET6])
def test_connection_is_refused_with_a_reset(guest: Machine, address: str) -> None:
    assert guest.ask("talk", address, 443) == "ConnectionRefusedError"


def test_event_names_the_process_although_the_run_may_inspect_none(guest: Machine) -> None:
    guest.ask("talk", INTERNET4, 443)
    process = until(lambda: captured(guest.ask("events"), INTERNET4))
    assert str(process["pid"]) == show(guest, "workload.service", "MainPID")
    assert process["path"] == _PYTHON
    assert "tests.guest.inside.agent" in process["cmd_line"]


@pytest.mark.parametrize("number", ["TERM", "KILL"])
def test_fence_remains_active_and_each_event_is_delivered_during_a_restart(
    guest: Machine, number: str
) -> None:
    before, workload = (show(guest, unit, "MainPID") for unit in (_MACHINE, "workload.service"))
    restarts = int(show(guest, _MACHINE, "NRestarts"))
    shell(guest, "kill", "-s", number, before)

    def is_started_again() -> bool:
        assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
        return show(guest, _MACHINE, "MainPID") not in {before, "0"}

    until(is_started_again)
    until(lambda: show(guest, _MACHINE, "StatusText") == f"watching {SANDBOX}")
    assert int(show(guest, _MACHINE, "NRestarts")) == restarts + 1
    # The unit that requires it continues.
    assert show(guest, "workload.service", "MainPID") == workload
    until(lambda: not counter_mismatches(guest))
    stored = shell(
        guest, "ocsf-nft", "events", "--store", _STORE, "--lines", "0", "--format", "jsonl"
    )
    uids = [json.loads(line)["metadata"]["uid"] for line in stored.splitlines()]
    assert len(uids) == len(set(uids)) > 0
    until(lambda: {event["metadata"]["uid"] for event in guest.ask("events")} >= set(uids))


def test_refusals_are_reported_from_the_journal(
    guest: Machine, far: FarSide, judge: Callable[[Any], list[str]]
) -> None:
    for escape in ESCAPES:
        assert guest.ask("escape", escape.name)["refused"][escape.rule] > 0, escape.name
    assert guest.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    assert far.strays() == []
    # The kernel log has the protocol that an LLC frame's socket announced, not its length field.
    expected = {(escape.rule, escape.protocol) for escape in ESCAPES if "llc" not in escape.name}
    until(lambda: expected <= refusals(guest.ask("events")))
    events = guest.ask("events")
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    # A counter has no source port, so these events come from records, and these from the journal.
    assert any(event.get("src_endpoint", {}).get("port") for event in events)
    logged = shell(guest, "journalctl", "-k", "-o", "cat", "--no-pager")
    assert re.search(rf"^ocsf-nft:{SANDBOX}:egress:IN= OUT=sb0 ", logged, re.MULTILINE)


def test_run_notifies_the_watchdog(guest: Machine) -> None:
    assert show(guest, _MACHINE, "WatchdogUSec") == "1min"
    begun = _microseconds(guest, _MACHINE, "WatchdogTimestamp")
    until(lambda: _microseconds(guest, _MACHINE, "WatchdogTimestamp") > begun)


@pytest.mark.parametrize("unit", [_MACHINE, _HOST])
def test_exposure_of_a_unit_is_at_most_the_documented_one(guest: Machine, unit: str) -> None:
    assert system.exposure(guest, unit) <= system.documented_exposure()[unit]
