"""Differences between two policies of a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.errors import AbsentError, ConflictError
from ocsf_nft.netns import HOST
from ocsf_nft.ocsf.fence_state_events import PolicyChange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.process import Process

#: Keys that can be changed while a sandbox is watched.
_POLICY: Final = frozenset(
    {"proxy", "allow", "strict", "permissive", "whole_machine"}
    | {"labels", "tenant_uid", "severity", "container"}
)
#: Keys that name the network namespace: they may change if the namespace stays the same.
_NAMESPACE: Final = frozenset({"netns", "pid"})


def change_of_policy(
    before: SandboxConfig,
    after: SandboxConfig,
    *,
    identity: str | None = None,
    caller: Process | None = None,
) -> PolicyChange:
    """Return the change of the policy of a sandbox that ``caller`` requests.

    ``identity`` is that of its network namespace, which may have lost the process that names it.
    Raises ConflictError if a key differs that can't be changed while the sandbox is watched.
    """
    changed = _changed(before, after)
    fixed = changed - _POLICY - _NAMESPACE
    if fixed or (changed & _NAMESPACE and not is_same_namespace(before, after, identity)):
        names = ", ".join(sorted(fixed or changed & _NAMESPACE))
        raise ConflictError(
            f"{names} of sandbox {after.name} can't be changed while it is watched: release it, "
            "and add it again"
        )
    return _change(before, after, changed & _POLICY, caller)


def change_of_all(before: SandboxConfig, after: SandboxConfig) -> PolicyChange:
    """Return the change of all keys of a sandbox, which is watched again for it."""
    return _change(before, after, _changed(before, after))


def is_same_namespace(
    before: SandboxConfig, after: SandboxConfig, identity: str | None = None
) -> bool:
    """Return True if two sandboxes have the same network namespace, which exists.

    ``identity`` is that of the former one, if it is known.
    """
    try:
        was = identity or (before.namespace or HOST).identity()
        return was == (after.namespace or HOST).identity()
    except AbsentError:
        return False


def _changed(before: SandboxConfig, after: SandboxConfig) -> set[str]:
    return {
        name for name in type(after).model_fields if getattr(before, name) != getattr(after, name)
    }


def _change(
    before: SandboxConfig, after: SandboxConfig, names: set[str], caller: Process | None = None
) -> PolicyChange:
    old, new = before.given(), after.given()
    changes = tuple(text for name in sorted(names) for text in _differences(name, old, new))
    return PolicyChange(changes=changes, process=caller, before=old, after=new)


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
