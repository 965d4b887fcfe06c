"""Every kind of sink, from the store to a real receiver with all its kinds of failure."""

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

from ocsf_nft.delivery import forwarder, sink_db
from ocsf_nft.delivery.sinks import splunk_hec, syslog
from tests.delivery.sinks.brokers import Certificates
from tests.delivery.sinks.weed import Weed
from tests.delivery.trials.kinds import CERTIFICATE, KINDS, SECRET, SLOW, STRICT, kinds_in_trial
from tests.delivery.trials.receivers import WRONG, Receiver, Setting, event
from tests.delivery.trials.running import NAME, Run, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.delivery.sink_db import DeadLetter

#: A receiver is down until this number of delivery attempts has failed.
_FAILURES: Final = 3
#: It is also down for this time: `OCSF_NFT_DOWN_SECONDS=60` makes it a whole minute.
DOWN_SECONDS: Final = float(os.environ.get("OCSF_NFT_DOWN_SECONDS", "0"))
_EVERY_SECONDS: Final = 0.004
_SOON_SECONDS: Final = 60.0
#: For a busy machine. A blocked sink would be blocked as long as the receiver does not answer.
_AT_ONCE_SECONDS: Final = 30.0
#: The maximum length of a reason, with a receiver's own text.
_REASON_LENGTH: Final = 500


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Weed]]:
    """Yield a function that returns an S3 server, and starts it if it is not running."""
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
def _short_waits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Shorten the waits that are long for networks and people."""
    monkeypatch.setattr(forwarder, "_RETRY_CHECK_SECONDS", 0.05)
    # By UDP, an error that comes later would be that of a batch that counts as delivered.
    if name != "syslog_udp":
        monkeypatch.setattr(syslog, "_PROBATION_SECONDS", 0.05)
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


async def becomes_true(
    is_so: Callable[[], Awaitable[bool]], seconds: float = _SOON_SECONDS
) -> bool:
    """Poll a condition of another process or a file; return False after ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await is_so():  # noqa: ASYNC110 - no event signals it
                await asyncio.sleep(0.01)
            return True
    return False


async def arrived(receiver: Receiver, expected: Iterable[str]) -> list[str]:
    """Return a receiver's uids, as soon as it has the expected ones or after a long time."""
    found: list[str] = []

    async def has_all() -> bool:
        found[:] = await receiver.uids()
        return set(expected) <= set(found)

    await becomes_true(has_all)
    return found


def first_occurrences(uids: Sequence[str]) -> list[str]:
    """Return each uid once, at its first position."""
    return list(dict.fromkeys(uids))


def assert_one_sentence(fault: str | None) -> None:
    assert fault is not None
    assert fault.isprintable()
    assert len(fault) < _REASON_LENGTH
    assert " " in fault
    assert not re.match(r"\w*(Error|Exception|Traceback)\b", fault)


@pytest.mark.parametrize("name", KINDS)
async def test_receiver_down_at_first_gets_each_event_once_and_in_order(
    name: str, setting: Setting
) -> None:
    async with trial(name, setting) as (receiver, run):
        await run.put(event(number) for number in range(300))
        await run.deliver(receiver.table)
        await run.until(lambda: run.forwarder.progress.failures > 1, "failed")
        assert_one_sentence(run.forwarder.progress.fault)
        assert run.forwarder.progress.delivered == 0
        await receiver.start()
        await run.drained()
        assert run.forwarder.progress.fault is None
        found = await arrived(receiver, run.uids)
    if KINDS[name].may_reorder:
        assert set(found) == set(run.uids)
    else:
        assert found == run.uids


@contextlib.asynccontextmanager
async def storing_events(run: Run) -> AsyncIterator[None]:
    """Store an event every few milliseconds."""
    is_over = False

    async def store() -> None:
        for number in itertools.count():
            if is_over:
                return
            await run.put([event(number)])
            await asyncio.sleep(_EVERY_SECONDS)

    task = asyncio.create_task(store())
    try:
        yield
    finally:
        is_over = True
        await task


@pytest.mark.parametrize("name", KINDS)
async def test_receiver_down_for_a_while_misses_no_event(name: str, setting: Setting) -> None:
    kind = KINDS[name]
    async with trial(name, replace(setting, is_cut_soon=True)) as (receiver, run):
        await receiver.start()
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        async with storing_events(run):
            await run.until(lambda: progress.delivered >= 30, "delivered")
            await receiver.kill()
            dead_since = time.monotonic()
            before = await receiver.uids() if kind.may_drop else []
            await run.until(lambda: progress.fault is not None, "reported a fault")
            assert_one_sentence(progress.fault)
            # Events that were sent before the fault was known; none that was stored later.
            dropped = run.uids[len(set(before)) :] if kind.may_drop else []
            await run.until(lambda: progress.failures >= _FAILURES, "retried")
            await asyncio.sleep(dead_since + DOWN_SECONDS - time.monotonic())
            await receiver.start()
            end = run.store.end + 30
            await run.until(lambda: run.forwarder.done >= end, "continued")
        await run.drained()
        expected = set(run.uids) - set(dropped)
        found = await arrived(receiver, expected)
        assert progress.fault is None
        await run.memory.has(len(run.sent))
        assert run.memory.got == run.uids
    if kind.deduplicates:
        assert Counter(found) == Counter(run.uids)
    assert expected <= set(found) <= set(run.uids)
    if not kind.may_reorder:
        arrivals = set(found)
        assert first_occurrences(found) == [uid for uid in run.uids if uid in arrivals]


@pytest.mark.parametrize("name", kinds_in_trial(SLOW))
async def test_slow_receiver_gets_each_event_and_blocks_no_other_sink(
    name: str, setting: Setting
) -> None:
    kind = KINDS[name]
    async with trial(name, replace(setting, is_slow=True)) as (receiver, run):
        await receiver.start()
        table = {"batch_events": 20} | receiver.table
        await run.deliver(table)
        await run.put([event(0)])
        await run.drained()
        progress = run.forwarder.progress
        before = progress.failures
        await receiver.stop_answering()
        for number in range(1, 51):
            put_at = time.monotonic()
            await run.put([event(number)])
            await run.memory.has(number + 1)
            assert time.monotonic() - put_at < _AT_ONCE_SECONDS
        assert run.forwarder.pending
        if "timeout_seconds" in table:
            await run.until(lambda: progress.failures > before, "cut")
            assert_one_sentence(progress.fault)
        await receiver.answer_slowly(0.05)
        await run.drained()
        found = await arrived(receiver, run.uids)
        assert run.memory.got == run.uids
        times = (1 + progress.failures) * kind.sends
    counts = Counter(found)
    assert counts.keys() == set(run.uids)
    assert max(counts.values()) <= (1 if kind.deduplicates else times)


async def dead_letters(run: Run) -> list[DeadLetter]:
    def read() -> list[DeadLetter]:
        with sink_db.SinkArchive(run.store.path) as found:
            return list(found.dead_letters(NAME))

    return await asyncio.to_thread(read)


@pytest.mark.parametrize("name", kinds_in_trial(STRICT))
async def test_receiver_gets_all_but_a_refused_event_and_that_one_after_a_retry(
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
        (letter,) = await dead_letters(run)
        assert (letter.uid, letter.line, progress.dead) == (bad.uid, bad.line, 1)
        assert_one_sentence(letter.reason.replace(receiver.refusal_text, ""))
        assert receiver.refusal_text in letter.reason
        others = [uid for uid in run.uids if uid != bad.uid]
        assert first_occurrences(await arrived(receiver, others)) == others
        assert sink_db.retry_dead_letters(run.store.path, NAME, bad.uid) == 1
        assert await has_retried(run)
        assert [each.uid for each in await dead_letters(run)] == [bad.uid]
        if kind.always_refuses:
            return
        before = receiver.table
        await receiver.accept_refused()
        if receiver.table != before:
            await run.deliver(receiver.table)
        sink_db.retry_dead_letters(run.store.path, None, None)
        assert await has_no_dead_letters(run)
        await run.until(lambda: run.forwarder.progress.dead == 0, "counted no dead letter")
        assert set(await arrived(receiver, run.uids)) == set(run.uids)


async def has_retried(run: Run) -> bool:
    """Wait until no dead letter waits for a retry."""

    async def is_retried() -> bool:
        return not run.store.sinks.dead_letters_to_retry(NAME, 1)

    return await becomes_true(is_retried)


async def has_no_dead_letters(run: Run) -> bool:
    """Wait until there is no dead letter."""

    async def is_empty() -> bool:
        return not await dead_letters(run)

    return await becomes_true(is_empty)


@pytest.mark.parametrize("name", kinds_in_trial(CERTIFICATE))
async def test_receiver_with_a_wrong_certificate_gets_events_only_when_it_is_trusted(
    name: str, setting: Setting, certificates: Certificates
) -> None:
    setting = replace(setting, certificates=certificates)
    setting.trusted.write_bytes(certificates.other_ca.read_bytes())
    async with trial(name, setting) as (receiver, run):
        await receiver.start()
        await run.put(event(number) for number in range(20))
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        await run.until(lambda: progress.fault is not None, "reported a fault")
        assert_one_sentence(progress.fault)
        assert "its certificate is" in str(progress.fault)
        assert (progress.delivered, await receiver.uids()) == (0, [])
        setting.trusted.write_bytes(certificates.ca.read_bytes())
        await run.drained()
        assert await arrived(receiver, run.uids) == run.uids


@pytest.mark.parametrize("name", kinds_in_trial(SECRET))
async def test_receiver_with_another_secret_gets_each_event_after_the_secret_changes(
    name: str, setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = replace(setting, is_locked=True)
    setting.secret.write_text(f"{WRONG}\n")
    async with trial(name, setting) as (receiver, run):
        await receiver.start()
        await run.put(event(number) for number in range(20))
        await run.deliver(receiver.table)
        progress = run.forwarder.progress
        await run.until(lambda: progress.fault is not None, "reported a fault")
        assert_one_sentence(progress.fault)
        assert (progress.delivered, await receiver.uids()) == (0, [])
        setting.secret.write_text(f"{receiver.accepted_secret}\n")
        await run.drained()
        assert await arrived(receiver, run.uids) == run.uids
    log = "".join(capsys.readouterr())
    assert "sink down" in log
    assert WRONG not in log
    assert receiver.accepted_secret not in log
