"""VMs of one host that are added and released while others run: they share one log source."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.descriptors import open_descriptors
from tests.kernel import tap
from tests.kernel.conftest import nft
from tests.kernel.serving import Served, serving
from tests.kernel.serving import sandbox as any_sandbox
from tests.kernel.vm_escapes import ALLOWED, LINK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.service.status import Status

pytestmark = pytest.mark.kernel

_DEVICES = ("vmtap-0", "vmtap-1")
_PAUSE_SECONDS = 0.0005
_NUMBER = 4


@pytest.fixture
def machines(site: tap.Site) -> Iterator[tuple[tap.Machine, ...]]:
    """Yield two VMs of a host."""
    with contextlib.ExitStack() as stack:
        yield tuple(
            stack.enter_context(tap.silent_machine(site, device, _gateways(number)))
            for number, device in enumerate(_DEVICES)
        )


def _gateways(number: int) -> tuple[str, str]:
    return f"172.16.{7 + number}.1/29", f"fd00:{7 + number}::1/64"


def _vm(site: tap.Site, number: int, **keys: Any) -> SandboxConfig:
    given = {
        "netns": site.host_name,
        "profile": "tap",
        "proxy": (),
        "device": _DEVICES[number],
        "subnet": _gateways(number),
        "gateway_port": tap.PORT,
    }
    return any_sandbox(f"vm-{number}", **given | keys)


@contextlib.contextmanager
def _sending(machine: tap.Machine) -> Iterator[Callable[[], None]]:
    """Send forbidden frames all the time; yield a function that ends it."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(_PAUSE_SECONDS):
            machine.send(LINK[0].sent)

    thread = threading.Thread(target=send)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    try:
        yield end
    finally:
        end()


def _refused(*final: Status) -> int:
    return sum(each.refused for status in final for each in status.balances)


def _reported(served: Served, name: str) -> int:
    return sum(
        event["count"]
        for event in served.events
        if event["class_uid"] == 4001 and event["unmapped"]["sandbox"] == name
    )


async def test_vm_is_added_and_released_beside_another_one(
    site: tap.Site, machines: tuple[tap.Machine, ...], tmp_path: Path
) -> None:
    first, second = machines
    finals: list[Status] = []
    async with serving(tmp_path) as served:
        put, release = served.service.put, served.service.release
        await put(_vm(site, 0))
        first.send(ALLOWED["arp for the gateway"])
        with _sending(first) as end_first, _sending(second):
            before = open_descriptors()
            for _ in range(_NUMBER):
                await put(_vm(site, 1))
                await asyncio.sleep(0.2)  # packets of both are read
                finals.append(await release("vm-1"))
            assert open_descriptors() <= before
            end_first()
        final = await release("vm-0")
        assert served.service.views() == ()
        assert nft(site.host, "list", "ruleset") == ""
    assert all(_refused(each) > 0 for each in finals)
    assert _reported(served, "vm-0") == _refused(final)
    assert _reported(served, "vm-1") == _refused(*finals)
    assert [each for each in served.events if each["severity"] == "Critical"] == []


async def test_vm_is_added_while_the_last_one_is_released(
    site: tap.Site, machines: tuple[tap.Machine, ...], tmp_path: Path
) -> None:
    async with serving(tmp_path) as served:
        put, release = served.service.put, served.service.release
        await put(_vm(site, 0))
        for number in range(2 * _NUMBER):
            old, new = number % 2, 1 - number % 2
            releasing = asyncio.create_task(release(f"vm-{old}"))
            await asyncio.sleep(0.01 * number)  # in each step of the release
            await asyncio.gather(put(_vm(site, new)), releasing)
            machines[new].send(LINK[0].sent)
            known = len(served.events)
            await served.wait_for(
                lambda each, known=known, new=new: (  # type: ignore[misc]
                    each["class_uid"] == 4001
                    and each["unmapped"]["sandbox"] == f"vm-{new}"
                    and each in served.events[known - 1 :]
                )
            )
        (feed,) = served.service._sandboxes._fence_parts.nflog._feeds.values()
        assert feed.sandboxes == {"vm-0"}
        await release("vm-0")
    assert {name: _reported(served, name) for name in ("vm-0", "vm-1")} == {
        "vm-0": _NUMBER, "vm-1": _NUMBER,
    }  # fmt: skip
