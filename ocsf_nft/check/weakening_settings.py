"""Findings about settings of a sandbox's namespace that weaken a fence there."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence.spec import tables_of
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.surroundings import changes, read_snapshot
from ocsf_nft.fence.surroundings.read_snapshot import Subject
from ocsf_nft.netns import HOST
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.check.accepted_flows import CheckScope

_MAX_REPORTED: Final = 8


def findings(scope: CheckScope, state: StateDirectory | None = None) -> Iterator[Finding]:
    """Yield a finding for each setting that weakens a fence in the namespace of ``scope``.

    The host's own namespace is not a sandbox, so there are none. The last gates of the fences in
    ``state`` are no finding; None for the state directory of a service.
    """
    if scope.device is not None or scope.namespace.identity() == HOST.identity():
        return
    proxies = tuple(proxy.address for proxy in scope.proxies)
    subject = Subject(
        own_tables=tuple(tables_of(None)), destinations=proxies, neighbours=frozenset(proxies)
    )
    try:
        snapshot = read_snapshot.read_in(scope.namespace, subject)
        snapshot = read_snapshot.without_gates(snapshot, state or StateDirectory())
        found = changes.accepted(snapshot)
    except OcsfNftError as error:
        yield Finding(name="surroundings", severity="info", meaning=visible(str(error)))
        return
    for change in islice(found, _MAX_REPORTED):
        yield Finding(
            name="surroundings",
            severity="degraded" if change.is_severe else "info",
            meaning=f"{visible(change.text)}: an installation accepts that",
            remedy="remove it before you install the fence, if you do not need it",
        )
