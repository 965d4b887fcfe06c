"""Locks that a renewal of a fence holds."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.state import StateDirectory
from tests.fence.test_state import _is_waited_for, _until
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from pathlib import Path

_SANDBOX = INSTALLED.spec.sandbox


def _waits(state: StateDirectory, changed: str) -> bool:
    """Return whether a change of a fence waits for a renewal of that of INSTALLED."""
    entered = threading.Event()

    def change() -> None:
        with state.locked(changed):
            entered.set()

    other = threading.Thread(target=change)
    with installer.renewal_lock(_SANDBOX, state):
        other.start()
        _until(lambda: entered.is_set() or _is_waited_for(state.path))
        found = not entered.is_set()
    other.join(10)
    assert entered.is_set()
    return found


@pytest.mark.parametrize(
    ("keys", "blocks_others"),
    [
        ({"transport": "nflog"}, False),
        ({"transport": "none"}, False),
        ({"transport": "kmsg"}, True),
        ({"transport": "none", "degraded": "no log"}, True),
        (None, True),
    ],
)
def test_renewal_blocks_changes_of_others_only_for_shared_sysctls(
    tmp_path: Path, keys: dict[str, Any] | None, blocks_others: bool
) -> None:
    state = StateDirectory(tmp_path)
    if keys is not None:
        state.write(dataclasses.replace(INSTALLED, **keys))
    assert _waits(state, _SANDBOX)
    assert _waits(state, "another") is blocks_others


def test_renewal_that_waits_sees_the_record_of_the_change_before_it(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.write(dataclasses.replace(INSTALLED, transport="nflog"))
    has_entered, may_end, found = threading.Event(), threading.Event(), list[bool]()

    def renew() -> None:
        with installer.renewal_lock(_SANDBOX, state):
            has_entered.set()
            may_end.wait(10)

    renewal = threading.Thread(target=renew)
    with state.locked(_SANDBOX):
        renewal.start()
        _until(lambda: _is_waited_for(state.path))
        state.write(dataclasses.replace(INSTALLED, transport="kmsg"))
    assert has_entered.wait(10)
    other = threading.Thread(target=lambda: found.append(_enters(state)))
    other.start()
    _until(lambda: bool(found) or _is_waited_for(state.path))
    assert found == []
    may_end.set()
    renewal.join(10)
    other.join(10)
    assert found == [True]


def _enters(state: StateDirectory) -> bool:
    with state.locked("another"):
        return True
