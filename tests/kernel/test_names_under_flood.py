"""Addresses of a host name that change under a flood: only the present ones are reached."""

from __future__ import annotations

import asyncio
import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.lab import GATEWAY4, INTERNET4, PROXY_PORT
from ocsf_nft.service import name_state, run
from ocsf_nft.service.delivery_process import DeliveryProcess
from tests.kernel import conftest
from tests.kernel.serving import sandbox, serving, until
from tests.name_server import name_server, resolver_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_HERE: Final = Path(__file__).parent
_NAME: Final = "api.test"
#: Addresses that the name has in turn; the sandbox floods both, and one that it never has.
_ADDRESSES: Final = {"first": "198.51.100.1", "second": "198.51.100.2"}


@pytest.fixture
def far_counts(
    lab: Lab, counters: Callable[[Namespace], dict[str, int]]
) -> Callable[[], dict[str, int]]:
    """Return the numbers of packets that got out, by destination, as the far end counts them."""
    hook = '{ type filter hook ingress device "gw0" priority 0; }'
    lines = ["add table netdev far", f"add chain netdev far ingress {hook}"]
    for counter, address in (*_ADDRESSES.items(), ("never", INTERNET4)):
        rule = f"ip daddr {address} counter name {counter}"
        lines += [f"add counter netdev far {counter}", f"add rule netdev far ingress {rule}"]
    conftest.nft(lab.gateway_namespace, "; ".join(lines))
    return lambda: counters(lab.gateway_namespace)


@pytest.fixture
def floods(lab: Lab) -> Iterator[None]:
    """Send datagrams to all addresses during the test."""
    started = [
        lab.sandbox_namespace.call(
            lambda address=address: subprocess.Popen(  # type: ignore[misc]
                [sys.executable, str(_HERE / "flood.py"), address, "600"],
                stdout=subprocess.DEVNULL,
            )
        )
        for address in (*_ADDRESSES.values(), INTERNET4)
    ]
    yield
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("floods")
async def test_old_address_is_closed_and_the_new_one_open_after_each_change(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    far_counts: Callable[[], dict[str, int]],
) -> None:
    monkeypatch.setattr(name_state, "_MIN_TTL", 0.05)
    proxy = [f"{GATEWAY4}:{PROXY_PORT}"]
    config = sandbox(conftest.SANDBOX, netns=lab.sandbox, proxy=proxy, allow=[f"udp:{_NAME}:9"])
    async with name_server({_NAME: []}) as server:
        server.ttl = 0
        delivering = functools.partial(DeliveryProcess, resolver=resolver_files(tmp_path, server))
        monkeypatch.setattr(run, "DeliveryProcess", delivering)
        async with serving(tmp_path) as served:
            await served.service.put(config)
            (watched,) = (each.watched for each in served.service.sandboxes)
            assert watched is not None
            before = far_counts()
            for open_one in itertools.islice(itertools.cycle(_ADDRESSES), 8):
                (closed,) = _ADDRESSES.keys() - {open_one}
                server.zone[_NAME] = [_ADDRESSES[open_one]]
                expected = f"udp:{_ADDRESSES[open_one]}:9"
                reports = watched.monitor.reports
                await until(
                    lambda expected=expected, reports=reports: (  # type: ignore[misc]
                        [*map(str, reports.installed.spec.exceptions)] == [expected]
                    )
                )
                await _until_more(far_counts, open_one, 1)  # those that were on their way
                at_first = far_counts()
                await _until_more(far_counts, open_one, 2000)
                assert far_counts()[closed] == at_first[closed]
            server.zone[_NAME] = []
            await until(lambda: not watched.monitor.reports.installed.spec.exceptions)
            at_last = far_counts()
            assert at_last["never"] == before["never"]
            final = await served.service.release(conftest.SANDBOX)
    assert {each.counter_mismatch for each in final.balances} == {0}
    changes = [each for each in served.messages(conftest.SANDBOX) if "new addresses" in each]
    assert len(changes) == 9


async def _until_more(counts: Callable[[], dict[str, int]], counter: str, number: int) -> None:
    before = counts()[counter]
    async with asyncio.timeout(60):
        while counts()[counter] < before + number:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
