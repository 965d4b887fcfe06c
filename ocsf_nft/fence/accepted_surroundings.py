"""Surroundings that an installation accepts, and that a new policy of the fence adds to them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ocsf_nft.fence.surroundings import own_tables, read_snapshot
from ocsf_nft.fence.surroundings.read_snapshot import Subject

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.surroundings.facts import Snapshot
    from ocsf_nft.netns import Namespace


def of_fence(
    spec: FenceSpec,
    around: Surroundings,
    namespace: Namespace,
    before: InstalledFence | None,
    state: StateDirectory,
) -> Snapshot | None:
    """Return the surroundings to accept; None for a VM.

    They are those of the first installation in the namespace. ``before`` is the record of the
    present fence, if any; ``state`` has it. Raises AbsentError, UnsupportedError, FenceError.
    """
    if spec.tap is not None:
        return None
    others = own_tables.of_others(namespace.identity(), state)
    subject = Subject.of(spec, around, others)
    # Of a fence that was there before the network, the surroundings begin with its uplinks.
    if before is not None and (before.around.pins or not around.pins):
        known = before.accepted if before.identity == namespace.identity() else None
        if known is not None:
            return _with_new_addresses(known, before, spec, namespace, subject)
    found = read_snapshot.read_in(namespace, subject)
    return read_snapshot.without_gates(found, state, spec.sandbox)


def _with_new_addresses(
    accepted: Snapshot,
    before: InstalledFence,
    spec: FenceSpec,
    namespace: Namespace,
    subject: Subject,
) -> Snapshot:
    """Return accepted surroundings with the routes and static entries of addresses that are new.

    The person who allows an address may have prepared a static entry for it or for its next hop. A
    process in the sandbox can do so for an address that a host name will have. So such entries are
    not accepted, and no encapsulation is.
    """
    earlier = Subject.of(before.spec, before.around)
    destinations = {*map(str, subject.destinations)} - {*map(str, earlier.destinations)}
    if not destinations:
        return accepted
    of_names = {str(address) for name in spec.resolved for address in name.addresses}
    is_of_person = bool(destinations - of_names)
    new = subject.neighbours - earlier.neighbours if is_of_person else frozenset()
    neighbours = {*map(str, new)} - of_names
    found = read_snapshot.read_in(namespace, subject)
    routes = {
        each for each in found.routes if each.destination in destinations and not each.encapsulation
    }
    static = {each for each in found.neighbours if each.address in neighbours}
    return dataclasses.replace(
        accepted,
        routes=tuple(sorted(routes.union(accepted.routes), key=str)),
        neighbours=tuple(sorted(static.union(accepted.neighbours))),
    )
