"""Namespaces that are made and deleted in quick succession while a service runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import AbsentError, OcsfNftError
from ocsf_nft.netns import named
from tests.descriptors import open_descriptors
from tests.kernel import namespaces
from tests.kernel.conftest import nft
from tests.kernel.namespaces import connect
from tests.kernel.serving import Served, sandbox, serving, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel

_ROUNDS = 12


async def _recreate(name: str, choose: random.Random) -> None:
    """Delete and make a namespace again and again; it exists at the end."""
    for _ in range(_ROUNDS):
        await asyncio.to_thread(namespaces.delete, name)
        await asyncio.sleep(choose.choice((0.0, 0.02, 0.2)))
        await asyncio.to_thread(namespaces.make, name)
        await asyncio.sleep(choose.choice((0.0, 0.02, 0.3)))


async def _call(served: Served, name: str, choose: random.Random, over: asyncio.Event) -> None:
    """Call for a sandbox again and again; a call may find that its namespace is missing."""
    while not over.is_set():
        allowed = choose.choice(([], ["tcp:203.0.113.9:1"], ["udp:203.0.113.0/24:5-9"]))
        with contextlib.suppress(OcsfNftError):
            if choose.random() < 0.3:
                await served.service.release(name)
            else:
                await served.service.put(sandbox(name, allow=allowed))
        await asyncio.sleep(choose.choice((0.0, 0.05)))


@pytest.mark.parametrize("seed", range(2))
async def test_recreated_namespaces_and_calls_leave_what_the_last_call_says(
    tmp_path: Path, seed: int
) -> None:
    choose = random.Random(seed)
    with namespaces.names(4) as names:
        configured, added, also_added, other = names
        for name in names:
            namespaces.make(name)
        async with serving(tmp_path, sandbox(configured), sandbox(other)) as served:
            for name in (configured, other):
                assert await asyncio.to_thread(connect, name, 444) == {444: "refused"}
            await until(lambda: all(served.attempts(each) for each in (configured, other)))
            # The sockets of the comparisons are open from now on.
            for each in served.service.sandboxes:
                assert each.watched is not None
                assert each.watched.bypass is not None
                await until(partial(getattr, each.watched.bypass, "is_exact"))
            before = await _descriptors(served)
            over = asyncio.Event()
            calling = [
                asyncio.create_task(_call(served, each, choose, over))
                for each in (added, also_added)
            ]
            await asyncio.gather(*(_recreate(name, choose) for name in names[:3]))
            over.set()
            await asyncio.gather(*calling)
            await until(
                lambda: (
                    served.service.view(configured).state == "active"
                    and _is_current(served, configured)
                )
            )
            for name in (added, also_added):
                await served.service.put(sandbox(name))
                assert served.service.view(name).state == "active"
            for name in names:
                assert await asyncio.to_thread(connect, name, 443) == {443: "refused"}
            for name in (added, also_added):
                await served.service.release(name)
                with pytest.raises(AbsentError):
                    served.service.view(name)
                assert nft(named(name), "list", "ruleset") == ""
                assert not (tmp_path / name).exists()
            deadline = time.monotonic() + 60
            while (now := await _descriptors(served)) > before:
                assert time.monotonic() < deadline, f"{before} descriptors before, {now} now"
                await asyncio.sleep(0.1)
            accounts = served.service._sandboxes._fence_parts.accounts
            assert set(accounts._opened) == {configured, other}
            assert not accounts._expected
    assert [served.attempts(name) for name in (added, also_added)] == [{443: 1}] * 2
    assert [served.attempts(name) for name in (configured, other)] == [{443: 1, 444: 1}] * 2
    serious = {
        each["message"] for each in served.events if each["severity"] in {"High", "Critical"}
    }
    assert not serious


async def _descriptors(served: Served) -> int:
    """Return the number of open descriptors without the sockets of the counters.

    The counters of a sandbox are closed while it makes no attempts, which is a matter of time.
    """
    for each in served.service.sandboxes:
        if each.watched is not None:
            async with each.watched.account._reading:
                each.watched.account.counters.close()
    return open_descriptors()


def _is_current(served: Served, name: str) -> bool:
    (watched,) = (each.watched for each in served.service.sandboxes if each.name == name)
    return watched is not None and named(name).has_identity(watched.identity)
