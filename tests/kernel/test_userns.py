"""Sandbox in a separate user namespace, monitored from outside (rootless containers)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft import userns
from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.flow import Count, Element, RuleReading, map_uids
from ocsf_nft.lab import set_sysctls
from ocsf_nft.netns import Namespace, of_process
from ocsf_nft.userns import UserIdMap
from tests.kernel import attempts, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory

pytestmark = pytest.mark.kernel

_FIRST = 100_000
_USER = 5
_LINK = """
link set lo up
link add a0 type veth peer name a1
link set a0 up
link set a1 up
address add 10.9.0.2/24 dev a0
route add default via 10.9.0.1
"""


@pytest.fixture
def rootless() -> Iterator[int]:
    """Start a process in separate namespaces, whose user ids begin at our 100,000."""
    mapped = (f"--map-users=0:{_FIRST}:65536", f"--map-groups=0:{_FIRST}:65536")
    with _living(["unshare", "-U", "-n", *mapped, "cat"]) as pid:
        yield pid


def test_users_of_a_rootless_sandbox_have_our_ids_and_each_packet_counts_once(
    rootless: int, state: StateDirectory, tmp_path: Path
) -> None:
    namespace = of_process(rootless)
    namespace.call(
        lambda: subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
    )
    spec = FenceSpec(sandbox="rootless", proxies=(endpoint("10.9.0.1:3128"),))
    installer.install(spec, namespace, state, "nflog")
    output = tmp_path / "events.jsonl"
    where = ("--state-dir", str(state.path))
    inside = ["nsenter", "-t", str(rootless), "-U", "-n", "-S", str(_USER)]
    with (
        Path(attempts.__file__).open("rb") as program,
        command.running("--sandbox", "rootless", *where, "--output", str(output)) as running,
    ):
        flood = [*inside, "/usr/bin/python3", "-I", "-", "100", "flood"]
        subprocess.run(flood, stdin=program, check=True)
        assert running.stop(signal.SIGTERM)[0] == 0
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    by_user = [event for event in events if "actor" in event and event["class_uid"] == 4001]
    assert {event["actor"]["user"]["uid"] for event in by_user} == {str(_FIRST + _USER)}
    assert sum(event["count"] for event in by_user) == 100
    assert command.run("status", *where).code == 0


def test_users_of_our_namespace_are_not_mapped(rootless: int) -> None:
    assert userns.user_id_map() is None
    assert Namespace().call(userns.user_id_map) is None
    assert of_process(rootless).call(userns.user_id_map) == UserIdMap(((0, _FIRST, 65536),))


def test_user_lookup_starts_no_process_that_root_of_the_sandbox_could_control(
    rootless: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    assert of_process(rootless).call(userns.user_id_map) == UserIdMap(((0, _FIRST, 65536),))


def test_users_of_a_namespace_without_processes_have_no_id_here(
    rootless: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(userns, "_PROC", tmp_path)
    (tmp_path / "1").mkdir()
    found = of_process(rootless).call(userns.user_id_map)
    assert found is not None
    assert found.to_local(_USER) == 65534


def test_users_without_an_id_here_share_one_and_the_invalid_id_stays() -> None:
    users = UserIdMap(((0, 1000, 2), (2, 5000, 1)))
    assert [users.to_local(uid) for uid in (0, 1, 2, 3, 99)] == [1000, 1001, 5000, 65534, 65534]
    rest = b"rest of the key"
    no_user = 0xFFFFFFFF

    def element(uid: int, packets: int, idle_ms: int) -> Element:
        return Element(uid.to_bytes(4, sys.byteorder) + rest, packets, packets * 10, idle_ms)

    reading = RuleReading(
        refused_before=Count(),
        refused=Count(),
        overflow=Count(),
        elements={"flows4": [element(3, 1, 50), element(99, 2, 40), element(no_user, 4, 30)]},
    )
    assert map_uids(reading, users.to_local).elements == {
        "flows4": (element(65534, 3, 40), element(no_user, 4, 30))
    }


def test_run_on_a_named_namespace_can_read_the_user_ids_of_another_user(
    state: StateDirectory, tmp_path: Path
) -> None:
    name, output = tmp_path / "netns", tmp_path / "events.jsonl"
    name.touch()
    owner = ["setpriv", f"--reuid={_FIRST}", f"--regid={_FIRST}", "--clear-groups"]
    with (
        _living([*owner, "unshare", "-U", "-r", "-n", "cat"]) as pid,
        _bound(name, pid),
        Path(attempts.__file__).open("rb") as program,
        command.running(
            *("--sandbox", "named", "--netns", str(name), "--proxy", "10.9.0.1:3128"),
            *("--install", "--state-dir", str(state.path), "--output", str(output)),
        ) as running,
    ):
        inside = ["nsenter", "-t", str(pid), "-U", "-n", "-S", "0", "-G", "0"]
        flood = [*inside, "/usr/bin/python3", "-I", "-", "100", "flood"]
        subprocess.run(flood, stdin=program, check=True)
        assert running.stop(signal.SIGTERM)[0] == 0
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    by_user = [event for event in events if "actor" in event and event["class_uid"] == 4001]
    assert {event["actor"]["user"]["uid"] for event in by_user} == {str(_FIRST)}
    assert sum(event["count"] for event in by_user) == 100


@contextlib.contextmanager
def _living(command_line: list[str]) -> Iterator[int]:
    """Run a process that ends in ``cat``; yield its pid when ``cat`` runs."""
    with subprocess.Popen(
        command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready")
        assert process.stdout.read(5) == b"ready"
        of_process(process.pid).call(set_sysctls)
        yield process.pid
        process.stdin.close()


@contextlib.contextmanager
def _bound(name: Path, pid: int) -> Iterator[None]:
    """Bind a process's network namespace to a name, and add a link to it."""
    subprocess.run(["mount", "--bind", f"/proc/{pid}/ns/net", name], check=True)
    try:
        of_process(pid).call(
            lambda: subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
        )
        yield
    finally:
        subprocess.run(["umount", name], check=True)
