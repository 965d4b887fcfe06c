"""Several sinks at once, each with its version of OCSF and its classes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import orjson
import pytest

from ocsf_nft import config
from ocsf_nft.attempt import Attempt
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.notices import lifecycle
from ocsf_nft.service.outlets import Outlet, Outlets
from tests.conformance.corpus import ATTRIBUTED, CONTEXT, NOW_NS, RECORDS, TIME_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_MAPPER = Mapper(CONTEXT)
STARTED = lifecycle(CONTEXT, activity="start", time_ns=TIME_NS).to_json()
REFUSED = _MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS).to_json()
MANY = [
    _MAPPER.network_activity(Attempt.of(RECORDS["tcp6"]), processed_ns=NOW_NS + number).to_json()
    for number in range(300)
]


@dataclass
class Kept:
    """A sink that keeps what it is given, or fails, or never gets it."""

    fails: bool = False
    is_stuck: bool = False
    is_open: bool = False
    lines: list[bytes] = field(default_factory=list)
    calls: int = 0

    async def __aenter__(self) -> Self:
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False

    async def deliver(self, events: Sequence[bytes]) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.is_stuck:
            await asyncio.Event().wait()
        if self.fails:
            raise DeliveryError("the sink is gone")
        self.lines += events

    @property
    def events(self) -> list[Any]:
        return [orjson.loads(line) for line in self.lines]


async def test_a_sink_that_wants_all_gets_the_lines_as_they_are() -> None:
    kept = Kept()
    async with Outlets([Outlet(sink=kept)]) as outlets:
        assert kept.is_open
        await outlets.deliver([STARTED, REFUSED])
    assert kept.lines == [STARTED, REFUSED]
    assert not kept.is_open


async def test_each_sink_is_told_in_its_version(judge: Callable[[Any, str], list[str]]) -> None:
    versions = ("1.1.0", "1.4.0", "1.8.0")
    sinks = {version: Kept() for version in versions}
    outlets = [Outlet(sink=sink, version=version) for version, sink in sinks.items()]
    async with Outlets(outlets) as opened:
        await opened.deliver([STARTED, REFUSED, *MANY])
    for version, sink in sinks.items():
        assert len(sink.events) == 302
        assert {event["metadata"]["version"] for event in sink.events} == {version}
        assert all(judge(event, version) == [] for event in sink.events)
    uids = [[event["metadata"]["uid"] for event in sink.events] for sink in sinks.values()]
    assert uids[0] == uids[1] == uids[2]


async def test_a_sink_gets_the_classes_that_it_wants_and_is_not_called_for_none() -> None:
    findings, all_of_it = Kept(), Kept()
    async with Outlets(
        [Outlet(sink=findings, classes=frozenset({2004, 6002})), Outlet(sink=all_of_it)]
    ) as opened:
        await opened.deliver([REFUSED])
        assert findings.calls == 0
        await opened.deliver([REFUSED, STARTED, REFUSED])
    assert findings.lines == [STARTED]
    assert all_of_it.lines == [REFUSED, REFUSED, STARTED, REFUSED]


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_sink_that_fails_fails_the_delivery_whatever_the_others_do(is_stuck: bool) -> None:
    gone, other = Kept(fails=True), Kept(is_stuck=is_stuck)
    async with Outlets([Outlet(sink=other), Outlet(sink=gone)]) as opened:
        with pytest.raises(DeliveryError, match="the sink is gone"):
            await asyncio.wait_for(opened.deliver([REFUSED]), 5)
    assert other.lines == ([] if is_stuck else [REFUSED])
    assert not gone.is_open
    assert not other.is_open


async def test_a_delivery_that_is_cancelled_cancels_all_of_it() -> None:
    async with Outlets([Outlet(sink=Kept(is_stuck=True)), Outlet(sink=Kept())]) as opened:
        delivery = asyncio.create_task(opened.deliver([REFUSED]))
        await asyncio.sleep(0.01)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("again", ["same", "dotted", "link", "hard link"])
def test_two_names_of_one_file_are_one_sink_too_many(tmp_path: Path, again: str) -> None:
    first = tmp_path / "events.jsonl"
    first.touch()
    (tmp_path / "link").symlink_to(first)
    (tmp_path / "hard link").hardlink_to(first)
    names = {"same": str(first), "dotted": f"{tmp_path}/./events.jsonl"}
    other = names.get(again, str(tmp_path / again))
    sinks = [config.SinkConfig(path=str(first)), config.SinkConfig(path=other)]
    with pytest.raises(UsageError, match="are one file: give each its own"):
        Outlets.of(sinks)


def test_two_names_of_a_file_that_is_not_there_yet_are_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "events.jsonl")
    sinks = [config.SinkConfig(path=str(tmp_path / name)) for name in ("events.jsonl", "link")]
    with pytest.raises(UsageError, match="are one file"):
        Outlets.of(sinks)
    apart = [config.SinkConfig(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")]
    assert len(Outlets.of(apart)._outlets) == 2


async def test_what_was_opened_is_closed_when_the_next_one_can_not_be(tmp_path: Path) -> None:
    kept = Kept()
    missing = config.sinks(str(tmp_path / "a" / "b" / "events.jsonl"), "1.8.0")
    unopenable = Outlets.of(missing)._outlets[0]
    with pytest.raises(DeliveryError):
        await Outlets([Outlet(sink=kept), unopenable]).__aenter__()
    assert not kept.is_open


async def test_a_configuration_makes_them(tmp_path: Path) -> None:
    found = {
        "host_log": "kmsg",
        "sink": [
            {"path": str(tmp_path / "siem.jsonl")},
            {
                "path": str(tmp_path / "lake.jsonl"),
                "ocsf_version": "1.1",
                "classes": ["network_activity"],
            },
        ],
    }
    async with Outlets.of(config.parse(found, where="test").sinks) as opened:
        await opened.deliver([STARTED, REFUSED])
    siem = (tmp_path / "siem.jsonl").read_bytes().splitlines()
    (lake,) = (tmp_path / "lake.jsonl").read_bytes().splitlines()
    assert siem == [STARTED, REFUSED]
    assert orjson.loads(lake)["metadata"]["version"] == "1.1.0"
