"""Changes of the addresses of host names in a policy that stays the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.ocsf.fence_state_events import PolicyChange

if TYPE_CHECKING:
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.spec import FenceSpec


def change_of_addresses(
    sandbox: SandboxConfig, before: FenceSpec, after: FenceSpec
) -> PolicyChange | None:
    """Return the change of the addresses of host names, between two fences with one policy.

    Return None if no name has other addresses, or if the first fence has no such names: another
    process has installed it with another policy.
    """
    known = {each.name: each.addresses for each in before.resolved}
    if known.keys() != {each.name for each in after.resolved}:
        return None
    changes = []
    for each in after.resolved:
        was, now = known[each.name], each.addresses
        added = [f"added {address}" for address in now if address not in was]
        removed = [f"removed {address}" for address in was if address not in now]
        if added or removed:
            changes.append(f"{each.name}: {', '.join(added + removed)}")
    if not changes:
        return None
    policy = sandbox.given()
    return PolicyChange(changes=tuple(changes), before=policy, after=policy, is_resolved=True)
