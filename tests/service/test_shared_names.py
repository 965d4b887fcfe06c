"""Host names that several sandboxes follow, with a resolver and a clock of the test."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import FenceError
from ocsf_nft.fence.host_names import ResolvedName
from ocsf_nft.service import sandbox_names
from ocsf_nft.service.delivery_answers import FamilyAnswer, NameAnswer
from ocsf_nft.service.sandbox_names import SandboxNames
from ocsf_nft.service.shared_names import SharedNames

if TYPE_CHECKING:
    import pytest

_FAILURE = FamilyAnswer(error="no server answers")


class _Resolver:
    """Resolver that answers when the test says so, and a clock that the pauses advance."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[float, str]] = []
        self.answers: dict[str, FamilyAnswer] = {}
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.sleeping = asyncio.Event()
        self.wakes = asyncio.Semaphore(0)

    async def resolve(self, name: str) -> NameAnswer:
        self.asked.append((self.now, name))
        await self.may_answer.wait()
        four = self.answers.get(name, FamilyAnswer(ttl=60))
        six = _FAILURE if four.error else FamilyAnswer(ttl=3600)
        return NameAnswer(number=1, name=name, families={4: four, 6: six})

    async def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        await self.wakes.acquire()
        self.now += seconds

    async def step(self) -> None:
        """Let one name go on, and wait until it sleeps again."""
        self.sleeping.clear()
        self.wakes.release()
        await self.sleeping.wait()

    def set(self, name: str, *addresses: str, ttl: int = 60) -> None:
        self.answers[name] = FamilyAnswer(addresses=tuple(map(ip_address, addresses)), ttl=ttl)


def _shared(resolver: _Resolver) -> SharedNames:
    return SharedNames(resolver.resolve, lambda: resolver.now, resolver.sleep)


def _config(*names: str) -> SandboxConfig:
    return SandboxConfig.model_validate(
        {"name": "a", "install": True, "proxy": [f"{name}:1" for name in names]}
    )


def _texts(names: SandboxNames) -> dict[str, list[str]]:
    return {name: list(map(str, found)) for name, found in names.addresses().items()}


def _failure(names: SandboxNames) -> str | None:
    return names.failure


async def test_name_is_resolved_once_for_all_until_the_last_one_leaves() -> None:
    resolver = _Resolver()
    resolver.set("a.test", "192.0.2.1", ttl=30)
    async with _shared(resolver) as shared:
        first, second = SandboxNames("a", shared, ()), SandboxNames("a", shared, ())
        first.follow(_config("a.test"))
        second.follow(_config("a.test"))
        await resolver.sleeping.wait()
        assert _texts(first) == _texts(second) == {"a.test": ["192.0.2.1"]}
        await resolver.step()
        assert resolver.asked == [(1000.0, "a.test"), (1030.0, "a.test")]
        first.close()
        await resolver.step()
        assert len(resolver.asked) == 3
        second.close()
        assert (_texts(first), _texts(second)) == ({}, {})
        resolver.wakes.release()
        await asyncio.sleep(0)
        assert len(resolver.asked) == 3
        second.follow(_config("a.test"))
        resolver.sleeping.clear()
        await resolver.sleeping.wait()
        assert len(resolver.asked) >= 4


async def test_addresses_are_replaced_when_they_change_and_a_failure_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox_names, "_MAX_PAUSE_SECONDS", 0.001)
    resolver, replaced = _Resolver(), []
    has_replaced, error = asyncio.Event(), None
    resolver.set("a.test", "192.0.2.1")

    async def replace() -> None:
        has_replaced.set()
        if error is not None:
            raise error
        replaced.append(_texts(names))

    async with _shared(resolver) as shared:
        names = SandboxNames("a", shared, ())
        names.follow(_config("a.test"))
        running = asyncio.create_task(names.run(replace))
        await names.settle()
        assert replaced[-1] == {"a.test": ["192.0.2.1"]}
        error = FenceError("the kernel refuses")
        resolver.set("a.test", "192.0.2.2")
        has_replaced.clear()
        await resolver.step()
        await has_replaced.wait()
        async with asyncio.timeout(60):
            while _failure(names) is None:  # noqa: ASYNC110 - no event of the names announces it
                await asyncio.sleep(0)
        assert _failure(names) == "the kernel refuses"
        error = None
        await names.settle()
        assert _failure(names) is None
        assert replaced[-1] == {"a.test": ["192.0.2.2"]}
        running.cancel()
        await asyncio.wait([running])
        names.close()


async def test_names_end_if_a_replacement_fails_while_they_are_cancelled() -> None:
    resolver, may_fail = _Resolver(), asyncio.Event()
    replacing = asyncio.Event()

    async def replace() -> None:
        replacing.set()
        await may_fail.wait()
        raise FenceError("the network namespace has ended")

    async with _shared(resolver) as shared, asyncio.timeout(60):
        names = SandboxNames("a", shared, ())
        names.follow(_config("a.test"))
        running = asyncio.create_task(names.run(replace))
        await replacing.wait()
        running.cancel()
        await asyncio.sleep(0)
        may_fail.set()
        await asyncio.wait([running])
        names.close()
    assert running.cancelled()


async def test_call_without_new_names_does_not_wait() -> None:
    resolver = _Resolver()
    resolver.set("a.test", "192.0.2.1")

    async def replace() -> None:
        pass

    async def settles_at_once() -> bool:
        settling = asyncio.create_task(names.settle())
        await asyncio.sleep(0)
        return settling.done()

    async with _shared(resolver) as shared:
        names = SandboxNames("a", shared, ())
        names.follow(_config())
        assert await settles_at_once()
        names.follow(_config("a.test"))
        assert not await settles_at_once()
        running = asyncio.create_task(names.run(replace))
        await names.settle()
        running.cancel()
        await asyncio.wait([running])
        names.follow(_config("a.test"))
        assert await settles_at_once()
        names.close()


async def test_call_waits_for_the_first_answer_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = _Resolver()
    resolver.answers["a.test"] = _FAILURE
    resolver.may_answer.clear()

    async def replace() -> None:
        pass

    async with _shared(resolver) as shared:
        names = SandboxNames("a", shared, [ResolvedName("a.test", (ip_address("192.0.2.7"),))])
        running = asyncio.create_task(names.run(replace))
        await names.settle()
        names.follow(_config("a.test"))
        settling = asyncio.create_task(names.settle())
        await asyncio.sleep(0.05)
        assert not settling.done()
        assert _texts(names) == {"a.test": ["192.0.2.7"]}
        assert list(names.faults()) == []
        resolver.may_answer.set()
        await settling
        assert _texts(names) == {"a.test": ["192.0.2.7"]}
        ((name, fault),) = names.faults()
        assert name == "a.test"
        assert "stay allowed" in fault
        resolver.may_answer.clear()
        monkeypatch.setattr(sandbox_names, "SETTLE_SECONDS", 0.01)
        names.follow(_config("b.test"))
        await names.settle()
        running.cancel()
        await asyncio.wait([running])


async def test_names_of_both_policies_are_followed_during_a_change() -> None:
    resolver = _Resolver()
    resolver.set("a.test", "192.0.2.1")
    async with _shared(resolver) as shared:
        names = SandboxNames("a", shared, ())
        names.follow(_config("a.test"))
        await resolver.sleeping.wait()
        names.follow(_config("a.test"), _config("b.test"))
        assert _texts(names) == {"a.test": ["192.0.2.1"], "b.test": []}
        names.follow(_config("b.test"))
        assert _texts(names) == {"b.test": []}


async def test_addresses_expire_while_a_lookup_has_no_answer() -> None:
    resolver = _Resolver()
    resolver.set("a.test", "192.0.2.1")
    async with _shared(resolver) as shared:
        names = SandboxNames("a", shared, ())
        names.follow(_config("a.test"))
        await resolver.sleeping.wait()
        resolver.answers["a.test"] = _FAILURE
        while resolver.now < 1660.0 - 30.0:
            await resolver.step()
        assert _texts(names) == {"a.test": ["192.0.2.1"]}
        resolver.may_answer.clear()
        resolver.now = 1660.0
        number = len(resolver.asked)
        resolver.wakes.release()
        async with asyncio.timeout(60):
            while len(resolver.asked) == number:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
        assert _texts(names) == {"a.test": []}
