"""Notice of the begin and the end of real network namespaces.

Except where a test says otherwise, only notices of the kernel can end a wait: the interval of the
checks without a notice is an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import namespace_watch, netns
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.lab import ip
from ocsf_nft.namespace_watch import NamespaceWatch
from ocsf_nft.netns import Namespace
from tests.descriptors import no_more_descriptors, open_descriptors
from tests.kernel.processes import isolated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

pytestmark = pytest.mark.kernel

_LIMIT_SECONDS = 30


@pytest.fixture(autouse=True)
def _only_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_watch, "_INTERVAL_SECONDS", 3600)


@pytest.fixture
async def watch() -> AsyncIterator[NamespaceWatch]:
    async with NamespaceWatch() as made:
        yield made


@pytest.fixture
async def frequent_watch(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NamespaceWatch]:
    """Enter the context of a watch that also checks a hundred times a second."""
    monkeypatch.setattr(namespace_watch, "_INTERVAL_SECONDS", 0.01)
    async with NamespaceWatch() as made:
        yield made


@pytest.fixture
def name() -> Iterator[str]:
    """Choose a name of ``ip netns``; delete the namespace if the test has left one."""
    chosen = f"ocsf-nft-{secrets.token_hex(3)}-watch"
    yield chosen
    if (netns.NAMED / chosen).exists():
        ip("netns", "del", chosen)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Create an empty file; remove the mounts on it at the end."""
    path = tmp_path / "mounted"
    path.touch()
    yield path
    while subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0:
        pass


async def test_wait_ends_when_the_name_is_deleted(watch: NamespaceWatch, name: str) -> None:
    ip("netns", "add", name)
    namespace = netns.named(name)
    async with _waiting(watch.wait_until_ended(namespace, namespace.identity())):
        ip("netns", "del", name)


async def test_wait_ends_when_the_name_is_created_again(watch: NamespaceWatch, name: str) -> None:
    ip("netns", "add", name)
    namespace = netns.named(name)
    async with _waiting(watch.wait_until_ended(namespace, namespace.identity())):
        ip("netns", "del", name)
        ip("netns", "add", name)


async def test_wait_ends_when_the_bind_mount_is_removed(
    watch: NamespaceWatch, mounted: Path
) -> None:
    with isolated() as process:
        _mount(netns.of_process(process.pid), mounted)
        namespace = Namespace(mounted)
        async with _waiting(watch.wait_until_ended(namespace, namespace.identity())):
            _unmount(mounted)


async def test_wait_ends_when_the_bind_mount_is_replaced_by_one_with_the_same_inode_number(
    watch: NamespaceWatch, mounted: Path
) -> None:
    """The event loop is busy meanwhile. A later namespace often gets the number of a deleted one.

    Here both mounts are of one namespace, because no test can choose the number of a new one.
    """
    with isolated() as process:
        source = netns.of_process(process.pid)
        _mount(source, mounted)
        namespace = Namespace(mounted)
        identity, before = namespace.identity(), _created_ns(mounted)
        async with _waiting(watch.wait_until_ended(namespace, identity)):
            while _created_ns(mounted) == before:  # up to a clock tick
                _unmount(mounted)
                _mount(source, mounted)
            assert namespace.has_identity(identity)


async def test_wait_for_another_identity_ends_at_once(watch: NamespaceWatch, name: str) -> None:
    identity = netns.HOST.identity()
    await asyncio.wait_for(watch.wait_until_ended(netns.named(name), identity), _LIMIT_SECONDS)
    ip("netns", "add", name)
    await asyncio.wait_for(watch.wait_until_ended(netns.named(name), identity), _LIMIT_SECONDS)


async def test_wait_ends_when_the_process_exits(watch: NamespaceWatch, tmp_path: Path) -> None:
    with isolated() as process:
        direct = netns.of_process(process.pid)
        (tmp_path / "link").symlink_to(f"/proc/{process.pid}/ns/net")
        link = Namespace(tmp_path / "link")
        async with (
            _waiting(watch.wait_until_ended(direct, direct.identity())),
            _waiting(watch.wait_until_ended(link, direct.identity())),
        ):
            assert process.stdin is not None
            process.stdin.close()  # and it stays a zombie until the end of the context


async def test_process_that_has_ended_is_found_at_once(watch: NamespaceWatch) -> None:
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        identity = namespace.identity()
    await asyncio.wait_for(watch.wait_until_ended(namespace, identity), _LIMIT_SECONDS)


async def test_wait_ends_when_the_process_enters_another_namespace(
    frequent_watch: NamespaceWatch,
) -> None:
    """The kernel gives no notice of it, so a check at the next interval finds it."""
    program = "import ctypes, sys; print(flush=True); sys.stdin.readline()"
    program += "; ctypes.CDLL(None).unshare(0x40000000); sys.stdin.read()"
    with isolated(sys.executable, "-I", "-c", program) as process:
        namespace = netns.of_process(process.pid)
        ended = frequent_watch.wait_until_ended(namespace, namespace.identity())
        async with _waiting(ended):
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()


async def test_process_is_watched_without_a_free_descriptor(
    frequent_watch: NamespaceWatch,
) -> None:
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        ended = frequent_watch.wait_until_ended(namespace, namespace.identity())
        with no_more_descriptors():
            wait = asyncio.create_task(ended)
            await asyncio.sleep(0)
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(wait, _LIMIT_SECONDS)


async def test_wait_continues_if_the_pid_is_that_of_a_process_in_another_pid_namespace(
    watch: NamespaceWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the exit of the process with this number here means nothing."""
    with isolated() as ended:
        opened = os.pidfd_open(ended.pid)
    monkeypatch.setattr(os, "pidfd_open", lambda _: opened)
    checks = _count_checks(monkeypatch, "_file_version")
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        wait = asyncio.create_task(watch.wait_until_ended(namespace, namespace.identity()))
        await _until_checked(watch)
        checks.clear()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(checks) <= 1
        assert not wait.done()
        wait.cancel()
        await asyncio.wait([wait])


async def test_wait_for_presence_ends_when_the_name_is_created(
    watch: NamespaceWatch, name: str
) -> None:
    namespace = netns.named(name)
    async with _waiting(watch.wait_until_present(namespace)) as wait:
        ip("netns", "add", name)
    assert wait.result() == namespace.identity()
    found = await asyncio.wait_for(watch.wait_until_present(namespace), _LIMIT_SECONDS)
    assert found == namespace.identity()


async def test_other_files_are_no_network_namespaces(
    watch: NamespaceWatch, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file, a mount of another kind of namespace, and a pipe, which is never opened."""
    opened: list[object] = []
    open_file = os.open

    def record(path: Path, flags: int) -> int:
        opened.append(path)
        return open_file(path, flags)

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "open", record)
    for_pipe = asyncio.create_task(watch.wait_until_present(Namespace(pipe)))
    with isolated() as process:
        inside = netns.of_process(process.pid)
        other_kind = Namespace(Path(f"/proc/{process.pid}/ns/uts"))
        async with _waiting(watch.wait_until_present(Namespace(mounted))) as wait:
            await _until_checked(watch)
            _mount(other_kind, mounted)
            await _until_checked(watch)
            assert not wait.done()
            _mount(inside, mounted)
        assert wait.result() == inside.identity()
    assert not for_pipe.done()
    assert set(opened) == {mounted}
    for_pipe.cancel()
    await asyncio.wait([for_pipe])


async def test_link_that_appears_is_found_at_the_next_interval(
    frequent_watch: NamespaceWatch, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    async with _waiting(frequent_watch.wait_until_present(Namespace(link))) as wait:
        await asyncio.sleep(0)
        link.symlink_to("/proc/self/ns/net")
    assert wait.result() == netns.HOST.identity()


async def test_cancelled_and_ended_waits_free_what_they_have(
    watch: NamespaceWatch, name: str
) -> None:
    with isolated() as process:
        namespace = netns.of_process(process.pid)
        identity = namespace.identity()
        before = open_descriptors(collect=True)
        for _ in range(10):
            waits = [
                asyncio.create_task(wait)
                for _ in range(50)
                for wait in (
                    watch.wait_until_ended(namespace, identity),
                    watch.wait_until_present(netns.named(name)),
                    watch.wait_until_present(namespace),
                )
            ]
            await asyncio.sleep(0)
            assert open_descriptors() == before + 50
            await asyncio.sleep(0)
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            assert not watch._waits
            assert open_descriptors() == before


async def test_end_of_the_context_cancels_the_waits(name: str) -> None:
    before = open_descriptors(collect=True)
    async with NamespaceWatch() as watch:
        wait = asyncio.create_task(watch.wait_until_present(netns.named(name)))
        await asyncio.sleep(0)
        assert open_descriptors() == before + 2
    await asyncio.wait([wait], timeout=_LIMIT_SECONDS)
    assert wait.cancelled()
    assert open_descriptors() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with (
        NamespaceWatch() as another,  # with the same descriptors
        _waiting(another.wait_until_present(netns.named(name))),
    ):
        ip("netns", "add", name)


async def test_watch_without_a_free_descriptor_is_an_unsupported_error() -> None:
    before = open_descriptors(collect=True)
    with no_more_descriptors(), pytest.raises(UnsupportedError, match="Too many open files"):
        async with NamespaceWatch():
            pass
    assert open_descriptors() == before


async def test_error_of_a_check_is_raised_by_the_wait(
    watch: NamespaceWatch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("netns", "add", name)
    namespace = netns.named(name)
    wait = asyncio.create_task(watch.wait_until_ended(namespace, namespace.identity()))
    await asyncio.sleep(0)
    with no_more_descriptors(), pytest.raises(UnsupportedError, match="Too many open files"):
        await asyncio.wait_for(watch.wait_until_present(namespace), _LIMIT_SECONDS)

    def refuse(_: Path) -> os.stat_result:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        for starting in (
            watch.wait_until_ended(namespace, "0:0"),
            watch.wait_until_present(namespace),
        ):
            with pytest.raises(UnsupportedError, match="is not permitted"):
                await asyncio.wait_for(starting, _LIMIT_SECONDS)
        watch._is_due.set()
        with pytest.raises(UnsupportedError, match="is not permitted"):
            await asyncio.wait_for(wait, _LIMIT_SECONDS)


async def test_burst_of_mounts_leads_to_one_round_of_checks(
    watch: NamespaceWatch, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_kind = Namespace(Path("/proc/self/ns/uts"))
    checks = _count_checks(monkeypatch, "_present_identity")
    async with _waiting(watch.wait_until_present(Namespace(mounted))):
        await _until_checked(watch)
        checks.clear()
        for _ in range(10):
            _mount(other_kind, mounted)
        _mount(netns.of_process(os.getpid()), mounted)
    assert len(checks) == 1
    assert not watch._is_due.is_set()


async def test_checks_use_at_most_a_tenth_of_the_time() -> None:
    rounds: list[float] = []
    second = asyncio.Event()

    class Slow(NamespaceWatch):
        async def _check_all(self) -> float:
            rounds.append(asyncio.get_running_loop().time())
            if len(rounds) == 2:
                second.set()
            self._is_due.set()
            return 0.01  # seconds

    async with Slow() as slow:
        slow._is_due.set()
        await asyncio.wait_for(second.wait(), _LIMIT_SECONDS)
    assert rounds[1] - rounds[0] > 0.08


async def test_other_work_continues_between_slices_of_checks(
    watch: NamespaceWatch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespace_watch, "_SLICE_SECONDS", 0)
    checks = _count_checks(monkeypatch, "_present_identity")
    waits = [asyncio.create_task(watch.wait_until_present(netns.named(name))) for _ in range(20)]
    await asyncio.sleep(0)
    await _until_checked(watch)
    checks.clear()
    watch._is_due.set()
    seen = set()
    while len(checks) < len(waits):
        await asyncio.sleep(0)
        seen.add(len(checks))
    assert seen == set(range(21))
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)


@contextlib.asynccontextmanager
async def _waiting(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Begin a wait that can't end before the context does its work; then wait for its end."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    assert not task.done()
    try:
        yield task
        await asyncio.wait_for(task, _LIMIT_SECONDS)
    finally:
        task.cancel()


async def _until_checked(watch: NamespaceWatch) -> None:
    """Wait for the end of a round of checks that begins now."""
    finished = asyncio.get_running_loop().create_future()
    last = namespace_watch._Wait(lambda: True, finished)
    watch._waits[last] = None
    watch._is_due.set()
    await asyncio.wait_for(finished, _LIMIT_SECONDS)
    del watch._waits[last]


def _count_checks(monkeypatch: pytest.MonkeyPatch, function: str) -> list[str]:
    """Return a list that gets an entry at each call of a function of the module."""
    checks: list[str] = []
    check = getattr(namespace_watch, function)

    def count(namespace: Namespace, **arguments: bool) -> object:
        checks.append(str(namespace))
        return check(namespace, **arguments)

    monkeypatch.setattr(namespace_watch, function, count)
    return checks


def _created_ns(path: Path) -> int:
    return path.stat().st_ctime_ns


def _mount(namespace: Namespace, path: Path) -> None:
    subprocess.run(["mount", "--bind", str(namespace), path], check=True)


def _unmount(path: Path) -> None:
    subprocess.run(["umount", path], check=True)
