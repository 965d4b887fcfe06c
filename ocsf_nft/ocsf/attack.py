"""MITRE ATT&CK techniques of events, only where the behaviour shows one.

A port or a protocol alone shows no technique.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf.finding_objects import Attack, Tactic, Technique

if TYPE_CHECKING:
    from ocsf_nft.record import Record

_VERSION: Final = "18.0"


def _attacks(tactic: tuple[str, str], *techniques: tuple[str, str]) -> tuple[Attack, ...]:
    uid, name = tactic
    technique, *sub_techniques = (Technique(uid=uid, name=name) for uid, name in techniques)
    return (
        Attack(
            version=_VERSION,
            tactic=Tactic(uid=uid, name=name),
            technique=technique,
            sub_technique=sub_techniques[0] if sub_techniques else None,
        ).cache_json(),
    )


#: Technique of packets to the cloud's metadata service.
METADATA_API: Final = _attacks(
    ("TA0006", "Credential Access"),
    ("T1552", "Unsecured Credentials"),
    ("T1552.005", "Cloud Instance Metadata API"),
)
#: Technique of frames that are not IP, and that no kernel sends by itself.
FRAMES: Final = _attacks(
    ("TA0011", "Command and Control"), ("T1095", "Non-Application Layer Protocol")
)
#: Technique of many flows of one user, which look like a scan.
SCAN: Final = _attacks(("TA0007", "Discovery"), ("T1046", "Network Service Discovery"))
#: Technique of many DNS queries of one flow that carry data.
DNS_TUNNEL: Final = _attacks(
    ("TA0011", "Command and Control"),
    ("T1071", "Application Layer Protocol"),
    ("T1071.004", "DNS"),
)
#: Technique of a change of a fence by another process.
TAMPERING: Final = _attacks(
    ("TA0005", "Defense Evasion"),
    ("T1562", "Impair Defenses"),
    ("T1562.004", "Disable or Modify System Firewall"),
)


def attacks(record: Record, *, is_cloud_metadata: bool) -> tuple[Attack, ...] | None:
    """Return the ATT&CK technique that a refused packet shows; None if it shows none.

    ``is_cloud_metadata`` is true for a packet to the cloud's metadata service.
    """
    if is_cloud_metadata:
        return METADATA_API
    return FRAMES if record.ip_version is None and record.ethertype is not None else None
