from __future__ import annotations

from ocsf_nft.ocsf.packet_outcome import NAME_PORTS
from ocsf_nft.ocsf.placeholder_events import PORT_PLACEHOLDERS
from ocsf_nft.ocsf.protocols import service


def test_placeholders_of_ports_are_ports_without_a_service() -> None:
    placeholders = [placeholder for both in PORT_PLACEHOLDERS for placeholder in both]
    assert NAME_PORTS.isdisjoint(placeholders)
    assert not any(
        service(protocol, placeholder) for protocol in range(256) for placeholder in placeholders
    )
    for here, there in PORT_PLACEHOLDERS:
        assert len(str(here)) == len(str(there))
        assert all(one != other for one, other in zip(str(here), str(there), strict=True))
