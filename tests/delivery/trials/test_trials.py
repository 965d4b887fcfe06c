"""Every kind of sink, from the store to a real receiver that fails in each way that it can."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.delivery import forwarder, stored_events
from ocsf_nft.delivery.sinks import splunk_hec, syslog_transport
from tests.delivery.sinks.brokers import Certificates
from tests.delivery.sinks.weed import Weed
from tests.delivery.trials.kinds import CERTIFICATE, KINDS, SECRET, SLOW, STRICT, going_through
from tests.delivery.trials.receivers import WRONG, Receiver, Setting, event
from tests.delivery.trials.running import NAME, Run, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.delivery.event_db import DeadLetter

#: A receiver is down until this number of delivery attempts has failed.
_FAILURES: Final = 3
#: It is also down for this time: `OCSF_NFT_DOWN_SECONDS=60` makes it a whole minute.
DOWN_SECONDS: Final = float(os.environ.get("OCSF_NFT_DOWN_SECONDS", "0"))
_EVERY_SECONDS: Final = 0.004
_SOON_SECONDS: Final = 20.0
#: On a busy machine; what holds up another sink does so for as long as a receiver is held up.
_AT_ONCE_SECONDS: Final = 5.0
#: The most that a reason has of what a receiver says, and the sentence round it.
_REASON_LENGTH: Final = 500


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Weed]]:
    """A server of S3, started when the first one asks for it, or one asks that was killed."""
    server = Weed(tmp_path_factory.mktemp("weed"))

    def up() -> Weed:
        if server._process is None:
            server.start()
        return server

    try:
        yield up
    finally:
        server.kill()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often, and wait less, where that is for a network and people."""
    monkeypatch.setattr(forwarder, "_RETRY_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(syslog_transport, "_PROBATION_SECONDS", 0.05)
    monkeypatch.setattr(splunk_hec, "_FIRST_POLL_SECONDS", 0.05)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def setting(tmp_path: Path, weed: Callable[[], Weed]) -> Setting:
    return Setting(folder=tmp_path, weed=weed)


@contextlib.asynccontextmanager
async def trial(name: str, setting: Setting) -> AsyncIterator[tuple[Receiver, Run]]:
    receiver = KINDS[name].make(setting)
    try:
        async with running(setting.folder / "store", more_seconds=2 * DOWN_SECONDS) as run:
            yield receiver, run
    finally:
        await receiver.end()


async def soon(is_so: Callable[[], Awaitable[bool]], seconds: float = _SOON_SECONDS) -> bool:
    """Wait until something is so of what tells nobody, another process or a file, or for long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await is_so():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            return True
    return False


async def arrived(receiver: Receiver, wanted: Iterable[str]) -> list[str]:
    """What a receiver has as soon as that is all that is wanted, or after long."""
    found: list[str] = []

    async def has_all() -> bool:
        found[:] = await receiver.uids()
        return set(wanted) <= set(found)

    await soon(has_all)
    return found


def first(uids: Sequence[str]) -> list[str]:
    """Each uid where it was first."""
    return list(dict.fromkeys(uids))


def hold_a_sentence(fault: str | None) -> None:
    assert fault is not None
    assert fault.isprintable()
    assert len(fault) < _REASON_LENGTH
    assert " " in fault
    assert not re.match(r"\w*(Error|Exception|Traceback)\b", fault)


@pytest.mark.parametrize("name", KINDS)
async def test_who_is_down_at_first_gets_everything_once_and_in_order(
    name: str, setting: Setting
) -> None:
    async with trial(name, setting) as (receiver, run):
        await run.put(event(number) for number in range(300))
        await run.deliver(receiver.table)
        await run.until(lambda: run.forwarder.progress.failures > 1, "told")
        hold_a_sentence(run.forwarder.progress.fault)
        assert run.forwarder.progress.delivered == 0
        await receiver.start()
        await run.drained()
        assert run.forwarder.progress.fault is None
        found = await arrived(receiver, run.uids)
    if KINDS[name].may_disorder:
        assert set(found) == set(run.uids)
    else:
        assert found == run.uids


@contextlib.asynccontextmanager
async def pumping(run: Run) -> AsyncIterator[None]:
    """Put an event every few milliseconds."""
    is_over = False

    async def pump() -> None:
        for number in itertools.count():
            if is_over:
                return
            await run.put([event(number)])
            await asyncio.sleep(_EVERY_SECONDS)

    task = asyncio.create_task(pump())
    try:
        yield
    finally:
        is_over = True
        await task


@pytest.mark.parametrize("name", KINDS)
async def test_who_is_down_for_a_while_misses_nothing(name: str, setting: Setting) -> None:
    kind = KINDS[name]
    async with trial(name, replace(setting, is_cut_soon=True)) as (receiver, run):
        await receiver.start()
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        async with pumping(run):
            await run.until(lambda: progress.delivered >= 30, "delivered")
            await receiver.kill()
            dead_since = time.monotonic()
            before = await receiver.uids() if kind.may_lose else []
            await run.until(lambda: progress.fault is not None, "told")
            hold_a_sentence(progress.fault)
            # What was handed over before anybody could know; nothing that was put later.
            lost = run.uids[len(set(before)) :] if kind.may_lose else []
            await run.until(lambda: progress.failures >= _FAILURES, "tried again")
            await asyncio.sleep(dead_since + DOWN_SECONDS - time.monotonic())
            await receiver.start()
            end = run.store.end + 30
            await run.until(lambda: run.forwarder.done >= end, "gone on")
        await run.drained()
        wanted = set(run.uids) - set(lost)
        found = await arrived(receiver, wanted)
        assert progress.fault is None
        await run.memory.has(len(run.sent))
        assert run.memory.got == run.uids
    if kind.has_once:
        assert Counter(found) == Counter(run.uids)
    assert wanted <= set(found) <= set(run.uids)
    if not kind.may_disorder:
        arrivals = set(found)
        assert first(found) == [uid for uid in run.uids if uid in arrivals]


@pytest.mark.parametrize("name", going_through(SLOW))
async def test_who_is_slow_loses_nothing_and_holds_up_nobody(name: str, setting: Setting) -> None:
    kind = KINDS[name]
    async with trial(name, replace(setting, is_slow=True)) as (receiver, run):
        await receiver.start()
        table = {"batch_events": 20} | receiver.table
        await run.deliver(table)
        await run.put([event(0)])
        await run.drained()
        await receiver.hold()
        for number in range(1, 51):
            put_at = time.monotonic()
            await run.put([event(number)])
            await run.memory.has(number + 1)
            assert time.monotonic() - put_at < _AT_ONCE_SECONDS
        assert run.forwarder.pending
        progress = run.forwarder.progress
        if "timeout_seconds" in table:
            await run.until(lambda: progress.failures > 0, "cut")
            hold_a_sentence(progress.fault)
        await receiver.drag(0.05)
        await run.drained()
        found = await arrived(receiver, run.uids)
        assert run.memory.got == run.uids
        times = (1 + progress.failures) * kind.asks
    counts = Counter(found)
    assert counts.keys() == set(run.uids)
    assert max(counts.values()) <= (1 if kind.has_once else times)


async def letters(run: Run) -> list[DeadLetter]:
    def read() -> list[DeadLetter]:
        with stored_events.Archive(run.store.path) as found:
            return list(found.dead_letters(NAME))

    return await asyncio.to_thread(read)


@pytest.mark.parametrize("name", going_through(STRICT))
async def test_who_rejects_an_event_gets_the_others_and_that_one_when_it_is_wanted(
    name: str, setting: Setting
) -> None:
    kind = KINDS[name]
    async with trial(name, replace(setting, is_strict=True)) as (receiver, run):
        await receiver.start()
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        bad = receiver.poisoned(9)
        await run.put(bad if number == 9 else event(number) for number in range(20))
        await run.drained()
        (letter,) = await letters(run)
        assert (letter.uid, letter.line, progress.dead) == (bad.uid, bad.line, 1)
        hold_a_sentence(letter.reason.replace(receiver.complaint, ""))
        assert receiver.complaint in letter.reason
        others = [uid for uid in run.uids if uid != bad.uid]
        assert first(await arrived(receiver, others)) == others
        assert stored_events.retry_dead_letters(run.store.path, NAME, bad.uid) == 1
        assert await tried_again(run)
        assert [each.uid for each in await letters(run)] == [bad.uid]
        if kind.keeps_refusing:
            return
        before = receiver.table
        await receiver.relent()
        if receiver.table != before:
            await run.deliver(receiver.table)
        stored_events.retry_dead_letters(run.store.path, None, None)
        assert await buried(run)
        await run.until(lambda: run.forwarder.progress.dead == 0, "told")
        assert set(await arrived(receiver, run.uids)) == set(run.uids)


async def tried_again(run: Run) -> bool:
    """Wait until no dead letter is to be tried again."""

    async def is_tried() -> bool:
        return not await run.store.dead_letters_to_retry(NAME, events=1)

    return await soon(is_tried)


async def buried(run: Run) -> bool:
    """Wait until there is no dead letter."""

    async def is_buried() -> bool:
        return not await letters(run)

    return await soon(is_buried)


@pytest.mark.parametrize("name", going_through(CERTIFICATE))
async def test_who_shows_a_wrong_certificate_gets_nothing_until_it_is_trusted(
    name: str, setting: Setting, certificates: Certificates
) -> None:
    setting = replace(setting, certificates=certificates)
    setting.trusted.write_bytes(certificates.other_ca.read_bytes())
    async with trial(name, setting) as (receiver, run):
        await receiver.start()
        await run.put(event(number) for number in range(20))
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        await run.until(lambda: progress.fault is not None, "told")
        hold_a_sentence(progress.fault)
        assert "its certificate is" in str(progress.fault)
        assert (progress.delivered, await receiver.uids()) == (0, [])
        setting.trusted.write_bytes(certificates.ca.read_bytes())
        await run.drained()
        assert await arrived(receiver, run.uids) == run.uids


@pytest.mark.parametrize("name", going_through(SECRET))
async def test_who_wants_another_secret_gets_everything_when_it_is_there(
    name: str, setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = replace(setting, is_locked=True)
    setting.secret.write_text(f"{WRONG}\n")
    async with trial(name, setting) as (receiver, run):
        await receiver.start()
        await run.put(event(number) for number in range(20))
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        await run.until(lambda: progress.fault is not None, "told")
        hold_a_sentence(progress.fault)
        assert (progress.delivered, await receiver.uids()) == (0, [])
        setting.secret.write_text(f"{receiver.opens}\n")
        await run.drained()
        assert await arrived(receiver, run.uids) == run.uids
    said = "".join(capsys.readouterr())
    assert "sink down" in said
    assert WRONG not in said
    assert receiver.opens not in said
