"""Loading and replacing a fence lets no packet out, however many are being sent."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, INTERNET4, PROXY_PORT, ip
from tests.kernel import conftest
from tests.kernel.serving import sandbox, serving

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_HERE = Path(__file__).parent


@pytest.fixture
def far_counter(lab: Lab, counters: Callable[[Namespace], dict[str, int]]) -> Callable[[], int]:
    """Return the number of flood packets that got out; the far end's kernel counts all of them."""
    conftest.nft(lab.gateway_namespace, 'add table netdev far; add counter netdev far out; '
                 'add chain netdev far ingress '
                 '{ type filter hook ingress device "gw0" priority 0; }; '
                 "add rule netdev far ingress udp dport 9 counter name out")  # fmt: skip
    return lambda: counters(lab.gateway_namespace)["out"]


@pytest.fixture
def flood(lab: Lab) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        process = lab.sandbox_namespace.call(
            lambda: subprocess.Popen(
                [sys.executable, str(_HERE / "flood.py"), INTERNET4, str(seconds)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _sent(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=30)
    return int(output)


@pytest.mark.parametrize(
    "times", [10, pytest.param(24, marks=(pytest.mark.slow, pytest.mark.alone))]
)
def test_replacing_the_fence_under_a_flood_lets_no_packet_out_and_preserves_the_counts(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
    far_counter: Callable[[], int],
    flood: Callable[[float], subprocess.Popen[str]],
    times: int,
) -> None:
    """Alternate the policy and the links, with changes by another process in between."""
    exceptions = map(exception, ("tcp:10.200.0.9:80", "udp:198.18.0.0/15:1-65535"))
    other = dataclasses.replace(spec, exceptions=tuple(exceptions))
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    process = flood(60)
    seen = [0]
    for replaced in range(times):
        expected = other if replaced % 2 == 0 else spec
        if replaced % 5 == 4:
            conftest.nft(lab.sandbox_namespace, "add chain inet ocsf_nft foreign { "
                         "type filter hook output priority -5; }; "
                         "add rule inet ocsf_nft foreign accept")  # fmt: skip
        if replaced % 4 == 2:
            ip("-n", lab.sandbox, "link", "add", "late0", "type", "veth", "peer", "late1")
        elif replaced % 4 == 0 and replaced:
            ip("-n", lab.sandbox, "link", "del", "late0")
        assert installer.install(expected, lab.sandbox_namespace, state, "nflog").spec == expected
        seen.append(counters(lab.sandbox_namespace)["refused_egress"])
    process.terminate()
    sent = _sent(process)
    assert sent > 2000 * times
    assert far_counter() == 0
    assert seen == sorted(seen)
    # The kernel's own multicast reports are refused too; no other packets are sent.
    refused, counted = _at_rest(lab.sandbox_namespace, counters)
    assert counted.pop(INTERNET4) == sent
    assert refused - sent == sum(counted.values()) < 100


async def test_policy_changed_by_a_service_under_a_flood_lets_no_packet_out(
    lab: Lab,
    tmp_path: Path,
    far_counter: Callable[[], int],
    flood: Callable[[float], subprocess.Popen[str]],
) -> None:
    """Alternate two policies that both refuse the flood, and release the sandbox afterwards."""
    proxy = [f"{GATEWAY4}:{PROXY_PORT}"]
    policies = [
        sandbox(conftest.SANDBOX, netns=lab.sandbox, proxy=proxy, allow=[allowed])
        for allowed in ("tcp:10.200.0.9:80", "udp:198.18.0.0/15:1-65535")
    ]
    async with serving(tmp_path) as served:
        await served.service.put(policies[0])
        process = flood(60)
        for number in range(1, 9):
            result = await served.service.put(policies[number % 2])
            assert len(result.changes) == 2
        process.terminate()
        sent = await asyncio.to_thread(_sent, process)
        assert far_counter() == 0
        final = await served.service.release(conftest.SANDBOX)
    assert sent > 10_000
    assert {each.counter_mismatch for each in final.balances} == {0}
    assert served.attempts(conftest.SANDBOX)[9] == sent


def _at_rest(
    namespace: Namespace, counters: Callable[[Namespace], dict[str, int]]
) -> tuple[int, Counter[str]]:
    """Return the packets that the rule `egress` has refused: the total, and by destination.

    No packet arrives between the two reads.
    """
    for _ in range(20):
        before = counters(namespace)["refused_egress"]
        counted = conftest.counted(namespace)
        if counters(namespace)["refused_egress"] == before:
            return before, counted
    raise AssertionError("packets arrive during each reading")


def test_installing_under_a_flood_stops_it(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
    far_counter: Callable[[], int],
    flood: Callable[[float], subprocess.Popen[str]],
) -> None:
    process = flood(60)
    while far_counter() == 0:
        time.sleep(0.01)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    time.sleep(0.05)  # for packets in the veth's queue
    before, refused = far_counter(), counters(lab.sandbox_namespace)["refused_egress"]
    end = time.monotonic() + 20
    while counters(lab.sandbox_namespace)["refused_egress"] < refused + 10_000:
        assert time.monotonic() < end
    process.terminate()
    assert _sent(process) > before
    assert far_counter() == before > 0
