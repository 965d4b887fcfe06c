"""What this host can do, found out by trying it, and what to do about what it can't.

The kernel's features are tried in a scratch namespace that ends with the check; nothing on the
host is changed.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft import netns
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import kernel_log, nft, ruleset
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, Surroundings
from ocsf_nft.fence.values import endpoint
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.sources.base import Source

#: ``fatal``: no fence can stand. ``degraded``: one can, and something is missing.
Severity: TypeAlias = Literal["ok", "degraded", "fatal"]

_PROBE: Final = FenceSpec(sandbox="check", proxies=(endpoint("192.0.2.1:3128"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried: what came of it, what that means, what to do about it."""

    name: str
    severity: Severity
    meaning: str
    remedy: str | None = None


def findings() -> Iterator[Finding]:
    """Everything that is worth knowing before a sandbox is fenced, in order of weight."""
    if sys.platform != "linux":
        yield Finding(
            name="system",
            severity="fatal",
            meaning=f"nftables needs Linux: on {sys.platform} only convert and explain work",
        )
        return
    yield _tried("nft", "fatal", "the nft program is there", _nft)
    yield _tried("namespaces", "degraded", "network namespaces can be made and entered", _scratch)
    yield _tried(
        "fence", "fatal", "the kernel takes the fence: reject, netdev egress, sets",
        lambda: _loads("none"),
    )  # fmt: skip
    yield _tried("nflog", "degraded", "the fence can log to NFLOG", lambda: _loads("nflog"))
    yield _tried(
        "nflog-reader", "degraded", "NFLOG can be read",
        lambda: netns.in_scratch(lambda: _opens(Nflog(netns.Namespace(), DEFAULT_GROUP))),
    )  # fmt: skip
    yield _tried(
        "kernel-log", "degraded", "the fence can log to the kernel log", lambda: _loads("kmsg")
    )
    yield _tried(
        "all-netns", "degraded", "records of other namespaces can be let into the kernel log",
        kernel_log.probe,
    )  # fmt: skip
    yield _tried("kmsg-reader", "degraded", "the kernel log can be read", lambda: _opens(Kmsg()))
    yield _tried("journal-reader", "degraded", "the journal can be read", lambda: _opens(Journal()))
    yield _tried(
        "guard", "degraded", "a guard can stand on the host's side: netdev ingress", _guard
    )


def verdict(found: list[Finding]) -> int:
    """The exit code: 0 a fence stands and its records are read, 1 in part, 3 no fence stands.

    One way to log and read is enough; the others are not missed.
    """
    bad = {finding.name for finding in found if finding.severity != "ok"}
    if any(finding.severity == "fatal" for finding in found):
        return 3
    by_nflog = not bad & {"nflog", "nflog-reader"}
    by_kernel_log = (
        not bad & {"kernel-log", "all-netns"} and not {"kmsg-reader", "journal-reader"} <= bad
    )
    return 0 if by_nflog or by_kernel_log else 1


def _tried(name: str, severity: Severity, promise: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except (OcsfNftError, OSError) as error:
        cause, _, remedy = str(error).partition(": ")
        return Finding(name=name, severity=severity, meaning=cause, remedy=remedy or None)
    return Finding(name=name, severity="ok", meaning=promise)


def _nft() -> None:
    nft.find()


def _scratch() -> None:
    netns.in_scratch(lambda: None)


def _loads(transport: LogTransport) -> None:
    text = ruleset.fence(_PROBE, Surroundings(), transport)
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


def _guard() -> None:
    text = ruleset.guard(_PROBE, Surroundings(), "none")
    netns.in_scratch(lambda: nft.load(netns.Namespace(), text))


def _opens(source: Source) -> None:
    async def enter_and_leave() -> None:
        async with source:
            pass

    asyncio.run(enter_and_leave())
