"""Preparation of the netlink messages with which the tamper guard restores a fence."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import structlog

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import listing, restore_batch, verification

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.restore_batch import RestoreBatch
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.service.fences import Fence

_log = structlog.get_logger()

_Version: TypeAlias = "tuple[int, ...] | None"


def prepare_restore(
    fence: Fence,
    state: StateDirectory,
    known: _Version,
    now: Callable[[], tuple[int, ...]],
    *,
    compiles: bool,
) -> tuple[RestoreBatch | None, _Version, tuple[int, ...] | None] | None:
    """Prepare the netlink messages that restore a fence to its stored description.

    Return the arguments of :meth:`TamperGuard.use_restore_batch`; unavailable arguments are None.
    Without ``compiles``, the messages are not prepared. ``fence`` is the fence at the start of the
    service. ``now`` returns the argument ``generations``. If the description still has the version
    ``known``, return None instead of a tuple.
    """
    sandbox = fence.installed.spec.sandbox
    version = state.version(sandbox)  # read before the record, so that it is never too new
    if version == known:
        return None
    generations = None
    # Without an answer in time, the guard may take unread notices of an installation for tampering.
    with contextlib.suppress(OSError):
        generations = now()
    try:
        installed = state.read(sandbox)
        if installed is None:
            return None, version, None
        prepared = restore_batch.prepare(installed) if compiles else None
    except OcsfNftError as error:
        _log.warning("restoring the fence will take longer", sandbox=sandbox, reason=str(error))
        return None, version, None
    # The guard reverts no changes up to ``generations``, so they must not include a difference.
    return prepared, version, generations if _is_as_installed(fence, installed, state) else None


def _is_as_installed(fence: Fence, installed: InstalledFence, state: StateDirectory) -> bool:
    # Nothing is listed if nothing has changed since the start.
    if fence.version is not None and fence.installed == installed:
        found = listing.ruleset_version(installed, installed.namespace)
        if found == fence.version:
            return True
    with contextlib.suppress(OcsfNftError):  # the next check reports it
        return verification.verify(installed.spec.sandbox, state).verdict == "as installed"
    return False
