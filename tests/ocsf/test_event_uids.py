from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.event_uids import event_uid, flow_uid, stable_uid
from tests.conformance.corpus import OUT, TCP, USER, V4, record
from tests.strategies import HOSTILE_TEXT

LOGGED = record(**V4, **TCP, **OUT, **USER)


def test_uid_is_the_uuid_of_the_standard() -> None:
    namespace = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61")
    assert event_uid(4001, "kmsg:boot:1") == str(uuid5(namespace, "4001:kmsg:boot:1"))


def test_uids_never_change_between_versions() -> None:
    assert event_uid(4001, "kmsg:boot:1") == "b34fa881-4170-572a-b168-d36cd8588703"
    assert flow_uid(LOGGED) == "621aa0d8-9abb-5b74-800a-c055b5395d44"


@given(
    parts=st.lists(
        HOSTILE_TEXT | st.text('\x7f\x1f\t"\\/ab') | st.none() | st.integers(-(1 << 65), 1 << 65)
    )
)
def test_uid_is_computed_from_the_json_that_python_writes(parts: list[Any]) -> None:
    written = json.dumps(parts, separators=(",", ":"))
    assert stable_uid(*parts) == str(uuid5(UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61"), written))


@given(one=HOSTILE_TEXT, other=HOSTILE_TEXT)
def test_other_parts_give_another_uid(one: str, other: str) -> None:
    assert (stable_uid(one) == stable_uid(other)) == (one == other)
    assert stable_uid(one, other) != stable_uid(one + other)
    assert stable_uid(one, None) != stable_uid(one)


def test_a_number_is_not_its_text() -> None:
    assert stable_uid(1) != stable_uid("1")


@pytest.mark.parametrize(
    "same", [{"source_port": 9}, {"length": 9}, {"time_ns": 9}, {"gid": 9}, {"details": {"a": 1}}]
)
def test_records_of_one_attempt_share_their_uid(same: dict[str, Any]) -> None:
    assert flow_uid(replace(LOGGED, **same)) == flow_uid(LOGGED)


@pytest.mark.parametrize(
    "other",
    [
        {"sandbox": "sb2"},
        {"sandbox": None},
        {"rule": "link"},
        {"uid": 0},
        {"uid": None},
        {"protocol": 17},
        {"destination": "203.0.113.8"},
        {"destination_port": 80},
    ],
)
def test_another_attempt_has_another_uid(other: dict[str, Any]) -> None:
    assert flow_uid(replace(LOGGED, **other)) != flow_uid(LOGGED)
