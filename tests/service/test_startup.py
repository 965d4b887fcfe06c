"""Privileges of a service by its configuration and its phase."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
from structlog.testing import capture_logs

from ocsf_nft import config, privileges, seccomp
from ocsf_nft.attribution import fallback_chain
from ocsf_nft.attribution.fallback_chain import LoadedCapture
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.privileges import Capability
from ocsf_nft.service import startup

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_SANDBOX: Final[dict[str, Any]] = {
    "name": "a", "proxy": ["1.2.3.4:5"], "install": True, "transport": "nflog"
}  # fmt: skip
_VM: Final[dict[str, Any]] = {
    "name": "vm", "profile": "tap", "device": "vmtap-0", "subnet": ["172.16.0.0/30"],
    "gateway_port": 3128, "install": True, "transport": "nflog",
}  # fmt: skip
_SIDECAR: Final = _SANDBOX | {"profile": "sidecar", "proxy": [], "proxy_uid": [1337]}


def _parsed(**given: Any) -> config.Config:
    return config.parse({"sandbox": [_SANDBOX]} | given, where="test")


@pytest.mark.parametrize(
    ("release", "is_so"),
    [
        ("5.18.0-1-amd64", False), ("5.19.0", True), ("6.1.0-13-cloud-amd64", True),
        ("4.19", False), ("10.0", True), ("6-custom", True), ("unknown", False),
    ],
)  # fmt: skip
def test_newer_kernels_change_maps_without_privilege(release: str, is_so: bool) -> None:
    assert startup._are_maps_open(release) is is_so


@pytest.mark.parametrize(
    ("given", "loads"),
    [
        ({}, True),
        ({"attribution": {"method": "socket"}}, False),
        ({"sandbox": [_VM]}, False),
        ({"sandbox": [], "control": "/run/control"}, True),
        ({"sandbox": [], "host_log": "journal"}, False),
    ],
)
def test_capture_is_loaded_only_if_a_sandbox_may_need_it(
    given: dict[str, Any], loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_chain, "load_capture", lambda: LoadedCapture(None, "a test"))
    monkeypatch.setattr(startup, "load_gate", lambda _: None)
    assert (startup.load_programs(_parsed(**given)).capture is not None) is loads


@pytest.mark.parametrize(
    ("given", "loads"),
    [
        ({}, True),
        ({"sandbox": [_VM]}, True),
        ({"sandbox": [_SIDECAR]}, False),
        ({"sandbox": [], "control": "/run/control"}, True),
    ],
)
def test_gate_is_loaded_only_if_a_fence_may_need_it(
    given: dict[str, Any], loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = SimpleNamespace()
    monkeypatch.setattr(startup, "Gate", lambda: made)
    assert (startup.load_gate(_parsed(**given)) is made) is loads


@pytest.mark.parametrize("source", ["journal", "kmsg"])
def test_journal_needs_no_capability_for_the_kernel_log(source: str) -> None:
    sandbox = {**_SANDBOX, "transport": "kmsg", "source": source}
    found = startup.capabilities(_parsed(sandbox=[sandbox]))
    assert (Capability.SYSLOG in found) is (source == "kmsg")


@pytest.mark.parametrize("is_old", [False, True])
def test_capabilities_for_bpf_are_dropped_after_the_start(
    is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_are_maps_open", lambda _: not is_old)
    of_bpf = {Capability.BPF, Capability.PERFMON}
    found = startup.running_capabilities(_parsed())
    assert found - of_bpf == {Capability.NET_ADMIN, Capability.SYS_PTRACE}
    assert (found & of_bpf) == (of_bpf if is_old else set())


def test_refused_filter_is_logged_and_the_service_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[AbstractSet[Capability]] = []
    monkeypatch.setattr(privileges, "keep_only", kept.append)
    outcomes: list[bool] = [False]

    def forbid(*, loads_bpf: bool) -> bool:
        assert not loads_bpf
        if outcomes:
            return outcomes.pop()
        raise UnsupportedError("the filter of system calls was refused: a test")

    monkeypatch.setattr(seccomp, "forbid_unneeded_calls", forbid)
    monkeypatch.setattr(startup, "_are_maps_open", lambda _: True)
    with capture_logs() as logs:
        startup.drop_privileges(_parsed())
        startup.drop_privileges(_parsed())
    assert [(each["log_level"], each["reason"]) for each in logs] == [
        ("info", seccomp.UNKNOWN),
        ("warning", "the filter of system calls was refused: a test"),
    ]
    assert kept == [{Capability.NET_ADMIN, Capability.SYS_PTRACE}] * 2


#: Prints the effective capabilities in each phase, also of a thread and of a child process, and
#: whether the capture still works.
_PHASES = """
import subprocess, sys, threading
from ocsf_nft import config, privileges
from ocsf_nft.attribution.bpf_capture import Capture
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.service import startup


def show(*_):
    for line in open("/proc/thread-self/status"):
        if line.startswith(("CapEff", "Seccomp:", "NoNewPrivs")):
            print(line.split()[1].lstrip("0") or "0", end=" ")
    print(flush=True)


found = config.parse({"control": "/run/x", "attribution": {"method": "capture"}}, where="test")
loaded = startup.load_programs(found).capture
show()
startup.drop_privileges(found)
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
subprocess.run(["grep", "-E", "^(CapEff|Seccomp:)", "/proc/self/status"], check=True)
if loaded.capture is None:
    sys.exit(print("no capture:", loaded.reason))
loaded.capture.watch(1)
loaded.capture.watch(2, is_permissive=True)
loaded.capture.unwatch(1)
loaded.capture.check()
print(*loaded.capture.dropped())
try:
    Capture()
except UnsupportedError as error:
    print(error)
"""


@pytest.mark.kernel
def test_phases_of_a_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PHASES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    start, running, thread, *rest = done.stdout.splitlines()
    # CAP_NET_ADMIN, _SYS_PTRACE, _SYS_ADMIN, _SYSLOG.
    kept = f"{1 << 12 | 1 << 19 | 1 << 21 | 1 << 34:x}"
    assert start.split()[1:] == ["0", "0"]
    assert int(start.split()[0], 16) & (1 << 38 | 1 << 39)
    assert running.split() == thread.split() == [kept, "1", "2"]
    assert rest[0].split()[1].lstrip("0") == kept
    assert rest[1].split()[1] == "2"
    assert rest[2] == "0 0", "the capture works without its capabilities"
    assert "refuses the BPF programs (Operation not permitted)" in rest[3]
