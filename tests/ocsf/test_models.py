from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import enums
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.events import NetworkActivity
from ocsf_nft.ocsf.fence_state_events import FenceState, fence_state
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.model import Model
from ocsf_nft.ocsf.objects import (
    Actor,
    Container,
    Device,
    NetworkConnectionInfo,
    NetworkEndpoint,
    Observable,
    User,
)
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS, TIME_NS
from tests.strategies import records

if TYPE_CHECKING:
    from ocsf_nft.record import Record

MAPPER = Mapper(CONTEXT)
EVENT = MAPPER.network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS)


def changed(**changes: Any) -> NetworkActivity:
    """Create the event again with other arguments; derived attributes are derived again."""
    given_fields = {
        name: getattr(EVENT, name)
        for name, field in EVENT.model_fields.items()
        if field.compute is None
    }
    return NetworkActivity(**(given_fields | changes))


def test_an_event_can_not_be_changed() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        EVENT.count = 2  # type: ignore[misc]  # what is tested: it is refused at run time too
    with pytest.raises(AttributeError, match="frozen"):
        EVENT.metadata.uid = "x"  # type: ignore[misc]  # the same


def test_an_attribute_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="engine"):
        changed(engine="nftables")


@pytest.mark.parametrize(
    "wrong",
    [
        {"severity": "High"},
        {"severity": "medium"},
        {"activity_name": "Open"},
        {"type_uid": 400106},
        {"type_name": "Network Activity: Open"},
        {"class_uid": 2004},
        {"category_name": "Findings"},
        {"count": "1"},
        {"time": 1 << 63},
        {"severity_id": 3},
        {"src_endpoint": None, "dst_endpoint": None},
    ],
)
def test_contradictory_attributes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"its type is|caption|type_uid|type_name|endpoint"):
        changed(**wrong)


def test_event_takes_the_type_that_follows_from_its_class_and_activity() -> None:
    again = changed(type_uid=EVENT.type_uid, type_name=EVENT.type_name)
    assert (again.type_uid, again.type_name) == (400105, "Network Activity: Refuse")
    for wrong, reason in (
        ({"type_uid": 400106}, "type_uid is class_uid"),
        ({"type_name": "Network Activity: Open"}, "type_name is the class's name"),
        ({"metadata": {"version": "1.6.0"}}, "metadata"),
    ):
        with pytest.raises(ValueError, match=reason):
            changed(**wrong)


def test_a_caption_follows_its_id() -> None:
    assert changed(severity_id=enums.Severity.HIGH).severity == "High"
    assert changed(confidence_id=None).confidence is None


def test_the_caption_of_an_id_below_follows_too() -> None:
    assert NetworkConnectionInfo(direction_id=enums.Direction.INBOUND).direction == "Inbound"
    with pytest.raises(ValueError, match="caption"):
        NetworkConnectionInfo(direction_id=enums.Direction.INBOUND, direction="Outbound")


def test_the_id_for_anything_else_takes_any_text() -> None:
    event = fence_state(
        CONTEXT,
        sandbox="sb1",
        before=FenceState.ACTIVE,
        after=FenceState.DEGRADED,
        time_ns=TIME_NS,
        tables=[],
        transport="nflog",
    )
    assert (event.state_id, event.state) == (99, "Degraded")


@pytest.mark.parametrize(
    ("changes", "profiles"),
    [
        ({}, ("host", "network_proxy", "security_control")),
        ({"proxy_endpoint": None}, ("host", "security_control")),
        ({"device": None}, ("host", "network_proxy", "security_control")),
        ({"device": None, "actor": None}, ("network_proxy", "security_control")),
    ],
)
def test_profiles_are_derived_from_the_attributes(
    changes: dict[str, Any], profiles: tuple[str, ...]
) -> None:
    assert changed(**changes).metadata.profiles == profiles


def test_given_profiles_are_replaced_by_the_derived_ones() -> None:
    listed = EVENT.metadata.model_copy(update={"profiles": ("cloud",)})
    assert changed(metadata=listed) == EVENT


def test_endpoint_and_device_need_an_identity() -> None:
    with pytest.raises(ValueError, match="an endpoint needs"):
        NetworkEndpoint(port=443, mac="02:00:00:00:00:01")
    with pytest.raises(ValueError, match="a device needs"):
        Device(type_id=enums.DeviceType.UNKNOWN)
    with pytest.raises(ValueError, match="a container needs a uid or a name"):
        Container(runtime="runc")
    with pytest.raises(ValueError, match="an actor needs a process or a user"):
        Actor()
    assert (Container(uid="1").name, Container(name="n").uid) == (None, None)
    assert Actor(user=User(uid="1000")).process is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"port": 65536}, "port can't be 65536"),
        ({"port": -1}, "port can't be -1"),
        ({"port": True}, "port can't be True"),
        ({"port": "443"}, "port can't be '443'"),
        ({"network_scope_id": 1}, "network_scope_id can't be 1"),
        ({"container": {"uid": "1"}}, "container can't be"),
        ({"ip": b"203.0.113.7"}, "ip can't be"),
    ],
)
def test_value_of_another_type_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NetworkEndpoint(**({"ip": "203.0.113.7"} | wrong))


def test_list_with_an_item_of_another_type_is_refused() -> None:
    assert Container(uid="1", labels=("a=b",)).labels == ("a=b",)
    for labels in (["a=b"], ("a=b", 1)):
        with pytest.raises(ValueError, match="labels can't be"):
            Container(uid="1", labels=labels)  # type: ignore[arg-type]  # what is tested


def test_attribute_that_must_be_given_can_not_be_missing() -> None:
    with pytest.raises(ValueError, match="User needs uid"):
        User()  # type: ignore[call-arg]  # what is tested
    with pytest.raises(ValueError, match="uid can't be None"):
        User(uid=None)  # type: ignore[arg-type]  # the same


def test_equal_objects_have_equal_hashes_and_different_copies_do_not() -> None:
    user, same = User(uid="1000", name="a"), User(name="a", uid="1000").cache_json()
    other = same.model_copy(update={"name": "b"})
    assert (user == same, hash(user) == hash(same), user == other) == (True, True, False)
    assert other.json() == b'{"name":"b","uid":"1000"}'
    assert other.fragment() is not same.fragment()
    assert repr(user) == "User(name='a', uid='1000', groups=None)"


def _known(value: Any) -> Any:
    """Return the values of an object and of those inside it, without null values."""
    if isinstance(value, Model):
        names = value.model_fields
        values = {name: _known(getattr(value, name)) for name in names}
        return {name: each for name, each in values.items() if each is not None}
    return list(map(_known, value)) if isinstance(value, tuple) else value


@settings(max_examples=60, deadline=None)
@given(record=records())
def test_json_has_the_attributes_of_the_model_in_its_order(record: Record) -> None:
    event = Mapper(Context()).network_activity(Attempt.of(record), processed_ns=NOW_NS)
    read = json.loads(event.to_json())
    assert json.dumps(read) == json.dumps(_known(event))


def test_json_is_compact_and_keeps_letters() -> None:
    observable = Observable(
        name="device.hostname", type_id=enums.ObservableType.HOSTNAME, value="büro"
    )
    line = changed(observables=(observable,)).to_json()
    assert '"value":"büro"'.encode() in line
    assert line == orjson.dumps(json.loads(line))
