"""What is reported of a sandbox whose network namespace ended while no service ran."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service import stored_account
from ocsf_nft.service.ended_sandboxes import forget_account
from ocsf_nft.service.event_rendering import Reporter
from tests.flows.reading import key, record, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_loop import Given, _findings, batch
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from pathlib import Path

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
