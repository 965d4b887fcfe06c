"""Comparison of our ids and captions with the schema, in each version that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.ocsf import enums
from ocsf_nft.ocsf.versions import VERSIONS
from ocsf_nft.validation import schema
from tests.published_versions import PUBLISHED

if TYPE_CHECKING:
    from ocsf_nft.validation.schema import Attribute

#: Our enumeration, the schema's class or object with the attribute, and the attribute's name.
ENUMERATIONS: Final[list[tuple[type[enums.Captioned], int | str, str]]] = [
    (enums.NetworkActivityId, 4001, "activity_id"),
    (enums.DnsActivityId, 4003, "activity_id"),
    (enums.DnsOpcode, "dns_query", "opcode_id"),
    (enums.FindingActivityId, 2004, "activity_id"),
    (enums.ConfigActivityId, 5019, "activity_id"),
    (enums.LifecycleActivityId, 6002, "activity_id"),
    *((enums.Severity, uid, "severity_id") for uid in (4001, 4003, 2004, 5019, 6002)),
    *((enums.Status, uid, "status_id") for uid in (4001, 4003, 5019, 6002)),
    (enums.FindingStatus, 2004, "status_id"),
    *((enums.Action, uid, "action_id") for uid in (4001, 4003, 2004)),
    *((enums.Disposition, uid, "disposition_id") for uid in (4001, 4003, 2004)),
    *((enums.Confidence, uid, "confidence_id") for uid in (4001, 2004)),
    (enums.ObservationPoint, 4001, "observation_point_id"),
    (enums.ConfigState, 5019, "state_id"),
    (enums.SecurityLevel, 5019, "security_level_id"),
    (enums.AnalyticType, "analytic", "type_id"),
    (enums.Direction, "network_connection_info", "direction_id"),
    (enums.Boundary, "network_connection_info", "boundary_id"),
    (enums.ProtocolVersion, "network_connection_info", "protocol_ver_id"),
    (enums.NetworkScope, "network_endpoint", "network_scope_id"),
    (enums.DeviceType, "device", "type_id"),
    (enums.OsType, "os", "type_id"),
    (enums.FileType, "file", "type_id"),
    (enums.FingerprintAlgorithm, "fingerprint", "algorithm_id"),
    (enums.ObservableType, "observable", "type_id"),
]

#: The version that added a value, if the attribute is older.
SINCE: Final[dict[type[enums.Captioned], dict[str, str]]] = {
    enums.Action: {"OBSERVED": "1.4.0"},
    enums.ObservableType: {
        "PORT": "1.3.0",
        "COMMAND_LINE": "1.3.0",
        "PROCESS_ID": "1.3.0",
        "USER_UID": "1.4.0",
        "FILE_PATH": "1.5.0",
        "ENDPOINT_UID": "1.7.0",
    },
}


def published(version: str, owner: int | str, attribute: str) -> Attribute | None:
    one = schema.load(version)
    table = one.class_of(owner) if isinstance(owner, int) else one.object_of(owner)
    assert table is not None
    return table.attributes.get(attribute)


@pytest.mark.parametrize("version", PUBLISHED)
def test_enumeration_is_spelled_as_in_each_version(version: str) -> None:
    wrong = {}
    for ours, owner, attribute in ENUMERATIONS:
        theirs = published(version, owner, attribute)
        if theirs is None:
            continue
        since = SINCE.get(ours, {})
        expected = {
            one.name: one.caption
            for one in ours
            if one.name not in since or VERSIONS.index(since[one.name]) <= VERSIONS.index(version)
        }
        captions = {one.name: theirs.captions.get(int(one)) for one in ours}
        found = {name: caption for name, caption in captions.items() if caption is not None}
        if found != expected:
            wrong[ours.__name__, owner] = (found, expected)
    assert wrong == {}


def test_newest_version_has_every_enumeration() -> None:
    found = {
        (owner, name): published(PUBLISHED[-1], owner, name) for _, owner, name in ENUMERATIONS
    }
    assert [key for key, theirs in found.items() if theirs is None or not theirs.sibling] == [
        ("dns_query", "opcode_id")  # its caption is only for an unknown opcode
    ]


def test_every_enumeration_is_compared_with_the_schema() -> None:
    assert {ours for ours, _, _ in ENUMERATIONS} == set(enums.Captioned.__subclasses__())


def test_enumeration_with_a_repeated_id_is_refused() -> None:
    with pytest.raises(ValueError, match="duplicate values"):

        class Repeated(enums.Captioned):
            ONE = 1, "One"
            UNO = 1, "Uno"
