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
    "aggregated_attempts": Sample("a-scan-is-aggregated", "a-program-that-is-known"),
    "allowed_attempt": Sample("a-permissive-fence-allows", "a-program-that-is-known"),
    "bypass_attempt": Sample("a-program-that-is-known", "a-permissive-fence-allows"),
    "bypass_finding": Sample("a-bypass-is-found", "ssh-again-and-again"),
    "cloud_metadata": Sample("cloud-credentials-are-asked-for", "a-vm-asks-for-credentials"),
    "collection_gap": Sample("records-are-dropped", "a-sink-is-down"),
    "counter_mismatch": Sample("counter-mismatch-finding", "a-collection-gap"),
    "dns_in_the_open": Sample("a-name-lookup", "http3"),
    "dns_tunnel": Sample("a-dns-tunnel-is-found", "a-name-lookup"),
    "fence_bypassed": Sample("fence-bypassed-finding", "the-fence-is-bypassed"),
    "fence_removed": Sample("fence-removed-finding", "the-fence-is-permissive"),
    "fence_tampering": Sample("tampering-finding", "the-fence-is-active"),
    "forged_frames": Sample("a-raw-frame", "a-connection-from-outside"),
    "inbound_attempt": Sample("a-connection-from-outside", "another-firewall"),
    "inbound_finding": Sample("an-inbound-attempt-is-found", "a-connection-from-outside"),
    "log_group_taken": Sample("log-group-taken-finding", "a-collection-gap"),
    "permissive_leak": Sample("a-permissive-fence-leaks", "ssh-has-ended"),
    "protection_fault": Sample("the-fence-cannot-log", "a-sink-is-down"),
    "reader_stopped": Sample("collection-finding", "a-collection-gap"),
    "records_not_counted": Sample("records-not-counted-finding", "a-collection-gap"),
    "restores_stopped": Sample("restore-stopped-finding", "the-fence-is-removed"),
    "scan": Sample("a-scan-is-found", "a-scan-is-aggregated"),
    "surroundings_changed": Sample("surroundings-changed-finding", "tampering-finding"),
}


@cache
def events() -> dict[str, dict[str, Any]]:
    """Return the events of the stored OCSF version by the names of their situations."""
    found = {name: each for name, each in situations().items() if not name.endswith(".0")}
    return {name: _with_uid(event, name) for name, event in found.items()}


def code_of(event: dict[str, Any]) -> Any:
    """Return the code of an event's situation."""
    return event["metadata"]["event_code"]


def _with_uid(event: dict[str, Any], name: str) -> dict[str, Any]:
    # Golden situations of one record have equal uids, and the views have each uid once.
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    return event | {"metadata": event["metadata"] | {"uid": uid}}
