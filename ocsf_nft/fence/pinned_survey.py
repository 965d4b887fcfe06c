"""Survey of a sandbox's surroundings, in which an installed fence keeps its uplinks.

A process in the sandbox may change routes, addresses and interfaces. So only the first survey that
finds a route to an allowed destination decides which interfaces lead out, and from which addresses.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ocsf_nft.fence import links

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.netns import Namespace


def survey(spec: FenceSpec, namespace: Namespace) -> Surroundings:
    """Return the surroundings of a new fence, from the present routes.

    Raises AbsentError, UnsupportedError, FenceError.
    """
    is_pod = spec.profile == "sidecar"
    found = links.survey(
        namespace,
        (endpoint.address for endpoint in spec.allowed),
        (destination.network for destination in spec.ranges),
        takes_any_route=is_pod and not spec.exceptions,
    )
    return links.with_networks(namespace, found) if is_pod else found


def survey_again(spec: FenceSpec, before: InstalledFence) -> Surroundings:
    """Return the surroundings of a fence that replaces ``before`` in the same namespace.

    ``spec`` is the new policy. The uplinks, addresses and next hops are those of ``before``, if a
    route has shown its uplinks. Raises AbsentError, UnsupportedError, FenceError.
    """
    around = before.around
    if not around.pins:
        found = survey(spec, before.namespace)
        # An interface that was there before its route is no nested namespace's.
        return dataclasses.replace(
            found, outer_indexes=tuple(sorted({*found.outer_indexes, *around.outer_indexes}))
        )
    known = {endpoint.address for endpoint in before.spec.allowed}
    allowed = {endpoint.address for endpoint in spec.allowed}
    networks = {each.network for each in spec.ranges}
    neighbours = [each for each in around.neighbours if each in allowed or each not in known]
    is_pod = spec.profile == "sidecar"
    versions = {*(each.version for each in allowed), *(each.version for each in networks)}
    found = links.survey_pinned(
        before.namespace,
        dataclasses.replace(around, neighbours=tuple(neighbours)),
        allowed - known,
        networks - {each.network for each in before.spec.ranges},
        {4, 6} if is_pod else versions,
    )
    # A fence of an earlier version has no networks.
    is_known = not is_pod or bool(around.link_networks)
    return found if is_known else links.with_networks(before.namespace, found)


def differences(before: Surroundings, now: Surroundings) -> list[str]:
    """Return a line for each change of a fence's surroundings that its rules do not have yet."""
    lines = []
    if more := set(now.links) - set(before.links):
        lines.append(f"not fenced at the link layer: {', '.join(sorted(more))}")
    if now.pins != before.pins:
        lines.append(f"a route has shown its uplinks: {', '.join(now.uplinks)}")
    elif now.pins and now.addresses != before.addresses:
        lines.append("its addresses are known now")
    if more := set(now.missing) - set(before.missing):
        lines.append(missing_text(sorted(more)))
    if back := set(before.missing) - set(now.missing):
        lines.append(f"the uplink is there again: {', '.join(sorted(back))}")
    return lines


def uplinks_text(installed: InstalledFence) -> str:
    """Return a text about a fence's uplinks; empty for a VM."""
    around, profile = installed.around, installed.spec.profile
    if around.missing:
        return f"missing: {', '.join(around.missing)}; install the fence again"
    if around.pins:
        return ", ".join(around.uplinks)
    if profile == "tap":
        return ""
    if profile == "sidecar" and not installed.spec.exceptions:
        return "not known, for there is no route: a later check pins them"
    return "not known, for no route leads to an allowed destination: a later check pins them"


def missing_text(names: list[str]) -> str:
    """Return a text about pinned uplinks that do not exist any more, and the remedy."""
    return (
        f"the uplink that the fence was installed with is missing or was replaced: "
        f"{', '.join(names)}: install the fence again if this was intended"
    )
