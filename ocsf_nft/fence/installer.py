"""Install, verify and remove a fence. Atomic, idempotent, and honest about what stands.

Everything here blocks for some milliseconds (nft, procfs): call it from a thread. It needs
CAP_NET_ADMIN over the sandbox's namespace, CAP_SYS_ADMIN to enter one that is not the process's
own, CAP_NET_ADMIN over the process's own namespace for a guard, and root on the host to switch on
the kernel-log transport.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import comparison, kernel_log, links, loading, nft, ruleset, standing
from ocsf_nft.fence.keeping import Place
from ocsf_nft.fence.spec import LADDER
from ocsf_nft.fence.state import Installed

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace

_OWNER: Final = re.compile(r"(?:fence|guard) of sandbox (.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Whether a fence stands as it was installed; ``difference`` is for people, and short.

    ``installed`` is the record that it was compared with, None when there is none.
    """

    verdict: Literal["as installed", "differs", "absent"]
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
    identity = namespace.identity()
    with state.locked():
        before = _on_record(spec.sandbox, state)
        if before is None or before.identity != identity:
            # Where ours is on record, another's name on the table is a disguise.
            _refuse_foreign(spec.sandbox, namespace, loading.fence_places(spec)[0])
        for guard in loading.guard_places(spec):
            _refuse_foreign(spec.sandbox, loading.HOST, guard)
        if before is not None:
            _refuse_elsewhere(before, namespace)
            if (
                (before.spec, before.around) == (spec, around)
                and (before.transport == transport if transport else before.degraded is None)
                and _is_of_this_version(before)
                and verify(spec.sandbox, state, namespace).verdict == "as installed"
            ):
                return _settled(before, state)
        intended = Installed(
            spec=spec,
            around=around,
            namespace=namespace,
            identity=identity,
            transport=transport or LADDER[0],
            policy="",
            listings={},
        )
        return _replace(before, intended, (transport,) if transport else LADDER, state)


def stands(namespace: Namespace, device: str | None = None) -> bool:
    """Whether any fence of ours stands in a namespace, or round the VM on a TAP device there.

    Raises UnsupportedError, FenceError.
    """
    return standing.comment(namespace, *_places(device)[0]) is not None


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
        where = namespace or loading.HOST
        if not stands(where, device):
            return Verification(verdict="absent")
        return Verification(
            verdict="differs",
            difference=f"a fence stands in {where}, but {state.path} has no record of {sandbox}",
        )
    where = namespace or installed.namespace
    if not _is_there(installed, where):
        return Verification(verdict="absent", installed=installed)
    found = loading.listings(installed.spec, where)
    if not found:
        return Verification(verdict="absent", installed=installed)
    lines: list[str] = []
    if installed.transport == "kmsg":
        with contextlib.suppress(UnsupportedError):  # from here nobody can tell
            if kernel_log.blocked(where) is not None:
                lines.append("net.netfilter.nf_log_all_netns is off: nothing refused is logged")
    if not _is_of_this_version(installed):
        lines.append("its policy is that of another version of ocsf-nft: install it again")
    lines += _unfenced(installed, where)
    lines += comparison.difference(installed.listings, found)
    if lines:
        difference = "\n".join(comparison.shortened(lines))
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
        where = namespace or (installed.namespace if installed else loading.HOST)
        if installed is not None:
            _refuse_elsewhere(installed, where)
        if installed is None or _is_there(installed, where):
            places = _places(device) if installed is None else loading.fence_places(installed.spec)
            _refuse_foreign(sandbox, where, places[0])
            if installed is None and not stands(where, device):
                raise AbsentError(f"there is no fence of sandbox {sandbox} in {where}")
            nft.load(where, ruleset.removal(places))
        if installed is None:
            return
        _remove_guard(installed.spec)
        _release_kernel_log(sandbox, state)
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
    except AbsentError as error:
        return [str(error)]
    if around == installed.around:
        return []
    return [f"the TAP device {tap.device} was made anew since: install the fence again"]


def _is_of_this_version(installed: Installed) -> bool:
    current = ruleset.digest(installed.spec, installed.around, installed.transport)
    return installed.policy == current


def _refuse_foreign(sandbox: str, namespace: Namespace, place: Place) -> None:
    owner = _OWNER.fullmatch(standing.comment(namespace, *place) or "")
    if owner is not None and owner[1] != sandbox:
        raise FenceError(
            f"the table {place.table} in {namespace} is that of sandbox {owner[1]}: "
            "remove that one first"
        )


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


def _is_there(installed: Installed, namespace: Namespace) -> bool:
    try:
        return namespace.identity() == installed.identity
    except AbsentError:
        return False


def _replace(
    before: Installed | None,
    intended: Installed,
    rungs: tuple[LogTransport, ...],
    state: StateDirectory,
) -> Installed:
    state.write(intended)  # a disk that is full must show before anything is changed
    try:
        loaded = loading.load(intended, rungs, state)
    except OcsfNftError:
        _undo(before, intended.spec.sandbox, state)
        raise
    if before is not None and before.spec.guard_device != loaded.spec.guard_device:
        _remove_guard(before.spec)
    state.write(loaded)
    return _settled(loaded, state)


def _undo(before: Installed | None, sandbox: str, state: StateDirectory) -> None:
    """Put on record what stood before, and the sysctl back when it was switched for nothing."""
    if before is None:
        _release_kernel_log(sandbox, state)
        state.forget(sandbox)
    else:
        state.write(before)
        _settled(before, state)


def _settled(installed: Installed, state: StateDirectory) -> Installed:
    """A fence on record, with the sysctl put back that it does not need any more."""
    if installed.transport != "kmsg":
        sandbox = installed.spec.sandbox
        try:
            _release_kernel_log(sandbox, state)
        except UnsupportedError as error:
            raise FenceError(f"the fence of sandbox {sandbox} stands, but {error}") from error
    return installed


def _places(device: str | None) -> tuple[Place, ...]:
    """The tables of a fence that nothing more is known of."""
    tables = ruleset.tables_of("sandbox" if device is None else "tap", device)
    return tuple(Place(table.family, table.name) for table in tables)


def _remove_guard(spec: FenceSpec) -> None:
    for guard in loading.guard_places(spec):
        _refuse_foreign(spec.sandbox, loading.HOST, guard)
        nft.load(loading.HOST, ruleset.removal([guard]))


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
    kernel_log.restore(before)
    state.forget_all_netns_before()
