"""Install, verify and remove a fence. Atomic, idempotent, and honest about what stands.

Everything here blocks for some milliseconds (nft, procfs): call it from a thread. It needs
CAP_NET_ADMIN over the sandbox's namespace, CAP_SYS_ADMIN to enter one that is not the process's
own, CAP_NET_ADMIN over the process's own namespace for a guard, and root on the host to switch on
the kernel-log transport.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import (
    ip_forwarding,
    kernel_log_sysctl,
    links,
    load_ruleset,
    nft,
    ruleset,
    ruleset_diff,
    table_owner,
    table_query,
)
from ocsf_nft.fence.replace_keeping_counters import Place
from ocsf_nft.fence.spec import LADDER
from ocsf_nft.fence.state import Installed

if TYPE_CHECKING:
    from ocsf_nft.fence.load_ruleset import LoadText
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace

Verdict: TypeAlias = Literal["as installed", "differs", "absent"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether a fence stands as it was installed; ``difference`` is for people, and short.

    ``installed`` is the record that it was compared with, None when there is none.
    """

    verdict: Verdict
    difference: str = ""
    installed: Installed | None = None


def plan(spec: FenceSpec, namespace: Namespace, transport: LogTransport) -> str:
    """The rulesets that ``install`` would load now, as text; nothing is changed."""
    return ruleset.whole(spec, _survey(spec, namespace), transport)


def install(
    spec: FenceSpec,
    namespace: Namespace,
    state: StateDirectory,
    transport: LogTransport | None = None,
) -> Installed:
    """Fence a namespace, or replace its fence, and put on record what now stands.

    ``transport`` None climbs down the ladder: NFLOG, else the kernel log, else no log rules at
    all, in which case ``degraded`` of the result says why. A transport that is asked for by name
    is used or the installation fails. Installing what stands already changes nothing.

    Raises AbsentError, UnsupportedError, FenceError or DeliveryError. What stood before still
    stands then, except where the sentence says otherwise.
    """
    around = _survey(spec, namespace)
    with state.locked():
        return _install(spec, around, namespace, state, transport, nft.load)


def renew(sandbox: str, state: StateDirectory) -> Installed | None:
    """Put a fence back as it is on record; None where it is on none: it was removed.

    What stands as it was installed, among the links that there were, is not touched. Raises what
    :func:`install` does.
    """
    with state.locked():
        return put_back(sandbox, state, nft.load)


def put_back(sandbox: str, state: StateDirectory, load_text: LoadText) -> Installed | None:
    """What :func:`renew` does, for who holds the lock on the records."""
    before = state.read(sandbox)
    if before is None:
        return None
    # The ladder is climbed down again where it had to be before, and maybe not as far.
    transport = before.transport if before.degraded is None else None
    around = _survey(before.spec, before.namespace)
    return _install(before.spec, around, before.namespace, state, transport, load_text)


def _install(  # noqa: PLR0913, PLR0917 - what install is given, and two that it has found
    spec: FenceSpec,
    around: Surroundings,
    namespace: Namespace,
    state: StateDirectory,
    transport: LogTransport | None,
    load_text: LoadText,
) -> Installed:
    identity = namespace.identity()
    before = _on_record(spec.sandbox, state)
    former = None
    places = load_ruleset.fence_places(spec)
    if before is None or (before.identity, load_ruleset.fence_places(before.spec)) != (
        identity,
        places,
    ):
        # Where ours is on record, another's name on the table is a disguise.
        former = table_owner.former(spec, around, namespace, state)
    for guard in load_ruleset.guard_places(spec):
        table_owner.refuse_foreign(spec.sandbox, load_ruleset.HOST, guard)
    if before is not None:
        _refuse_elsewhere(before, namespace)
        spec = _with_the_past(spec, before, identity)
        if (
            (before.spec, before.around) == (spec, around)
            and (before.transport == transport if transport else before.degraded is None)
            and _is_of_this_version(before)
            and verify(spec.sandbox, state, namespace).verdict == "as installed"
        ):
            return _settled(before, state)
    if load_text is nft.load:
        table_owner.refuse_held(namespace, places, state)
        table_owner.refuse_held(load_ruleset.HOST, load_ruleset.guard_places(spec), state)
    intended = Installed(
        spec=spec,
        around=around,
        namespace=namespace,
        identity=identity,
        transport=transport or LADDER[0],
        policy="",
        listings={},
    )
    rungs = (transport,) if transport else LADDER
    return _replace(before, former, intended, rungs, state, load_text)


def stands(namespace: Namespace, device: str | None = None) -> bool:
    """Whether any fence of ours stands in a namespace, or round the VM on a TAP device there.

    Raises UnsupportedError, FenceError.
    """
    return table_query.comment(namespace, *_places(device)[0]) is not None


def verify(
    sandbox: str,
    state: StateDirectory,
    namespace: Namespace | None = None,
    device: str | None = None,
) -> Verification:
    """Compare what stands with what was installed, rule by rule, and the links with those fenced.

    ``device`` is a VM's TAP device, for a fence that is not on record. Raises UnsupportedError when
    it may not look, FenceError when the record is damaged.
    """
    installed = state.read(sandbox)
    if installed is None:
        where = namespace or load_ruleset.HOST
        if not stands(where, device):
            return Verification(verdict="absent")
        return Verification(
            verdict="differs",
            difference=f"a fence stands in {where}, but {state.path} has no record of {sandbox}",
        )
    where = namespace or installed.namespace
    if not _is_there(installed, where):
        return Verification(verdict="absent", installed=installed)
    found = load_ruleset.listings(installed.spec, where)
    if not found:
        return Verification(verdict="absent", installed=installed)
    lines: list[str] = []
    if installed.transport == "kmsg":
        with contextlib.suppress(UnsupportedError):  # from here nobody can tell
            if kernel_log_sysctl.blocked(where) is not None:
                lines.append("net.netfilter.nf_log_all_netns is off: nothing refused is logged")
    if not _is_of_this_version(installed):
        lines.append("its policy is that of another version of ocsf-nft: install it again")
    lines += [
        f"{name} is off: nothing of the VM is forwarded"
        for name in ip_forwarding.off(installed.spec, where)
    ]
    lines += _unfenced(installed, where)
    lines += ruleset_diff.difference(installed.listings, found)
    if lines:
        difference = "\n".join(ruleset_diff.shortened(lines))
        return Verification(verdict="differs", difference=difference, installed=installed)
    return Verification(verdict="as installed", installed=installed)


def remove(
    sandbox: str,
    state: StateDirectory,
    namespace: Namespace | None = None,
    device: str | None = None,
) -> None:
    """Take a fence away, guard and record too.

    ``device`` is a VM's TAP device, for a fence not on record. Raises AbsentError when there
    is none, FenceError when the one that stands there is another sandbox's, UnsupportedError when
    it is not permitted.
    """
    with state.locked() if state.path.exists() else contextlib.nullcontext():
        installed = state.read(sandbox)
        if installed is not None:  # before anything is taken away
            table_owner.refuse_held(
                load_ruleset.HOST, load_ruleset.guard_places(installed.spec), state
            )
        where = namespace or (installed.namespace if installed else load_ruleset.HOST)
        if installed is not None:
            _refuse_elsewhere(installed, where)
        if installed is None or _is_there(installed, where):
            places = (
                _places(device) if installed is None else load_ruleset.fence_places(installed.spec)
            )
            table_owner.refuse_foreign(sandbox, where, places[0])
            table_owner.refuse_held(where, places, state)
            if installed is None and not stands(where, device):
                raise AbsentError(f"there is no fence of sandbox {sandbox} in {where}")
            # First what lets the VM's packets through the host, then what holds them back.
            _release_forwarding(where.identity(), where, state, besides=sandbox)
            load_ruleset.remove(where, places)
        if installed is None:
            return
        _remove_guard(installed.spec)
        _release_kernel_log(sandbox, state)
        _release_forwarding(installed.identity, installed.namespace, state, besides=sandbox)
        state.forget(sandbox)


def _survey(spec: FenceSpec, namespace: Namespace) -> Surroundings:
    if spec.tap is not None:
        return links.survey_device(namespace, spec.tap.device)
    around = links.survey(namespace, (place.address for place in spec.allowed))
    # nft loads a chain on a device that is not there without a word, and it guards nothing.
    if spec.guard_device is not None and spec.guard_device not in links.names():
        raise AbsentError(f"there is no interface {spec.guard_device} here to guard")
    return around


def _unfenced(installed: Installed, where: Namespace) -> list[str]:
    """What is said of links that are there and not fenced, or of a VM's that is another one now."""
    tap = installed.spec.tap
    if tap is None:
        more = set(where.call(links.names)) - set(installed.around.links)
        return [f"not fenced at the link layer: {', '.join(sorted(more))}"] if more else []
    try:
        around = links.survey_device(where, tap.device)
    except (AbsentError, FenceError) as error:
        return [str(error)]
    if around == installed.around:
        return []
    return [f"the TAP device {tap.device} was made anew since: install the fence again"]


def _with_the_past(spec: FenceSpec, before: Installed, identity: str) -> FenceSpec:
    """The same, knowing of the fence that stands there whether it was of the other kind."""
    has_changed = before.identity == identity and (
        before.spec.has_changed or before.spec.is_permissive != spec.is_permissive
    )
    return dataclasses.replace(spec, has_changed=has_changed)


def _is_of_this_version(installed: Installed) -> bool:
    current = ruleset.digest(installed.spec, installed.around, installed.transport)
    return installed.policy == current


def _refuse_elsewhere(installed: Installed, namespace: Namespace) -> None:
    """One record is one fence: it must not be lost sight of while it stands."""
    if namespace.identity() == installed.identity:
        return
    device = None if installed.spec.tap is None else installed.spec.tap.device
    if _is_there(installed, installed.namespace) and stands(installed.namespace, device):
        raise FenceError(
            f"the fence of sandbox {installed.spec.sandbox} stands in {installed.namespace}, "
            f"not in {namespace}: remove that one first"
        )


def _on_record(sandbox: str, state: StateDirectory) -> Installed | None:
    try:
        return state.read(sandbox)
    except FenceError:  # damaged: what is about to be installed is put on record anew
        return None


def _may_stand(installed: Installed, namespace: Namespace) -> bool:
    """Whether a fence on record stands; by another path than one that is gone it still may."""
    return not _is_there(installed, namespace) or any(
        table_query.comment(namespace, *place) is not None
        for place in load_ruleset.fence_places(installed.spec)
    )


def _is_there(installed: Installed, namespace: Namespace) -> bool:
    try:
        return namespace.identity() == installed.identity
    except AbsentError:
        return False


def _replace(  # noqa: PLR0913, PLR0917 - what was, what is to be, and how
    before: Installed | None,
    former: str | None,
    intended: Installed,
    rungs: tuple[LogTransport, ...],
    state: StateDirectory,
    load_text: LoadText,
) -> Installed:
    state.write(intended)  # a disk that is full must show before anything is changed
    if former is not None:
        state.forget(former)
    try:
        ip_forwarding.prepare(intended.spec, intended.namespace, state)
        loaded = load_ruleset.load(intended, rungs, state, load_text)
    except OcsfNftError:
        _undo(before, intended, state)
        raise
    if before is not None:
        _remove_former(before, loaded)
    state.write(loaded)
    # Never before the fence stands.
    ip_forwarding.switch_on(loaded.spec, loaded.namespace, state)
    if before is not None and before.identity != loaded.identity:
        _release_forwarding(before.identity, before.namespace, state)
    return _settled(loaded, state)


def _remove_former(before: Installed, now: Installed) -> None:
    """Remove what stood before, and now stands no more in its place but beside it."""
    guard = set(load_ruleset.guard_places(before.spec)) - set(load_ruleset.guard_places(now.spec))
    if now.identity == load_ruleset.HOST.identity():
        guard -= set(load_ruleset.fence_places(now.spec))  # a VM's link, which has that name
    if guard:
        _remove_guard(before.spec)
    former = set(load_ruleset.fence_places(before.spec)) - set(load_ruleset.fence_places(now.spec))
    sandbox = before.spec.sandbox
    if before.identity == now.identity and any(
        table_owner.owner(now.namespace, place) == sandbox for place in former
    ):
        load_ruleset.remove(now.namespace, sorted(former))


def _undo(before: Installed | None, intended: Installed, state: StateDirectory) -> None:
    """Put on record what stood before, and the sysctls back when switched for nothing."""
    sandbox = intended.spec.sandbox
    if before is None:
        _release_kernel_log(sandbox, state)
        _release_forwarding(intended.identity, intended.namespace, state, besides=sandbox)
        state.forget(sandbox)
    else:
        state.write(before)
        _settled(before, state)


def _settled(installed: Installed, state: StateDirectory) -> Installed:
    """A fence on record, with the sysctls put back that it does not need any more."""
    sandbox = installed.spec.sandbox
    try:
        if installed.transport != "kmsg":
            _release_kernel_log(sandbox, state)
        _release_forwarding(installed.identity, installed.namespace, state)
    except UnsupportedError as error:
        raise FenceError(f"the fence of sandbox {sandbox} stands, but {error}") from error
    return installed


def _places(device: str | None) -> tuple[Place, ...]:
    """The tables of a fence that nothing more is known of."""
    tables = ruleset.tables_of("sandbox" if device is None else "tap", device)
    return tuple(Place(table.family, table.name) for table in tables)


def _remove_guard(spec: FenceSpec) -> None:
    for guard in load_ruleset.guard_places(spec):
        table_owner.refuse_foreign(spec.sandbox, load_ruleset.HOST, guard)
        load_ruleset.remove(load_ruleset.HOST, [guard])


def _release_kernel_log(sandbox: str, state: StateDirectory) -> None:
    """Put the sysctl back, unless another fence on record needs it, or may (a damaged record)."""
    before = state.all_netns_before()
    if before is None:
        return
    for other in state.sandboxes():
        if other != sandbox:
            found = _on_record(other, state)
            if found is None or found.transport == "kmsg":
                return
    kernel_log_sysctl.restore(before)
    state.forget_all_netns_before()


def _release_forwarding(
    identity: str, namespace: Namespace, state: StateDirectory, *, besides: str | None = None
) -> None:
    """Put IP forwarding back, unless a fence that stands needs it, or may (a damaged record).

    Not that of ``besides``, nor what is on record alone, maybe from before the machine's start.
    """
    if state.forwarding_before(identity) is None:
        return
    others = []
    for other in state.sandboxes():
        if other != besides:
            found = _on_record(other, state)
            if found is None:
                return
            if found.identity == identity and _may_stand(found, namespace):
                others.append(found.spec)
    ip_forwarding.release(identity, namespace, others, state)
