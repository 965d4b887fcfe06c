"""Differences between two policies of a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.errors import AbsentError, ConflictError
from ocsf_nft.ocsf.fence_state_events import PolicyChange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.spec import FenceSpec

#: Keys that can be changed while a sandbox is watched.
_POLICY: Final = frozenset({"proxy", "allow", "permissive", "labels", "severity", "container"})
#: Keys that name the network namespace: they may change if the namespace stays the same.
_NAMESPACE: Final = frozenset({"netns", "pid"})


def policy_changes(before: SandboxConfig, after: SandboxConfig) -> tuple[str, ...]:
    """Return each difference between two policies of a sandbox as a text, for people.

    Raises ConflictError if a key differs that can't be changed while the sandbox is watched.
    """
    old, new = before.given(), after.given()
    changed = {
        name for name in type(after).model_fields if getattr(before, name) != getattr(after, name)
    }
    fixed = changed - _POLICY - _NAMESPACE
    if fixed or (changed & _NAMESPACE and not _is_same_namespace(before, after)):
        names = ", ".join(sorted(fixed or changed & _NAMESPACE))
        raise ConflictError(
            f"{names} of sandbox {after.name} can't be changed while it is watched: release it, "
            "and add it again"
        )
    return tuple(
        text for name in sorted(changed & _POLICY) for text in _differences(name, old, new)
    )


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


def _is_same_namespace(before: SandboxConfig, after: SandboxConfig) -> bool:
    old, new = before.namespace, after.namespace
    try:
        return old is not None and new is not None and old.identity() == new.identity()
    except AbsentError:
        return False


def _differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    was, now = old.get(name), new.get(name)
    if isinstance(was or now, list):
        was, now = was or [], now or []
        for each in now:
            if each not in was:
                yield f"{name}: added {_text(each)}"
        for each in was:
            if each not in now:
                yield f"{name}: removed {_text(each)}"
    else:
        yield f"{name}: {_text(was)} → {_text(now)}"


def _text(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else orjson.dumps(value).decode()
