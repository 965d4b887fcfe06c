"""A complete system with our units: it fences itself, and watches a sandbox as a host."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.guest import image, machine, network, system
from tests.guest.conftest import TIMEOUT_SECONDS, captured, counter_mismatches, refusals
from tests.guest.system import AGENT, CONFIG, RECEIVED, SANDBOX, shell, show
from tests.kernel import far_side
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network
    from tests.kernel.far_side import FarSide

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("guest")]

T = TypeVar("T")

_MACHINE, _HOST = "ocsf-nft.service", "ocsf-nft-host.service"
_ACTIVITY, _LIFECYCLE = 4001, 6002
_ACTIVE, _ABSENT = 0, 2  # exit codes of `verify`
_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN, _SYSLOG, _PERFMON, _BPF = 12, 19, 21, 34, 38, 39
_STORE = f"/var/lib/ocsf-nft/{SANDBOX}/events-2.sqlite3"
_IN_SANDBOX = ("nsenter", f"--net=/run/netns/{AGENT}")
#: With the namespace, in case there is no record: the machine's own namespace has another fence.
_WHERE = ("--sandbox", AGENT, "--netns", AGENT)
_CONNECT_PROGRAM = "import socket, sys; socket.create_connection((sys.argv[1], 443), timeout=5)"
#: The same, and stays alive for a while.
_STAY_PROGRAM = """
import socket, sys, time
try:
    socket.create_connection((sys.argv[1], 443), timeout=5)
except ConnectionRefusedError:
    time.sleep(10)
"""
_PYTHON = str(Path(sys.executable).resolve())


@pytest.fixture(scope="module")
def far(around: Network) -> Iterator[FarSide]:
    with far_side.watch(around.lab) as watching:
        yield watching


@pytest.fixture(scope="module")
def guest(
    guest_kernel: Kernel,
    package_layer: Path,
    around: Network,
    far: FarSide,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    assert far.strays() == []
    made = system.initramfs(guest_kernel, package_layer, tmp_path_factory.mktemp("system"))
    with machine.running(
        guest_kernel,
        made,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"rdinit=/{image.TESTS}/tests/guest/inside/systemd-init "
        "systemd.unit=multi-user.target systemd.mask=serial-getty@ttyS0.service "
        "systemd.journald.forward_to_console=1",
        megabytes=1024,
    ) as running:
        running.wait_for_agent(TIMEOUT_SECONDS)
        yield running


@pytest.fixture(scope="module")
def host(guest: Machine) -> Machine:
    """Return the same machine, with a sandbox in its own namespace that the host's unit watches."""
    shell(guest, "mkdir", "-p", "/run/netns")
    shell(guest, "touch", f"/run/netns/{AGENT}")
    shell(guest, "unshare", f"--net=/run/netns/{AGENT}", "true")
    for command in (
        "link set lo up",
        "link add e0 type veth",  # with veth0 at its other end
        "link set e0 up",
        "link set veth0 up",
        "address add 10.9.0.1/24 dev e0",
        "route add default via 10.9.0.9",
    ):
        shell(guest, *_IN_SANDBOX, "busybox", "ip", *command.split())
    shell(guest, "systemctl", "start", "receiver.service", _HOST)
    return guest


def _until(what: Callable[[], T | None]) -> T:
    """Call until the result is true; return the result."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


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
    started, *_ = (event for event in guest.ask("events") if event["class_uid"] == _LIFECYCLE)
    text = show(guest, "workload.service", "ExecMainStartTimestamp")
    at = dt.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f %Z").replace(tzinfo=dt.UTC)
    assert started["activity_name"] == "Start"
    assert started["time"] <= at.timestamp() * 1000


def test_run_is_not_root_and_has_only_the_needed_capabilities(guest: Machine) -> None:
    status = system.process(guest, _MACHINE)
    assert shell(guest, "id", "-u", "ocsf-nft") == status["Uid"].split()[1] != "0"
    assert system.capabilities(guest, _MACHINE) == {_NET_ADMIN, _SYSLOG, _PERFMON, _BPF}


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
    process = _until(lambda: captured(guest.ask("events"), INTERNET4))
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

    _until(is_started_again)
    _until(lambda: show(guest, _MACHINE, "StatusText") == f"watching {SANDBOX}")
    assert int(show(guest, _MACHINE, "NRestarts")) == restarts + 1
    # The unit that requires it continues.
    assert show(guest, "workload.service", "MainPID") == workload
    _until(lambda: not counter_mismatches(guest))
    stored = shell(
        guest, "ocsf-nft", "events", "--store", _STORE, "--lines", "0", "--format", "jsonl"
    )
    uids = [json.loads(line)["metadata"]["uid"] for line in stored.splitlines()]
    assert len(uids) == len(set(uids)) > 0
    assert {event["metadata"]["uid"] for event in guest.ask("events")} >= set(uids)


def test_refusals_are_reported_from_the_journal(
    guest: Machine, far: FarSide, judge: Callable[[Any], list[str]]
) -> None:
    for escape in ESCAPES:
        assert guest.ask("escape", escape.name)["refused"][escape.rule] > 0, escape.name
    assert guest.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    assert far.strays() == []
    # The kernel log has the protocol that an LLC frame's socket announced, not its length field.
    expected = {(escape.rule, escape.protocol) for escape in ESCAPES if "llc" not in escape.name}
    _until(lambda: expected <= refusals(guest.ask("events")))
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
    _until(lambda: _microseconds(guest, _MACHINE, "WatchdogTimestamp") > begun)


@pytest.mark.parametrize("unit", [_MACHINE, _HOST])
def test_exposure_of_a_unit_is_at_most_the_documented_one(guest: Machine, unit: str) -> None:
    assert system.exposure(guest, unit) <= system.documented_exposure()[unit]


def test_hosts_unit_is_ready_when_its_sandbox_is_fenced(host: Machine) -> None:
    assert show(host, _HOST, "StatusText") == f"watching {AGENT}"
    assert _verdict(host) == _ACTIVE
    # It drops the capabilities that this configuration does not need.
    of_namespaces = {_NET_ADMIN, _SYS_ADMIN, _SYS_PTRACE}
    assert system.capabilities(host, _HOST) == of_namespaces | {_PERFMON, _BPF}
    assert system.process(host, _HOST)["Uid"].split()[1] != "0"


def test_hosts_unit_delivers_over_http_with_a_secret_of_the_credential_store(
    host: Machine,
) -> None:
    assert _connect(host, "203.0.113.40") == "ConnectionRefusedError"
    event = _until(lambda: _event_to(_received(host), "203.0.113.40"))
    assert event["unmapped"]["sandbox"] == AGENT
    # From the record. In another namespace only CAP_SYS_ADMIN allows to read it.
    assert event["src_endpoint"]["port"]


def test_hosts_unit_names_a_process_of_its_sandbox_and_hashes_its_program(
    host: Machine,
) -> None:
    shell(host, *_IN_SANDBOX, _PYTHON, "-c", _STAY_PROGRAM, "203.0.113.44")
    process = _until(lambda: captured(_received(host), "203.0.113.44"))
    assert process["path"] == _PYTHON
    assert "203.0.113.44" in process["cmd_line"]
    program = Path(_PYTHON).read_bytes()
    hashes = {each["algorithm"]: each["value"] for each in process["file"]["hashes"]}
    assert hashes["SHA-256"] == hashlib.sha256(program).hexdigest()


def test_reload_adds_a_sink_and_refuses_a_wrong_configuration(host: Machine) -> None:
    before = show(host, _HOST, "MainPID")
    host.ask("write", CONFIG, f"sinks = 1\n{system.HOST_CONFIG}")
    reloaded = host.ask("shell", "systemctl", "reload", _HOST)
    assert reloaded["code"] != 0
    second = "/var/log/ocsf-nft/second.jsonl"
    host.ask("write", CONFIG, f'{system.HOST_CONFIG}\n[[sink]]\npath = "{second}"\n')
    shell(host, "systemctl", "reload", _HOST)
    _until(lambda: host.ask("shell", "test", "-e", second)["code"] == 0)
    _connect(host, "203.0.113.41")
    _until(lambda: _event_to(host.ask("events", second), "203.0.113.41"))
    assert show(host, _HOST, "MainPID") == before
    assert show(host, _HOST, "ActiveState") == "active"


def test_hung_run_is_killed_and_restarted_while_its_fence_remains_active(host: Machine) -> None:
    before = show(host, _HOST, "MainPID")
    shell(host, "kill", "-s", "STOP", before)
    _until(lambda: show(host, _HOST, "MainPID") not in {before, "0"})
    assert _connect(host, "203.0.113.42") == "ConnectionRefusedError"
    _until(lambda: _event_to(_received(host), "203.0.113.42"))


def test_fence_is_removed_by_the_run_that_installed_it_and_by_no_later_run(host: Machine) -> None:
    shell(host, "systemctl", "stop", _HOST)
    # The fence still exists if a run was killed before.
    assert host.ask("shell", "ocsf-nft", "remove", *_WHERE)["code"] in {_ACTIVE, _ABSENT}
    shell(host, "systemctl", "start", _HOST)
    shell(host, "systemctl", "stop", _HOST)
    assert _verdict(host) == _ABSENT
    shell(host, "systemctl", "start", _HOST)
    before = show(host, _HOST, "MainPID")
    shell(host, "kill", "-s", "KILL", before)
    _until(lambda: show(host, _HOST, "MainPID") not in {before, "0"})
    _until(lambda: show(host, _HOST, "ActiveState") == "active")
    shell(host, "systemctl", "stop", _HOST)
    assert _verdict(host) == _ACTIVE


def test_unit_works_with_a_dynamic_user_but_only_that_user_reads_its_events(
    host: Machine,
) -> None:
    shell(host, "systemctl", "stop", _HOST)
    drop_in = f"/etc/systemd/system/{_HOST}.d/dynamic.conf"
    host.ask("write", drop_in, system.DYNAMIC)
    host.ask("write", CONFIG, system.DYNAMIC_CONFIG)
    shell(host, "systemctl", "daemon-reload")
    shell(host, "systemctl", "start", _HOST)
    assert _connect(host, "203.0.113.43") == "ConnectionRefusedError"
    _until(lambda: _event_to(_received(host), "203.0.113.43"))
    user, group = system.process(host, _HOST)["Uid"].split()[0], system.process(host, _HOST)["Gid"]
    assert int(user) > 60_000  # systemd's own range
    path = shell(host, "readlink", "-f", system.DYNAMIC_EVENTS)
    assert shell(host, "stat", "-c", "%u %a", path) == f"{user} 640"
    of_the_group = ("setpriv", "--reuid=1234", f"--regid={group.split()[0]}", "--clear-groups")
    printed = host.ask("shell", *of_the_group, "cat", path)
    assert "Permission denied" in printed["stderr"]


def _verdict(host: Machine) -> int:
    return int(host.ask("shell", "ocsf-nft", "verify", *_WHERE)["code"])


def _connect(host: Machine, address: str) -> str:
    """Attempt to get out of the sandbox; return the name of the error."""
    done = host.ask("shell", *_IN_SANDBOX, _PYTHON, "-c", _CONNECT_PROGRAM, address)
    return str(done["stderr"]).strip().splitlines()[-1].partition(":")[0]


def _received(host: Machine) -> list[Any]:
    requests = host.ask("events", RECEIVED)
    assert {request["authorization"] for request in requests} <= {f"Bearer {system.TOKEN}"}
    return [event for request in requests for event in request["events"]]


def _event_to(events: list[Any], address: str) -> Any:
    found = (event for event in events if event.get("dst_endpoint", {}).get("ip") == address)
    return next(found, None)
