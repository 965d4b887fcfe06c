"""Number of stored templates, and their memory."""

from __future__ import annotations

import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import templates
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.templates import MAX_TEMPLATE_BYTES, MAX_TEMPLATES, SIGHTINGS
from ocsf_nft.ocsf.versions import LATEST
from ocsf_nft.process import Attribution, Process
from tests.conformance.corpus import CONTEXT, NOW_NS, TCP, V4, record
from tests.ocsf.test_templates import assert_rendered, has_template, line_of_model

#: One character that takes eleven bytes in JSON.
HOSTILE_CHARACTER: Final = "\U000e0041"


def shapes(number: int) -> list[Attempt]:
    return [Attempt.of(record(**V4, **TCP, out_interface=f"veth{each}")) for each in range(number)]


def test_shape_that_occurs_once_has_no_template() -> None:
    mapper = Mapper(CONTEXT)
    for each in shapes(3 * MAX_TEMPLATES):
        mapper.line(each, processed_ns=NOW_NS)
    assert not mapper._templates._stored
    assert len(mapper._templates._seen) <= MAX_TEMPLATES


def test_number_of_templates_is_limited() -> None:
    mapper = Mapper(CONTEXT)
    every = shapes(MAX_TEMPLATES + 10)
    for each in every:
        assert_rendered(mapper, each)
    assert len(mapper._templates._stored) == MAX_TEMPLATES
    assert [has_template(mapper, each) for each in every] == [False] * 10 + [True] * MAX_TEMPLATES
    assert assert_rendered(mapper, every[0])


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
            name = f"veth{number}{'' if is_by_process else text}"
            sent = record(**V4, **TCP, out_interface=name)
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
    assert times > SIGHTINGS
    assert mapper._templates._stored_bytes == 0


def test_oldest_templates_are_evicted_for_a_large_one() -> None:
    mapper = Mapper(CONTEXT)
    every = [
        Attempt.of(record(**V4, **TCP), by("x" * 300, number)) for number in range(MAX_TEMPLATES)
    ]
    for each in every:
        assert_rendered(mapper, each)
    stored = mapper._templates._stored
    assert sum(len(each.form) for each in stored.values()) == mapper._templates._stored_bytes
    there = [has_template(mapper, each) for each in every]
    assert there == [False] * (MAX_TEMPLATES - len(stored)) + [True] * len(stored)
    assert 0 < len(stored) < MAX_TEMPLATES


def test_many_threads_may_share_a_mapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATES", 3)
    mapper, every = Mapper(CONTEXT), shapes(6)
    expected = [line_of_model(mapper, each, LATEST) for each in every]
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
    assert len(mapper._templates._stored) <= 3
