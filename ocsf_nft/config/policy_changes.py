"""Differences between two policies of a sandbox, as texts for people and for audit events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.config.sandbox import SandboxConfig


def policy_changes(before: SandboxConfig, after: SandboxConfig) -> tuple[str, ...]:
    """Return the differences of two policies, such as ``allow: added tcp:10.0.0.1:443``.

    A key that was not given has its default. The order of a list is no difference.
    """
    old, new = (
        each.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        for each in (before, after)
    )
    return tuple(
        f"{key}: {change}" for key in type(after).model_fields if old.get(key) != new.get(key)
        for change in _changes(old.get(key), new.get(key))
    )  # fmt: skip


def _changes(old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, list) and isinstance(new, list):
        yield from (f"removed {_text(each)}" for each in old if each not in new)
        yield from (f"added {_text(each)}" for each in new if each not in old)
    elif isinstance(old, dict) and isinstance(new, dict):
        yield from _table_changes(old, new)
    elif old is None or new is None:
        yield f"added {_text(new)}" if old is None else f"removed {_text(old)}"
    else:
        yield f"changed from {_text(old)} to {_text(new)}"


def _table_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if after is None:
            yield f"removed {key} = {_text(before)}"
        elif before is None:
            yield f"added {key} = {_text(after)}"
        else:
            yield f"changed {key} from {_text(before)} to {_text(after)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
