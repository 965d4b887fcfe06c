"""Choice of the MITRE ATT&CK tactic and technique for an event about refused packets.

The tactic is Command and Control, except for packets to the cloud's metadata service (Credential
Access) and for scans (Discovery).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import protocols
from ocsf_nft.ocsf.objects import Attack, Tactic, Technique
from ocsf_nft.ocsf.protocols import Kind, service

if TYPE_CHECKING:
    from ocsf_nft.record import Record

_VERSION: Final = "18.0"
_COMMAND_AND_CONTROL: Final = Tactic(uid="TA0011", name="Command and Control")
_CREDENTIAL_ACCESS: Final = Tactic(uid="TA0006", name="Credential Access")
_DISCOVERY: Final = Tactic(uid="TA0007", name="Discovery")


def _attacks(tactic: Tactic, *techniques: tuple[str, str]) -> tuple[Attack, ...]:
    technique, *sub_techniques = (Technique(uid=uid, name=name) for uid, name in techniques)
    return (
        Attack(
            version=_VERSION,
            tactic=tactic,
            technique=technique,
            sub_technique=sub_techniques[0] if sub_techniques else None,
        ).cache_json(),
    )


_APPLICATION_LAYER: Final = ("T1071", "Application Layer Protocol")
_APPLICATION: Final = _attacks(_COMMAND_AND_CONTROL, _APPLICATION_LAYER)
_RAW: Final = _attacks(_COMMAND_AND_CONTROL, ("T1095", "Non-Application Layer Protocol"))
_ODD_PORT: Final = _attacks(_COMMAND_AND_CONTROL, ("T1571", "Non-Standard Port"))
_METADATA_API: Final = _attacks(
    _CREDENTIAL_ACCESS,
    ("T1552", "Unsecured Credentials"),
    ("T1552.005", "Cloud Instance Metadata API"),
)

#: Technique of many flows of one user, which look like a scan; independent of the technique of each
#: flow.
SCAN: Final = _attacks(_DISCOVERY, ("T1046", "Network Service Discovery"))
#: Technique of many DNS queries of one flow that carry data.
DNS_TUNNEL: Final = _attacks(_COMMAND_AND_CONTROL, _APPLICATION_LAYER, ("T1071.004", "DNS"))

#: Sub-technique by kind of service. A port without a known service is a non-standard port.
_BY_KIND: Final = {
    kind: _attacks(_COMMAND_AND_CONTROL, _APPLICATION_LAYER, sub_technique)
    for kind, sub_technique in (
        (Kind.WEB, ("T1071.001", "Web Protocols")),
        (Kind.QUIC, ("T1071.001", "Web Protocols")),
        (Kind.FILES, ("T1071.002", "File Transfer Protocols")),
        (Kind.MAIL, ("T1071.003", "Mail Protocols")),
        (Kind.NAMES, ("T1071.004", "DNS")),
    )
}


def attacks(record: Record, *, is_cloud_metadata: bool) -> tuple[Attack, ...]:
    """Return the ATT&CK technique that fits a refused packet's protocol and destination.

    The result has exactly one item. For example, a packet to TCP port 443 has the technique Web
    Protocols. ``is_cloud_metadata`` is true for a packet to the cloud's metadata service.
    """
    if is_cloud_metadata:
        return _METADATA_API
    if record.protocol not in {protocols.TCP, protocols.UDP} or record.destination_port is None:
        return _RAW
    known = service(record.protocol, record.destination_port)
    return _ODD_PORT if known is None else _BY_KIND.get(known.kind, _APPLICATION)
