"""One event that each detection rule matches, and one that it must not match.

The events are golden situations, so they change with the events of ocsf-nft.
"""

from __future__ import annotations

import uuid
from functools import cache
from typing import Any, Final, NamedTuple

from tests.golden.situations import situations


class Sample(NamedTuple):
    """Names of the situations of a rule."""

    matching: str
    other: str


SAMPLES: Final = {
    "bypass_attempt": Sample("a-program-that-is-known", "a-permissive-fence-allows"),
    "bypass_finding": Sample("bypass-finding", "ssh-again-and-again"),
    "cloud_metadata": Sample("cloud-credentials-are-asked-for", "a-vm-asks-for-credentials"),
    "collection_gap": Sample("records-are-dropped", "a-sink-is-down"),
    "counter_mismatch": Sample("counter-mismatch-finding", "a-collection-gap"),
    "dns_in_the_open": Sample("a-name-lookup", "http3"),
    "dns_tunnel": Sample("dns-tunnel-finding", "a-name-lookup"),
    "fence_removed": Sample("fence-removed-finding", "the-fence-is-permissive"),
    "fence_tampering": Sample("tampering-finding", "the-fence-is-active"),
    "forged_frames": Sample("a-raw-frame", "a-connection-from-outside"),
    "inbound_attempt": Sample("a-connection-from-outside", "another-firewall"),
    "inbound_finding": Sample("inbound-finding", "a-connection-from-outside"),
    "permissive_leak": Sample("permissive-finding", "ssh-has-ended"),
    "reader_stopped": Sample("collection-finding", "a-collection-gap"),
    "restores_stopped": Sample("restore-stopped-finding", "the-fence-is-removed"),
    "scan": Sample("a-scan-is-found", "a-scan-is-aggregated"),
}
#: Codes of findings. If no golden situation is such a new finding, a finding of another code with
#: this one replaces it.
SUBSTITUTES: Final = (
    "bypass-finding",
    "collection-finding",
    "counter-mismatch-finding",
    "dns-tunnel-finding",
    "fence-removed-finding",
    "inbound-finding",
    "permissive-finding",
    "restore-stopped-finding",
    "tampering-finding",
)
_REPLACED_BY: Final = "cloud-credentials-are-asked-for"
#: Codes of golden situations, for events without ``metadata.event_code``.
CODES: Final = {
    "a-collection-gap": "collection-gap",
    "a-connection-from-outside": "ingress-blocked",
    "a-name-lookup": "dns-blocked",
    "a-nested-sandbox": "forward-blocked",
    "a-permissive-fence-allows": "egress-allowed",
    "a-ping": "egress-blocked",
    "a-program-only-in-memory": "egress-blocked",
    "a-program-that-ignores-the-proxy": "egress-blocked",
    "a-program-that-is-known": "egress-blocked",
    "a-raw-frame": "link-blocked",
    "a-scan-is-aggregated": "aggregated",
    "a-scan-is-found": "scan-finding",
    "a-sink-is-down": "fault",
    "a-sink-is-still-down": "fault",
    "a-sink-is-up-again": "fault-cleared",
    "a-vm-asks-for-credentials": "cloud-metadata-blocked",
    "a-vm-is-tried-from-outside": "ingress-blocked",
    "a-vm-tries-its-host": "egress-blocked",
    "a-vm-with-a-foreign-source": "link-blocked",
    "another-firewall": "firewall-rejected",
    "cloud-credentials-are-asked-for": "cloud-metadata-finding",
    "credentials-are-allowed": "cloud-metadata-finding",
    "http3": "egress-blocked",
    "ocsf-nft-starts": "service-started",
    "one-of-several-programs": "egress-blocked",
    "only-the-user-is-known": "egress-blocked",
    "records-are-dropped": "records-dropped",
    "ssh-again-and-again": "bypass-finding",
    "ssh-by-several-programs": "bypass-finding",
    "ssh-has-ended": "bypass-finding",
    "the-fence-cannot-log": "fence-degraded",
    "the-fence-is-active": "fence-active",
    "the-fence-is-permissive": "fence-permissive",
    "the-fence-is-removed": "fence-removed-by-other",
    "the-same-999-times": "egress-blocked",
}


@cache
def events() -> dict[str, dict[str, Any]]:
    """Return the events of the newest OCSF version by the names of their situations."""
    found = {name: each for name, each in situations().items() if not name.endswith(".0")}
    for name, code in CODES.items():
        found[name]["metadata"].setdefault("event_code", code)
    golden = tuple(found.values())
    for code in SUBSTITUTES:
        real = (each for each in golden if _is_new(each) and code_of(each) == code)
        found[code] = next(real, None) or _substitute(found[_REPLACED_BY], code)
    return {name: _with_uid(event, name) for name, event in found.items()}


def code_of(event: dict[str, Any]) -> Any:
    """Return the code of an event's situation."""
    return event["metadata"]["event_code"]


def _is_new(finding: dict[str, Any]) -> bool:
    return bool(finding["activity_id"] == 1)


def _with_uid(event: dict[str, Any], name: str) -> dict[str, Any]:
    # Golden situations of one record have equal uids, and the views have each uid once.
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    return event | {"metadata": event["metadata"] | {"uid": uid}}


def _substitute(event: dict[str, Any], code: str) -> dict[str, Any]:
    return event | {"metadata": event["metadata"] | {"event_code": code}}
