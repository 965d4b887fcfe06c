"""A sandbox in a user namespace of its own, watched from outside of it (rootless containers)."""

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
from ocsf_nft.flow import Count, Element, RuleReading, renumbered
from ocsf_nft.lab import set_sysctls
from ocsf_nft.netns import Namespace, of_process
from ocsf_nft.userns import Users
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
    """A process in namespaces of its own, where users count from 100,000 of ours."""
    mapped = (f"--map-users=0:{_FIRST}:65536", f"--map-groups=0:{_FIRST}:65536")
    with _living(["unshare", "-U", "-n", *mapped, "cat"]) as pid:
        yield pid


def test_users_of_a_rootless_sandbox_are_told_by_our_numbers_and_each_packet_once(
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


def test_users_of_our_own_are_not_renumbered(rootless: int) -> None:
    assert userns.users() is None
    assert Namespace().call(userns.users) is None
    assert of_process(rootless).call(userns.users) == Users(((0, _FIRST, 65536),))


def test_no_process_of_ours_enters_where_root_of_the_sandbox_could_take_it_over(
    rootless: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    assert of_process(rootless).call(userns.users) == Users(((0, _FIRST, 65536),))


def test_users_of_a_namespace_that_nobody_lives_in_have_no_number_here(
    rootless: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(userns, "_PROC", tmp_path)
    (tmp_path / "1").mkdir()
    found = of_process(rootless).call(userns.users)
    assert found is not None
    assert found.here(_USER) == 65534


def test_users_without_a_number_here_share_one_and_nobody_stays_nobody() -> None:
    users = Users(((0, 1000, 2), (2, 5000, 1)))
    assert [users.here(uid) for uid in (0, 1, 2, 3, 99)] == [1000, 1001, 5000, 65534, 65534]
    rest = b"rest of the key"
    nobody = 0xFFFFFFFF

    def element(uid: int, packets: int, idle_ms: int) -> Element:
        return Element(uid.to_bytes(4, sys.byteorder) + rest, packets, packets * 10, idle_ms)

    reading = RuleReading(
        refused_before=Count(),
        refused=Count(),
        overflow=Count(),
        elements={"flows4": [element(3, 1, 50), element(99, 2, 40), element(nobody, 4, 30)]},
    )
    assert renumbered(reading, users.here).elements == {
        "flows4": (element(65534, 3, 40), element(nobody, 4, 30))
    }


def test_a_run_on_the_name_of_a_namespace_may_look_how_another_users_users_are_numbered(
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
    """A process that ends in ``cat``, once it does."""
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
    """A process's network namespace, with a link, under a name."""
    subprocess.run(["mount", "--bind", f"/proc/{pid}/ns/net", name], check=True)
    try:
        of_process(pid).call(
            lambda: subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
        )
        yield
    finally:
        subprocess.run(["umount", name], check=True)
