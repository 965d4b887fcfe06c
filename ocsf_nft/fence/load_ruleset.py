"""Loading of a fence into the kernel, with the first log transport that the kernel supports.

A log transport is the way in which log records reach a reader: NFLOG, the kernel log, or ``none``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft import netns
from ocsf_nft.errors import FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import (
    kernel_log_sysctl,
    listing,
    nft,
    replace_keeping_counters,
    restore_batch,
    ruleset,
    table_changes,
    table_query,
)
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ocsf_nft.fence.spec import LogTransport, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Generation

#: Number of netdev tables in the host's namespace up to which nft is quick.
_FEW_TABLES: Final = 20
#: Function that loads a ruleset inside a namespace as :func:`nft.load` does. A process that owns
#: the tables of a fence exclusively has to load them itself.
LoadText: TypeAlias = "Callable[[Namespace, str], None]"
#: Function that returns nft's listing of each table that exists: see :func:`listing.list_tables`.
ListTables: TypeAlias = "Callable[[Namespace, Collection[TableId]], Mapping[TableId, str]]"


def load(
    intended: InstalledFence,
    before: InstalledFence | None,
    transports: tuple[LogTransport, ...],
    state: StateDirectory,
    load_text: LoadText,
) -> InstalledFence:
    """Load a fence with the first of ``transports`` (ways to log packets) that the kernel supports.

    ``before`` is the record of the fence that ``intended`` replaces, if there is one. Returns
    ``intended`` with the resulting ``transport``, ``degraded``, ``policy`` and ``listings``. If a
    sysctl is changed, ``state`` stores its previous value. Raises UnsupportedError, FenceError,
    DeliveryError.
    """
    failures: list[str] = []
    for transport in transports:
        try:
            if transport == "kmsg":
                kernel_log_sysctl.enable(intended.namespace, state)
            degraded = "; ".join(failures) if transport == "none" and failures else None
            attempted = dataclasses.replace(intended, transport=transport, degraded=degraded)
            return _load_and_compare(attempted, before, load_text)
        except OcsfNftError as error:
            # Only an unavailable log leads to the next transport. A fence that can't be loaded at
            # all does not.
            if transport == transports[-1] or not isinstance(error, UnsupportedError):
                raise
            failures.append(f"{transport}: {error}")
    raise AssertionError("the list of transports has a last one")


def _load_and_compare(
    intended: InstalledFence, before: InstalledFence | None, load_text: LoadText
) -> InstalledFence:
    """Load a fence, and compare the tables with it if another process may have changed them."""
    spec = intended.spec
    generations = _generations(intended)
    recorded = {} if before is None else _recorded_tables(before)
    is_as_recorded = (
        before is not None
        and recorded.keys() == {*spec.tables, *spec.guard_tables}
        and before.around.links == intended.around.links
        and before.around.host.ends == intended.around.host.ends
        and before.generations == generations
    )

    def as_recorded(_: Namespace, table_ids: Collection[TableId]) -> dict[TableId, str]:
        return {each: recorded[each] for each in table_ids}

    list_tables = as_recorded if is_as_recorded else listing.list_tables
    preserved = _load_all(intended, load_text, list_tables)
    found = listing.of_fence(spec, intended.namespace)
    now = _generations(intended)
    # The tables are what was loaded if they were as recorded, and if only one transaction was made
    # in each namespace meanwhile.
    is_certain = (
        now == tuple(each.after_one() for each in generations)
        and preserved.items() <= recorded.items()
    )
    expected = None if is_certain else _expected(intended)
    if expected is not None:
        lines = _differences(intended, expected, found)
        # Another process has changed the fence since, or existing parts are left: load it again, at
        # last without the counters.
        for list_again in (listing.list_tables, None):
            if lines and preserved:
                preserved = _load_all(intended, load_text, list_again)
                found = listing.of_fence(spec, intended.namespace)
                lines = _differences(intended, expected, found)
        if lines:
            # The first three lines name both sides and the position; the difference comes after
            # them.
            altered = " ".join(listing.shortened(lines[3:6]))
            raise FenceError(
                f"the fence in {intended.namespace} was altered while it was installed: {altered}"
            )
    policy = ruleset.digest(spec, intended.around, intended.transport)
    return dataclasses.replace(
        intended, policy=policy, listings=found, generations=now if is_certain else None
    )


def _differences(
    intended: InstalledFence, expected: Mapping[str, str], found: Mapping[str, str]
) -> list[str]:
    names = intended.around.attached
    return listing.difference(
        listing.with_devices(expected, names), listing.with_devices(found, names)
    )


def _generations(intended: InstalledFence) -> tuple[Generation, ...]:
    """Return the generation of the ruleset in each namespace where a fence has tables."""
    namespaces = [intended.namespace, *([HOST] if intended.spec.guard_tables else [])]
    return tuple(map(table_query.generation, namespaces))


def _recorded_tables(installed: InstalledFence) -> dict[TableId, str]:
    """Return nft's listings of the tables of a fence and of its guard, as recorded."""
    spec = installed.spec
    return {
        table_id: listing.without_elements(text)
        for table_id in (*spec.tables, *spec.guard_tables)
        if (text := installed.listings.get(" ".join(table_id))) is not None
    }


def _load_all(
    intended: InstalledFence, load_text: LoadText, list_tables: ListTables | None
) -> Mapping[TableId, str]:
    """Load the tables of a fence and of its guard; return the listings of the preserved tables.

    ``list_tables`` lists existing tables, to preserve their counters if possible; None preserves
    nothing.
    """
    spec, namespace = intended.spec, intended.namespace
    existing = exists(intended)
    text = ruleset.fence(spec, intended.around, intended.transport)
    preserved = _load_tables(namespace, spec.tables, text, load_text, list_tables)
    if spec.guard_device is None:
        return preserved
    try:
        text = ruleset.guard(spec, intended.around, intended.transport)
        load = _load_on_host if load_text is nft.load else load_text
        guards = _load_tables(HOST, spec.guard_tables, text, load, list_tables)
    except OcsfNftError as error:
        if existing:
            raise FenceError(f"the fence inside was replaced, but the guard: {error}") from error
        # A fence that replaced none is removed again: without the guard, it is incomplete.
        _remove(namespace, spec.tables, load_text)
        raise
    return {**preserved, **guards}


def _load_on_host(namespace: Namespace, text: str) -> None:
    """Do the same as :func:`nft.load`, in a time that does not grow with the number of guards."""
    if table_query.count(namespace, "netdev") <= _FEW_TABLES:
        nft.load(namespace, text)
        return
    # nft reads all tables of a namespace before it loads one. Here it only translates the text.
    statements = restore_batch.compile_ruleset(namespace, text)
    try:
        table_changes.commit(namespace, statements)
    except OcsfNftError:
        nft.load(namespace, text)  # it says what is wrong


def exists(intended: InstalledFence) -> bool:
    """Return True if the namespace of a fence has its table; raises the errors of :func:`load`."""
    table_id, _ = intended.spec.tables
    return table_query.comment(intended.namespace, *table_id) is not None


def _load_tables(
    namespace: Namespace,
    table_ids: Collection[TableId],
    definition: str,
    load_text: LoadText,
    list_tables: ListTables | None,
) -> Mapping[TableId, str]:
    """Load the ruleset ``definition``, which has the tables ``table_ids``; as :func:`_load_all`."""
    tables = {table_id: table_query.table(namespace, *table_id) for table_id in table_ids}
    for table_id, table in tables.items():  # the kernel accepts no definition with other flags
        persists = table is not None and table.is_persistent
        current, other = (
            ruleset.ensure_table(*table_id, persists=each) for each in (persists, not persists)
        )
        definition = definition.replace(f"\n{other}delete ", f"\n{current}delete ")
    if list_tables is not None and any(tables.values()):
        existing: Mapping[TableId, str] = {}
        with contextlib.suppress(table_query.UnlistedError):
            existing = list_tables(namespace, table_ids)
        text = replace_keeping_counters.replacement_text(definition, existing) if existing else None
        if text is not None:
            # An error of the definition itself is reported when it is loaded without the counters.
            with contextlib.suppress(FenceError, UnsupportedError):
                load_text(namespace, text)
                return existing
    load_text(namespace, definition)
    return {}


def _remove(namespace: Namespace, table_ids: Collection[TableId], load_text: LoadText) -> None:
    """Delete tables as their owner, if they have one; missing tables are ignored."""
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
