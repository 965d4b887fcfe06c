"""Loading of a fence into the kernel, with the first log transport that the kernel supports.

A log transport is the way in which log records reach a reader: NFLOG, the kernel log, or ``none``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from ocsf_nft import netns
from ocsf_nft.errors import FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import (
    kernel_log_sysctl,
    listing,
    nft,
    replace_keeping_counters,
    ruleset,
    table_query,
)
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future

    from ocsf_nft.fence.spec import LogTransport, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

#: Function that loads a ruleset inside a namespace as :func:`nft.load` does. A process that owns
#: the tables of a fence exclusively has to load them itself.
LoadText: TypeAlias = "Callable[[Namespace, str], None]"


def load(
    intended: InstalledFence,
    transports: tuple[LogTransport, ...],
    state: StateDirectory,
    load_text: LoadText,
) -> InstalledFence:
    """Load a fence with the first of ``transports`` (ways to log packets) that the kernel supports.

    Returns ``intended`` with the resulting ``transport``, ``degraded``, ``policy`` and
    ``listings``. If a sysctl is changed, ``state`` stores its previous value. Raises
    UnsupportedError, FenceError, DeliveryError.
    """
    failures: list[str] = []
    for transport in transports:
        try:
            if transport == "kmsg":
                kernel_log_sysctl.enable(intended.namespace, state)
            degraded = "; ".join(failures) if transport == "none" and failures else None
            attempted = dataclasses.replace(intended, transport=transport, degraded=degraded)
            return _load_with_transport(attempted, load_text)
        except OcsfNftError as error:
            # Only an unavailable log leads to the next transport. A fence that can't be loaded at
            # all does not.
            if transport == transports[-1] or not isinstance(error, UnsupportedError):
                raise
            failures.append(f"{transport}: {error}")
    raise AssertionError("the list of transports has a last one")


def _load_with_transport(intended: InstalledFence, load_text: LoadText) -> InstalledFence:
    with ThreadPoolExecutor(1) as pool:
        # Beside the rest, since it takes as long.
        expecting = pool.submit(_expected, intended) if _exists(intended) else None
        return _load_and_compare(intended, load_text, expecting)


def _load_and_compare(
    intended: InstalledFence,
    load_text: LoadText,
    expecting: Future[dict[str, str] | None] | None,
) -> InstalledFence:
    spec = intended.spec
    generation = table_query.generation(intended.namespace)
    is_preserved = _load_all(intended, load_text, preserve=True)
    found = listing.of_fence(spec, intended.namespace)
    # Only the one transaction was made meanwhile, so the tables are what it has loaded.
    is_certain = (
        not is_preserved
        and spec.guard_device is None
        and table_query.generation(intended.namespace) == generation + 1
    )
    expected = None
    if not is_certain:
        expected = _expected(intended) if expecting is None else expecting.result()
    if expected is not None:
        lines = listing.difference(expected, found)
        if lines and is_preserved:  # existing parts are left: load again and preserve nothing
            _load_all(intended, load_text, preserve=False)
            found = listing.of_fence(spec, intended.namespace)
            lines = listing.difference(expected, found)
        if lines:
            # The first three lines name both sides and the position; the difference comes after
            # them.
            altered = " ".join(listing.shortened(lines[3:6]))
            raise FenceError(
                f"the fence in {intended.namespace} was altered while it was installed: {altered}"
            )
    policy = ruleset.digest(spec, intended.around, intended.transport)
    return dataclasses.replace(
        intended, policy=policy, listings=found, generation=generation + 1 if is_certain else None
    )


def _load_all(intended: InstalledFence, load_text: LoadText, *, preserve: bool) -> bool:
    """Load the tables of a fence and of its guard; return True if counters were preserved.

    With ``preserve``, existing counters are preserved if possible.
    """
    spec, namespace = intended.spec, intended.namespace
    existing = _exists(intended)
    text = ruleset.fence(spec, intended.around, intended.transport)
    is_preserved = _load_tables(namespace, spec.tables, text, load_text, preserve=preserve)
    if spec.guard_device is None:
        return is_preserved
    try:
        text = ruleset.guard(spec, intended.around, intended.transport)
        return (
            _load_tables(HOST, spec.guard_tables, text, load_text, preserve=preserve)
            or is_preserved
        )
    except OcsfNftError as error:
        if existing:
            raise FenceError(f"the fence inside was replaced, but the guard: {error}") from error
        # A fence that replaced none is removed again: without the guard, it is incomplete.
        remove(namespace, spec.tables, load_text)
        raise


def _exists(intended: InstalledFence) -> bool:
    table_id, _ = intended.spec.tables
    return table_query.comment(intended.namespace, *table_id) is not None


def _load_tables(
    namespace: Namespace,
    table_ids: Collection[TableId],
    definition: str,
    load_text: LoadText,
    *,
    preserve: bool,
) -> bool:
    """Load the ruleset ``definition``, which has the tables ``table_ids``; as :func:`_load_all`."""
    tables = {table_id: table_query.table(namespace, *table_id) for table_id in table_ids}
    for table_id, table in tables.items():  # the kernel accepts no definition with other flags
        persists = table is not None and table.is_persistent
        current, other = (
            ruleset.ensure_table(*table_id, persists=each) for each in (persists, not persists)
        )
        definition = definition.replace(f"\n{other}delete ", f"\n{current}delete ")
    if preserve and any(tables.values()):
        existing = nft.list_tables(namespace, table_ids)
        text = replace_keeping_counters.replacement_text(definition, existing) if existing else None
        if text is not None:
            # An error of the definition itself is reported when it is loaded without the counters.
            with contextlib.suppress(FenceError, UnsupportedError):
                load_text(namespace, text)
                return True
    load_text(namespace, definition)
    return False


def remove(
    namespace: Namespace, table_ids: Collection[TableId], load_text: LoadText = nft.load
) -> None:
    """Delete nftables tables in one transaction; missing tables are ignored.

    ``load_text`` loads the text of a ruleset into a namespace. Raises the errors of
    :func:`nft.load`.
    """
    text = ""
    for table_id in table_ids:
        found = table_query.table(namespace, *table_id)
        persists = found is not None and found.is_persistent
        text += ruleset.ensure_table(*table_id, persists=persists)
        text += f"delete table {table_id.family} {table_id.name}\n"
    load_text(namespace, text)


def _expected(intended: InstalledFence) -> dict[str, str] | None:
    """Return the listings of a fence's tables after a correct installation.

    To get them, the fence is loaded into an empty, temporary namespace. Return None if this fails,
    for example without CAP_SYS_ADMIN or before Linux 6.16.
    """
    spec, around, transport = intended.spec, intended.around, intended.transport

    def load_and_list() -> dict[str, str]:
        nft.load(HOST, ruleset.fence(spec, around, transport))
        if spec.guard_device is not None:
            nft.load(HOST, ruleset.guard(spec, around, transport))
        return listing.of_fence(spec, HOST)

    try:
        # Before Linux 6.16, the kernel refuses chains for interfaces that the namespace lacks.
        return netns.in_scratch(load_and_list)
    except OcsfNftError:
        return None
