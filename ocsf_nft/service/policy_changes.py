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
_POLICY: Final = frozenset({"proxy", "allow", "permissive", "labels", "severity", "container"})
#: Keys that name the network namespace: they may change if the namespace stays the same.
_NAMESPACE: Final = frozenset({"netns", "pid"})


def policy_changes(
    before: SandboxConfig, after: SandboxConfig, identity: str | None = None
) -> tuple[str, ...]:
    """Return each difference between two policies of a sandbox as a text, for people.

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
    return _texts(before, after, changed & _POLICY)


def all_changes(before: SandboxConfig, after: SandboxConfig) -> tuple[str, ...]:
    """Return the differences of all keys, as :func:`policy_changes` does for a policy."""
    return _texts(before, after, _changed(before, after))


def change_of(
    before: SandboxConfig,
    after: SandboxConfig,
    changes: tuple[str, ...],
    caller: Process | None = None,
) -> PolicyChange:
    """Return the request of ``caller`` to change a sandbox, with these differences."""
    return PolicyChange(changes=changes, process=caller, before=before.given(), after=after.given())


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


def _texts(before: SandboxConfig, after: SandboxConfig, names: set[str]) -> tuple[str, ...]:
    old, new = before.given(), after.given()
    return tuple(text for name in sorted(names) for text in _differences(name, old, new))


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
