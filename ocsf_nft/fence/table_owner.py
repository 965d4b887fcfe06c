"""Whose a table of ours is, by its own word and by what is on record."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import FenceError, UsageError
from ocsf_nft.fence import load_ruleset, table_query

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.replace_keeping_counters import Place
    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace

_OWNER: Final = re.compile(r"(?:fence|guard) of sandbox (.*)", re.DOTALL)


def owner(namespace: Namespace, place: Place) -> str | None:
    """Whose a table says that it is; None where it says nothing, or isn't there.

    It may say anything. Raises what :func:`standing.comment` does.
    """
    found = _OWNER.fullmatch(table_query.comment(namespace, *place) or "")
    return None if found is None else found[1]


def refuse_foreign(sandbox: str, namespace: Namespace, place: Place) -> None:
    """Raise FenceError where a table is another sandbox's."""
    found = owner(namespace, place)
    if found is not None and found != sandbox:
        raise _foreign(found, namespace, place)


def refuse_held(namespace: Namespace, places: Iterable[Place], state: StateDirectory) -> None:
    """Raise FenceError where a process holds a table as its own, so that nobody can change it."""
    for place in places:
        found = table_query.table(namespace, *place)
        if found is None or not found.is_owned:
            continue
        sandbox = owner(namespace, place)
        is_run = False
        with contextlib.suppress(UsageError):  # the name of no sandbox
            is_run = sandbox is not None and state.is_watched(sandbox)
        mend = (
            f"stop the run of sandbox {sandbox} first (its fence stays)"
            if is_run
            else "that is no run on a fence of this state directory: end it first"
        )
        raise FenceError(
            f"the table {place.table} in {namespace} is held by a process as its own: {mend}"
        )


def former(
    spec: FenceSpec, around: Surroundings, namespace: Namespace, state: StateDirectory
) -> str | None:
    """Whose record is of no use any more, because what is fenced now has taken its table's place.

    What a run that was killed has left is replaced: the table of a VM that is on no record, or on
    that of a device with another number, which is gone. Raises FenceError where the table is that
    of another sandbox that may be alive, or the guard of one that is on record.
    """
    place, link = load_ruleset.fence_places(spec)
    if spec.tap is not None:
        _refuse_guarded(spec.sandbox, namespace, link, state)
    found = owner(namespace, place)
    if found is None or found == spec.sandbox:
        return None
    if spec.tap is None:
        raise _foreign(found, namespace, place)
    try:
        installed = state.read(found)
    except UsageError:  # the name of no sandbox: whoever has written that, it is on no record
        return None
    if (
        installed is None
        or installed.identity != namespace.identity()
        or place not in load_ruleset.fence_places(installed.spec)
    ):
        return None
    if installed.around.ifindex == around.ifindex:
        raise _foreign(found, namespace, place)
    return found


def _refuse_guarded(
    sandbox: str, namespace: Namespace, place: Place, state: StateDirectory
) -> None:
    """Raise FenceError where a table is what guards another sandbox."""
    found = owner(namespace, place)
    if found is None or found == sandbox or namespace.identity() != load_ruleset.HOST.identity():
        return
    try:
        installed = state.read(found)
    except UsageError:  # as in former()
        return
    if installed is not None and place in load_ruleset.guard_places(installed.spec):
        raise _foreign(found, namespace, place)


def _foreign(found: str, namespace: Namespace, place: Place) -> FenceError:
    return FenceError(
        f"the table {place.table} in {namespace} is that of sandbox {found}: remove that one first"
    )
