"""Inventory of real network namespaces; other programs of the host may have more of them."""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft import inventory, namespace_names, namespace_processes, netns, proc
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import nft, table_query
from ocsf_nft.inventory import NamespaceProcess, UnfencedNamespace, find_unfenced
from ocsf_nft.lab import new_namespace
from ocsf_nft.namespace_names import find_names
from ocsf_nft.namespace_processes import ProcessScan
from ocsf_nft.netns import Namespace
from ocsf_nft.process import Container
from tests.descriptors import open_descriptors
from tests.kernel.processes import isolated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_NAME = b"a\n\x1b[1m\xff b"
_RENAMED = f"open('/proc/self/comm', 'wb').write({_NAME!r}); print(flush=True); input()"
_CHILDREN = """
import os, sys
for _ in range(24):
    if os.fork() == 0:
        break
else:
    print(flush=True)
sys.stdin.read()
"""
_THREAD = """
import ctypes, sys, threading
def enter():
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    print(flush=True)
    sys.stdin.read()
threading.Thread(target=enter).start()
"""


@pytest.fixture
def named() -> Iterator[Namespace]:
    with new_namespace(f"ocsf-nft-{secrets.token_hex(3)}-list") as made:
        yield made


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Create an empty file with a strange name; remove the mounts on it at the end."""
    path = tmp_path / "a b\n\\040\udcff"
    path.touch()
    yield path
    while subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0:
        pass


def _entry(
    identity: str, state: StateDirectory | None = None, timeout_s: float = 60
) -> UnfencedNamespace | None:
    found = find_unfenced(state, timeout_s=timeout_s).namespaces
    return next((each for each in found if each.identity == identity), None)


def test_name_without_a_fence_is_listed(named: Namespace) -> None:
    assert named.path is not None
    assert _entry(named.identity()) == UnfencedNamespace(
        identity=named.identity(),
        paths=(named.path,),
        processes=(),
        process_count=0,
        containers=(),
        verdict="unfenced",
        reason="it has no table inet ocsf_nft",
    )


def test_process_without_a_fence_is_listed_with_its_own_name() -> None:
    before = open_descriptors(collect=True)
    with isolated(sys.executable, "-I", "-c", _RENAMED) as process:
        found = _entry(netns.of_process(process.pid).identity())
        assert found is not None
        name = _NAME.decode("utf-8", "surrogateescape")
        assert found.processes == (NamespaceProcess(pid=process.pid, name=name),)
        assert (found.process_count, found.paths, found.verdict) == (1, (), "unfenced")
        assert process.stdin is not None
        process.stdin.write(b"\n")
    assert open_descriptors() == before


def test_thread_without_a_fence_is_listed_with_its_process() -> None:
    with isolated(sys.executable, "-I", "-c", _THREAD) as process:
        threads = (int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir())
        thread = next(thread for thread in threads if thread != process.pid)
        file = namespace_processes.thread_file(process.pid, thread)
        found = _entry(Namespace(file).identity())
        assert found is not None
        assert found.verdict == "unfenced"
        assert [each.pid for each in found.processes] == [process.pid]
        assert found.processes[0].name is not None


def test_fenced_namespaces_and_those_of_the_host_are_not_listed(
    fenced: Lab, state: StateDirectory
) -> None:
    fence, gateway = fenced.sandbox_namespace.identity(), fenced.gateway_namespace.identity()
    for where in (None, state):
        found = find_unfenced(where, timeout_s=60).namespaces
        identities = [each.identity for each in found]
        assert gateway in identities
        assert fence not in identities
        assert netns.HOST.identity() not in identities
        assert identities == sorted(identities, key=inventory._numbers)


@pytest.mark.parametrize("owner", ["", "fence of sandbox lab", "fence of sandbox ../lab"])
def test_table_that_another_program_made_is_no_fence_on_record(
    fenced: Lab, state: StateDirectory, owner: str
) -> None:
    """Also with the name of a sandbox that has a fence in another namespace."""
    table = f'table inet ocsf_nft {{ comment "{owner}"; }}' if owner else "table inet ocsf_nft"
    nft.load(fenced.gateway_namespace, table)
    identity = fenced.gateway_namespace.identity()
    assert _entry(identity) is None
    found = _entry(identity, state)
    assert found is not None
    assert found.verdict == "unrecorded"
    assert found.reason == (f"{state.path} has no record of the fence of its table inet ocsf_nft")


def test_fence_of_a_vm_does_not_enclose_the_namespace(named: Namespace) -> None:
    nft.load(named, "table inet ocsf_nft_tap0")
    found = _entry(named.identity())
    assert found is not None
    assert found.verdict == "unfenced"


def test_containers_of_the_processes_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = proc.read
    content = f"0::/system.slice/docker-{'5' * 64}.scope\n".encode()
    monkeypatch.setattr(
        proc, "read", lambda path, at: content if path == "cgroup" else read(path, at)
    )
    with isolated(sys.executable, "-I", "-c", _CHILDREN) as process:
        found = _entry(netns.of_process(process.pid).identity())
    assert found is not None
    assert found.containers == (Container(uid="5" * 64, runtime="docker"),)
    assert len(found.processes) == 20
    assert found.process_count == 25


def test_name_of_a_process_is_known_without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    read = proc.read

    def read_or_fail(path: str, at: int) -> bytes:
        if path == "cgroup":
            raise FileNotFoundError
        return read(path, at)

    monkeypatch.setattr(proc, "read", read_or_fail)
    with isolated() as process:
        found = _entry(netns.of_process(process.pid).identity())
    assert found is not None
    assert [each.name for each in found.processes] == ["cat"]


def test_process_that_left_the_namespace_has_no_details(
    named: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = os.getpid()
    scan = ProcessScan(threads={named.identity(): {ours: ours}}, gaps=())
    monkeypatch.setattr(namespace_processes, "scan", lambda **_: scan)
    found = _entry(named.identity())
    assert found is not None
    assert found.processes == (NamespaceProcess(pid=ours, name=None),)


def test_error_of_one_namespace_does_not_hide_the_others(
    named: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    comment = table_query.comment

    def fail(file: Namespace, family: str, name: str) -> str | None:
        if file == named:
            raise FenceError("of this test")
        return comment(file, family, name)

    monkeypatch.setattr(table_query, "comment", fail)
    with isolated() as process:
        found = find_unfenced(timeout_s=60).namespaces
        other = netns.of_process(process.pid).identity()
    verdicts = {each.identity: (each.verdict, each.reason) for each in found}
    assert verdicts[named.identity()] == ("unknown", "of this test")
    assert verdicts[other][0] == "unfenced"


def test_namespaces_that_were_not_checked_in_time_are_unknown(named: Namespace) -> None:
    found = find_unfenced(timeout_s=0)
    reasons = {each.identity: (each.verdict, each.reason) for each in found.namespaces}
    assert reasons[named.identity()] == ("unknown", "there was no time to check it")
    assert "not all threads were checked in 0 seconds" in found.gaps


def test_namespace_that_ended_meanwhile_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with isolated() as process:
        scan = namespace_processes.scan()
        identity = netns.of_process(process.pid).identity()
    monkeypatch.setattr(namespace_processes, "scan", lambda **_: scan)
    assert identity in scan.threads
    assert _entry(identity) is None


def test_namespace_with_too_many_exited_processes_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with isolated() as process:
        identity = netns.of_process(process.pid).identity()
    exited = dict.fromkeys((process.pid, *range(-40, 0)), process.pid)
    scan = ProcessScan(threads={identity: exited}, gaps=())
    monkeypatch.setattr(namespace_processes, "scan", lambda **_: scan)
    found = _entry(identity)
    assert found is not None
    assert (found.verdict, found.process_count) == ("unknown", 41)
    assert found.reason == "its processes exited while it was checked"


def test_file_that_is_replaced_during_the_check_is_not_used(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer may be that of another namespace, so the file of the process is used."""
    queried: list[Namespace] = []
    comment = table_query.comment

    def unmount_and_answer(file: Namespace, family: str, name: str) -> str | None:
        queried.append(file)
        if file.path == mounted:
            subprocess.run(["umount", mounted], check=True)
            return "fence of sandbox lab"
        return comment(file, family, name)

    monkeypatch.setattr(table_query, "comment", unmount_and_answer)
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        subprocess.run(["mount", "--bind", str(namespace), mounted], check=True)
        found = _entry(namespace.identity())
        assert found is not None
        assert found.verdict == "unfenced"
    assert mounted in {file.path for file in queried}


def test_file_that_is_not_permitted_is_not_the_last_one(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_identity = Namespace.has_identity
    refused = {mounted}

    def refuse(file: Namespace, identity: str) -> bool:
        if file.path in refused:
            raise UnsupportedError("not permitted")
        return has_identity(file, identity)

    with isolated() as process:
        namespace = netns.of_process(process.pid)
        subprocess.run(["mount", "--bind", str(namespace), mounted], check=True)
        monkeypatch.setattr(Namespace, "has_identity", refuse)
        found = _entry(namespace.identity())
        assert found is not None
        assert found.verdict == "unfenced"
        refused.add(namespace_processes.thread_file(process.pid, process.pid))
        found = _entry(namespace.identity())
        assert found is not None
        assert (found.verdict, found.reason) == ("unknown", "not permitted")


def test_covered_mount_is_unknown(named: Namespace) -> None:
    assert named.path is not None
    identity = named.identity()
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", named.path], check=True)
    try:
        found = _entry(identity)
    finally:
        subprocess.run(["umount", named.path], check=True)
    assert found is not None
    assert (found.verdict, found.reason) == ("unknown", "another mount covers its path")
    assert found.paths == (named.path,)


def test_mount_with_a_strange_name_is_found(mounted: Path) -> None:
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        subprocess.run(["mount", "--bind", str(namespace), mounted], check=True)
        found = [each for each in find_names() if each.identity == namespace.identity()]
    assert found == [(mounted, Namespace(mounted).identity(), False)]


def test_each_name_is_found_once(named: Namespace, mounted: Path) -> None:
    for _ in range(2):
        subprocess.run(["mount", "--bind", str(named), mounted], check=True)
    found = [each.path for each in find_names() if each.identity == named.identity()]
    assert sorted(found) == sorted([Path(str(named)), mounted])


def test_unreadable_mounts_are_an_unsupported_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnsupportedError, match="mounts can't be read: Permission denied"):
        find_unfenced()


def test_links_to_network_namespaces_are_names(
    tmp_path: Path, named: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace_names, "_DIRECTORIES", (tmp_path, tmp_path / "missing"))
    (tmp_path / "process").symlink_to("/proc/self/ns/net")
    (tmp_path / "name").symlink_to(str(named))
    (tmp_path / "other").symlink_to("/proc/self/ns/uts")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    found = {each for each in find_names() if each.path.parent == tmp_path}
    assert found == {
        (tmp_path / "process", netns.HOST.identity(), False),
        (tmp_path / "name", named.identity(), False),
    }
