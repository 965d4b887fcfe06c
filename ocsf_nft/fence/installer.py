"""Installation and removal of a sandbox's nftables fence: atomic and idempotent.

The functions block, so asyncio code must call them in a thread. The functions need CAP_NET_ADMIN
over the fence's network namespaces, and CAP_SYS_ADMIN to enter another namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from ocsf_nft.errors import (
    AbsentError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    UnsupportedError,
)
from ocsf_nft.fence import (
    accepted_surroundings,
    host_end,
    ip_forwarding,
    kernel_log_sysctl,
    links,
    load_ruleset,
    nft,
    pinned_survey,
    ruleset,
    table_changes,
    table_query,
    verification,
)
from ocsf_nft.fence.spec import TRANSPORTS, tables_of
from ocsf_nft.fence.state import InstalledFence
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.load_ruleset import LoadText
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace


def plan(spec: FenceSpec, namespace: Namespace, transport: LogTransport) -> str:
    """Return the ruleset text that :func:`install` would load now; change nothing."""
    spec, around = host_end.resolve(spec, _survey(spec, namespace), namespace)
    return ruleset.fence_and_guard(spec, around, transport)


def install(
    spec: FenceSpec,
    namespace: Namespace,
    state: StateDirectory,
    transport: LogTransport | None = None,
    *,
    keeps_uplinks: bool = False,
) -> InstalledFence:
    """Install or replace a network namespace's fence, and store its record.

    The routes of the namespace decide which interfaces lead out. With ``keeps_uplinks``, those of
    the recorded fence of this namespace stay, if there is one.
    ``transport`` is the way to log packets; UnsupportedError is raised if it does not work. None
    selects the first way that works. If no way works, ``degraded`` of the result has the reason.
    Also raises AbsentError, FenceError, DeliveryError. After an error, the previous fence normally
    stays active; a FenceError states if that fence was replaced.
    """
    _check_named_guard(spec)  # before anything is written
    if keeps_uplinks:
        with state.locked(spec.sandbox):
            return install_locked(spec, namespace, state, transport, nft.load)
    namespace = namespace.pinned()  # all facts must be about the same namespace
    identity = namespace.identity()
    around = _survey(spec, namespace)
    with state.locked(spec.sandbox):
        installed = _install(spec, around, namespace, identity, state, transport, nft.load)
        return _restore_sysctls(installed, state)


def install_locked(
    spec: FenceSpec,
    namespace: Namespace,
    state: StateDirectory,
    transport: LogTransport | None,
    load_text: LoadText,
) -> InstalledFence:
    """Install or replace a fence in the lock of its sandbox, which the caller must hold.

    It has the uplinks of the recorded fence of this namespace, if there is one. ``load_text`` loads
    the ruleset, like :func:`nft.load`. Otherwise the same as :func:`install`.
    """
    namespace = namespace.pinned()
    before, identity = state.read_or_none(spec.sandbox), namespace.identity()
    known = None if before is None else (before.identity, before.spec.profile)
    if before is not None and known == (identity, spec.profile):
        around = _survey_again(spec, before)
    else:
        around = _survey(spec, namespace)
    installed = _install(spec, around, namespace, identity, state, transport, load_text)
    return _restore_sysctls(installed, state)


def renew(sandbox: str, state: StateDirectory) -> InstalledFence | None:
    """Load a sandbox's fence again if the fence or a network interface changed.

    The fence is also loaded again after an update of ocsf-nft's rules. Returns the fence's stored
    record; None if there is none, or if its namespace has ended. Raises the errors of
    :func:`install`.
    """
    with renewal_lock(sandbox, state):
        return renew_locked(sandbox, state, nft.load)


@contextlib.contextmanager
def renewal_lock(sandbox: str, state: StateDirectory) -> Iterator[None]:
    """Hold what a renewal of a fence needs: the lock of this fence, or also that of all records.

    A process in the sandbox can delay the renewals of its fence again and again, so a change of
    another fence must not wait for them. Blocks, and raises DeliveryError.
    """
    with contextlib.ExitStack() as stack:
        if not _may_change_sysctls(sandbox, state):
            stack.enter_context(state.fence_locked(sandbox))
        if _may_change_sysctls(sandbox, state):  # first seen here, or changed while this waited
            stack.close()
            stack.enter_context(state.locked(sandbox))
        yield


def _may_change_sysctls(sandbox: str, state: StateDirectory) -> bool:
    """Return whether a renewal of a fence may change sysctls that fences share."""
    installed = state.read_or_none(sandbox)
    return (
        installed is None
        or installed.transport == "kmsg"
        or installed.degraded is not None  # then all transports are tried again
        or installed.spec.tap is not None
    )


def renew_locked(sandbox: str, state: StateDirectory, load_text: LoadText) -> InstalledFence | None:
    """Do the same as :func:`renew` in the lock of :func:`renewal_lock`, which the caller must hold.

    ``load_text`` loads the ruleset, like :func:`nft.load`.
    """
    before = state.read(sandbox)
    # Another namespace at the same path is not the fenced one: its fence is a new one.
    if before is None or not before.namespace.has_identity(before.identity):
        return None
    before = dataclasses.replace(before, namespace=before.namespace.pinned(before.identity))
    # If no log transport worked for the recorded fence, try all transports again.
    transport = before.transport if before.degraded is None else None
    around = _survey_again(before.spec, before)
    return _install(
        before.spec, around, before.namespace, before.identity, state, transport, load_text
    )


def _install(  # noqa: PLR0913, PLR0917 - the arguments of install, and derived values
    spec: FenceSpec,
    around: Surroundings,
    namespace: Namespace,
    identity: str,
    state: StateDirectory,
    transport: LogTransport | None,
    load_text: LoadText,
) -> InstalledFence:
    before = state.read_or_none(spec.sandbox)
    known = before if before is not None and before.identity == identity else None
    # A process that watches the fence, and loads it itself, can't watch a table that is new.
    begins = load_text is nft.load
    spec, around = host_end.resolve(spec, around, namespace, known, begins=begins)
    replaced = None
    if before is None or (before.identity, before.spec.tables) != (identity, spec.tables):
        # If our fence is on record, another name in the table's comment is forged.
        replaced = table_query.replaced_sandbox(spec, around, namespace, state)
    for guard in spec.guard_tables:
        table_query.refuse_other_sandbox(spec.sandbox, HOST, guard)
    if before is not None:
        _refuse_other_namespace(before, namespace)
        spec = _with_previous_mode(spec, before, identity)
        if (
            (before.spec, before.around) == (spec, around)
            and (before.transport == transport if transport else before.degraded is None)
            and verification.is_of_this_version(before)
            and not before.is_ending
            and verification.verify(spec.sandbox, state, namespace).verdict == "as installed"
        ):  # not loaded again
            return _with_accepted(before, state)
    if load_text is nft.load:
        table_query.refuse_exclusive(namespace, spec.tables, state)
        table_query.refuse_exclusive(HOST, spec.guard_tables, state)
    intended = InstalledFence(
        spec=spec,
        around=around,
        namespace=namespace,
        identity=identity,
        transport=transport or TRANSPORTS[0],
        policy="",
        listings={},
        accepted=accepted_surroundings.of_fence(spec, around, namespace, before, state),
    )
    transports = (transport,) if transport else TRANSPORTS
    return _replace(before, replaced, intended, transports, state, load_text)


def remove(
    sandbox: str,
    state: StateDirectory,
    namespace: Namespace | None = None,
    device: str | None = None,
) -> bool:
    """Remove a sandbox's fence, its guard (an additional table on the host) and its record.

    ``namespace`` and ``device`` have the same meaning as in :func:`verification.verify`. If the
    namespace of the record no longer exists, the rest is removed. Return False if there was no
    fence any more. Raises AbsentError, UnsupportedError, FenceError.
    """
    was_there = False
    with state.locked(sandbox) if state.path.exists() else contextlib.nullcontext():
        installed = state.read(sandbox)
        if installed is not None:  # before anything is removed
            table_query.refuse_exclusive(HOST, installed.spec.guard_tables, state)
        where = namespace or (installed.namespace if installed else HOST)
        if installed is not None and where != installed.namespace:
            _refuse_other_namespace(installed, where)
        if installed is None or where.has_identity(installed.identity):
            tables = tables_of(device) if installed is None else installed.spec.tables
            table_id, _ = tables
            table_query.refuse_other_sandbox(sandbox, where, table_id)
            table_query.refuse_exclusive(where, tables, state)
            if installed is None and not verification.is_installed(where, device):
                raise AbsentError(f"there is no fence of sandbox {sandbox} in {where}")
            # First the forwarding that lets the VM's packets through the host, then the rules that
            # restrict them.
            ip_forwarding.release(where.identity(), where, state, besides=sandbox)
            was_there = table_changes.delete(where, tuple(tables))
        if installed is None:
            return was_there
        remove_guard(installed.spec)
        kernel_log_sysctl.release(sandbox, state)
        ip_forwarding.release(installed.identity, installed.namespace, state, besides=sandbox)
        state.delete(sandbox)
    return was_there


def _check_named_guard(spec: FenceSpec) -> None:
    named = None if spec.finds_guard else spec.guard_device
    if named is not None and named not in links.names():
        raise AbsentError(f"there is no interface {named} here to guard")


def _survey(spec: FenceSpec, namespace: Namespace) -> Surroundings:
    if spec.tap is not None:
        return links.survey_device(namespace, spec.tap.device)
    return pinned_survey.survey(spec, namespace)


def _survey_again(spec: FenceSpec, before: InstalledFence) -> Surroundings:
    if spec.tap is not None:
        return links.survey_device(before.namespace, spec.tap.device)
    return pinned_survey.survey_again(spec, before)


def _with_previous_mode(spec: FenceSpec, before: InstalledFence, identity: str) -> FenceSpec:
    # In another namespace, no counters of an earlier mode exist.
    has_changed = before.identity == identity and (
        before.spec.has_changed or before.spec.is_permissive != spec.is_permissive
    )
    return dataclasses.replace(spec, has_changed=has_changed)


def _with_accepted(installed: InstalledFence, state: StateDirectory) -> InstalledFence:
    """Return a record that has accepted surroundings, which a record of an older version lacks."""
    if installed.accepted is not None:
        return installed
    accepted = accepted_surroundings.of_fence(
        installed.spec, installed.around, installed.namespace, installed, state
    )
    if accepted is None:
        return installed
    found = dataclasses.replace(installed, accepted=accepted)
    state.write(found)
    return found


def _refuse_other_namespace(installed: InstalledFence, namespace: Namespace) -> None:
    """Raise FenceError if the sandbox's recorded fence is active in another namespace."""
    if namespace.identity() == installed.identity:
        return
    where = installed.namespace
    table_id, _ = installed.spec.tables
    if where.has_identity(installed.identity) and table_query.comment(where, *table_id) is not None:
        # A new record would replace the only record of that fence.
        raise FenceError(
            f"the fence of sandbox {installed.spec.sandbox} is installed in {where}, "
            f"not in {namespace}: remove that fence first"
        )


def _replace(  # noqa: PLR0913, PLR0917 - the old state, the new state, the means
    before: InstalledFence | None,
    replaced: str | None,
    intended: InstalledFence,
    transports: tuple[LogTransport, ...],
    state: StateDirectory,
    load_text: LoadText,
) -> InstalledFence:
    is_known = before is not None and before.identity == intended.identity
    is_new = not is_known and not load_ruleset.exists(intended)
    state.write(intended)  # a full disk must fail before anything changes
    if replaced is not None:
        state.delete(replaced)
    try:
        ip_forwarding.prepare(intended.spec, intended.namespace, state)
        loaded = load_ruleset.load(intended, before, transports, state, load_text)
    except OcsfNftError as error:
        try:
            if is_new:
                _remove_new(intended)
            _undo(before, intended, transports, state)
        except OcsfNftError as other:
            raise FenceError(f"{error}; then {other}") from error
        raise
    if before is not None:
        _remove_replaced(before, loaded)
    try:
        state.write(loaded)
    except DeliveryError:  # with its listings, it is larger than the first one
        if is_new:
            _remove_new(intended)
            _undo(before, intended, transports, state)
        raise
    # Only after the fence is active.
    ip_forwarding.switch_on(loaded.spec, loaded.namespace, state)
    if before is not None and before.identity != loaded.identity:
        ip_forwarding.release(before.identity, before.namespace, state)
    return loaded


def _remove_replaced(before: InstalledFence, now: InstalledFence) -> None:
    """Remove the tables of the previous fence (``before``) that the new fence does not have."""
    guard = set(before.spec.guard_tables) - set(now.spec.guard_tables)
    if now.identity == HOST.identity():
        guard -= set(now.spec.tables)  # a VM's link table has that name
    if guard:
        remove_guard(before.spec)
    left_over = set(before.spec.tables) - set(now.spec.tables)
    sandbox = before.spec.sandbox
    if before.identity == now.identity and any(
        table_query.owning_sandbox(now.namespace, table_id) == sandbox for table_id in left_over
    ):
        table_changes.delete(now.namespace, sorted(left_over))


def _remove_new(intended: InstalledFence) -> None:
    """Remove the tables of a fence that replaced none: without a record, nothing would do it."""
    with contextlib.suppress(OcsfNftError):  # the first error is raised
        table_changes.delete(intended.namespace, tuple(intended.spec.tables))
        remove_guard(intended.spec)


def _undo(
    before: InstalledFence | None,
    intended: InstalledFence,
    transports: tuple[LogTransport, ...],
    state: StateDirectory,
) -> None:
    sandbox = intended.spec.sandbox
    if before is None:
        try:
            kernel_log_sysctl.release(sandbox, state)
            ip_forwarding.release(intended.identity, intended.namespace, state, besides=sandbox)
        finally:
            state.delete(sandbox)
    else:
        state.write(before)
        if "kmsg" in transports or intended.spec.tap is not None:
            _restore_sysctls(before, state)


def _restore_sysctls(installed: InstalledFence, state: StateDirectory) -> InstalledFence:
    """Restore the sysctls that no fence needs any more; return ``installed`` unchanged."""
    sandbox = installed.spec.sandbox
    try:
        if installed.transport != "kmsg":
            kernel_log_sysctl.release(sandbox, state)
        ip_forwarding.release(installed.identity, installed.namespace, state)
    except UnsupportedError as error:
        raise FenceError(f"the fence of sandbox {sandbox} is installed, but {error}") from error
    return installed


def remove_guard(spec: FenceSpec) -> None:
    """Remove a fence's guard on the host, if it has one; raises the errors of :func:`remove`."""
    for guard in spec.guard_tables:
        table_query.refuse_other_sandbox(spec.sandbox, HOST, guard)
        table_changes.delete(HOST, [guard])
