"""Number of stored templates, and their memory."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import templates
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.templates import (
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATES,
    OF_SANDBOX,
    SIGHTINGS,
    Templates,
)
from ocsf_nft.ocsf.versions import STORED
from ocsf_nft.process import Attribution, Process
from tests.conformance.corpus import CONTEXT, NOW_NS, TCP, V4, record
from tests.ocsf.test_templates import assert_rendered, has_template, line_of_model

#: One character that takes eleven bytes in JSON.
HOSTILE_CHARACTER: Final = "\U000e0041"


def shapes(number: int) -> list[Attempt]:
    return [Attempt.of(record(**V4, **TCP, rule=f"rule{each}")) for each in range(number)]


def make(mapper: Mapper, attempt: Attempt) -> None:
    """Render just often enough to create a template."""
    for _ in range(SIGHTINGS):
        mapper.line(attempt, processed_ns=NOW_NS)


def test_shape_that_occurs_once_has_no_template() -> None:
    mapper = Mapper(CONTEXT)
    for each in shapes(3 * MAX_TEMPLATES):
        mapper.line(each, processed_ns=NOW_NS)
    assert not mapper._templates._stored
    assert len(mapper._templates._seen) == 3 * MAX_TEMPLATES
    for each in shapes(10 * MAX_TEMPLATES):
        mapper.line(replace(each, packets=2), processed_ns=NOW_NS)
    assert len(mapper._templates._seen) <= templates._MAX_SEEN


def test_number_of_templates_is_limited() -> None:
    mapper = Mapper(CONTEXT)
    every = shapes(MAX_TEMPLATES + 10)
    for each in every:
        make(mapper, each)
    assert len(mapper._templates._stored) == MAX_TEMPLATES
    assert [has_template(mapper, each) for each in every] == [False] * 10 + [True] * MAX_TEMPLATES
    assert assert_rendered(mapper, every[0])


def test_template_in_use_is_not_evicted_for_a_new_one() -> None:
    mapper, every = Mapper(CONTEXT), shapes(3 * MAX_TEMPLATES)
    for each in every[:MAX_TEMPLATES]:
        assert assert_rendered(mapper, each)
    assert not assert_rendered(mapper, every[MAX_TEMPLATES])
    for each in every[MAX_TEMPLATES + 1 :]:
        make(mapper, each)
        mapper.line(every[7], processed_ns=NOW_NS)
    assert has_template(mapper, every[7])
    assert not has_template(mapper, every[8])


def test_sandbox_that_causes_many_shapes_takes_no_template_from_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    mapper = Mapper(CONTEXT, Templates(CONTEXT.host, is_limited=True))
    many = shapes(MAX_TEMPLATES)
    assert sum(assert_rendered(mapper, each) for each in many) == OF_SANDBOX
    assert assert_rendered(mapper, Attempt.of(record("other", **V4, **TCP)))
    now += 5
    assert sum(assert_rendered(mapper, each) for each in many[OF_SANDBOX:]) == 5


def test_values_that_only_a_packet_socket_can_choose_share_a_template() -> None:
    mapper = Mapper(CONTEXT)
    for flags in (0x002, 0x1C2, 0x0EA):
        assert_rendered(mapper, Attempt.of(record(**V4, **TCP | {"tcp_flags": flags})))
    for offset in (8, 1480, 65_000):
        details = {"fragment_offset": offset, "more_fragments": 1}
        assert_rendered(mapper, Attempt.of(record(**V4, protocol=17, details=details)))
    assert len(mapper._templates._stored) == 2


def by(text: str, number: int) -> Attribution:
    """Return an attribution to a process whose texts and ancestors all contain a text."""
    ancestors = tuple(
        Process(pid=pid, name=text, path=f"/{text}", cmd_line=text) for pid in range(1, 9)
    )
    process = Process(
        pid=number, name=text, path=f"/{text}", cmd_line=text, uid=0, unit=text, ancestors=ancestors
    )
    return Attribution(method="capture", confidence="high", reason="", process=process)


@pytest.mark.parametrize(
    ("characters", "is_by_process", "most"),
    [(0, False, 2_500_000), (400, False, 6_000_000), (0, True, 6_500_000), (30, True, 6_500_000)],
)
def test_all_templates_together_take_little_memory(
    monkeypatch: pytest.MonkeyPatch, characters: int, is_by_process: bool, most: int
) -> None:
    part = 8
    monkeypatch.setattr(templates, "MAX_TEMPLATES", MAX_TEMPLATES // part)
    monkeypatch.setattr(templates, "MAX_TEMPLATE_BYTES", MAX_TEMPLATE_BYTES // part)
    mapper, text = Mapper(CONTEXT), HOSTILE_CHARACTER * characters
    tracemalloc.start()
    try:
        for number in range(MAX_TEMPLATES // part):
            sent = record(**V4, **TCP, rule=f"{number}{text}")
            each = Attempt.of(sent, by(f"{number}{text}", number) if is_by_process else None)
            for _ in range(SIGHTINGS):
                mapper.line(each, processed_ns=NOW_NS)
        assert mapper._templates._stored_bytes <= MAX_TEMPLATE_BYTES // part
        before = tracemalloc.get_traced_memory()[0]
        del sent, each
        mapper._templates._stored.clear()
        assert 1_000_000 < (before - tracemalloc.get_traced_memory()[0]) * part < most
    finally:
        tracemalloc.stop()


def test_too_long_template_is_neither_stored_nor_made_repeatedly() -> None:
    mapper, sent = Mapper(CONTEXT), record("x" * 10_000, **V4, **TCP)
    assert not assert_rendered(mapper, Attempt.of(sent))
    (times,) = mapper._templates._seen.values()
    assert times < 0
    assert mapper._templates._stored_bytes == 0


def test_oldest_templates_are_evicted_for_a_large_one() -> None:
    mapper = Mapper(CONTEXT)
    every = [
        Attempt.of(record(**V4, **TCP, rule=f"{'x' * 5000}{number}"))
        for number in range(MAX_TEMPLATES)
    ]
    for each in every:
        make(mapper, each)
    stored = mapper._templates._stored
    assert sum(len(each.form) for each in stored.values()) == mapper._templates._stored_bytes
    there = [has_template(mapper, each) for each in every]
    assert there == [False] * (MAX_TEMPLATES - len(stored)) + [True] * len(stored)
    assert 0 < len(stored) < MAX_TEMPLATES


def test_many_threads_may_share_a_mapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATES", 3)
    mapper, every = Mapper(CONTEXT), shapes(6)
    expected = [line_of_model(mapper, each, STORED) for each in every]
    start = threading.Barrier(4)

    def renders_correctly(seed: int) -> bool:
        order = random.Random(seed)
        start.wait()
        return all(
            mapper.line(every[number], processed_ns=NOW_NS) == expected[number]
            for number in order.choices(range(len(every)), k=300)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(renders_correctly, range(4)))
    stored = mapper._templates._stored
    assert len(stored) <= 3
    assert sum(len(each.form) for each in stored.values()) == mapper._templates._stored_bytes
