"""The reporter: the severity rules of a sandbox, and the turns that it yields to other tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context, Host
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.process import Container
from ocsf_nft.service import event_rendering as module
from ocsf_nft.service.event_rendering import Reporter
from tests.conformance.corpus import RECORDS, TCP, V4, record
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator


async def test_reporter_gives_other_tasks_a_turn_after_each_slice() -> None:
    attempt = Attempt.of(record(**V4, **TCP))
    waited: list[int] = [0]

    def found() -> Iterator[Attempt]:
        for _ in range(10 * module._SLICE):
            waited[-1] += 1
            yield attempt

    async def take_turns() -> None:
        while True:
            waited.append(0)
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    lines = await Reporter(MemoryStore().commit, Host(hostname="test")).lines(found())
    other.cancel()
    assert len(lines) == sum(waited) == 10 * module._SLICE
    assert max(waited) <= module._SLICE
    assert len(waited) <= 12  # a turn costs time


def test_reporter_applies_the_severity_rules_of_the_host_to_a_sandbox() -> None:
    reporter = Reporter(MemoryStore().commit, Host(hostname="test"))
    container = Container(name="one")
    reporter.set_context("one", Context(container=container))
    for rules, threshold in (
        ((), FindingSettings()),
        ((SeverityRule(severity=Severity.LOW),), FindingSettings(packets=3)),
    ):
        reporter.set_severity_rules(rules, threshold)
        for name, known in (("one", container), ("another", None), (None, None)):
            context = reporter.context(name)
            assert context.container == known
            assert (context.severities, context.findings) == (rules, threshold)


async def test_reporter_applies_new_severity_rules_to_records_of_no_known_sandbox() -> None:
    reporter = Reporter(MemoryStore().commit, Host(hostname="test"))
    for severity in (Severity.CRITICAL, Severity.LOW):
        reporter.set_severity_rules((SeverityRule(severity=severity),), FindingSettings())
        line, *_ = await reporter.lines([Attempt.of(record(**V4, **TCP))])
        assert orjson.loads(line)["severity_id"] == severity


async def test_reporter_emits_dns_activity_only_if_it_is_on() -> None:
    reporter = Reporter(MemoryStore().commit, Host(hostname="test"))
    attempt = Attempt.of(RECORDS["dns query"])
    for is_on, classes in ((False, [4001]), (True, [4001, 4003])):
        reporter.has_dns_activity = is_on
        lines = await reporter.lines([attempt])
        assert [orjson.loads(line)["class_uid"] for line in lines] == classes
