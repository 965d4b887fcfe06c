"""Comparison of a sandbox's fence in the kernel with its record in the state directory.

The functions block, so asyncio code must call them in a thread. They need CAP_NET_ADMIN over the
fence's network namespaces, and CAP_SYS_ADMIN to enter another namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError
from ocsf_nft.fence import (
    host_end,
    ip_forwarding,
    kernel_log_sysctl,
    links,
    listing,
    pinned_survey,
    ruleset,
    table_query,
)
from ocsf_nft.fence.spec import tables_of
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.fence.listing import RulesetVersion
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

Verdict: TypeAlias = Literal["as installed", "differs", "absent"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Result of comparing a fence in the kernel with its record in the state directory.

    ``difference`` is a short text for people if ``verdict`` is "differs", else an empty text.
    ``installed`` is the record, or None without a record. ``version`` is that of a ruleset "as
    installed", if it is known.
    """

    verdict: Verdict
    difference: str = ""
    installed: InstalledFence | None = None
    version: RulesetVersion | None = None


def is_installed(namespace: Namespace, device: str | None = None) -> bool:
    """Return True if a namespace has a fence of any sandbox.

    With ``device``, only a fence for the VM on that TAP device counts. Raises UnsupportedError,
    FenceError.
    """
    table_id, _ = tables_of(device)
    return table_query.comment(namespace, *table_id) is not None


def verify(
    sandbox: str,
    state: StateDirectory,
    namespace: Namespace | None = None,
    device: str | None = None,
) -> Verification:
    """Compare a sandbox's present fence and interfaces with the record of the installation.

    The default of ``namespace`` is the namespace in the record. Without a record, the default is
    this process's own namespace. ``device`` is a VM's TAP device, needed only without a record.
    Raises AbsentError, UnsupportedError, FenceError.
    """
    installed = state.read(sandbox)
    if installed is None:  # then the result only states whether a fence is there
        where = namespace or HOST
        if not is_installed(where, device):
            return Verification(verdict="absent")
        return Verification(
            verdict="differs",
            difference=(
                f"a fence is installed in {where}, but {state.path} has no record of {sandbox}"
            ),
        )
    where = namespace or installed.namespace
    if not where.has_identity(installed.identity):
        return Verification(verdict="absent", installed=installed)
    version = listing.ruleset_version(installed, where)
    try:
        found = listing.of_fence(installed.spec, where)
    except table_query.UnlistedError as error:
        if not error.is_of_table:  # then another installation changes nothing
            raise
        return Verification(verdict="differs", difference=str(error), installed=installed)
    if not found:
        return Verification(verdict="absent", installed=installed)
    lines = _differences(installed, where, found)
    if lines:
        difference = "\n".join(listing.shortened(lines))
        return Verification(verdict="differs", difference=difference, installed=installed)
    return Verification(verdict="as installed", installed=installed, version=version)


def is_of_this_version(installed: InstalledFence) -> bool:
    """Return True if a fence has the present rules of its policy, not those of another version."""
    current = ruleset.digest(installed.spec, installed.around, installed.transport)
    return installed.policy == current


def _differences(
    installed: InstalledFence, where: Namespace, found: Mapping[str, str]
) -> list[str]:
    lines: list[str] = []
    if installed.transport == "kmsg":
        with contextlib.suppress(UnsupportedError):  # it can't be read from this namespace
            if kernel_log_sysctl.blocking_value(where) is not None:
                lines.append(
                    "net.netfilter.nf_log_all_netns is off: refused packets are not logged"
                )
    if not is_of_this_version(installed):
        lines.append("its policy is that of another version of ocsf-nft: install it again")
    lines += [
        f"{name} is off: packets of the VM are not forwarded"
        for name in ip_forwarding.disabled_sysctls(installed.spec, where)
    ]
    lines += _unfenced(installed, where)
    return lines + listing.difference(installed.listings, found)


def _unfenced(installed: InstalledFence, where: Namespace) -> list[str]:
    tap = installed.spec.tap
    if tap is None:
        now = pinned_survey.survey_again(
            installed.spec, dataclasses.replace(installed, namespace=where)
        )
        lines = pinned_survey.differences(installed.around, now)
        return lines + host_end.differences(installed, where)
    try:
        around = links.survey_device(where, tap.device)
    except (AbsentError, FenceError) as error:
        return [str(error)]
    if around == installed.around:
        return []
    return [f"the TAP device {tap.device} was created again since then: install the fence again"]
