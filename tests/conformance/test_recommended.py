"""Attributes that the schema recommends, in our events."""

from __future__ import annotations

import json

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.validation import EventValidator
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS


def test_known_recommended_attributes_are_present() -> None:
    """Only data that a record does not contain is left out."""
    attempt = Attempt.of(RECORDS["tcp4"])
    event = json.loads(Mapper(CONTEXT).network_activity(attempt, processed_ns=NOW_NS).to_json())
    found = EventValidator("1.8.0", recommended=True).faults(event)
    left_out = {fault.path for fault in found if fault.message == "is recommended and missing"}
    assert left_out == {fault.path for fault in found}
    assert left_out
    assert not left_out & {
        "action_id",
        "connection_info",
        "connection_info.boundary_id",
        "connection_info.protocol_name",
        "connection_info.protocol_num",
        "connection_info.protocol_ver_id",
        "device",
        "device.hostname",
        "device.type",
        "disposition_id",
        "confidence_id",
        "dst_endpoint.ip",
        "dst_endpoint.port",
        "firewall_rule.name",
        "firewall_rule.uid",
        "is_alert",
        "is_src_dst_assignment_known",
        "message",
        "metadata.log_name",
        "metadata.original_time",
        "observables",
        "src_endpoint.interface_name",
        "src_endpoint.name",
        "status",
        "status_code",
        "status_detail",
        "timezone_offset",
        "traffic.bytes",
    }
