"""A program in a sandbox that takes the NFLOG group of its fence while no service runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import Namespace, named
from ocsf_nft.privileges import Capability
from ocsf_nft.service import log_groups
from ocsf_nft.sources.nflog import GroupTakenError, group_binding, is_held
from ocsf_nft.sources.nflog.group_binding import CALM
from tests.kernel import accounts, command, namespaces, written
from tests.kernel.conftest import nft
from tests.kernel.serving import connect_to, sandbox, serving, until
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_GROUP = 4001
_USER = 1234
#: Capabilities of the units, which can't read the kernel's table of groups.
_OF_THE_UNITS: frozenset[int] = frozenset({Capability.NET_ADMIN, Capability.SYS_ADMIN})
_AS_ROOT_WITH_THEM = (
    *("setpriv", "--inh-caps=-all", "--no-new-privs"),
    "--bounding-set=-all,+net_admin,+sys_admin",
)
#: Holds the group with a netlink port that is the pid of another process: it may choose any.
_SQUATTER = f"""
import socket, struct, sys
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((int(sys.argv[1]), 0))
payload = struct.pack(">BBH", 0, 0, {_GROUP}) + struct.pack("=HHB3x", 5, 1, 1)
sock.send(struct.pack("=IHHII", 16 + len(payload), 0x401, 5, 0, 0) + payload)
assert struct.unpack_from("=i", sock.recv(4096), 16) == (0,)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _squatter(name: str, port: int = 0) -> Iterator[int]:
    """Hold the group in a namespace by another program; yield its pid."""
    command = ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-c", _SQUATTER, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()


@pytest.mark.parametrize("exclusive", [False, True])
async def test_group_of_a_squatter_is_replaced_and_reported(
    made: tuple[str, ...], tmp_path: Path, *, exclusive: bool
) -> None:
    name = made[0]
    config = sandbox(name, exclusive=exclusive)
    async with serving(tmp_path) as served:
        await served.service.put(config)
        assert await connect_to(name, 443) == {443: "refused"}
    innocent = 1
    with _squatter(name, innocent) as pid:
        assert await connect_to(name, 444) == {444: "refused"}, "its records go to the squatter"
        async with serving(tmp_path) as served:
            event = await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken"
            )
            await until(lambda: served.service.view(name).state == "active")
            group = _group_of(tmp_path, name)
            assert group != _GROUP
            assert named(name).call(group_binding._holders)[_GROUP] == innocent
            assert await connect_to(name, 445) == {445: "refused"}
            await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 445
            )
            # A changed policy, and its fence, stay with the group whose records are read.
            await served.service.put(sandbox(name, exclusive=exclusive, allow=["tcp:192.0.2.1:1"]))
            assert _group_of(tmp_path, name) == group
            assert await connect_to(name, 446) == {446: "refused"}
            recorded = await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 446
            )
            finding = await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken-finding"
            )
            status = await served.service.release(name)
    assert recorded["metadata"]["log_format"] == "nfnetlink_log"
    assert f"(pid {pid})" in event["message"]
    assert event["severity"] == "High"
    assert finding["evidences"][0]["process"]["pid"] == pid
    assert served.attempts(name) == {444: 1, 445: 1, 446: 1}
    assert all(each.counter_mismatch == 0 for each in status.balances)


async def test_fence_of_another_program_gets_another_group(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name = made[0]
    config = sandbox(name, install=False)
    spec = sandbox(name).spec()
    installer.install(spec, named(name), StateDirectory(tmp_path), "nflog")
    assert await connect_to(name, 443) == {443: "refused"}
    with _squatter(name):
        async with serving(tmp_path, config) as served:
            await served.wait_for(
                lambda each: each["metadata"].get("event_code") == "log-group-taken"
            )
            assert await connect_to(name, 445) == {445: "refused"}
            await served.wait_for(
                lambda each: each["class_uid"] == 4001 and each["dst_endpoint"]["port"] == 445
            )
            group = _group_of(tmp_path, name)
    assert group != _GROUP
    assert f"group {group} " in nft(named(name), "list", "ruleset")
    assert f"group {_GROUP} " not in nft(named(name), "list", "ruleset")
    assert served.attempts(name) == {443: 1, 445: 1}


def test_other_group_is_free_and_not_predictable(made: tuple[str, ...]) -> None:
    with _squatter(made[0]):
        found = {log_groups.other_group([named(made[0])]) for _ in range(20)}
    assert len(found) > 15
    assert all(1024 <= each <= 65535 and each != _GROUP for each in found)


def test_group_is_held_only_by_a_socket_of_the_same_namespace(made: tuple[str, ...]) -> None:
    with _squatter(made[0]):
        assert named(made[0]).call(partial(is_held, _GROUP))
        assert not named(made[0]).call(partial(is_held, _GROUP + 1))
        assert not named(made[1]).call(partial(is_held, _GROUP))


def test_taken_group_is_known_to_a_user_who_cannot_read_the_table(made: tuple[str, ...]) -> None:
    def bind() -> GroupTakenError:
        assert group_binding._holders() == {}
        with pytest.raises(GroupTakenError) as raised:
            group_binding.bind(_GROUP, CALM)
        sock, _ = group_binding.bind(_GROUP + 1, CALM)
        sock.close()
        assert not is_held(log_groups.other_group([Namespace()]))
        return raised.value

    with _squatter(made[0]):
        taken = named(made[0]).call(as_user(_USER, bind, capabilities=_OF_THE_UNITS))
    assert (taken.group, taken.port_id) == (_GROUP, None)
    assert log_groups.holder_of(named(made[0]), taken) is None


def test_binding_without_the_capability_finds_no_taken_group(made: tuple[str, ...]) -> None:
    def bind() -> None:
        with pytest.raises(UnsupportedError, match="needs CAP_NET_ADMIN"):
            group_binding.bind(_GROUP, CALM)

    with _squatter(made[0]):
        named(made[0]).call(as_user(_USER, bind, capabilities=frozenset()))


def test_random_group_is_free_though_most_groups_are_taken_and_the_table_is_unreadable(
    made: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_groups, "_FIRST_GROUP", _GROUP)
    monkeypatch.setattr(log_groups, "_LAST_GROUP", _GROUP + 1)
    find = partial(log_groups.other_group, [Namespace()])
    with _squatter(made[0]):
        as_unit = as_user(_USER, find, capabilities=_OF_THE_UNITS)
        found = {named(made[0]).call(as_unit) for _ in range(20)}
    assert found == {_GROUP + 1}


def test_group_in_a_namespace_of_another_user_namespace_is_replaced(
    state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with _rootless() as name:
        options = (
            *("--sandbox", name, "--netns", name, "--proxy", namespaces.PROXY, "--install"),
            *("--state-dir", str(state.path), "--output", str(output)),
        )
        with (
            _squatter(name),
            command.running(*options, under=_AS_ROOT_WITH_THEM) as running,
        ):
            accounts.until(lambda: bool(_with_code(output, "log-group-taken-finding")))
            assert _group_of(state.path, name) != _GROUP
            assert namespaces.connect(name, 445) == {445: "refused"}
            assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = _with_code(output, "log-group-taken")
    assert "is held by another program" in event["message"]
    attempts = [each for each in written.events(output) if each["class_uid"] == 4001]
    # From a record: the kernel's counters alone would give another format.
    assert "nfnetlink_log" in {each["metadata"]["log_format"] for each in attempts}


@contextlib.contextmanager
def _rootless() -> Iterator[str]:
    """Yield the name of a network namespace that belongs to another user namespace."""
    mapped = ("--map-users=0:100000:65536", "--map-groups=0:100000:65536")
    # Two calls: root of a user namespace without a map would not own the table of groups.
    maker = ["unshare", "-U", *mapped, "--setuid=0", "--setgid=0", "unshare", "-n", "cat"]
    with namespaces.names(1) as (name,):
        path = Path("/run/netns", name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with subprocess.Popen(maker, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"ready\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
            made = f"/proc/{process.pid}/ns/net"
            subprocess.run(["mount", "--bind", made, path], check=True)
            process.stdin.close()
        namespaces.furnish(name)
        yield name


def _with_code(output: Path, code: str) -> list[dict[str, Any]]:
    return [each for each in written.so_far(output) if each["metadata"].get("event_code") == code]


def _group_of(state: Path, name: str) -> int:
    record = StateDirectory(state).read(name)
    assert record is not None
    return record.spec.group
