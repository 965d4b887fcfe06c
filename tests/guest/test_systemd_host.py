"""A complete system whose unit for hosts watches a sandbox in its own namespace."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.guest import system
from tests.guest.conftest import captured
from tests.guest.system import AGENT, CONFIG, RECEIVED, shell, show, until

if TYPE_CHECKING:
    from tests.guest.conftest import CompleteSystem
    from tests.guest.machine import Machine

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]

_HOST = "ocsf-nft-host.service"
_ACTIVITY = 4001  # Network Activity
_SURROUNDINGS = "surroundings-changed"
_ACTIVE = 0  # exit code of `verify`
_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN = 12, 19, 21
_IN_SANDBOX = ("nsenter", f"--net=/run/netns/{AGENT}")
#: With the namespace, in case there is no record: the machine's own namespace has another fence.
_WHERE = ("--sandbox", AGENT, "--netns", AGENT)
_CONNECT_PROGRAM = "import socket, sys; socket.create_connection((sys.argv[1], 443), timeout=300)"
#: The same in the background, again and again, with a new flow each time.
_STAY_PROGRAM = """
import itertools, os, socket, sys, time
if os.fork():
    os._exit(0)
for port in itertools.count(443):
    try:
        socket.create_connection((sys.argv[1], port), timeout=300)
    except ConnectionRefusedError:
        time.sleep(5)
"""
#: Holds the NFLOG group of the sandbox in the background.
_SQUAT_PROGRAM = """
import os, socket, struct, time
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
payload = struct.pack(">BBH", 0, 0, 4001) + struct.pack("=HHB3x", 5, 1, 1)
sock.send(struct.pack("=IHHII", 16 + len(payload), 0x401, 5, 0, 0) + payload)
assert struct.unpack_from("=i", sock.recv(4096), 16) == (0,)
if os.fork():
    os._exit(0)
time.sleep(3600)
"""
_PYTHON = str(Path(sys.executable).resolve())


@pytest.fixture(scope="module")
def host(complete_system: CompleteSystem) -> Machine:
    """Return a system with a sandbox in its own namespace that the host's unit watches."""
    guest = complete_system.guest
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


def test_hosts_unit_is_ready_when_its_sandbox_is_fenced(host: Machine) -> None:
    assert show(host, _HOST, "StatusText") == f"watching {AGENT}"
    assert _verdict(host) == _ACTIVE
    # It drops the capabilities that this configuration does not need, or only at the start.
    assert system.capabilities(host, _HOST) == {_NET_ADMIN, _SYS_ADMIN, _SYS_PTRACE}
    assert system.process(host, _HOST)["Uid"].split()[1] != "0"


def test_hosts_unit_delivers_over_http_with_a_secret_of_the_credential_store(
    host: Machine,
) -> None:
    assert _connect(host, "203.0.113.40") == "ConnectionRefusedError"
    event = until(lambda: _event_to(_received(host), "203.0.113.40"))
    assert event["unmapped"]["sandbox"] == AGENT
    # From the record. In another namespace only CAP_SYS_ADMIN allows to read it.
    assert event["src_endpoint"]["port"]


def test_hosts_unit_names_a_process_of_its_sandbox_and_hashes_its_program(
    host: Machine,
) -> None:
    shell(host, *_IN_SANDBOX, _PYTHON, "-c", _STAY_PROGRAM, "203.0.113.44")
    # A busy machine may hash the program too late for the first event.
    process = until(lambda: _hashed(_received(host), "203.0.113.44"))
    assert host.ask("terminate", "203.0.113.44") == 1
    assert process["path"] == _PYTHON
    assert "203.0.113.44" in process["cmd_line"]
    program = Path(_PYTHON).read_bytes()
    hashes = {each["algorithm"]: each["value"] for each in process["file"]["hashes"]}
    assert hashes["SHA-256"] == hashlib.sha256(program).hexdigest()


def test_hosts_unit_undoes_a_weakened_sysctl_of_its_sandbox(host: Machine) -> None:
    assert system.writable_sysctls(host, _HOST) == {"/proc/sys/net"}
    path = "/proc/sys/net/ipv4/conf/all/route_localnet"
    shell(host, *_IN_SANDBOX, "busybox", "sh", "-c", f"echo 1 >{path}")
    until(lambda: shell(host, *_IN_SANDBOX, "cat", path) == "0")
    (event,) = until(
        lambda: [each for each in _received(host) if _SURROUNDINGS in each["metadata"].values()]
    )
    assert event["status_detail"].startswith("undone ")


def test_reload_adds_a_sink_and_refuses_a_wrong_configuration(host: Machine) -> None:
    before = show(host, _HOST, "MainPID")
    host.ask("write", CONFIG, f"sinks = 1\n{system.HOST_CONFIG}")
    reloaded = host.ask("shell", "systemctl", "reload", _HOST)
    assert reloaded["code"] != 0
    second = "/var/log/ocsf-nft/second.jsonl"
    host.ask("write", CONFIG, f'{system.HOST_CONFIG}\n[[sink]]\npath = "{second}"\n')
    shell(host, "systemctl", "reload", _HOST)
    until(lambda: host.ask("shell", "test", "-e", second)["code"] == 0)
    _connect(host, "203.0.113.41")
    until(lambda: _event_to(host.ask("events", second), "203.0.113.41"))
    assert show(host, _HOST, "MainPID") == before
    assert show(host, _HOST, "ActiveState") == "active"


def test_fence_is_removed_by_the_run_that_installed_it(host: Machine) -> None:
    # No run was killed before: the present one has installed it.
    assert "ocsf_nft" in shell(host, *_IN_SANDBOX, "nft", "list", "tables")
    shell(host, "systemctl", "stop", _HOST)
    assert not shell(host, *_IN_SANDBOX, "nft", "list", "tables")


def test_hosts_unit_reads_another_group_if_a_program_has_taken_its_own(host: Machine) -> None:
    shell(host, "systemctl", "stop", _HOST)
    shell(host, *_IN_SANDBOX, _PYTHON, "-c", _SQUAT_PROGRAM, "squatter")
    shell(host, "systemctl", "start", _HOST)
    until(
        lambda: [each for each in _received(host) if "log-group-taken" in each["metadata"].values()]
    )
    assert _connect(host, "203.0.113.46") == "ConnectionRefusedError"
    event = until(lambda: _event_to(_received(host), "203.0.113.46"))
    assert event["metadata"]["log_format"] == "nfnetlink_log"
    assert host.ask("terminate", "squatter") == 1


def test_hung_run_is_killed_and_restarted_while_its_fence_remains_active(host: Machine) -> None:
    before = show(host, _HOST, "MainPID")
    directory = _number_of_runtime_directory(host)
    shell(host, "kill", "-s", "STOP", before)
    until(lambda: show(host, _HOST, "MainPID") not in {before, "0"})
    # It may be a mount of a container.
    assert _number_of_runtime_directory(host) == directory
    assert _connect(host, "203.0.113.42") == "ConnectionRefusedError"
    until(lambda: _event_to(_received(host), "203.0.113.42"))


def test_fence_is_removed_by_no_later_run(host: Machine) -> None:
    before = show(host, _HOST, "MainPID")
    shell(host, "kill", "-s", "KILL", before)
    until(lambda: show(host, _HOST, "MainPID") not in {before, "0"})
    until(lambda: show(host, _HOST, "ActiveState") == "active")
    shell(host, "systemctl", "stop", _HOST)
    assert _verdict(host) == _ACTIVE


def test_unit_without_drop_ins_captures_processes_and_writes_a_local_file(host: Machine) -> None:
    shell(host, "systemctl", "stop", _HOST)
    moved = [f"/etc/systemd/system/{_HOST}.d/{name}" for name in system.HOST_DROP_INS]
    for path in moved:
        host.ask("move", path, f"{path}.away")
    host.ask("write", CONFIG, system.LOCAL_CONFIG)
    shell(host, "systemctl", "daemon-reload")
    shell(host, "systemctl", "start", _HOST)
    assert system.capabilities(host, _HOST) == {_NET_ADMIN, _SYS_ADMIN}
    assert _connect(host, "203.0.113.45") == "ConnectionRefusedError"
    process = until(lambda: captured(host.ask("events", system.LOCAL_EVENTS), "203.0.113.45"))
    assert process["path"] == _PYTHON
    # The unit sees no files but those it needs.
    seen = shell(host, "ls", f"/proc/{show(host, _HOST, 'MainPID')}/root/").split()
    assert not {"home", "srv", "mnt", "boot"} & set(seen)
    shell(host, "systemctl", "stop", _HOST)
    for path in moved:
        host.ask("move", f"{path}.away", path)


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
    until(lambda: _event_to(_received(host), "203.0.113.43"))
    user, group = system.process(host, _HOST)["Uid"].split()[0], system.process(host, _HOST)["Gid"]
    assert int(user) > 60_000  # systemd's own range
    path = shell(host, "readlink", "-f", system.DYNAMIC_EVENTS)
    assert shell(host, "stat", "-c", "%u %a", path) == f"{user} 640"
    of_the_group = ("setpriv", "--reuid=1234", f"--regid={group.split()[0]}", "--clear-groups")
    printed = host.ask("shell", *of_the_group, "cat", path)
    assert "Permission denied" in printed["stderr"]


def _number_of_runtime_directory(host: Machine) -> str:
    return shell(host, "stat", "-c", "%i", "/run/ocsf-nft")


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


def _hashed(events: list[Any], address: str) -> dict[str, Any] | None:
    """Return the captured process of an attempt whose event has the hashes of its program."""
    found = (captured([event], address) for event in events if event["class_uid"] == _ACTIVITY)
    return next((each for each in found if each and each["file"].get("hashes")), None)


def _event_to(events: list[Any], address: str) -> Any:
    found = (event for event in events if event.get("dst_endpoint", {}).get("ip") == address)
    return next(found, None)
