"""What is reported of a sandbox whose network namespace ended while no service ran."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.errors import DeliveryError
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.service import ended_sandboxes, stored_account
from ocsf_nft.service.ended_sandboxes import forget_account, forget_ended
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE
from tests.flows.reading import key, record, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_loop import Given, _findings, batch
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.flow import Key
    from ocsf_nft.flows.sandbox_account import SandboxAccount
    from ocsf_nft.state.change import Change

_SEEN = replace(INSTALLED, spec=replace(INSTALLED.spec, sandbox="sb"))


async def test_packets_and_findings_of_a_killed_run_are_reported_at_the_end(tmp_path: Path) -> None:
    sink, counters = MemoryStore(), Given()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        for number in range(1, 4):
            await account.take(batch(record(tcp(port=number))))
        counters.counts = {key(tcp(port=number)): 9 for number in range(1, 41)}
        await account._observe()
        await account._report_due()
    assert sum(event["count"] for event in sink.of_class(4001)) < 360
    assert "New" in [stage for stage, _, _ in _findings(sink)]
    state = StateDirectory(tmp_path)
    async with keeping.opened_store(tmp_path) as store:

        async def commit(change: Change) -> None:
            await sink.commit(change)
            await store.commit(change)

        await forget_account("sb", _SEEN, state, store, Reporter(commit, None))
        assert stored_account.read(state, "sb").parts == {}
        assert not store.database.has_account("sb")
    assert sum(event["count"] for event in sink.of_class(4001)) == 360
    assert sink.events[-1]["unmapped"]["refused"] == 360
    stages = [(stage, uid) for stage, uid, _ in _findings(sink)]
    begun = [uid for stage, uid in stages if stage == "New"]
    assert sorted(begun) == sorted(uid for stage, uid in stages if stage == "Inactive")


class _Reversed(set["Key"]):
    """Set in another order than usual: that of a set of texts differs from process to process."""

    def __iter__(self) -> Iterator[Key]:
        return iter(sorted(super().__iter__(), reverse=True))


async def _leave_unreported(path: Path, flows: int) -> int:
    """Let a run be killed that has stored packets without an event; return their number."""
    counters = Given()
    async with keeping.running_account(counters, path, MemoryStore()) as account:
        counters.counts = {key(tcp(port=number)): number % 7 + 1 for number in range(1, flows + 1)}
        await account._observe()
        async with account._lock:
            await account._commit([])
    return sum(counters.counts.values())


@pytest.mark.parametrize("folder", ["", "other"])
async def test_interrupted_report_of_the_rest_is_repeated_and_counts_no_packet_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """The account may be in another database than the events."""
    refused = await _leave_unreported(tmp_path, flows=2000)
    state, stored = StateDirectory(tmp_path), ended_sandboxes._stored

    def stored_in_another_order(*arguments: object) -> SandboxAccount:
        account = stored(*arguments)  # type: ignore[arg-type]
        for rule in account.rules.values():
            rule.counters.unreported = _Reversed(rule.counters.unreported)
        return account

    async with keeping.opened_store(tmp_path / folder) as store:

        async def commit_once(change: Change) -> None:
            if store.database.end:
                raise DeliveryError("the disk is full")
            await store.commit(change)

        with pytest.raises(DeliveryError):
            await forget_account("sb", _SEEN, state, store, Reporter(commit_once, None))
        monkeypatch.setattr(ended_sandboxes, "_stored", stored_in_another_order)
        await forget_account("sb", _SEEN, state, store, Reporter(store.commit, None))
    assert _stored_counts(tmp_path / folder) == refused


def _stored_counts(path: Path) -> int:
    with Archive(path / FILE) as archive:
        events = [orjson.loads(each.line) for each in archive.read(0)]
    return sum(event["count"] for event in events if event["class_uid"] == 4001)


async def test_rest_is_reported_although_the_run_ended_when_it_forgot_the_sandbox(
    tmp_path: Path,
) -> None:
    refused = await _leave_unreported(tmp_path, flows=3)
    state = StateDirectory(tmp_path)
    seen = replace(_SEEN, namespace=Namespace(tmp_path / "missing"))
    state.write(seen)

    async def fail(_: Change) -> None:
        raise DeliveryError("the disk is full")

    async with keeping.opened_store(tmp_path) as store:
        with pytest.raises(DeliveryError):
            await forget_ended("sb", seen, state, store, Reporter(fail, None))
        assert list(state.sandboxes()) == ["sb"]  # so that it is tried again
        assert await forget_ended("sb", seen, state, store, Reporter(store.commit, None))
        assert list(state.sandboxes()) == []
        assert not store.database.has_account("sb")
    assert _stored_counts(tmp_path) == refused
