from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.lab import Lab, ip
from ocsf_nft.netns import Namespace, named
from ocsf_nft.sources.nflog import Nflog, group_binding
from ocsf_nft.sources.nflog.group_binding import CALM, FLOOD
from ocsf_nft.sources.nflog.source import InterfaceNames
from ocsf_nft.sources.wait_readable import until_readable
from tests.kernel.attempts import (
    EXPERIMENT,
    GROUP,
    INTERNET4,
    INTERNET6,
    PRIVILEGED,
    UNPRIVILEGED,
    attempt,
    fence,
    refused,
    start_attempts,
)
from tests.kernel.reading import assert_nothing_left_open, dropped, joined, until

if TYPE_CHECKING:
    from ocsf_nft.record import Batch

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]


@pytest.fixture
def namespace(lab: Lab) -> Namespace:
    fence(lab.sandbox_namespace, "sb1", nflog=True)
    return lab.sandbox_namespace


async def test_nflog_gives_exactly_one_record_for_each_attempt(namespace: Namespace) -> None:
    kinds = UNPRIVILEGED + PRIVILEGED
    async with Nflog(namespace, GROUP) as source:
        before = time.time_ns()
        attempt(namespace, 0, 3, *(kind for kind, *_ in kinds))
        attempt(namespace, 1000, 2, *(kind for kind, *_ in UNPRIVILEGED))
        total = 3 * len(kinds) + 2 * len(UNPRIVILEGED)
        read = await until(source.batches(), lambda batch: len(batch.records) >= total)
    assert refused(namespace) == total
    assert not read.gaps
    assert not read.rejected
    expected = Counter[tuple[object, ...]]()
    for uid, times, made in ((0, 3, kinds), (1000, 2, UNPRIVILEGED)):
        for _, version, protocol, port in made:
            target = INTERNET4 if version == 4 else INTERNET6
            expected[(version, protocol, target, port, uid)] = times
    found = Counter[tuple[object, ...]](
        (
            record.ip_version,
            record.protocol,
            record.destination,
            record.destination_port,
            record.uid,
        )
        for record in read.records
    )
    assert found == expected
    for record in read.records:
        assert (record.sandbox, record.rule) == ("sb1", "egress")
        assert (record.in_interface, record.out_interface) == (None, "sb0")
        assert record.gid == record.uid
        assert before <= record.time_ns <= record.received_ns <= time.time_ns()
    assert len({record.origin.identity for record in read.records}) == total
    assert [record.origin.sequence for record in read.records] == list(range(total))
    assert {record.protocol for record in read.records} >= {EXPERIMENT}


async def test_nflog_bindings_give_different_identities(namespace: Namespace) -> None:
    identities = []
    for _ in range(2):
        async with Nflog(namespace, GROUP) as source:
            attempt(namespace, 0, 1, "udp4")
            read = await until(source.batches(), lambda batch: bool(batch.records))
            identities += [record.origin.identity for record in read.records]
    assert len(set(identities)) == 2


@pytest.fixture
def _large_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel hold the records of some seconds while this process is held up."""
    monkeypatch.setattr(group_binding, "_RECEIVE_BUFFER_BYTES", 1 << 29)


@pytest.mark.usefixtures("_large_buffer")
async def test_nflog_flood_is_counted_exactly_and_changes_the_batching(
    namespace: Namespace,
) -> None:
    async with Nflog(namespace, GROUP) as source:
        batches = source.batches()
        assert source._adaptive.batching is CALM
        flood = asyncio.ensure_future(asyncio.to_thread(_flood_and_one_more, namespace))
        # On a busy machine the flood may end slowly, so that the batching is CALM again.
        seen = set()

        def has_all(batch: Batch) -> bool:
            seen.add(source._adaptive.batching)
            return len(batch.records) + dropped(batch) >= 40_001

        read = await until(batches, has_all)
        await flood
        assert len(read.records) + dropped(read) == refused(namespace) == 40_001
        assert FLOOD in seen
        waiting = asyncio.ensure_future(anext(batches))
        async with asyncio.timeout(60):
            while source._adaptive.batching is FLOOD:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
        attempt(namespace, 0, 1, "udp4")
        assert len((await waiting).records) == 1


def _flood_and_one_more(namespace: Namespace) -> None:
    assert start_attempts(namespace, 0, 40_000, "flood").wait(120) == 0
    attempt(namespace, 0, 1, "udp4")  # its record counts dropped ones before it


async def test_nflog_overrun_is_reported_at_once_and_counted_by_the_next_record(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_binding, "_RECEIVE_BUFFER_BYTES", 32768)
    async with Nflog(namespace, GROUP) as source:
        batches = source.batches()
        attempt(namespace, 0, 5_000, "flood")
        read = await until(batches, lambda batch: bool(batch.gaps))
        assert [gap.dropped for gap in read.gaps] == [None]
        assert 0 < len(read.records) < 5_000
        attempt(namespace, 0, 1, "udp4")
        last = await until(batches, lambda batch: bool(batch.records))
        assert len(last.records) == 1
        assert [gap.dropped for gap in last.gaps] == [5_000 - len(read.records)]
        assert last.gaps[0].since_ns <= last.gaps[0].until_ns


@pytest.mark.usefixtures("_large_buffer")
async def test_nflog_binding_during_a_flood_misses_no_later_record(namespace: Namespace) -> None:
    flood = start_attempts(namespace, 0, 10_000_000, "flood")
    try:
        while refused(namespace) == 0:  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.001)
        async with Nflog(namespace, GROUP) as source:
            read = await until(source.batches(), lambda batch: len(batch.records) >= 2_000)
    finally:
        flood.kill()
        flood.wait()
    numbers = [record.origin.sequence for record in read.records]
    assert numbers == list(range(len(numbers)))
    assert not read.gaps


def test_nflog_binding_stores_records_that_arrive_before_the_acknowledgement(
    namespace: Namespace,
) -> None:
    # One socket may bind two groups: a record of the first arrives before the second is bound.
    sock, _ = namespace.call(lambda: group_binding.bind(GROUP, CALM))
    with sock:
        attempt(namespace, 0, 1, "udp4")
        sock.settimeout(60)
        early = group_binding._configure(sock, GROUP + 1, CALM)
    kinds = [kind for datagram in early for kind, _ in netlink.messages(memoryview(datagram))]
    assert kinds == [group_binding.PACKET]


async def test_nflog_source_first_reads_records_that_arrived_while_binding(
    namespace: Namespace,
) -> None:
    async with Nflog(namespace, GROUP) as source:
        assert source._socket is not None
        for _ in range(2):
            attempt(namespace, 0, 1, "udp4")
            assert await until_readable(source._socket.fileno(), 60)
            source._early.append(source._socket.recv(group_binding.DATAGRAM_BYTES))
        batches = source.batches()
        early = await until(batches, lambda batch: len(batch.records) >= 2)
        attempt(namespace, 0, 1, "udp4")
        read = joined(early, await until(batches, lambda batch: bool(batch.records)))
    assert [record.origin.sequence for record in read.records] == [0, 1, 2]
    assert not read.gaps
    assert not read.rejected


def test_interface_names_have_a_new_interface(lab: Lab) -> None:
    names = InterfaceNames()
    with lab.sandbox_namespace.call(rtnetlink.subscribe) as sock:
        names.refresh(sock)
        assert names.name(77) is None
        names.refresh(sock)
        ip("-n", lab.sandbox, "link", "add", "new0", "index", "77", "type", "bridge")
        assert names.name(77) == "new0"
        assert names.name(78) is None


async def test_nflog_group_of_another_program_raises_with_the_cause(namespace: Namespace) -> None:
    async with Nflog(namespace, GROUP):
        with pytest.raises(SourceError, match=f"another program holds NFLOG group {GROUP}"):
            await Nflog(namespace, GROUP).__aenter__()
        async with Nflog(namespace, GROUP + 1):
            pass


def test_source_without_privilege_raises_with_the_cause(lab: Lab) -> None:
    program = (
        "import os;os.setgid(65534);os.setuid(65534)\n"
        "from ocsf_nft.errors import UnsupportedError\n"
        "from ocsf_nft.sources.nflog import group_binding\n"
        "try: group_binding.bind(71, group_binding.CALM)\n"
        "except UnsupportedError as error: print(error)\n"
        "from ocsf_nft.sources import kmsg\n"
        "try: kmsg._open_device()\n"
        "except UnsupportedError as error: print(error)\n"
    )
    # Root imports the packages, because other users may have no access to their folder.
    imports = "import ocsf_nft.sources.nflog, ocsf_nft.sources.kmsg\n"
    done = lab.sandbox_namespace.call(
        lambda: subprocess.run(
            [sys.executable, "-c", imports + program], capture_output=True, text=True, check=True
        )
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("binding NFLOG group 71 is not permitted: it needs CAP_NET_ADMIN")
    assert second.startswith("reading /dev/kmsg is not permitted: it needs CAP_SYSLOG")


def test_nflog_source_works_in_a_user_namespace() -> None:
    program = """
import asyncio, socket, subprocess
from ocsf_nft.netns import Namespace
from ocsf_nft.sources.nflog import Nflog
rule = "meta l4proto udp log prefix \\"ocsf-nft:u:egress:\\" group 5"
hook = "type filter hook output priority 0; policy accept;"
rules = f"table inet t {{\\n chain o {{\\n {hook}\\n {rule}\\n }}\\n}}"
subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
async def main():
    async with Nflog(Namespace(), 5) as source:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.1", 9))
        record = (await anext(source.batches())).records[0]
        print(record.sandbox, record.uid, record.out_interface)
asyncio.run(main())
"""
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "u 0 lo\n", done.stderr


async def test_nflog_source_raises_for_an_absent_namespace() -> None:
    with pytest.raises(AbsentError):
        await Nflog(named("no-such-namespace"), GROUP).__aenter__()


async def test_nflog_record_has_the_current_name_of_the_interface(
    lab: Lab, namespace: Namespace
) -> None:
    async with Nflog(namespace, GROUP) as source:
        batches = source.batches()
        old = "sb0"
        for name in ("DST=9.9.9.9", "UID=0", "uplink"):
            ip("-n", lab.sandbox, "link", "set", "dev", old, "name", name)
            old = name
            attempt(namespace, 0, 1, "udp4")
            read = await until(batches, lambda batch: bool(batch.records))
            assert read.records[0].out_interface == name


async def test_nflog_source_leaves_nothing_open(namespace: Namespace) -> None:
    await assert_nothing_left_open(Nflog(namespace, GROUP))
