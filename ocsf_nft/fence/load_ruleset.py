"""Put a fence into the kernel: by the best transport that it takes, and seen to stand."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft import netns
from ocsf_nft.errors import FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import (
    kernel_log_sysctl,
    nft,
    replace_keeping_counters,
    ruleset,
    ruleset_diff,
    table_query,
)
from ocsf_nft.fence.replace_keeping_counters import Place
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.state import Installed, StateDirectory

#: Loads a ruleset inside a namespace as :func:`nft.load` does: whoever holds the tables of a fence
#: as his own has to do it himself.
LoadText: TypeAlias = "Callable[[Namespace, str], None]"
#: Where a guard stands: on the host's side, which is where the installer runs.
HOST: Final = Namespace()
#: In a look, more elements than were allowed and so many are counted no further.
_ELEMENTS: Final = 1000


def load(
    intended: Installed, rungs: tuple[LogTransport, ...], state: StateDirectory, load_text: LoadText
) -> Installed:
    """Load a fence by the first of the rungs that the kernel takes, and see what stands then.

    Raises UnsupportedError or FenceError where none can stand.
    """
    failures: list[str] = []
    for rung in rungs:
        try:
            if rung == "kmsg":
                _open_kernel_log(intended.namespace, state)
            degraded = "; ".join(failures) if rung == "none" and failures else None
            loaded = _load_rung(intended, rung, load_text)
            return dataclasses.replace(loaded, degraded=degraded)
        except OcsfNftError as error:
            # Only a log that can't be had leads a rung down; that a fence can't stand does not.
            if rung == rungs[-1] or not isinstance(error, UnsupportedError):
                raise
            failures.append(f"{rung}: {error}")
    raise AssertionError("the ladder has a last rung")


def _open_kernel_log(namespace: Namespace, state: StateDirectory) -> None:
    value = kernel_log_sysctl.blocked(namespace)
    if value is None:
        return
    is_first = state.all_netns_before() is None
    if is_first:  # written before it is switched, so that it is put back whatever happens between
        state.keep_all_netns_before(value)
    try:
        kernel_log_sysctl.enable()
    except UnsupportedError:
        if is_first:
            state.forget_all_netns_before()
        raise


def _load_rung(intended: Installed, rung: LogTransport, load_text: LoadText) -> Installed:
    spec, around = intended.spec, intended.around
    kept = _load_all(intended, rung, load_text, keep=True)
    found = listings(spec, intended.namespace)
    expected = _expected(spec, around, rung)
    if expected is not None:
        lines = ruleset_diff.difference(expected, found)
        if lines and kept:  # something of what stood is still there: then without keeping any of it
            _load_all(intended, rung, load_text, keep=False)
            found = listings(spec, intended.namespace)
            lines = ruleset_diff.difference(expected, found)
        if lines:
            # The first three lines name both sides and the place; what differs comes after.
            altered = " ".join(ruleset_diff.shortened(lines[3:6]))
            raise FenceError(
                f"the fence in {intended.namespace} was altered while it was installed: {altered}"
            )
    policy = ruleset.digest(spec, around, rung)
    return dataclasses.replace(intended, transport=rung, policy=policy, listings=found)


def _load_all(intended: Installed, rung: LogTransport, load_text: LoadText, *, keep: bool) -> bool:
    """Load fence and guard; whether something of what stood was kept."""
    spec, around, namespace = intended.spec, intended.around, intended.namespace
    stood = table_query.comment(namespace, *fence_places(spec)[0]) is not None
    text = ruleset.fence(spec, around, rung)
    kept = _load_tables(namespace, fence_places(spec), text, load_text, keep=keep)
    if spec.guard_device is None:
        return kept
    try:
        text = ruleset.guard(spec, around, rung)
        return _load_tables(HOST, guard_places(spec), text, load_text, keep=keep) or kept
    except OcsfNftError as error:
        if stood:
            raise FenceError(f"the fence inside was replaced, but the guard: {error}") from error
        remove(namespace, fence_places(spec), load_text)
        raise


def _load_tables(
    namespace: Namespace,
    places: tuple[Place, ...],
    definition: str,
    load_text: LoadText,
    *,
    keep: bool,
) -> bool:
    """Load a definition; whether what the tables had counted was kept."""
    for place in places:  # the kernel takes no table for one of the other kind
        persists = _persists(namespace, place)
        stands, other = (ruleset.first(*place, persists=each) for each in (persists, not persists))
        definition = definition.replace(f"\n{other}delete ", f"\n{stands}delete ")
    if keep:
        listings = {place: nft.listing(namespace, *place) for place in places}
        stood = {place: text for place, text in listings.items() if text is not None}
        text = replace_keeping_counters.text(definition, stood) if stood else None
        if text is not None:
            # What is wrong with the definition itself is said when it is loaded without keeping.
            with contextlib.suppress(FenceError, UnsupportedError):
                load_text(namespace, text)
                return True
    load_text(namespace, definition)
    return False


def _persists(namespace: Namespace, place: Place) -> bool:
    found = table_query.table(namespace, *place)
    return found is not None and found.persists


def remove(namespace: Namespace, places: Iterable[Place], load_text: LoadText = nft.load) -> None:
    """Delete tables, whether they are there or not, in one transaction.

    Raises what :func:`nft.load` does.
    """
    load_text(
        namespace,
        "".join(
            ruleset.first(*place, persists=_persists(namespace, place))
            + f"delete table {place.family} {place.table}\n"
            for place in places
        ),
    )


def _expected(spec: FenceSpec, around: Surroundings, rung: LogTransport) -> dict[str, str] | None:
    """How nft lists the fence where nobody can have touched it: in a scratch namespace.

    None where there can't be one: without CAP_SYS_ADMIN, or on a kernel that takes no chain for
    a device that is not there (before 6.16).
    """

    def load_and_list() -> dict[str, str]:
        nft.load(HOST, ruleset.fence(spec, around, rung))
        if spec.guard_device is not None:
            nft.load(HOST, ruleset.guard(spec, around, rung))
        return listings(spec, HOST)

    try:
        return netns.in_scratch(load_and_list)
    except OcsfNftError:
        return None


def fence_places(spec: FenceSpec) -> tuple[Place, ...]:
    """The tables of the fence itself."""
    return tuple(Place(table.family, table.name) for table in ruleset.tables(spec))


def guard_places(spec: FenceSpec) -> tuple[Place, ...]:
    """The table of the guard, if one is wanted."""
    return tuple(Place(table.family, table.name) for table in ruleset.guard_tables(spec))


def listings(spec: FenceSpec, namespace: Namespace) -> dict[str, str]:
    """What stands, by ``family name``: each table as nft lists it, and who is let through."""
    most = len(spec.allowed) + _ELEMENTS
    places = [(namespace, place) for place in fence_places(spec)] + [
        (HOST, place) for place in guard_places(spec)
    ]
    found = {}
    for where, place in places:
        listing = nft.listing(where, *place)
        if listing is not None:
            elements = table_query.elements(where, *place, ruleset.static_sets(spec), most)
            found[" ".join(place)] = listing + "".join(f"{line}\n" for line in elements)
    return found
