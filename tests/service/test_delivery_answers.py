"""What the service takes from the delivery process: any bytes are valid, or a LinkError."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import ClosedError, DeliveryError
from ocsf_nft.service import delivery_answers
from ocsf_nft.service.delivery_link import Frame, Kind, LinkError
from ocsf_nft.state.dropped_events import DroppedEvents

if TYPE_CHECKING:
    from collections.abc import Callable

_SINK = {
    "name": "a", "done": 3, "delivered": 2, "refused": 1, "failures": 0, "dead": 1, "fault": None
}  # fmt: skip
_STATUS = {
    "sync": 4,
    "acknowledged": {"a": 3},
    "sinks": [_SINK],
    "dropped": [["a", 5]],
    "faults": ["it was damaged"],
    "storage_fault": None,
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
_READERS = (
    delivery_answers.answer,
    delivery_answers.closed,
    delivery_answers.log_record,
    delivery_answers.resolved,
    delivery_answers.status,
)


def _is_encodable(found: object) -> bool:
    try:
        orjson.dumps(found)
    except TypeError:  # an integer of more than 64 bits, or half of a surrogate pair
        return False
    return True


def frame(found: Any, kind: Kind = Kind.STATUS) -> Frame:
    return Frame(kind, orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS))


@given(body=st.binary(), read=st.sampled_from(_READERS))
def test_any_bytes_are_valid_or_a_link_error(body: bytes, read: Callable[[Frame], object]) -> None:
    with contextlib.suppress(LinkError):
        read(Frame(Kind.STATUS, body))


@given(
    name=st.sampled_from(sorted(_STATUS)),
    value=_JSON.filter(_is_encodable),
)
def test_any_value_of_a_status_is_valid_or_a_link_error(name: str, value: object) -> None:
    with contextlib.suppress(LinkError):
        found = delivery_answers.status(frame({**_STATUS, name: value}))
        assert all(0 <= number < 1 << 63 for number in found.acknowledged.values())
        assert len(found.faults) <= 9
        assert all(text.isprintable() and len(text) <= 1000 for text in found.faults)


@given(found=st.dictionaries(st.text() | st.sampled_from(["event", "stack"]), _JSON))
def test_any_log_record_is_valid_or_a_link_error(found: dict[str, Any]) -> None:
    if not _is_encodable(found):
        return
    with contextlib.suppress(LinkError):
        _, message, values = delivery_answers.log_record(
            frame({"level": "info", "event": "x", **found})
        )
        assert message.isprintable()
        assert len(values) <= 20
        assert not {"event", "level", "stack", "exc_info"} & set(values)
        assert all(each.isprintable() for each in values.values() if isinstance(each, str))


def test_status_has_what_the_process_has_sent() -> None:
    found = delivery_answers.status(frame(_STATUS))
    (sink,) = found.sinks
    assert (sink.name, sink.done, sink.delivered, sink.dead, sink.fault) == ("a", 3, 2, 1, None)
    assert (found.synchronized, found.acknowledged) == (4, {"a": 3})
    assert found.dropped == (DroppedEvents("a", 5),)
    assert (found.faults, found.storage_fault) == (("it was damaged",), None)


def test_error_of_an_unknown_kind_is_a_delivery_error() -> None:
    number, error = delivery_answers.answer(
        frame([7, {"kind": "SystemExit", "reason": "no\nspace"}])
    )
    assert number == 7
    assert type(error) is DeliveryError
    assert str(error) == "no\N{REPLACEMENT CHARACTER}space"
    closed = delivery_answers.closed(frame({"kind": "ClosedError", "reason": "no reader"}))
    assert type(closed) is ClosedError


@pytest.mark.parametrize("number", [True, -1, 1 << 63, 1.0, "1", None])
def test_number_of_an_answer_must_be_a_number(number: object) -> None:
    with pytest.raises(LinkError):
        delivery_answers.answer(frame([number, None]))


def _resolved(**families: Any) -> delivery_answers.NameAnswer:
    empty = {"addresses": [], "ttl": 1}
    found = {"4": empty, "6": empty} | {name[1:]: each for name, each in families.items()}
    return delivery_answers.resolved(frame([7, "a.test", found], Kind.RESOLVED))


def test_addresses_are_sorted_and_those_that_no_name_may_allow_are_refused() -> None:
    four = {"addresses": ["192.0.2.10", "127.0.0.1", "192.0.2.9", "192.0.2.9"], "ttl": 30}
    six = {"addresses": ["fe80::1%eth0", "2001:db8::1"], "ttl": 31, "is_absent": 1}
    found = _resolved(_4=four, _6=six)
    assert (found.number, found.name) == (7, "a.test")
    assert list(map(str, found.families[4].addresses)) == ["192.0.2.9", "192.0.2.10"]
    assert found.families[4].refused == ("127.0.0.1 (it is a loopback address)",)
    assert found.families[4].ttl == 30
    assert list(map(str, found.families[6].addresses)) == ["2001:db8::1"]
    assert found.families[6].refused == ("fe80::1%eth0 (it has a zone)",)
    assert not found.families[6].is_absent, "only true is true"


def test_failure_to_resolve_has_no_addresses() -> None:
    found = _resolved(_4={"error": "no\nanswer", "addresses": ["192.0.2.1"]})
    assert found.families[4].error == "no\N{REPLACEMENT CHARACTER}answer"
    assert found.families[4].addresses == ()


@pytest.mark.parametrize(
    "family",
    [
        None,
        [],
        {},
        {"addresses": ["192.0.2.1"]},
        {"addresses": ["192.0.2.1"], "ttl": -1},
        {"addresses": ["192.0.2.1"], "ttl": 1.5},
        {"addresses": ["192.0.2.1"], "ttl": True},
        {"addresses": ["192.0.2.1"], "ttl": 1 << 63},
        {"addresses": "192.0.2.1", "ttl": 1},
        {"addresses": ["192.0.2.0/24"], "ttl": 1},
        {"addresses": ["2001:db8::1"], "ttl": 1},
        {"addresses": [3232235521], "ttl": 1},
        {"addresses": ["a.test"], "ttl": 1},
        {"addresses": ["192.0.2.1; accept"], "ttl": 1},
        {"addresses": ["192.0.2.1" + "0" * 100], "ttl": 1},
        {"addresses": ["192.0.2.1"] * 257, "ttl": 1},
        {"error": None},
        {"error": 5},
    ],
)
def test_wrong_addresses_are_a_link_error(family: Any) -> None:
    with pytest.raises(LinkError):
        _resolved(_4=family)


@pytest.mark.parametrize("found", [None, [], [7, "a.test"], ["7", "a.test", {}], [7, 5, {}]])
def test_wrong_answer_about_a_name_is_a_link_error(found: Any) -> None:
    with pytest.raises(LinkError):
        delivery_answers.resolved(frame(found, Kind.RESOLVED))


_FAMILIES = st.fixed_dictionaries(
    {},
    optional={
        "addresses": st.lists(st.ip_addresses().map(str) | st.text(max_size=20)) | _JSON,
        "ttl": st.integers() | _JSON,
        "error": _JSON,
        "is_absent": _JSON,
    },
)


@given(four=_FAMILIES | _JSON, six=_FAMILIES | _JSON)
def test_accepted_addresses_are_those_of_hosts(four: Any, six: Any) -> None:
    with contextlib.suppress(LinkError, TypeError):
        found = _resolved(_4=four, _6=six)
        for version, family in found.families.items():
            assert 0 <= family.ttl < 1 << 63
            for each in family.addresses:
                assert each.version == version
                refused = ("loopback", "multicast", "unspecified", "link_local")
                assert not any(getattr(each, f"is_{kind}") for kind in refused)
