from __future__ import annotations

import pytest

from tests.ocsf.mapped import event_of


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("udp dns", "udp"),
        ("icmp echo", "icmp"),
        ("icmpv6 echo", "ipv6-icmp"),
        ("igmp", "igmp"),
        ("sctp", "sctp"),
        ("udplite", "udplite"),
        ("gre", "gre"),
        ("esp", "esp"),
        ("6in4", "ipv6"),
        ("no next header", "ipv6-nonxt"),
        ("protocol 253", None),
        ("link 88b5", None),
    ],
)
def test_protocols_have_ianas_name_in_lower_case(name: str, protocol: str | None) -> None:
    assert event_of(name)["connection_info"].get("protocol_name") == protocol
