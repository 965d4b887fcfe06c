"""Processes and attempts of a scan."""

from __future__ import annotations

import json
from dataclasses import replace

from ocsf_nft.attempt import Aggregation, Attempt, FanOut, ScanSender
from ocsf_nft.flow import CounterId, Flow
from ocsf_nft.flows import codec
from ocsf_nft.flows.incidents import LATEST
from ocsf_nft.flows.scans import SENDERS, FanOuts
from ocsf_nft.process import Attribution, Process, Seen
from tests.flows.reading import NOW, SECOND, key, record, tcp

COUNTER_ID = CounterId(sandbox="sb", rule="egress", epoch="boot:1")
MINUTE = 60 * SECOND


def _process(pid: int, path: str = "/usr/bin/nmap") -> Process:
    return Process(pid=pid, path=path, uid=1000)


def _by(*pids: int) -> Attribution:
    if len(pids) == 1:
        return Attribution(method="capture", confidence="high", reason="", process=_process(*pids))
    seen = tuple(Seen(process=_process(pid)) for pid in pids)
    return Attribution(method="capture", confidence="high", reason="", seen=seen)


def _attempt(port: int, by: Attribution | None, uid: int = 1000) -> Attempt:
    return Attempt.of(record(tcp(port, uid=uid), port), by)


def _scanned(*attempts: Attempt) -> FanOuts:
    fan_outs = FanOuts(COUNTER_ID, {})
    for port in range(1, 21):
        fan_outs.add_flow(key(tcp(port)), NOW)
    for each in attempts:
        fan_outs.add_attempt(each)
    return fan_outs


def _scan(fan_outs: FanOuts, now_ns: int = 0) -> FanOut:
    (found,) = fan_outs.due(now_ns)
    return found


def test_scan_has_each_process_that_was_seen_to_send() -> None:
    attempts = (_attempt(1, _by(7)), _attempt(2, _by(8, 9)), _attempt(3, _by(7)), _attempt(4, None))
    found = _scan(_scanned(*attempts))
    assert [(each.process.pid, each.attempts) for each in found.senders] == [(7, 2), (8, 1), (9, 1)]
    assert found.senders[0].flow == Flow(
        uid=1000, protocol=6, destination=attempts[0].record.destination, port=1
    )
    assert (found.unnamed, found.windows) == (0, 4)
    assert found.latest == tuple(each.record.origin.identity for each in attempts)


def test_process_that_only_had_a_socket_took_no_part_in_a_scan() -> None:
    found = _scan(_scanned(_attempt(1, replace(_by(8, 9), confidence="low"))))
    assert found.senders == ()


def test_process_that_is_named_and_listed_made_one_attempt() -> None:
    by = replace(_by(7), confidence="medium", seen=(Seen(process=_process(7)),))
    found = _scan(_scanned(_attempt(1, by)))
    assert [(each.process.pid, each.attempts) for each in found.senders] == [(7, 1)]


def test_process_of_few_attempts_is_not_the_sole_sender() -> None:
    low = replace(_by(8, 9), confidence="low")
    attempts = [_attempt(1, _by(7)), _attempt(2, None)]
    found = _scan(_scanned(*attempts))
    assert (found.unknown, found.sole_sender) == (1, _process(7))
    found = _scan(_scanned(*attempts, _attempt(3, low)))
    assert (len(found.senders), found.unknown, found.sole_sender) == (1, 2, None)
    several = replace(_attempt(4, None), aggregation=Aggregation(reason="many"))
    assert _scan(_scanned(*attempts, several)).unknown == 1


def test_another_program_of_a_process_is_another_sender() -> None:
    other = replace(_by(7), process=_process(7, "/usr/bin/masscan"))
    found = _scan(_scanned(_attempt(1, _by(7)), _attempt(2, other)))
    assert [each.process.path for each in found.senders] == ["/usr/bin/nmap", "/usr/bin/masscan"]


def test_attempt_of_another_user_is_not_of_the_scan() -> None:
    found = _scan(_scanned(_attempt(1, _by(7), uid=1001)))
    assert (found.senders, found.windows) == ((), 0)


def test_processes_and_attempts_of_a_scan_are_limited_and_counted() -> None:
    pids = [*range(1, SENDERS + 6), *range(SENDERS + 1, SENDERS + 6)]
    found = _scan(_scanned(*(_attempt(pid, _by(pid)) for pid in pids)))
    assert [each.process.pid for each in found.senders] == list(range(1, SENDERS + 1))
    assert (found.unnamed, found.windows, len(found.latest)) == (5, len(pids), LATEST)


def test_stored_size_of_a_scan_is_limited() -> None:
    above = tuple(_process(pid, "/" + "p" * 30) for pid in range(16))
    long = replace(_process(7), cmd_line="x" * 5000, ancestors=above)
    by = replace(_by(7), process=long)
    fan_outs = _scanned(
        *(_attempt(1, replace(by, process=replace(long, pid=pid))) for pid in range(1, 80))
    )
    found = _scan(fan_outs)
    assert len(codec._json_of(found)) < 64 * 1024
    assert found.senders[0].process.ancestors == above[:4]
    assert str(found.senders[0].process.cmd_line).endswith("x…")


def test_processes_of_all_scans_are_limited_and_each_scan_has_one() -> None:
    """All scans that grow are stored again each second, and a program may have 1,024 users."""
    fan_outs = FanOuts(COUNTER_ID, {})
    users, packets = range(2000, 2100), range(1, 21)
    for uid in users:
        for port in packets:
            fan_outs.add_flow(key(tcp(port, uid=uid)), NOW)
            fan_outs.add_attempt(_attempt(port, _by(1000 * uid + port), uid=uid))
    found = list(fan_outs.due(0))
    assert [len(each.senders) + each.unnamed for each in found] == [len(packets)] * len(users)
    assert [len(each.senders) for each in found] == [20] * 12 + [16] + [1] * 87
    list(fan_outs.due(MINUTE))
    for port in packets:
        fan_outs.add_flow(key(tcp(port)), NOW)
        fan_outs.add_attempt(_attempt(port, _by(port)))
    assert len(_scan(fan_outs, MINUTE).senders) == len(packets)


def test_process_that_was_only_counted_is_not_listed_later() -> None:
    fan_outs = FanOuts(COUNTER_ID, {})
    for uid in range(2000, 2009):
        for pid in range(1, SENDERS + 1):
            fan_outs.add_flow(key(tcp(pid, uid=uid)), NOW)
            fan_outs.add_attempt(_attempt(pid, _by(pid), uid=uid))
    *_, last = fan_outs.due(0)
    assert (len(last.senders), last.unnamed) == (1, SENDERS - 1)
    fan_outs.add_flow(key(tcp(1, uid=2008)), NOW)  # the other scans are over first
    list(fan_outs.due(30 * SECOND))
    list(fan_outs.due(MINUTE))
    for pid in range(1, SENDERS + 1):
        fan_outs.add_attempt(_attempt(pid, _by(pid), uid=2008))
    fan_outs.add_flow(key(tcp(2, uid=2008)), NOW)
    last = _scan(fan_outs, 80 * SECOND)
    assert (len(last.senders), last.unnamed) == (1, SENDERS - 1)


def test_new_process_of_a_scan_is_reported_with_the_next_update() -> None:
    fan_outs = _scanned(_attempt(1, _by(7)))
    assert _scan(fan_outs).stage == "begun"
    assert list(fan_outs.due(30 * SECOND)) == []
    fan_outs.add_attempt(_attempt(2, _by(8)))
    found = _scan(fan_outs, 40 * SECOND)
    assert (found.stage, len(found.senders)) == ("goes on", 2)


def test_scan_goes_on_after_a_restart_with_its_processes() -> None:
    before = _scan(_scanned(_attempt(1, _by(7)), _attempt(2, _by(8))))
    stored = codec._opened(json.loads(codec._json_of(before)))
    assert stored == before
    assert isinstance(stored, FanOut)
    fan_outs = FanOuts(COUNTER_ID, {})
    fan_outs.resume(stored)
    fan_outs.add_attempt(_attempt(3, _by(8)))
    fan_outs.add_flow(key(tcp(21)), NOW)
    list(fan_outs.due(0))
    found = _scan(fan_outs, MINUTE)
    assert [(each.process.pid, each.attempts) for each in found.senders] == [(7, 1), (8, 2)]
    assert found.windows == 3
    assert isinstance(found.senders[0], ScanSender)


def test_scan_of_an_earlier_version_is_read() -> None:
    state = json.loads(codec._json_of(_scan(_scanned())))
    for name in ("windows", "latest", "senders", "unnamed", "is_stopped"):
        del state["scan"][name]
    assert codec._opened(state) == _scan(_scanned())


def test_scan_has_stopped_if_the_sandbox_is_no_longer_watched() -> None:
    fan_outs = _scanned()
    list(fan_outs.due(0))
    (stopped,) = fan_outs.due(SECOND, closing=True)
    assert (stopped.stage, stopped.is_stopped) == ("ended", True)
    fan_outs = _scanned()
    list(fan_outs.due(0))
    *_, quiet = fan_outs.due(MINUTE)
    assert (quiet.stage, quiet.is_stopped) == ("ended", False)
