"""Sandboxes of each kind that are added, changed and released while a service runs."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import table_query, verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from tests.descriptors import open_descriptors
from tests.kernel import kernel_log, namespaces
from tests.kernel.conftest import nft
from tests.kernel.serving import connect_to, sandbox, serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.service.status import Status

pytestmark = pytest.mark.kernel


@pytest.fixture
def made() -> Iterator[tuple[str, ...]]:
    """Yield the names of two namespaces that exist."""
    with namespaces.names(2) as found:
        for name in found:
            namespaces.make(name)
        yield found


def _numbers(final: Status) -> tuple[int, int]:
    return sum(each.refused for each in final.balances), sum(
        each.counter_mismatch for each in final.balances
    )


async def test_sandboxes_in_the_kernel_log_are_added_and_released(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other = made
    with kernel_log.of_all_namespaces():
        async with serving(tmp_path) as served:
            put, release = served.service.put, served.service.release
            await put(sandbox(other, transport="kmsg"))
            # The sockets of a sandbox's counters are open while it has attempts.
            assert await connect_to(other, 1000) == {1000: "refused"}
            await until(lambda: served.attempts(other) == {1000: 1})
            before = open_descriptors()
            for port in (1001, 1002, 1003):
                await put(sandbox(name, transport="kmsg"))
                assert await connect_to(name, port) == {port: "refused"}
                assert await connect_to(other, port) == {port: "refused"}
                assert _numbers(await release(name)) == (1, 0)
                await until(lambda: open_descriptors() <= before)
            assert _numbers(await release(other)) == (4, 0)
    expected = {1001: 1, 1002: 1, 1003: 1}
    assert served.attempts(name) == expected
    assert served.attempts(other) == {1000: 1} | expected


async def test_policy_of_an_exclusive_sandbox_is_changed_by_its_owner_only(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, _ = made
    tables = [("inet", "ocsf_nft"), ("netdev", "ocsf_nft")]

    def owned() -> list[bool]:
        found = [table_query.table(named(name), *each) for each in tables]
        return [each is not None and each.is_exclusive for each in found]

    async with serving(tmp_path) as served:
        put, release = served.service.put, served.service.release
        await put(sandbox(name, exclusive=True))
        assert owned() == [True, True]
        for keys in (
            {"allow": ["tcp:203.0.113.7:443"]},
            {"allow": ["tcp:203.0.113.0/24:443-500"], "permissive": True},
            {"proxy": [namespaces.PROXY, "10.250.0.9:1"]},
            {},
        ):
            await put(sandbox(name, exclusive=True, **keys))
            assert owned() == [True, True]
            with pytest.raises(subprocess.CalledProcessError):
                nft(named(name), "flush", "table", "inet", "ocsf_nft")
            assert verification.verify(name, StateDirectory(tmp_path)).verdict == "as installed"
        assert await connect_to(name, 443) == {443: "refused"}
        assert _numbers(await release(name)) == (1, 0)
        assert nft(named(name), "list", "ruleset") == ""
        await put(sandbox(name, exclusive=True))
        assert owned() == [True, True]
        await asyncio.to_thread(namespaces.delete, name)
        await served.wait_for(lambda each: "has ended" in each["message"])
    assert {each["severity"] for each in served.events if each["class_uid"] == 5019} <= {
        "Informational", "Low",
    }  # fmt: skip


async def test_senders_are_named_before_and_after_a_change_of_the_mode(
    made: tuple[str, ...], tmp_path: Path
) -> None:
    name, other = made
    async with serving(tmp_path) as served:
        put = served.service.put
        await put(sandbox(name))
        await put(sandbox(other))
        for number, permissive in enumerate((False, True, False, True)):
            await put(sandbox(name, permissive=permissive))
            port = 2001 + number
            await connect_to(name, port)
            await connect_to(other, port)
            for each in made:
                await served.wait_for(
                    lambda event, each=each, port=port: (  # type: ignore[misc]
                        event["class_uid"] == 4001
                        and event["unmapped"]["sandbox"] == each
                        and event["dst_endpoint"]["port"] == port
                    )
                )
        # A successor in another namespace of the name.
        await asyncio.to_thread(namespaces.delete, name)
        await asyncio.to_thread(namespaces.make, name)
        await put(sandbox(name))
        assert await connect_to(name, 2005) == {2005: "refused"}
    attempts = [each for each in served.events if each["class_uid"] == 4001]
    unnamed = [
        (each["unmapped"]["sandbox"], each["dst_endpoint"]["port"])
        for each in attempts
        # A permissive fence accepts the packets: the kernel may send more of them by itself.
        if each["action"] == "Denied"
        and not each["actor"].get("process", {}).get("name", "").startswith("python")
    ]
    assert unnamed == []
