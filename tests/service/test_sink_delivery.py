"""Several sinks, each with its version of OCSF and its classes, behind one store."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft import config
from ocsf_nft.attempt import Attempt
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.delivery.sinks.base import BatchResult, BatchSettings, Message
from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.errors import ClosedError, DeliveryError, UsageError
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import lifecycle
from ocsf_nft.service import delivery_start, sink_delivery
from ocsf_nft.service.outlet import Outlet, outlets
from ocsf_nft.state.change import Change
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS, TIME_NS
from tests.delivery.receiver import Receiver
from tests.service.delivering import Delivering

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


_MAPPER = Mapper(CONTEXT)
STARTED = lifecycle(CONTEXT, activity="start", time_ns=TIME_NS).to_json()
REFUSED = _MAPPER.network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS).to_json()
OTHER = _MAPPER.network_activity(Attempt.of(RECORDS["tcp6"]), processed_ns=NOW_NS).to_json()


@pytest.fixture(autouse=True)
def endless_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an end and a replacement wait for the sinks on the slowest machine too."""
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 600.0)


class LineReceiver(Receiver):
    """Receiver that stores whole lines."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.lines: list[bytes] = []

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        outcome = await super().deliver(messages)
        self.lines += [message.line for message in messages]
        return outcome


def made(folder: Path, **found: Outlet) -> Delivering:
    return Delivering(list(found.values()), folder)


def one(name: str, sink: Receiver, **settings: Any) -> Outlet:
    return Outlet(
        name=name, sink=sink, batch_settings=BatchSettings(retry_seconds=0.01), **settings
    )


async def test_sink_for_all_classes_gets_unchanged_lines(tmp_path: Path) -> None:
    sink = LineReceiver()
    async with made(tmp_path, a=one("a", sink)) as delivery:
        await delivery.store_events([STARTED, REFUSED])
    assert sink.lines == [STARTED, REFUSED]


async def test_sink_gets_events_in_its_version_and_of_its_classes(tmp_path: Path) -> None:
    old, findings, new, small = LineReceiver(), LineReceiver(), LineReceiver(), LineReceiver()
    async with made(
        tmp_path,
        old=one("old", old, other_version="1.1.0"),
        findings=one("findings", findings, classes=frozenset({2004, 6002})),
        new=one("new", new),
        small=one("small", small, other_version="1.5.0", is_lean=True),
    ) as delivery:
        await delivery.store_events([REFUSED, STARTED])
    for line, full in zip(map(orjson.loads, small.lines), (REFUSED, STARTED), strict=True):
        assert line["metadata"]["uid"] == orjson.loads(full)["metadata"]["uid"]
        assert line["metadata"]["version"] == "1.5.0"
        assert "class_name" not in line
    facts = [orjson.loads(line)["metadata"]["version"] for line in old.lines]
    assert facts == ["1.1.0", "1.1.0"]
    assert findings.lines == [STARTED]
    assert new.lines == [REFUSED, STARTED]


async def test_undelivered_events_wait_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, well = LineReceiver(down=True), LineReceiver()
    with monkeypatch.context() as impatient:
        impatient.setattr(delivery_start, "DRAIN_SECONDS", 0.05)
        async with made(tmp_path, down=one("down", down), well=one("well", well)) as delivery:
            await delivery.store_events([REFUSED])
            while delivery.forwarders[1].pending:  # noqa: ASYNC110 - no other task waits
                await asyncio.sleep(0.001)
    assert (down.lines, well.lines) == ([], [REFUSED])
    back = LineReceiver()
    async with made(tmp_path, down=one("down", back), well=one("well", well)) as delivery:
        await delivery.store_events([STARTED])
    assert back.lines == [REFUSED, STARTED]
    assert well.lines == [REFUSED, STARTED]


async def test_last_events_are_delivered_before_the_end(tmp_path: Path) -> None:
    sink = LineReceiver()
    slow_outlet = Outlet(name="a", sink=sink, batch_settings=BatchSettings(seconds=3600.0))
    async with made(tmp_path, a=slow_outlet) as delivery:
        await delivery.store_events([REFUSED])
    assert sink.lines == [REFUSED]


async def test_sink_with_a_handshake_gets_it_before_all_events(tmp_path: Path) -> None:
    another = _another()
    first, second, other = LineReceiver(), LineReceiver(), LineReceiver()
    async with made(
        tmp_path, a=one("a", first, needs_handshake=True), other=one("other", other)
    ) as delivery:
        await delivery.store_events([STARTED])
        await other.has(1)
        assert first.opened == 0
        delivery.set_handshake(b"hello")
        await first.has(2)
        await delivery.store_events([another])
        await first.has(3)
        await delivery.replace([one("b", second, needs_handshake=True)])
        await delivery.store_events([REFUSED])
        await second.has(2)
    assert first.lines == [b"hello", STARTED, another]
    assert second.lines == [b"hello", REFUSED]
    assert other.lines == [STARTED, another]
    assert (first.opened, other.opened) == (1, 1)


async def test_another_handshake_repeats_no_event(tmp_path: Path) -> None:
    sink, goes_on = LineReceiver(), asyncio.Event()

    class Stuck(LineReceiver):
        async def deliver(self, messages: Sequence[Message]) -> BatchResult:
            await super().deliver(messages)
            await goes_on.wait()
            return await super().deliver(())

    stuck = Stuck()
    begun = made(tmp_path, a=one("a", stuck, needs_handshake=True))
    async with asyncio.timeout(60), begun as delivery:
        delivery.set_handshake(b"first")
        await stuck.has(1)
        delivery.set_handshake(b"second")
        replacing = asyncio.create_task(delivery.replace([one("a", sink, needs_handshake=True)]))
        while delivery.forwarders[0].sink is stuck:  # noqa: ASYNC110 - no event announces it
            await asyncio.sleep(0)
        delivery.set_handshake(b"third")
        goes_on.set()
        await replacing
        delivery.set_handshake(b"fourth")
        await delivery.store_events([STARTED])
        await sink.has(2)
    assert (stuck.lines, sink.lines) == ([b"first"], [b"third", STARTED])
    assert (stuck.opened, sink.opened) == (1, 1)


async def test_local_sink_that_can_not_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    other = LineReceiver()
    with pytest.raises(DeliveryError, match="it is down"):
        await made(
            tmp_path, a=one("a", other), b=one("b", LineReceiver(down=True), is_local=True)
        ).__aenter__()
    assert other.opened == other.closed


async def test_permanent_failure_of_a_sink_ends_the_context(tmp_path: Path) -> None:
    class Closed(LineReceiver):
        async def deliver(self, _: Sequence[Message]) -> BatchResult:
            raise ClosedError("the reader is closed")

    async def work() -> None:
        async with made(tmp_path, a=one("a", Closed())) as delivery:
            await delivery.store_events([REFUSED])
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        await work()
    assert [str(each) for each in ended.value.exceptions] == ["the reader is closed"]


async def _store_several(delivery: Delivering, number: int) -> None:
    for _ in range(number):
        await delivery.store_events([_another()])


def _another() -> bytes:
    global _made  # noqa: PLW0603 - each event is new
    _made += 1
    event = orjson.loads(OTHER)
    event["metadata"]["uid"] = f"another-{_made}"
    return orjson.dumps(event)


_made = 0


async def test_replacing_sinks_under_load_neither_drops_nor_repeats_events(tmp_path: Path) -> None:
    first, second, new = LineReceiver(), LineReceiver(), LineReceiver()
    async with made(tmp_path, a=one("a", first)) as delivery:
        storing = asyncio.create_task(_store_several(delivery, 200))
        await first.has(20)
        await delivery.replace([one("a", second), one("b", new)])
        await second.has(20)
        await delivery.replace([one("a", first), one("b", new)])
        await storing
    assert sorted(first.got + second.got) == sorted(set(first.got + second.got))
    assert len(first.got + second.got) == 200
    assert 0 < len(new.got) == len(set(new.got)) < 200
    assert first.opened == first.closed


async def test_sink_that_is_down_does_not_delay_a_replacement(tmp_path: Path) -> None:
    down, well = LineReceiver(down=True), LineReceiver()
    async with made(tmp_path, down=one("down", down), well=one("well", well)) as delivery:
        await delivery.store_events([REFUSED])
        await well.has(1)
        again = LineReceiver()
        slow = Outlet(name="down", sink=down, batch_settings=BatchSettings(retry_seconds=3600.0))
        await asyncio.wait_for(delivery.replace([slow, one("well", again)]), 60)
        await delivery.store_events([STARTED])
        await again.has(1)
        down.down = False
        await delivery.replace([one("down", down), one("well", again)])
        await down.has(2)
    assert down.lines == [REFUSED, STARTED]


async def test_cancelled_replacement_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_start, "DRAIN_SECONDS", 0.3)
    stuck, well = LineReceiver(stuck=True), LineReceiver()
    slow_outlet = Outlet(
        name="stuck", sink=stuck, batch_settings=BatchSettings(timeout_seconds=3600.0)
    )
    async with made(tmp_path, stuck=slow_outlet, well=one("well", well)) as delivery:
        await delivery.store_events([REFUSED])
        await well.has(1)
        back, again = LineReceiver(), LineReceiver()
        replacing = asyncio.create_task(delivery.replace([one("stuck", back), one("well", again)]))
        await asyncio.sleep(0.05)
        replacing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(replacing, 60)
        await delivery.store_events([STARTED])
        await again.has(1)
        await back.has(2)
    assert back.lines == [REFUSED, STARTED]


async def test_replacements_run_one_after_the_other(tmp_path: Path) -> None:
    sinks = [LineReceiver() for _ in range(5)]
    async with made(tmp_path, a=one("a", sinks[0])) as delivery:
        await asyncio.gather(*(delivery.replace([one("a", sink)]) for sink in sinks[1:]))
        await _store_several(delivery, 20)
    assert sorted(len(sink.got) for sink in sinks) == [0, 0, 0, 0, 20]


async def test_new_local_sink_that_can_not_be_opened_changes_nothing(tmp_path: Path) -> None:
    well = LineReceiver()
    async with made(tmp_path, a=one("a", well)) as delivery:
        with pytest.raises(DeliveryError, match="it is down"):
            await delivery.replace(
                [one("a", LineReceiver()), one("b", LineReceiver(down=True), is_local=True)]
            )
        await delivery.store_events([REFUSED])
    assert well.lines == [REFUSED]


async def test_new_local_sink_that_never_opens_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hung(LineReceiver):
        async def open(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(sink_delivery, "_OPEN_SECONDS", 0.1)
    well = LineReceiver()
    async with made(tmp_path, a=one("a", well)) as delivery:
        with pytest.raises(DeliveryError, match="b could not be opened within"):
            await delivery.replace([one("a", LineReceiver()), one("b", Hung(), is_local=True)])
        await delivery.store_events([REFUSED])
    assert well.lines == [REFUSED]


async def test_permanent_failure_during_a_replacement_is_the_only_error(
    tmp_path: Path,
) -> None:
    class Closed(LineReceiver):
        async def deliver(self, _: Sequence[Message]) -> BatchResult:
            await is_replacing.wait()
            raise ClosedError("the reader is closed")

    is_replacing = asyncio.Event()
    replacing: list[asyncio.Task[None]] = []

    async def work() -> None:
        sinks = {"closed": Closed(), "stuck": LineReceiver(stuck=True)}
        async with made(
            tmp_path, **{name: one(name, sink) for name, sink in sinks.items()}
        ) as all_:
            await all_.store_events([REFUSED])
            await sinks["stuck"].tried(1)
            before = all_.forwarders
            replacing.append(
                asyncio.create_task(all_.replace([one(name, LineReceiver()) for name in sinks]))
            )
            while all_.forwarders == before:  # noqa: ASYNC110 - no other task waits
                await asyncio.sleep(0.001)
            is_replacing.set()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        await work()
    assert [str(each) for each in ended.value.exceptions] == ["the reader is closed"]
    await replacing[0]


async def test_pending_events_are_counted_before_the_start_and_after_a_replacement(
    tmp_path: Path,
) -> None:
    sink = LineReceiver()
    async with made(tmp_path, a=one("a", sink)) as delivery:
        await _store_several(delivery, 5)
        await sink.has(5)
    outlet = one("a", sink, needs_handshake=True)
    began = time.monotonic()
    async with made(tmp_path, a=outlet) as delivery:
        assert [each.pending for each in delivery.forwarders] == [0]
        await _store_several(delivery, 1)
        assert [each.pending for each in delivery.forwarders] == [1]
    assert time.monotonic() - began < 300, "the end does not wait for a sink that never began"
    down = LineReceiver(down=True)
    async with made(tmp_path, a=one("a", down)) as delivery:
        while not delivery.forwarders[0].progress.failures:  # noqa: ASYNC110 - no other task waits
            await asyncio.sleep(0.01)
        await delivery.replace([one("a", down)])
        assert delivery.forwarders[0].pending == 1
        assert delivery.forwarders[0].progress.fault == "it is down"
        down.down = False
        await down.has(1)


async def test_exit_during_a_replacement_closes_all_sinks(tmp_path: Path) -> None:
    class Slow(LineReceiver):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        async def deliver(self, messages: Sequence[Message]) -> BatchResult:
            outcome = await super().deliver(messages)
            await asyncio.sleep(self.seconds)
            return outcome

    slow, slower, others = Slow(0.2), Slow(0.6), (LineReceiver(), LineReceiver())
    async with asyncio.timeout(120):
        async with made(tmp_path, a=one("a", slow), b=one("b", slower)) as delivery:
            await delivery.store_events([REFUSED])
            await slow.tried(1)
            await slower.tried(1)
            replacing = asyncio.create_task(
                delivery.replace([one("a", others[0]), one("b", others[1])])
            )
            await asyncio.sleep(0.05)
        await replacing
    await delivery.replace([one("a", slow)])  # too late: it has no effect
    assert all(each.opened == each.closed for each in (slow, slower, *others))


async def test_renamed_sink_has_one_writer_at_a_time(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    lines = [
        orjson.dumps({"metadata": {"uid": f"{number}"}, "pad": "x" * 2000}) for number in range(99)
    ]
    try:
        before = Outlet(name="before", sink=File(path=fifo), is_local=True, file=fifo)
        async with made(tmp_path, before=before) as delivery:
            await delivery.store_events(lines)  # more than fits into the pipe
            await asyncio.sleep(0.1)
            after = Outlet(name="after", sink=File(path=fifo), is_local=True, file=fifo)
            replacing = asyncio.create_task(delivery.replace([after]))
            await asyncio.sleep(0.1)
            await delivery.store_events([REFUSED])
            found = await asyncio.to_thread(_read, reader, len(lines) + 1)
            await replacing
    finally:
        os.close(reader)
    assert found == [*lines, REFUSED]


def _read(descriptor: int, lines: int) -> list[bytes]:
    os.set_blocking(descriptor, True)
    found = b""
    while found.count(b"\n") < lines:
        found += os.read(descriptor, 1 << 16)
    return found.splitlines()


async def test_opened_sinks_are_closed_after_a_failed_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> object:
        raise ClosedError("the store is closed")

    first, second = LineReceiver(), LineReceiver()
    with monkeypatch.context() as patched:
        patched.setattr(SinkDatabase, "register", broken)
        with pytest.raises(ClosedError, match="the store is closed"):
            await made(tmp_path, a=one("a", first, is_local=True)).__aenter__()
    assert first.opened == first.closed == 1
    async with made(tmp_path, a=one("a", LineReceiver())) as delivery:
        with monkeypatch.context() as patched:
            patched.setattr(SinkDatabase, "register", broken)
            with pytest.raises(ClosedError, match="the store is closed"):
                await delivery.replace([one("a", LineReceiver()), one("b", second, is_local=True)])
    assert second.opened == second.closed == 1


async def test_undelivered_events_of_a_removed_sink_are_counted_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(LineReceiver):
        async def deliver(self, messages: Sequence[Message]) -> BatchResult:
            has_begun.set()
            await asyncio.sleep(0.2)
            return await super().deliver(messages)

    has_begun = asyncio.Event()
    async with made(tmp_path, a=one("a", Slow()), b=one("b", LineReceiver(down=True))) as delivery:
        await delivery.store_events([REFUSED, STARTED])
        await has_begun.wait()
        await delivery.replace([one("c", LineReceiver())])
        await delivery.forget_removed()
    facts = [
        line for line in capsys.readouterr().out.splitlines() if "no longer configured" in line
    ]
    assert len(facts) == 1
    assert "never_delivered=2" in facts[0]
    assert "sink=b" in facts[0]


async def test_outlet_delivers_directly_to_its_sink() -> None:
    sink = LineReceiver()
    outlet = one("a", sink, other_version="1.1.0", classes=frozenset({4001}))
    await outlet.deliver(Change(events=[STARTED]))
    await outlet.deliver(Change(events=[REFUSED, STARTED, OTHER]))
    assert [orjson.loads(line)["metadata"]["version"] for line in sink.lines] == ["1.1.0"] * 2


@pytest.mark.parametrize("facts", [{"bad": {""}}, {"most": 0}])
async def test_outlet_raises_an_error_for_refused_events(facts: dict[str, Any]) -> None:
    with pytest.raises(DeliveryError, match="a did not accept all events: b"):
        await one("a", LineReceiver(**facts)).deliver(Change(events=[REFUSED]))


@pytest.mark.parametrize("kind", ["same", "dotted", "link", "hard link"])
def test_two_sinks_with_one_file_are_an_error(tmp_path: Path, kind: str) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.touch()
    if kind == "same":
        other = file
    elif kind == "dotted":
        (tmp_path / "x").mkdir()
        other = tmp_path / "x" / ".." / "a"
    elif kind == "link":
        other.symlink_to(file)
    else:
        other.hardlink_to(file)
    sinks = [{"path": str(file)}, {"path": str(other), "name": "b"}]
    found = config.parse({"sandbox": [{"name": "a"}], "sink": sinks}, where="test")
    with pytest.raises(UsageError, match="are one file: give each its own"):
        outlets(found.sinks)


def test_two_sinks_with_one_missing_file_are_an_error(tmp_path: Path) -> None:
    sinks = [{"path": str(tmp_path / "a")}, {"path": str(tmp_path / "." / "x" / ".." / "a")}]
    found = config.parse({"sandbox": [{"name": "a"}], "sink": sinks}, where="test")
    with pytest.raises(UsageError, match="are one file"):
        outlets(found.sinks)


def test_outlets_follow_the_configuration(tmp_path: Path) -> None:
    sinks = [
        {"path": str(tmp_path / "a"), "ocsf_version": "1.1", "classes": ["network_activity"]},
        {"type": "stdout", "name": "screen", "batch_events": 7, "detail": "lean"},
    ]
    found = outlets(config.parse({"sandbox": [{"name": "a"}], "sink": sinks}, where="test").sinks)
    assert [(each.name, each.other_version, each.classes) for each in found] == [
        (str(tmp_path / "a"), "1.1.0", frozenset({4001})),
        ("screen", None, None),
    ]
    assert [each.batch_settings.events for each in found] == [500, 7]
    assert [each.is_lean for each in found] == [False, True]
    assert all(each.is_local for each in found)
