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

from ocsf_nft import netns
from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import comparison, keeping, kernel_log, links, nft, ruleset, standing
from ocsf_nft.fence.keeping import Place
from ocsf_nft.fence.spec import LADDER
from ocsf_nft.fence.state import Installed
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, Surroundings
    from ocsf_nft.fence.state import StateDirectory

_OWNER: Final = re.compile(r"(?:fence|guard) of sandbox (.*)", re.DOTALL)

#: Where a guard stands: on the host's side, which is where the installer runs.
_HOST: Final = Namespace()
_FENCE: Final = tuple(Place(family, ruleset.TABLE) for family in ruleset.FAMILIES)
_REMOVAL: Final = ruleset.removal(_FENCE)
#: In a look, more elements than were allowed and so many are counted no further.
_ELEMENTS: Final = 1000


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
            _refuse_foreign(spec.sandbox, namespace, _FENCE[0])
        for guard in _guard(spec):
            _refuse_foreign(spec.sandbox, _HOST, guard)
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


def stands(namespace: Namespace) -> bool:
    """Whether any fence of ours stands in a namespace; raises UnsupportedError, FenceError."""
    return standing.comment(namespace, *_FENCE[0]) is not None


def verify(sandbox: str, state: StateDirectory, namespace: Namespace | None = None) -> Verification:
    """Compare what stands with what was installed, rule by rule, and the links with those fenced.

    Raises UnsupportedError when it may not look, FenceError when the record is damaged.
    """
    installed = state.read(sandbox)
    if installed is None:
        where = namespace or _HOST
        if not stands(where):
            return Verification(verdict="absent")
        return Verification(
            verdict="differs",
            difference=f"a fence stands in {where}, but {state.path} has no record of {sandbox}",
        )
    where = namespace or installed.namespace
    if not _is_there(installed, where):
        return Verification(verdict="absent", installed=installed)
    found = _listings(installed.spec, where)
    if not found:
        return Verification(verdict="absent", installed=installed)
    lines: list[str] = []
    if installed.transport == "kmsg":
        with contextlib.suppress(UnsupportedError):  # from here nobody can tell
            if kernel_log.blocked(where) is not None:
                lines.append("net.netfilter.nf_log_all_netns is off: nothing refused is logged")
    if not _is_of_this_version(installed):
        lines.append("its policy is that of another version of ocsf-nft: install it again")
    if links_now := set(where.call(links.names)) - set(installed.around.links):
        lines.append(f"not fenced at the link layer: {', '.join(sorted(links_now))}")
    lines += comparison.difference(installed.listings, found)
    if lines:
        difference = "\n".join(comparison.shortened(lines))
        return Verification(verdict="differs", difference=difference, installed=installed)
    return Verification(verdict="as installed", installed=installed)


def remove(sandbox: str, state: StateDirectory, namespace: Namespace | None = None) -> None:
    """Take a fence away, guard and record too.

    Raises AbsentError when there is none, FenceError when the one that stands there is another
    sandbox's, UnsupportedError when it is not permitted.
    """
    with state.locked() if state.path.exists() else contextlib.nullcontext():
        installed = state.read(sandbox)
        where = namespace or (installed.namespace if installed else _HOST)
        if installed is not None:
            _refuse_elsewhere(installed, where)
        if installed is None or _is_there(installed, where):
            _refuse_foreign(sandbox, where, _FENCE[0])
            if installed is None and not stands(where):
                raise AbsentError(f"there is no fence of sandbox {sandbox} in {where}")
            nft.load(where, _REMOVAL)
        if installed is None:
            return
        _remove_guard(installed.spec)
        _release_kernel_log(sandbox, state)
        state.forget(sandbox)


def _survey(spec: FenceSpec, namespace: Namespace) -> Surroundings:
    around = links.survey(namespace, (place.address for place in spec.allowed))
    # nft loads a chain on a device that is not there without a word, and it guards nothing.
    if spec.guard_device is not None and spec.guard_device not in links.names():
        raise AbsentError(f"there is no interface {spec.guard_device} here to guard")
    return around


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
    if _is_there(installed, installed.namespace) and stands(installed.namespace):
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
        loaded = _load(intended, rungs, state)
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


def _load(intended: Installed, rungs: tuple[LogTransport, ...], state: StateDirectory) -> Installed:
    failures: list[str] = []
    for rung in rungs:
        try:
            if rung == "kmsg":
                _open_kernel_log(intended.namespace, state)
            degraded = "; ".join(failures) if rung == "none" and failures else None
            return dataclasses.replace(_load_rung(intended, rung), degraded=degraded)
        except OcsfNftError as error:
            # Only a log that can't be had leads a rung down; that a fence can't stand does not.
            if rung == rungs[-1] or not isinstance(error, UnsupportedError):
                raise
            failures.append(f"{rung}: {error}")
    raise AssertionError("the ladder has a last rung")


def _open_kernel_log(namespace: Namespace, state: StateDirectory) -> None:
    value = kernel_log.blocked(namespace)
    if value is None:
        return
    is_first = state.all_netns_before() is None
    if is_first:  # written before it is switched, so that it is put back whatever happens between
        state.keep_all_netns_before(value)
    try:
        kernel_log.enable()
    except UnsupportedError:
        if is_first:
            state.forget_all_netns_before()
        raise


def _load_rung(intended: Installed, rung: LogTransport) -> Installed:
    spec, around = intended.spec, intended.around
    kept = _load_all(intended, rung, keep=True)
    listings = _listings(spec, intended.namespace)
    expected = _expected(spec, around, rung)
    if expected is not None:
        lines = comparison.difference(expected, listings)
        if lines and kept:  # something of what stood is still there: then without keeping any of it
            _load_all(intended, rung, keep=False)
            listings = _listings(spec, intended.namespace)
            lines = comparison.difference(expected, listings)
        if lines:
            # The first three lines name both sides and the place; what differs comes after.
            altered = " ".join(comparison.shortened(lines[3:6]))
            raise FenceError(
                f"the fence in {intended.namespace} was altered while it was installed: {altered}"
            )
    policy = ruleset.digest(spec, around, rung)
    return dataclasses.replace(intended, transport=rung, policy=policy, listings=listings)


def _load_all(intended: Installed, rung: LogTransport, *, keep: bool) -> bool:
    """Load fence and guard; whether something of what stood was kept."""
    spec, around, namespace = intended.spec, intended.around, intended.namespace
    stood = stands(namespace)
    kept = _load_tables(namespace, _FENCE, ruleset.sandbox(spec, around, rung), keep=keep)
    if spec.guard_device is None:
        return kept
    try:
        guard = ruleset.guard(spec, around, rung)
        return _load_tables(_HOST, _guard(spec), guard, keep=keep) or kept
    except OcsfNftError as error:
        if stood:
            raise FenceError(f"the fence inside was replaced, but the guard: {error}") from error
        nft.load(namespace, _REMOVAL)
        raise


def _load_tables(
    namespace: Namespace, places: tuple[Place, ...], definition: str, *, keep: bool
) -> bool:
    """Load a definition; whether what the tables had counted was kept."""
    if keep:
        listings = {place: nft.listing(namespace, *place) for place in places}
        stood = {place: text for place, text in listings.items() if text is not None}
        text = keeping.text(definition, stood) if stood else None
        if text is not None:
            # What is wrong with the definition itself is said when it is loaded without keeping.
            with contextlib.suppress(FenceError, UnsupportedError):
                nft.load(namespace, text)
                return True
    nft.load(namespace, definition)
    return False


def _expected(spec: FenceSpec, around: Surroundings, rung: LogTransport) -> dict[str, str] | None:
    """How nft lists the fence where nobody can have touched it: in a scratch namespace.

    None where there can't be one: without CAP_SYS_ADMIN, or on a kernel that takes no chain for
    a device that is not there (before 6.16).
    """

    def load_and_list() -> dict[str, str]:
        nft.load(_HOST, ruleset.sandbox(spec, around, rung))
        if spec.guard_device is not None:
            nft.load(_HOST, ruleset.guard(spec, around, rung))
        return _listings(spec, _HOST)

    try:
        return netns.in_scratch(load_and_list)
    except OcsfNftError:
        return None


def _guard(spec: FenceSpec) -> tuple[Place, ...]:
    """The table of the guard, if one is wanted."""
    device = spec.guard_device
    return () if device is None else (Place("netdev", ruleset.guard_table(device)),)


def _remove_guard(spec: FenceSpec) -> None:
    for guard in _guard(spec):
        _refuse_foreign(spec.sandbox, _HOST, guard)
        nft.load(_HOST, ruleset.removal([guard]))


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


def _listings(spec: FenceSpec, namespace: Namespace) -> dict[str, str]:
    """What stands, by ``family name``: each table as nft lists it, and who is let through."""
    most = len(spec.allowed) + _ELEMENTS
    places = [(namespace, place) for place in _FENCE] + [(_HOST, place) for place in _guard(spec)]
    found = {}
    for where, place in places:
        listing = nft.listing(where, *place)
        if listing is not None:
            elements = standing.elements(where, *place, ruleset.STATIC_SETS, most)
            found[" ".join(place)] = listing + "".join(f"{line}\n" for line in elements)
    return found
